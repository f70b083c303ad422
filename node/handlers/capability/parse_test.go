package capability

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"openmesh/protocols/schema"
	"openmesh/protocols/wire"
)

func parseOK(t testing.TB, doc, file string) *Capability {
	t.Helper()
	c, err := Parse([]byte(doc), file)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestExample(t *testing.T) {
	t.Parallel()
	got := parseOK(t, string(Example()), "/etc/mesh/fx.yaml")
	want := &Capability{
		Name: "finance/fx-pricing", Version: "1.4.0", Domain: "trading", Visibility: "public",
		Tags: map[string]string{"asset": "fx"},
		Request: Schema{JSON: []byte(`{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object","required":["pair"],` +
			`"properties":{"pair":{"type":"string","pattern":"^[A-Z]{6}$"}}}`)},
		Response: Schema{JSON: []byte(`{"type":"object","required":["rate"],` +
			`"properties":{"rate":{"type":"string","description":"decimal, as text, so that nothing is rounded"}}}`)},
		Protocols: []Protocol{{Name: "fx/quote", Versions: []string{"1.0.0", "1.1.0"}}},
		QoS:       []string{"at-most-once", "at-least-once"},
		Price:     &Price{Amount: "0.002", Currency: "EUR", Unit: "call"},
		HTTP:      &HTTP{URL: "http://127.0.0.1:9000/price", Timeout: time.Minute},
		Document:  Example(), File: "/etc/mesh/fx.yaml",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestJSONWithTabs(t *testing.T) {
	t.Parallel()
	c := parseOK(t, "{\n\t\"name\": \"a\",\n\t\"version\": \"1.0.0\",\n\t\"domain\": \"x\",\n\t\"request\":\t{\"const\": \"\\ud83d\\ude00\\t\"},\n\t\"handler\": {\"api\": {}}\n}", "a.json")
	if c.Name != "a" || c.Kind() != "api" || string(c.Request.JSON) != `{"const":"😀\t"}` {
		t.Errorf("%+v", c)
	}
}

func TestHandlers(t *testing.T) {
	t.Parallel()
	const head = "name: a\nversion: 1.0.0\nhandler:\n  "
	e := parseOK(t, head+`exec: {command: [./run.sh, -x], timeout: 500ms, dir: work, env: {KEY: "${SECRET}", N: 3}, stream: true}`, "/srv/a.yaml")
	want := &Exec{Command: []string{"./run.sh", "-x"}, Timeout: 500 * time.Millisecond, Dir: "/srv/work", Env: map[string]string{"KEY": "${SECRET}", "N": "3"}, Stream: true}
	if diff := cmp.Diff(want, e.Exec); diff != "" || e.Kind() != "exec" || e.Timeout() != want.Timeout {
		t.Errorf("%s %s -want +got:\n%s", e.Kind(), e.Timeout(), diff)
	}
	h := parseOK(t, head+`http: {url: "https://[::1]/x", headers: {Authorization: "Bearer ${T}"}}`, "a.yaml")
	if h.Timeout() != DefaultTimeout || h.HTTP.Headers["Authorization"] != "Bearer ${T}" || h.Visibility != "public" {
		t.Errorf("%+v", h.HTTP)
	}
	if a := parseOK(t, head+"api: {}", "a.yaml"); a.Kind() != "api" || a.Timeout() != DefaultTimeout {
		t.Errorf("%+v", a)
	}
}

func TestNumbersKeepTheirDigits(t *testing.T) {
	t.Parallel()
	c := parseOK(t, "name: a\nversion: 1.0.0\nprice: {amount: 0.10, currency: EUR, unit: call}\n"+
		"request: {enum: [123456789012345678901234567890, 0.10, 1e3, -5, 0x10, \"7\", on, null]}\nhandler: {api: {}}\n", "a.yaml")
	if got, want := string(c.Request.JSON), `{"enum":[123456789012345678901234567890,0.10,1e3,-5,16,"7","on",null]}`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if c.Price.Amount != "0.10" {
		t.Errorf("amount %s", c.Price.Amount)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	const name, head = "name: a\nversion: 1.0.0\n", "name: a\nversion: 1.0.0\nhandler: {api: {}}\n"
	for title, tc := range map[string]struct{ doc, want, hint string }{
		"empty":             {"", "f.yaml:1:1: ", "example"},
		"two documents":     {"a: 1\n---\nb: 1\n", "2 documents", ""},
		"syntax":            {"name: a\nversion: [1\n", "f.yaml:2:10: ", ""},
		"twice":             {"name: a\nname: b\n", "f.yaml:2:1: ", ""},
		"a list":            {"- a\n", "f.yaml:1:1: a mapping", ""},
		"misspelled":        {head + "visiblity: public\n", `f.yaml:4:1: unknown field "visiblity"`, `"visibility"`},
		"unknown":           {head + "  \nzebra: 1\n", `unknown field "zebra"`, "Allowed: name"},
		"merge":             {"<<: {name: a}\n", "f.yaml:1:1", ""},
		"no name":           {"version: 1.0.0\nhandler: {api: {}}\n", `f.yaml:1:1: field "name"`, "example"},
		"bad name":          {"name: Finance/FX\nversion: 1.0.0\nhandler: {api: {}}\n", "f.yaml:1:7: name", "finance"},
		"deep name":         {"name: a/b/c/d/e/f\nversion: 1.0.0\nhandler: {api: {}}\n", "f.yaml:1:7: name", ""},
		"long name":         {"name: " + strings.Repeat("a", 121) + "\nversion: 1.0.0\nhandler: {api: {}}\n", "at most 120", ""},
		"version":           {"name: a\nversion: 1.4\nhandler: {api: {}}\n", `f.yaml:2:10: version "1.4"`, "1.4.0"},
		"visibility":        {head + "visibility: \"circle:\"\n", "f.yaml:4:", "circle:<name>"},
		"domain":            {head + "domain: \"a b\"\n", "f.yaml:4:9", ""},
		"tags list":         {head + "tags: [a]\n", "f.yaml:4:7: a mapping", ""},
		"tag value":         {head + "tags: {a: [1]}\n", "f.yaml:4:11: text", ""},
		"schema":            {head + "request: {type: strin}\n", `not a schema at "/type"`, ""},
		"schema remote":     {head + "response: {$ref: \"https://example.com/x\"}\n", "outside of the document", ""},
		"schema text":       {head + "request: a\n", "f.yaml:4:10", ""},
		"schema alias":      {head + "request: {const: &a 1}\n", "anchors", "Write it out."},
		"schema not finite": {head + "request: {const: .inf}\n", "non-finite", ""},
		"schema too large":  {head + "request: {title: " + strings.Repeat("x", schema.MaxSchema) + "}\n", "32768", ""},
		"schema too deep":   {head + "request: " + strings.Repeat("{not: ", 150) + "true" + strings.Repeat("}", 150) + "\n", "128", ""},
		"nesting":           {head + "request: " + strings.Repeat("[", 5000), "too many brackets", ""},
		"proto field":       {head + "request: {proto: a.proto, massage: x}\n", `unknown field "massage"`, `"message"`},
		"proto missing":     {head + "request: {proto: nowhere.proto, message: a.B}\n", "f.yaml:4:18: compile nowhere.proto", ""},
		"protocol":          {head + "protocols: [{name: a}]\n", "at least one version", ""},
		"protocol version":  {head + "protocols: [{name: a, versions: [one]}]\n", "f.yaml:4:34: version", ""},
		"qos":               {head + "qos: [at-most-onc]\n", "f.yaml:4:7: unknown delivery mode", `"at-most-once"`},
		"qos twice":         {head + "qos: [at-most-once, at-most-once]\n", "f.yaml:4:21", ""},
		"price":             {head + "price: {amount: cheap, currency: EUR, unit: call}\n", "not a decimal", "0.002"},
		"price unit":        {head + "price: {amount: 1, currency: EUR}\n", `"unit" is missing`, ""},
		"no handler":        {name, `field "handler" is missing`, "http"},
		"two handlers":      {name + "handler: {api: {}, exec: {command: [a]}}\n", "2 handlers", ""},
		"empty handler":     {name + "handler: {}\n", "0 handlers", ""},
		"mcp":               {name + "handler: {mcp: {url: \"http://a\", tool: x}}\n", "handler mcp is not supported by this version", "Use"},
		"a2a":               {name + "handler: {a2a: {url: \"http://a\"}}\n", "handler a2a is not supported by this version", "Use"},
		"api fields":        {name + "handler: {api: {x: 1}}\n", "no fields", ""},
		"http no url":       {name + "handler: {http: {timeout: 1s}}\n", `"url" is missing`, ""},
		"http scheme":       {name + "handler: {http: {url: \"ftp://a/b\"}}\n", `scheme "ftp"`, ""},
		"http host":         {name + "handler: {http: {url: \"http:///b\"}}\n", "without a host", ""},
		"http not a url":    {name + "handler: {http: {url: \"http://a b\"}}\n", "not a URL", ""},
		"http password":     {name + "handler: {http: {url: \"http://u:hunter2@a/\"}}\n", "password", ""},
		"http timeout":      {name + "handler: {http: {url: \"http://a\", timeout: 60}}\n", `"60" is not a positive duration`, "60s"},
		"http header":       {name + "handler: {http: {url: \"http://a\", headers: {\"a b\": x}}}\n", `header "a b"`, ""},
		"http header ours":  {name + "handler: {http: {url: \"http://a\", headers: {X-Mesh-Session: x}}}\n", "x-mesh-", ""},
		"http reference":    {name + "handler: {http: {url: \"http://a\", headers: {a: \"${}\"}}}\n", "without NAME", "FX_TOKEN"},
		"exec no command":   {name + "handler: {exec: {}}\n", "needs a command", ""},
		"exec text":         {name + "handler: {exec: {command: ./a.sh}}\n", "a list is wanted", ""},
		"exec stream":       {name + "handler: {exec: {command: [a], stream: lines}}\n", "true or false", ""},
		"exec env":          {name + "handler: {exec: {command: [a], env: {\"A=B\": x}}}\n", "variable", ""},
		"exec zero":         {name + "handler: {exec: {command: [\"a\\0\"]}}\n", "zero byte", ""},
		"too large":         {strings.Repeat("# comment\n", MaxDocument/10+1), "more than 131072", ""},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			_, err := Parse([]byte(tc.doc), "f.yaml")
			e, ok := err.(*wire.Error)
			if !ok || e.Code != wire.InvalidArgument {
				t.Fatalf("got %v", err)
			}
			if !strings.HasPrefix(e.Message, "f.yaml:") || !strings.Contains(e.Message, tc.want) || !strings.Contains(e.Hint, tc.hint) {
				t.Errorf("got %q with hint %q, want %q, %q", e.Message, e.Hint, tc.want, tc.hint)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("a secret in %q", err)
			}
		})
	}
}

const protoFile = `syntax = "proto3";
package fx.v1;
import "fx/common.proto";
import "google/protobuf/timestamp.proto";
message PriceRequest { Pair pair = 1; google.protobuf.Timestamp at = 2; }
`

const protoCommon = `syntax = "proto3";
package fx.v1;
message Pair { string base = 1; string quote = 2; }
`

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

const protoCapability = "name: fx/pricing\nversion: 1.0.0\nrequest: {proto: ./fx.proto, message: fx.v1.PriceRequest}\nhandler: {api: {}}\n"

func TestProtoSources(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "fx.proto"), protoFile)
	write(t, filepath.Join(dir, "fx/common.proto"), protoCommon)
	c := parseOK(t, protoCapability, filepath.Join(dir, "fx.yaml"))
	s, err := c.Request.Compile()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Validate([]byte(`{"pair":{"base":"EUR"},"at":"2026-01-02T03:04:05Z"}`), schema.JSON); err != nil {
		t.Error(err)
	}
	other := filepath.Join(dir, "caps")
	if set, err := ProtoSources(other, "../fx/common.proto", "fx.v1.Pair"); err != nil || len(set) == 0 {
		t.Errorf("above: %v", err)
	}
	if set, err := ProtoSources(other, filepath.Join(dir, "fx.proto"), "fx.v1.PriceRequest"); err != nil || len(set) == 0 {
		t.Errorf("absolute: %v", err)
	}
	for file, message := range map[string]string{"fx.proto": "fx.v1.None", "none.proto": "a.B", ".": "a.B", "fx/common.proto": "fx.v1.Pair.base"} {
		if _, err := ProtoSources(dir, file, message); err == nil {
			t.Errorf("%s, %s: no error", file, message)
		}
	}
}

