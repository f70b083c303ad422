package translate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"openmesh/protocols/wire"
)

// registry has translations a@FROM to a@TO, for "FROM TO", that add /FROM.
func registry(t testing.TB, pairs ...string) *Registry {
	t.Helper()
	g := NewRegistry()
	for _, pair := range pairs {
		from, to, _ := strings.Cut(pair, " ")
		file := fmt.Sprintf("translate: {from: a@%s, to: a@%s}\nsteps: [set: {at: /%s, value: 1}]\n", from, to, from)
		if err := g.Add([]byte(file), pair+".yaml"); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

func TestPath(t *testing.T) {
	t.Parallel()
	g := registry(t, "1.0.0 2.0.0", "2.0.0 3.0.0", "3.0.0 4.0.0", "4.0.0 5.0.0", "5.0.0 6.0.0",
		"1.0.0 1.1.0", "1.1.0 3.0.0", "9.0.0 9.1.0-rc.1")
	for _, tc := range []struct{ from, to, want string }{
		{"a@1.0.0", "a@v1.0.0", "[a@v1.0.0]"},
		{"a@v1.0.0", "a@2.0.0", "[a@v1.0.0 a@v2.0.0]"},
		{"a@2.0.0", "a@1.0.0", "[a@v2.0.0 a@v1.0.0]"},
		{"a@1.0.0", "a@3.0.0", "[a@v1.0.0 a@v2.0.0 a@v3.0.0]"}, // through 2.0.0, not 1.1.0
		{"a@1.0.0", "a@5.0.0", "[a@v1.0.0 a@v2.0.0 a@v3.0.0 a@v4.0.0 a@v5.0.0]"},
		{"a@5.0.0", "a@1.1.0", "[a@v5.0.0 a@v4.0.0 a@v3.0.0 a@v1.1.0]"},
		{"a@9.1.0-rc.1", "a@9.0.0", "[a@v9.1.0-rc.1 a@v9.0.0]"},
		{"a@1.0.0", "a@6.0.0", "no_common_schema: no translation from a@v1.0.0 to a@v6.0.0: " +
			"documents of the first become 5.0.0, 4.0.0, 3.0.0, 2.0.0, 1.1.0; what becomes the second is 5.0.0, 4.0.0, 3.0.0, 2.0.0, 1.1.0"},
		{"b@1.0.0", "b@2.0.0", "no_common_schema: no translation from b@v1.0.0 to b@v2.0.0: " +
			"documents of the first become nothing; what becomes the second is nothing"},
		{"a@1.0.0", "b@1.0.0", "no_common_schema"},
		{"a", "a@1.0.0", "invalid_argument"},
		{"a@1.0.0", "A B@1.0.0", "invalid_argument"},
	} {
		path, err := g.Path(tc.from, tc.to)
		if got := fmt.Sprint(path); err == nil && got != tc.want || err != nil && !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("%s to %s: %s, %v", tc.from, tc.to, got, err)
		}
		if g.Has(tc.from, tc.to) != (err == nil) {
			t.Errorf("has %s to %s", tc.from, tc.to)
		}
	}
}

func TestChain(t *testing.T) {
	t.Parallel()
	g := registry(t, "1.0.0 2.0.0", "2.0.0 3.0.0")
	out, losses, err := g.Translate([]byte(`{"n":1.0}`), "a@1.0.0", "a@3.0.0")
	if string(out) != `{"1.0.0":1,"2.0.0":1,"n":1.0}` || losses != nil || err != nil {
		t.Fatal(string(out), losses, err)
	}
	back, _, err := g.Translate(out, "a@v3.0.0", "a@v1.0.0")
	if string(back) != `{"n":1.0}` || err != nil {
		t.Error(string(back), err)
	}
	if same, _, err := g.Translate([]byte("{ }"), "a@1.0.0", "a@1.0.0"); string(same) != "{ }" || err != nil {
		t.Error(string(same), err)
	}
	if _, _, err := g.Translate([]byte("{}"), "a@1.0.0", "a@7.0.0"); !errors.Is(err, wire.NoCommonSchema) {
		t.Error(err)
	}
	if _, _, err := g.Translate([]byte(`{"2.0.0":0}`), "a@1.0.0", "a@3.0.0"); !errors.Is(err, wire.InvalidRequest) {
		t.Error(err)
	}
}

func TestAdd(t *testing.T) {
	t.Parallel()
	g := registry(t, "1.0.0 2.0.0")
	for title, tc := range map[string]struct {
		file string
		code wire.Code
	}{
		"again":          {"translate: {from: a@1.0.0, to: a@2.0.0}\nsteps: []\n", wire.AlreadyExists},
		"the other way":  {"translate: {from: a@2.0.0, to: a@1.0.0}\nsteps: []\n", wire.AlreadyExists},
		"broken":         {"translate: 1\n", wire.InvalidArgument},
		"failed example": {"translate: {from: a@1.0.0, to: a@3.0.0}\nsteps: []\nexamples: [{from: 1, to: 2}]\n", wire.InvalidArgument},
	} {
		if err := g.Add([]byte(tc.file), "f.yaml"); wire.CodeOf(err) != tc.code || !strings.Contains(err.Error(), "f.yaml") {
			t.Errorf("%s: %v", title, err)
		}
	}
	if len(g.Translations()) != 1 {
		t.Error("what is refused was added")
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	g := NewRegistry()
	if errs := g.Load(filepath.Join(dir, "nowhere")); errs != nil {
		t.Error(errs)
	}
	for name, text := range map[string]string{
		"a.yaml":      string(ExampleFile()),
		"b.json":      `{"translate":{"from":"b@1.0.0","to":"b@2.0.0"},"steps":[]}`,
		"c.yml":       "broken",
		"d.yaml":      "translate: {from: b@2.0.0, to: b@1.0.0}\nsteps: []\n",
		"e.yaml":      strings.Repeat("x", MaxFile+1),
		"README.md":   "not ours",
		".hidden.yml": "not ours",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "folder.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	errs := g.Load(dir)
	if len(errs) != 3 || len(g.Translations()) != 2 || !g.Has("b@2.0.0", "b@1.0.0") {
		t.Fatalf("%d translations, %v", len(g.Translations()), errs)
	}
	for i, want := range []string{"c.yml:1:1", "is translated by " + filepath.Join(dir, "b.json"), "e.yaml is of more than"} {
		if !strings.Contains(errs[i].Error(), want) {
			t.Errorf("%v: want %s", errs[i], want)
		}
	}
	if errs := NewRegistry().Load(filepath.Join(dir, "a.yaml")); len(errs) != 1 {
		t.Errorf("loaded a file as folder: %v", errs)
	}
}
