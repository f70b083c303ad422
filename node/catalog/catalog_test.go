package catalog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"openmesh/protocols/identity"
	"openmesh/protocols/schema"
	"openmesh/protocols/wire"
)

// rfp is a schema that asks for a member.
func rfp(member string) []byte {
	return fmt.Appendf(nil, `{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object","required":[%q]}`, member)
}

func open(t *testing.T, dir string, change ...func(*Config)) *Catalog {
	t.Helper()
	c := Config{Dir: dir, Log: zap.NewNop(), BuiltIn: []Schema{{"market/rfp@v1.0.0", rfp("item")}}}
	for _, f := range change {
		f(&c)
	}
	g, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func put(t *testing.T, dir, name string, text []byte) {
	t.Helper()
	path := filepath.Join(dir, filepath.FromSlash(name))
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, text, 0o600)); err != nil {
		t.Fatal(err)
	}
}

func names(g *Catalog) (all []string) {
	for _, e := range g.List() {
		all = append(all, e.Name)
	}
	return all
}

// The CID is that of other implementations: ipfs add --cid-version=1 --raw-leaves.
func TestCID(t *testing.T) {
	t.Parallel()
	const hello = "bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq" // of "hello"
	if got := CID([]byte("hello")); got != hello {
		t.Errorf("%s", got)
	}
	for _, tc := range []struct {
		in   string
		want bool
	}{
		{hello, true},
		{"QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG", false},              // version 0
		{"bafybeibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq", false}, // dag-pb
		{"market/rfp@v1.0.0", false}, {"", false}, {strings.Repeat("b", 1000), false},
	} {
		if _, ok := parseCID(tc.in); ok != tc.want {
			t.Errorf("%.80q: %v", tc.in, ok)
		}
	}
}

func TestAdd(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "schemas")
	g := open(t, dir)
	text := rfp("weight")
	e, err := g.Add("shop/parcel@1.2.0", text)
	if err != nil || e.Name != "shop/parcel@v1.2.0" || e.CID != CID(text) || e.Source != Folder {
		t.Fatalf("%+v, %v", e, err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "shop", "parcel@v1.2.0.json")); err != nil || string(got) != string(text) {
		t.Errorf("file: %s, %v", got, err)
	}
	if entries, _ := os.ReadDir(filepath.Join(dir, "shop")); len(entries) != 1 {
		t.Errorf("%d files", len(entries))
	}
	for _, tc := range []struct {
		name, ref string
		text      []byte
		want      error
	}{
		{"the same again", "shop/parcel@v1.2.0", text, nil},
		{"a built-in one again", "market/rfp@v1.0.0", rfp("item"), nil},
		{"another text", "shop/parcel@v1.2.0", rfp("size"), wire.AlreadyExists},
		{"another text for a built-in one", "market/rfp@v1.0.0", rfp("size"), wire.AlreadyExists},
		{"no schema", "shop/x@v1.0.0", []byte(`{"type":"nothing"}`), wire.InvalidArgument},
		{"another draft", "shop/x@v1.0.0", []byte(`{"$schema":"http://json-schema.org/draft-07/schema#"}`), wire.InvalidArgument},
		{"too large", "shop/x@v1.0.0", fmt.Appendf(nil, `{"title":%q}`, strings.Repeat("x", MaxSchema)), wire.InvalidArgument},
		{"no version", "shop/x", text, wire.InvalidArgument},
		{"out of the folder", "shop/../../x@v1.0.0", text, wire.InvalidArgument},
		{"into that of peers", ".peers/x@v1.0.0", text, wire.InvalidArgument},
		{"an empty part", "shop//x@v1.0.0", text, wire.InvalidArgument},
	} {
		if _, err := g.Add(tc.ref, tc.text); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
	want := []string{"market/rfp@v1.0.0", "shop/parcel@v1.2.0"}
	if got := names(g); !slices.Equal(got, want) {
		t.Errorf("list: %v", got)
	}
	if got := names(open(t, dir)); !slices.Equal(got, want) {
		t.Errorf("after a restart: %v", got)
	}
}

