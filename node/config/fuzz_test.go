package config

import (
	"os"
	"slices"
	"testing"
)

// FuzzFile: no file makes the parser panic, and what it accepts is rendered to
// a file that it accepts again, with the same meaning.
func FuzzFile(f *testing.F) {
	spec, err := os.ReadFile("testdata/spec.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(spec)
	f.Add([]byte("policy: {circles: {a: [x]}}\nnode: {roles: [agent, *a]}\n---\n? [a]\n: &b !!str c\n<<: *b\n"))
	f.Add([]byte("api:\n  listen:\n  - |\n    x\n  - {a: b}\n"))
	f.Add([]byte("session: {ttl: 1d1h, retry: {jitter: .nan, max: 0}}\npolicy: {manifests: [a]}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := load(FileName, data, nil, nil)
		if err == nil && c.Storage.URL == "" { // a password is masked
			again(t, c)
		}
	})
}

// FuzzText: the same for the one-line form, tried on one key.
func FuzzText(f *testing.F) {
	keys := Keys()
	for i, k := range keys {
		f.Add(i, k.Default)
	}
	f.Add(slices.IndexFunc(keys, func(k Key) bool { return k.Name == "policy.circles" }), "a=b;c=d,e;=")
	f.Add(slices.IndexFunc(keys, func(k Key) bool { return k.Name == "storage.url" }), "postgres://u:p@h/d?password=x")
	f.Fuzz(func(t *testing.T, i int, text string) {
		k := keys[uint(i)%uint(len(keys))]
		c, err := load(FileName, nil, nil, map[string]string{k.Name: text})
		if err == nil && c.Storage.URL == "" {
			again(t, c)
		}
	})
}

// again checks that a rendering of c means the same.
func again(t *testing.T, c *Config) {
	t.Helper()
	d, err := load(FileName, c.Render(), nil, nil)
	if err != nil {
		t.Fatalf("rendered:\n%s\n%v", c.Render(), err)
	}
	if string(d.Render()) != string(c.Render()) {
		t.Fatalf("rendered:\n%s\nthen:\n%s", c.Render(), d.Render())
	}
}
