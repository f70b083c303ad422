package translate

import (
	"fmt"
	"strings"
	"testing"

	"openmesh/protocols/wire"
)

const head = "translate: {from: a@v1.0.0, to: a@v2.0.0}\nsteps:\n- "

func TestFileErrors(t *testing.T) {
	t.Parallel()
	for title, tc := range map[string]struct{ file, want string }{
		"empty":          {"", "f.yaml:1:1: the file is empty"},
		"syntax":         {"a: [1\n", "f.yaml:1:"},
		"two documents":  {"a: 1\n---\nb: 1\n", "f.yaml:3:1: a second document"},
		"twice":          {"steps: []\nsteps: []\n", "f.yaml:2:1"},
		"a list":         {"- a\n", "f.yaml:1:1: a mapping"},
		"unknown":        {"translate: {from: a@v1.0.0, to: a@v2.0.0}\nstep: []\n", `f.yaml:2:1: unknown field "step"`},
		"no steps":       {"translate: {from: a@v1.0.0, to: a@v2.0.0}\n", `f.yaml:1:1: field "steps" is missing`},
		"no version":     {"translate: {from: a, to: a@v2.0.0}\nsteps: []\n", "f.yaml:1:19: not NAME@VERSION"},
		"short version":  {"translate: {from: a@1, to: a@v2.0.0}\nsteps: []\n", "f.yaml:1:19: not NAME@VERSION"},
		"build":          {"translate: {from: a@1.0.0+x, to: a@v2.0.0}\nsteps: []\n", "f.yaml:1:19: not NAME@VERSION"},
		"two schemas":    {"translate: {from: a@v1.0.0, to: b@v2.0.0}\nsteps: []\n", "f.yaml:1:33: a translation is between two versions of one schema"},
		"one version":    {"translate: {from: a@v1.0.0, to: a@1.0.0}\nsteps: []\n", "of one schema"},
		"steps":          {"translate: {from: a@v1.0.0, to: a@v2.0.0}\nsteps: {}\n", "f.yaml:2:8: a list"},
		"rule":           {head + "rename: {from: /a, to: /b}\n", `f.yaml:3:3: unknown field "rename"`},
		"two rules":      {head + "wrap: {at: /a}\n  unwrap: {at: /b}\n", "f.yaml:3:3: 2 rules"},
		"field":          {head + "move: {from: /a, too: /b}\n", `f.yaml:3:20: unknown field "too"`},
		"no field":       {head + "move: {from: /a}\n", `f.yaml:3:10: field "to" is missing`},
		"pointer":        {head + "wrap: {at: a}\n", `f.yaml:3:14: pointer "a" does not start`},
		"pointer tilde":  {head + "wrap: {at: /a~2}\n", "f.yaml:3:14: pointer"},
		"pointer number": {head + "wrap: {at: 7}\n", "f.yaml:3:14: text"},
		"pointer long":   {head + "wrap: {at: /" + strings.Repeat("a", 512) + "}\n", "512"},
		"nowhere":        {head + "move: {from: /a, to: /a}\n", "f.yaml:3:24: moves"},
		"document":       {head + "drop: {at: \"\"}\n", "f.yaml:3:14: not for the document"},
		"lossy":          {head + "set: {at: /a, value: 1, lossy: yes!}\n", "f.yaml:3:34: not what lossy"},
		"value":          {head + "set: {at: /a, value: .inf}\n", "f.yaml:3:24: anchors"},
		"alias":          {head + "set: {at: /a, value: &x 1}\n", "anchors"},
		"merge":          {head + "set: {at: /a, value: {<<: {b: 1}}}\n", "a name is wanted"},
		"table":          {head + "map: {at: /a, values: [x]}\n", "f.yaml:3:25: a mapping"},
		"table empty":    {head + "map: {at: /a, values: {}}\n", "empty"},
		"table back":     {head + "map: {at: /a, values: {x: 1, y: 1.0}}\n", "f.yaml:3:32: a value is in the table already"},
		"table forward":  {head + "map: {at: /a, values: {1: x, 1.0: y}}\n", "f.yaml:3:32: a value is in the table already"},
		"table null":     {head + "map: {at: /a, values: {x: ~}}\n", "text, numbers"},
		"format":         {head + "convert: {at: /a, from: number, to: roman}\n", `no conversion from "number" to "roman"`},
		"scale":          {head + "convert: {at: /a, from: number, to: decimal, scale: 2}\n", "f.yaml:3:13: minor-units"},
		"no scale":       {head + "convert: {at: /a, from: minor-units, to: decimal}\n", "minor-units"},
		"scale text":     {head + "convert: {at: /a, from: minor-units, to: decimal, scale: two}\n", "f.yaml:3:60: scale"},
		"separator":      {head + "split: {at: /a, by: \"\"}\n", "f.yaml:3:23: a separator"},
		"one part":       {head + "split: {at: /a, by: \"-\", into: [/b]}\n", "2 to 16"},
		"each":           {head + "each: {at: /a, steps: [move: {from: /x}]}\n", `field "to" is missing`},
		"many": {"translate: {from: a@v1.0.0, to: a@v2.0.0}\nsteps:\n" + strings.Repeat("- wrap: {at: /a}\n", 257),
			"f.yaml:259:3: more than 256"},
		"many within": {head + "each: {at: /a, steps: [" + strings.Repeat("{wrap: {at: /a}}, ", 256) + "]}\n", "more than 256"},
		"nested":      {head + strings.Repeat("[", 5000), "too many brackets"},
		"example":     {head + "wrap: {at: /a}\nexamples:\n- {from: 1}\n", `f.yaml:5:4: field "to" is missing`},
		"large":       {head + "wrap: {at: /a} #" + strings.Repeat("x", MaxFile), "131072"},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			_, err := Parse([]byte(tc.file), "f.yaml")
			if err == nil || wire.CodeOf(err) != wire.InvalidArgument || !strings.Contains(err.Error(), tc.want) ||
				!strings.HasPrefix(err.Error(), "invalid_argument: f.yaml:") {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
}

// TestClashes has rules that can never work together, and some that look so and do.
func TestClashes(t *testing.T) {
	t.Parallel()
	for title, tc := range map[string]struct {
		steps []string
		want  string // "" where nothing is wrong
	}{
		"same target":        {[]string{"move: {from: /a, to: /c}", "move: {from: /b, to: /c}"}, "4:3: move: /c is not free: the rule at f.yaml:3:3"},
		"same source":        {[]string{"move: {from: /a, to: /b}", "move: {from: /a, to: /c}"}, "4:3: move: nothing is at /a"},
		"below source":       {[]string{"move: {from: /a, to: /b}", "wrap: {at: /a/x}"}, "4:3: wrap: nothing is at /a/x"},
		"above target":       {[]string{"move: {from: /a, to: /b/c}", "move: {from: /d, to: /b}"}, "4:3: move: /b is not free"},
		"below constant":     {[]string{"set: {at: /a, value: {}}", "move: {from: /b, to: /a/b}"}, "4:3: move: /a/b is not free"},
		"constant, backward": {[]string{"move: {from: /a/b, to: /b}", "drop: {at: /a, default: {}}"}, "3:3: move: /a/b is not free"},
		"backward only":      {[]string{"wrap: {at: /b}", "move: {from: /a, to: /b}"}, "3:3: wrap: nothing is at /b: the rule at f.yaml:4:3"},
		"parts":              {[]string{`split: {at: /a, by: "-", into: [/b, /b/c]}`}, ""},
		"same parts":         {[]string{`split: {at: /a, by: "-", into: [/b, /b]}`}, "3:3: split: /b is not free"},
		"default":            {[]string{"move: {from: /a, to: /b}", "default: {at: /a, value: 1}"}, "4:3: default: nothing is at /a"},
		"in each":            {[]string{"each: {at: /a, steps: [{wrap: {at: /x}}, {drop: {at: /x}}, {wrap: {at: /x}}]}"}, "wrap: nothing is at /x"},
		"document":           {[]string{`move: {from: "", to: /a}`, "wrap: {at: /b}"}, "4:3: wrap: nothing is at /b"},
		"into itself":        {[]string{"move: {from: /a, to: /a/x}", "move: {from: /b, to: /a/b}", "wrap: {at: /a/x}"}, ""},
		"swap":               {[]string{"move: {from: /a, to: /t}", "move: {from: /b, to: /a}", "move: {from: /t, to: /b}"}, ""},
		"moved, default":     {[]string{"move: {from: /a, to: /b/a}", "default: {at: /b/a, value: 1}", "default: {at: /b, value: {}}"}, ""},
		"below moved":        {[]string{"move: {from: /a, to: /b}", "move: {from: /c, to: /b/c}"}, ""},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			file := "translate: {from: a@v1.0.0, to: a@v2.0.0}\nsteps:\n- " + strings.Join(tc.steps, "\n- ") + "\n"
			_, err := Parse([]byte(file), "f.yaml")
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	const examples = head + `move: {from: /a, to: /b}
- convert: {at: /n, from: number, to: decimal}
examples:
- {from: {a: 1}, to: {b: 1}}
- {from: {a: [1, 2]}, to: {b: [1, 3]}}
- {from: {a: 1, x: 1}, to: {b: 1}}
- {from: {n: many}, to: {n: "7"}}
- {from: {a: {}}, to: {b: []}}
- {from: {n: 10000000000000000000000000001}, to: {n: "10000000000000000000000000001"}, back: {n: 1e28}}
`
	got := Check([]byte(examples), "f.yaml")
	want := []string{
		"f.yaml:7:4 example 2, forward: /b/1 is 2, not 3",
		"f.yaml:7:4 example 2, backward: /a/1 is 3, not 2",
		"f.yaml:8:4 example 3, forward: /x is there, but not wanted",
		"f.yaml:8:4 example 3, backward: /x is missing",
		"f.yaml:9:4 example 4, forward: invalid_request: translate a@v1.0.0 to a@v2.0.0: /n is not a number (f.yaml:4:3: convert)",
		"f.yaml:9:4 example 4, backward: /n is 7, not \"many\"",
		"f.yaml:10:4 example 5, forward: /b is {}, not []",
		"f.yaml:10:4 example 5, backward: /a is [], not {}",
		"f.yaml:11:4 example 6, backward: /n is 10000000000000000000000000001, not 1e28",
	}
	if len(got) != len(want) {
		t.Fatalf("%d problems: %v", len(got), got)
	}
	for i, p := range got {
		if text := fmt.Sprintf("%s %s", p.Place, p.Message); text != want[i] {
			t.Errorf("got  %s\nwant %s", text, want[i])
		}
	}
	two := Check([]byte(head+"move: {from: /a, to: /b}\n- move: {from: /a, to: /c}\n- move: {from: /d, to: /b}\n"), "f.yaml")
	if len(two) != 2 {
		t.Errorf("not all clashes at once: %v", two)
	}
	if got := Check([]byte("x"), "f.yaml"); len(got) != 1 || !strings.HasPrefix(got[0].Place, "f.yaml:1:1") {
		t.Error(got)
	}
}