// A file that cannot be used does not keep the others from being used, and is
// not overwritten.
func TestBadFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put(t, dir, "good@v1.0.0.json", rfp("a"))
	put(t, dir, "deep/er/good@v1.0.0.json", rfp("b"))
	put(t, dir, "market/rfp@v1.0.0.json", rfp("other"))
	put(t, dir, "bad@v1.0.0.json", []byte("{"))
	put(t, dir, "big@v1.0.0.json", make([]byte, MaxSchema+1))
	put(t, dir, "noversion.json", rfp("a"))
	put(t, dir, "x@1.0.0.json", rfp("a")) // without the v
	put(t, dir, "notes.txt", nil)
	put(t, dir, ".hidden@v1.0.0.json", rfp("a"))
	core, logs := observer.New(zap.WarnLevel)
	g := open(t, dir, func(c *Config) { c.Log = zap.New(core) })
	if got, want := names(g), []string{"deep/er/good@v1.0.0", "good@v1.0.0", "market/rfp@v1.0.0"}; !slices.Equal(got, want) {
		t.Errorf("list: %v", got)
	}
	if e, err := g.Get("market/rfp@v1.0.0"); err != nil || e.Source != BuiltIn {
		t.Errorf("%+v, %v: a file replaced a built-in schema", e, err)
	}
	if got := logs.Len(); got != 6 {
		t.Errorf("%d complaints: %v", got, logs.All())
	}
	if _, err := g.Add("bad@v1.0.0", rfp("a")); !errors.Is(err, wire.AlreadyExists) {
		t.Errorf("over a bad file: %v", err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "bad@v1.0.0.json")); err != nil || string(got) != "{" {
		t.Errorf("the bad file is now %q, %v", got, err)
	}
}

// What is put into the folder while the daemon runs is found, but the folder is
// not read for each thing that is missing.
func TestReadAgain(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		g := open(t, dir, func(c *Config) { c.Log = zap.New(core) })
		text := rfp("late")
		put(t, dir, "late@v1.0.0.json", text)
		put(t, dir, "bad@v1.0.0.json", nil)
		if _, err := g.Get(CID(text)); !errors.Is(err, wire.NotFound) {
			t.Errorf("at once: %v", err)
		}
		<-time.After(reread)
		if e, err := g.Get(CID(text)); err != nil || e.Name != "late@v1.0.0" {
			t.Errorf("by CID: %+v, %v", e, err)
		}
		<-time.After(reread)
		if _, err := g.Get("missing@v1.0.0"); !errors.Is(err, wire.NotFound) {
			t.Error(err)
		}
		if logs.Len() != 1 {
			t.Errorf("%d complaints about one bad file", logs.Len())
		}
		if _, err := g.Get("neither name nor CID"); !errors.Is(err, wire.InvalidArgument) {
			t.Error(err)
		}
	})
}

