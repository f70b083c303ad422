package translate

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"openmesh/protocols/wire"
)

func parseOK(t testing.TB, text string) *Translation {
	t.Helper()
	tr, err := Parse([]byte(text), "f.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// Each file of testdata is a translation, a document, what it becomes, and what
// that becomes on the way back.
func TestGolden(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no testdata", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			part := map[string]string{}
			for _, f := range archive.Files {
				part[f.Name] = strings.TrimSpace(string(f.Data))
			}
			tr := parseOK(t, part["translation.yaml"])
			to, losses, err := tr.Forward([]byte(part["from.json"]))
			if err != nil {
				t.Fatal(err)
			}
			back, none, err := tr.Backward(to)
			if err != nil || none != nil {
				t.Fatal(none, err)
			}
			var told []string
			for _, l := range losses {
				told = append(told, l.Pointer+" "+l.What)
			}
			for _, c := range []struct{ name, got string }{
				{"to.json", string(to)}, {"back.json", string(back)}, {"losses", strings.Join(told, "\n")},
			} {
				if diff := cmp.Diff(part[c.name], c.got); diff != "" {
					t.Errorf("%s -want +got:\n%s", c.name, diff)
				}
			}
		})
	}
}

func TestExampleFile(t *testing.T) {
	t.Parallel()
	if problems := Check(ExampleFile(), "example.yaml"); problems != nil {
		t.Error(problems)
	}
	tr := parseOK(t, string(ExampleFile()))
	var got []string
	forward, backward := tr.Losses()
	for _, l := range slices.Concat(forward, backward) {
		got = append(got, l.Pointer+" "+l.What)
	}
	want := []string{
		"/delivery_days what the rule would add is left out on the way back",
		"/price/basis what the rule would add is left out on the way back",
		"/priority comes back where it was not there",
		"/priority any other value is dropped",
		"/lines/*/cents how a decimal is written: it comes back with all its decimals",
		"/expires how a time is written: it comes back in UTC",
		"/delivery_days comes back where it was not there",
		"/price/basis comes back where it was not there",
		"/price/basis any other value is kept, though the version does not know it",
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("losses -want +got:\n%s", diff)
	}
	if tr.Steps != 16 || len(tr.Examples) != 2 {
		t.Errorf("%d steps, %d examples", tr.Steps, len(tr.Examples))
	}
}