func TestExpand(t *testing.T) {
	t.Parallel()
	lookup := func(name string) (string, bool) { return "<" + name + ">", name != "NONE" }
	for in, want := range map[string]string{
		"plain": "plain", "$HOME": "$HOME", "a${X}b${Y_1}": "a<X>b<Y_1>", "": "",
		"${NONE}": "!", "${}": "!", "${X": "!", "${a b}": "!",
	} {
		got, err := Expand(in, lookup)
		if (err != nil) != (want == "!") || err == nil && got != want {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Example())
	f.Add([]byte(protoCapability))
	f.Add([]byte(`{"name":"a","version":"1.0.0","handler":{"exec":{"command":["a"],"env":{"A":"${B}"}}}}`))
	f.Add([]byte("name: a\nversion: 1.0.0\nrequest: {enum: [0x10, 1_000, .nan, *a, !!str 3]}\nhandler: {api: }\n"))
	f.Fuzz(func(t *testing.T, doc []byte) {
		if bytes.Contains(doc, []byte("proto")) {
			return // would open files
		}
		c, err := Parse(doc, "f.yaml")
		if err != nil {
			if !strings.Contains(err.Error(), "f.yaml:") {
				t.Fatalf("no position in %q", err)
			}
			return
		}
		again, err := Parse(c.Document, c.File)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c, again); diff != "" {
			t.Fatal(diff)
		}
	})
}
