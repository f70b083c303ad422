package capability

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"openmesh/protocols/wire"
)

func TestStore(t *testing.T) {
	t.Parallel()
	src, home := t.TempDir(), filepath.Join(t.TempDir(), "capabilities")
	write(t, filepath.Join(src, "fx.proto"), protoFile)
	write(t, filepath.Join(src, "fx/common.proto"), protoCommon)
	s := NewStore(home)
	if caps, errs := s.Load(); caps != nil || errs != nil {
		t.Fatalf("before the first: %v, %v", caps, errs)
	}
	one := parseOK(t, string(Example()), filepath.Join(src, "fx.yaml"))
	two := parseOK(t, protoCapability, filepath.Join(src, "two.yaml"))
	for _, c := range []*Capability{one, two, one} {
		if err := s.Save(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(src); err != nil { // what was parsed needs its sources no more
		t.Fatal(err)
	}
	caps, errs := s.Load()
	if diff := cmp.Diff([]*Capability{one, two}, caps); diff != "" || errs != nil {
		t.Errorf("%v -want +got:\n%s", errs, diff)
	}
	if err := s.Remove(one.Name); err != nil {
		t.Error(err)
	}
	if err := s.Remove(one.Name); wire.CodeOf(err) != wire.NotFound {
		t.Errorf("removed twice: %v", err)
	}
	if caps, _ := s.Load(); len(caps) != 1 || caps[0].Name != two.Name {
		t.Errorf("after removal: %v", caps)
	}
}

func TestStoreReportsEachFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := NewStore(dir)
	if err := s.Save(parseOK(t, "name: good\nversion: 1.0.0\nhandler: {api: {}}\n", "a.yaml")); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, "good.json"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "garbage.json"), "{")
	write(t, filepath.Join(dir, "broken.json"), `{"file":"/x/b.yaml","document":"name: B\n"}`)
	write(t, filepath.Join(dir, "lost.json"), `{"file":"/x/l.yaml","document":"name: lost\nversion: 1.0.0\nhandler: {api: {}}\nrequest: {proto: a.proto, message: a.B}\n"}`)
	write(t, filepath.Join(dir, "renamed.json"), string(good))
	write(t, filepath.Join(dir, ".new-123"), "{") // left by a crash
	write(t, filepath.Join(dir, "README"), "not ours")
	caps, errs := s.Load()
	if len(caps) != 1 || caps[0].Name != "good" {
		t.Errorf("%v", caps)
	}
	for i, want := range []string{"broken.json: invalid_argument: /x/b.yaml:1:7", "garbage.json", "lost.json", "renamed.json"} {
		if len(errs) != 4 || !strings.Contains(errs[i].Error(), want) {
			t.Fatalf("got %v, want %s", errs, want)
		}
	}
}

func TestStoreRefuses(t *testing.T) {
	t.Parallel()
	s := NewStore(t.TempDir())
	for _, c := range []*Capability{{Name: "../x", Document: []byte("a")}, {Name: "a"}} {
		if err := s.Save(c); wire.CodeOf(err) != wire.InvalidArgument {
			t.Errorf("%s: %v", c.Name, err)
		}
	}
	if err := s.Remove("../x"); wire.CodeOf(err) != wire.InvalidArgument {
		t.Error(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "")
	c := parseOK(t, "name: a\nversion: 1.0.0\nhandler: {api: {}}\n", "a.yaml")
	if err := NewStore(file).Save(c); err == nil {
		t.Error("saved into a file")
	}
	if _, errs := NewStore(file).Load(); len(errs) != 1 {
		t.Errorf("loaded from a file: %v", errs)
	}
}

func TestStoreIsPrivate(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "c")
	if err := NewStore(dir).Save(parseOK(t, string(Example()), "a.yaml")); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "finance.fx-pricing.json"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
}