// TestRefusals has documents that do not fit; the pointer is where the fault is
// in the document that came in, whatever rules came before.
func TestRefusals(t *testing.T) {
	t.Parallel()
	const move = "move: {from: /a, to: /b/c}"
	for title, tc := range map[string]struct{ steps, doc, pointer, why string }{
		"not JSON":          {move, `{"a":`, "", "is not JSON"},
		"not UTF-8":         {move, "\"\xff\"", "", "UTF-8"},
		"two documents":     {move, `{} {}`, "", "is not JSON"},
		"name twice":        {move, `{"x":{"y":1,"y":2}}`, "/x/y", "twice"},
		"escaped twice":     {move, `{"y":1,"\u0079":2}`, "/y", "twice"},
		"half a pair":       {move, `{"x":"\ud83d!"}`, "", "surrogate"},
		"other half":        {move, `{"x":"\\\ude00"}`, "", "surrogate"},
		"too deep":          {move, strings.Repeat("[", 65) + strings.Repeat("]", 65), "", "within each other"},
		"taken":             {move, `{"a":1,"b":{"c":2}}`, "/b/c", "in the way"},
		"taken, absent":     {move, `{"b":{"c":2}}`, "/b/c", "in the way"},
		"empty on the way":  {move, `{"a":1,"b":{}}`, "/b", "empty object"},
		"scalar on the way": {move, `{"a":1,"b":5}`, "/b", "not an object"},
		"array on the way":  {move, `{"a":1,"b":[]}`, "/b", "is an array"},
		"no object":         {move, `7`, "", "not an object"},
		"set":               {"set: {at: /a, value: 1}", `{"a":1}`, "/a", "in the way"},
		"table":             {"map: {at: /a, values: {x: y}}", `{"a":"y"}`, "/a", "not a value of the table"},
		"table of array":    {"map: {at: /a, values: {x: y}}", `{"a":[]}`, "/a", "not a value of the table"},
		"minor units":       {"convert: {at: /a, from: minor-units, to: decimal, scale: 2}", `{"a":1.5}`, "/a", "not an integer"},
		"decimals":          {"convert: {at: /a, from: decimal, to: minor-units, scale: 2}", `{"a":"1.505"}`, "/a", "more than 2 decimals"},
		"decimal":           {"convert: {at: /a, from: decimal, to: number}", `{"a":"01"}`, "/a", "not a decimal"},
		"exponent":          {"convert: {at: /a, from: number, to: decimal}", `{"a":1e65}`, "/a", "exponent"},
		"time":              {"convert: {at: /a, from: rfc3339, to: unix-seconds}", `{"a":"tomorrow"}`, "/a", "not a time"},
		"fraction":          {"convert: {at: /a, from: rfc3339, to: unix-seconds}", `{"a":"2026-01-02T03:04:05.5Z"}`, "/a", "fraction of 1s"},
		"early":             {"convert: {at: /a, from: rfc3339, to: unix-seconds}", `{"a":"0000-01-01T00:00:00+10:00"}`, "/a", "years"},
		"late":              {"convert: {at: /a, from: unix-seconds, to: rfc3339}", `{"a":999999999999}`, "/a", "years"},
		"case":              {"convert: {at: /a, from: lower, to: upper}", `{"a":"Ab"}`, "/a", "other case"},
		"no way back":       {"convert: {at: /a, from: lower, to: upper}", `{"a":"ſ"}`, "/a", "other case"},
		"split":             {`split: {at: /a, by: "/", into: [/b, /c]}`, `{"a":"x/y/z"}`, "/a", "2 parts"},
		"split, taken":      {`split: {at: /a, by: "/", into: [/b, /c]}`, `{"c":1}`, "/c", "in the way"},
		"join":              {`join: {at: /a, by: "/", from: [/b, /c]}`, `{"b":"x"}`, "/c", "missing"},
		"join, separator":   {`join: {at: /a, by: "/", from: [/b, /c]}`, `{"b":"x","c":"y/z"}`, "/c", "without"},
		"join array":        {`join: {at: /a, by: "/"}`, `{"a":["x/y"]}`, "/a", "cannot be joined"},
		"join empty text":   {`join: {at: /a, by: "/"}`, `{"a":[""]}`, "/a", "cannot be joined"},
		"join overlap":      {`join: {at: /a, by: "aa"}`, `{"a":["xa","ay"]}`, "/a", "cannot be joined"},
		"unwrap two":        {"unwrap: {at: /a}", `{"a":[1,2]}`, "/a", "one element"},
		"unwrap null":       {"unwrap: {at: /a}", `{"a":[null]}`, "/a", "null"},
		"each":              {"each: {at: /a, steps: [wrap: {at: /b}]}", `{"a":[{"b":1},2]}`, "/a/1", "not an object"},
		"each of scalar":    {"each: {at: /a, steps: [wrap: {at: /b}]}", `{"a":2}`, "/a", "neither"},
		"document":          {`move: {from: /a, to: ""}`, `{"a":1,"b":2}`, "", "in the way"},
		"no document":       {`move: {from: /a, to: ""}`, `{}`, "/a", "missing"},
		"moved before": {move + "\n- move: {from: /b/c, to: /d}\n- convert: {at: /d, from: lower, to: upper}",
			`{"a":"X"}`, "/a", "f.yaml:5:3: convert"},
		"split before": {`split: {at: /a, by: "-", into: [/b, /c]}` + "\n- convert: {at: /c, from: lower, to: upper}",
			`{"a":"x-Y"}`, "/a", "other case"},
		"moved and each": {"move: {from: /a, to: /b}\n- each: {at: /b, steps: [{move: {from: /x, to: /y}}, wrap: {at: /y/z}]}",
			`{"a":[{},{"x":7}]}`, "/a/1/x", "not an object"},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			tr := parseOK(t, "translate: {from: a@1.0.0, to: a@2.0.0}\nsteps:\n- "+tc.steps+"\n")
			out, _, err := tr.Forward([]byte(tc.doc))
			var e *wire.Error
			if !errors.As(err, &e) || e.Code != wire.InvalidRequest {
				t.Fatalf("got %s, %v", out, err)
			}
			if fmt.Sprint(e.Pointers) != fmt.Sprint([]string{tc.pointer}) || !strings.Contains(e.Message, tc.why) {
				t.Errorf("at %q: %s", e.Pointers, e.Message)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 30000)
	for title, tc := range map[string]struct{ steps, doc string }{
		"document":      {"wrap: {at: /a}", `"` + strings.Repeat("x", 4<<20) + `"`},
		"constants":     {"each: {at: \"\", steps: [set: {at: /v, value: " + long + "}]}", "[" + strings.Repeat("{},", 99) + "{}]"},
		"objects":       {"each: {at: \"\", steps: [move: {from: \"\", to: /" + strings.Repeat("a/", 50) + "a}]}", "[" + strings.Repeat("1,", 9999) + "1]"},
		"parts":         {"split: {at: \"\", by: \",\"}", `"` + strings.Repeat(",", 1<<20) + `"`},
		"applied rules": {"each: {at: \"\", steps: [" + strings.Repeat("wrap: {at: /a}, ", 99) + "wrap: {at: /a}]}", "[" + strings.Repeat("{},", 29999) + "{}]"},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			steps := strings.ReplaceAll(tc.steps, "wrap: {at: /a}, ", "{wrap: {at: /a}}, ")
			tr := parseOK(t, "translate: {from: a@1.0.0, to: a@2.0.0}\nsteps:\n- "+steps+"\n")
			if _, _, err := tr.Forward([]byte(tc.doc)); wire.CodeOf(err) != wire.TooLarge {
				t.Error(err)
			}
		})
	}
	deep := parseOK(t, "translate: {from: a@1.0.0, to: a@2.0.0}\nsteps:\n- wrap: {at: \"\"}\n")
	for depth, want := range map[int]bool{63: true, 64: false} {
		if _, _, err := deep.Forward([]byte(strings.Repeat("[", depth) + strings.Repeat("]", depth))); (err == nil) != want {
			t.Errorf("depth %d: %v", depth, err)
		}
	}
	drops := parseOK(t, "translate: {from: a@1.0.0, to: a@2.0.0}\nsteps:\n- each: {at: \"\", steps: [drop: {at: /a}]}\n")
	if _, losses, err := drops.Forward([]byte("[" + strings.Repeat(`{"a":1},`, 99) + "{}]")); len(losses) != 16 || err != nil {
		t.Errorf("%d losses, %v", len(losses), err)
	}
}