func TestValidate(t *testing.T) {
	t.Parallel()
	g := open(t, t.TempDir())
	id := CID(rfp("item"))
	for _, tc := range []struct {
		name, ref, doc string
		want           error
		pointers       []string
	}{
		{"good", "market/rfp@v1.0.0", `{"item":1}`, nil, nil},
		{"good, by CID", id, `{"item":1}`, nil, nil},
		{"without it", id, `{"thing":1}`, wire.InvalidRequest, []string{"/item"}},
		{"no JSON", id, `{`, wire.InvalidRequest, []string{""}},
		{"too large", id, strings.Repeat(" ", MaxDocument+1), wire.TooLarge, nil},
		{"an unknown schema", "market/rfp@v2.0.0", `{}`, wire.NotFound, nil},
	} {
		err := g.Validate(t.Context(), tc.ref, []byte(tc.doc))
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
		if e, ok := errors.AsType[*wire.Error](err); tc.pointers != nil && (!ok || !slices.Equal(e.Pointers, tc.pointers)) {
			t.Errorf("%s: %+v, want pointers %q", tc.name, e, tc.pointers)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Validate(ctx, id, []byte(`{}`)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestBadBuiltIn(t *testing.T) {
	t.Parallel()
	for _, s := range [][]Schema{
		{{"noversion", rfp("a")}}, {{"a@v1.0.0", []byte("{")}}, {{"a@v1.0.0", rfp("a")}, {"a@v1.0.0", rfp("b")}},
	} {
		if _, err := New(Config{BuiltIn: s, Dir: t.TempDir(), Log: zap.NewNop()}); err == nil {
			t.Errorf("%s: no error", s[0].Name)
		}
	}
}

// asked returns what fetches from a peer that answers so, and how often it was
// asked.
func asked(answer func(id string) ([]byte, error)) (func(*Config), *int) {
	n := new(int)
	return func(c *Config) {
		c.Fetch = func(_ context.Context, _ identity.AgentID, id string) ([]byte, error) {
			*n++
			return answer(id)
		}
	}, n
}

// One catalog asks another, over the bodies of the call. What it got, it has after
// a restart too, and serves.
func TestFetch(t *testing.T) {
	t.Parallel()
	dir, text := t.TempDir(), fmt.Appendf(nil, `{"title":"a <b> & \"c\" é","required":["x"]}`)
	seller := open(t, t.TempDir())
	if _, err := seller.Add("shop/parcel@v1.0.0", text); err != nil {
		t.Fatal(err)
	}
	fetch, n := asked(func(id string) ([]byte, error) {
		body, err := seller.Answer(Question(id))
		if err != nil {
			return nil, err
		}
		return ReadAnswer(body)
	})
	buyer := open(t, dir, fetch)
	for range 2 {
		e, err := buyer.Fetch(t.Context(), "did:key:seller", CID(text))
		if err != nil || e.Source != Peer || e.Name != "" || string(e.Text) != string(text) {
			t.Fatalf("%+v, %v", e, err)
		}
	}
	if *n != 1 {
		t.Errorf("asked %d times", *n)
	}
	again := open(t, dir)
	if err := again.Validate(t.Context(), CID(text), []byte(`{}`)); !errors.Is(err, wire.InvalidRequest) {
		t.Errorf("after a restart: %v", err)
	}
	if got, err := again.Serve(CID(text)); err != nil || string(got) != string(text) {
		t.Errorf("served %q, %v", got, err)
	}
	if got := names(again); len(got) != 1 {
		t.Errorf("a peer's schema has a name: %v", got)
	}
	if _, err := buyer.Fetch(t.Context(), "did:key:seller", CID([]byte("{}"))); !errors.Is(err, wire.NotFound) {
		t.Errorf("nobody has it: %v", err)
	}
	if _, err := again.Fetch(t.Context(), "did:key:seller", CID([]byte("{}"))); !errors.Is(err, wire.NotFound) {
		t.Errorf("nobody to ask: %v", err)
	}
	if _, err := buyer.Fetch(t.Context(), "did:key:seller", "x"); !errors.Is(err, wire.InvalidArgument) {
		t.Errorf("no CID: %v", err)
	}
}

// A damaged file of the cache is dropped.
func TestDamagedCache(t *testing.T) {
	t.Parallel()
	dir, text := t.TempDir(), rfp("x")
	path := ".peers/" + CID(text) + ".json"
	put(t, dir, path, rfp("y"))
	if _, err := open(t, dir).Get(CID(text)); !errors.Is(err, wire.NotFound) {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, filepath.FromSlash(path))); !missing(err) {
		t.Error(err)
	}
}

// The cache is bounded: the oldest go, on disk and in memory.
func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	texts := make(map[string][]byte)
	fetch, n := asked(func(id string) ([]byte, error) { return texts[id], nil })
	g := open(t, dir, fetch)
	var ids []string
	for i := range MaxPeers + 3 {
		text := rfp(fmt.Sprint(i))
		id := CID(text)
		texts[id], ids = text, append(ids, id)
		if _, err := g.Fetch(t.Context(), "did:key:seller", id); err != nil {
			t.Fatal(err)
		}
		old := time.Unix(int64(1e9+i), 0)
		if err := os.Chtimes(filepath.Join(dir, ".peers", id+".json"), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := os.ReadDir(filepath.Join(dir, ".peers")); err != nil || len(entries) != MaxPeers {
		t.Errorf("%d files, %v", len(entries), err)
	}
	if len(g.cids) != MaxPeers+1 { // and the built-in one
		t.Errorf("%d in memory", len(g.cids))
	}
	*n = 0
	for _, id := range []string{ids[0], ids[len(ids)-1]} {
		if _, err := g.Fetch(t.Context(), "did:key:seller", id); err != nil {
			t.Error(err)
		}
	}
	if *n != 1 {
		t.Errorf("asked %d times: want once, for the oldest", *n)
	}
}

// Schemas of peers must not take for ever; the operator's own may.
func TestTame(t *testing.T) {
	t.Parallel()
	var bomb strings.Builder
	bomb.WriteString(`{"$ref":"#/$defs/d0","$defs":{"d40":{}`)
	for i := range 40 {
		fmt.Fprintf(&bomb, `,"d%d":{"allOf":[{"$ref":"#/$defs/d%d"},{"$ref":"#/$defs/d%d"}]}`, i, i+1, i+1)
	}
	bomb.WriteString(`}}`)
	for _, tc := range []struct {
		name, text string
		ok         bool
	}{
		{"plain", `{"$id":"https://example.com/x","properties":{"a":{"$ref":"#/$defs/a~1b"}},"$defs":{"a/b":{"type":"string"}}}`, true},
		{"a chain", `{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/c/allOf/0"},"c":{"allOf":[{}]}}}`, true},
		{"a property called $ref", `{"properties":{"$ref":{"type":"string"}}}`, true},
		{"to itself", `{"properties":{"a":{"$ref":"#"}}}`, false},
		{"in a circle", `{"$ref":"#/$defs/a","$defs":{"a":{"items":{"$ref":"#/$defs/b"}},"b":{"not":{"$ref":"#/$defs/a"}}}}`, false},
		{"dynamic", `{"$dynamicAnchor":"a","items":{"$dynamicRef":"#a"}}`, false},
		{"an anchor", `{"$ref":"#a","$defs":{"x":{"$anchor":"a"}}}`, false},
		{"an id within", `{"$defs":{"x":{"$id":"y"}}}`, false},
		{"escaped", `{"$ref":"#/%24defs/a","$defs":{"a":{}}}`, false},
		{"outside", `{"$ref":"https://json-schema.org/draft/2020-12/schema"}`, false},
		{"nowhere", `{"$ref":"#/$defs/a"}`, false},
		{"a bomb", bomb.String(), false},
		{"deep", strings.Repeat(`{"not":`, 100) + "{}" + strings.Repeat("}", 100), false},
	} {
		fetch, _ := asked(func(string) ([]byte, error) { return []byte(tc.text), nil })
		_, err := open(t, t.TempDir(), fetch).Fetch(t.Context(), "did:key:seller", CID([]byte(tc.text)))
		if (err == nil) != tc.ok || err != nil && !errors.Is(err, wire.InvalidResponse) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

// FuzzParseFile: a path that leads to a name is the one that the name leads to,
// and stays in the folder.
func FuzzParseFile(f *testing.F) {
	for _, s := range []string{"market/rfp@v1.0.0.json", "../x@v1.0.0.json", "a//b@v1.0.0.json", ".peers/a@v1.0.0.json", "a@v1.0.0-rc.1.json", "A@v1.0.0+b.json"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		ref, err := parseFile(name)
		if err != nil {
			return
		}
		if fileOf(ref) != name || !filepath.IsLocal(filepath.FromSlash(name)) || filepath.ToSlash(filepath.Clean(name)) != name {
			t.Errorf("%q is %v", name, ref)
		}
		for part := range strings.SplitSeq(name, "/") {
			if part[0] == '.' {
				t.Errorf("%q is hidden", name)
			}
		}
	})
}

// FuzzAnswer: whatever a peer answers, what is taken has the CID that was asked
// for, compiles, and validates in bounded time.
func FuzzAnswer(f *testing.F) {
	good := rfp("x")
	f.Add([]byte(`{"schema":"{}"}`), true)
	f.Add(fmt.Appendf(nil, `{"schema":%q}`, good), true)
	f.Add([]byte(`{"schema":null}`), false)
	f.Add([]byte(`{"schema":"{\"$ref\":\"#\"}"}`), true)
	f.Fuzz(func(t *testing.T, body []byte, honest bool) {
		text, err := ReadAnswer(body)
		if err != nil {
			if !errors.Is(err, wire.InvalidResponse) {
				t.Errorf("%v", err)
			}
			return
		}
		id := CID(good)
		if honest {
			id = CID(text)
		}
		e, err := fromPeer(id, text)
		if err != nil {
			return
		}
		if CID(e.Text) != id || len(e.Text) > MaxSchema {
			t.Errorf("took %q for %s", e.Text, id)
		}
		_, _ = e.compiled.Validate([]byte(`{"a":[{"b":[1,2,{}]}]}`), schema.JSON)
	})
}
