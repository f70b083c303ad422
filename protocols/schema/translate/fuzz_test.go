package translate

import (
	"strings"
	"testing"

	"openmesh/protocols/wire"
)

// FuzzParse reads any file; one that is read does what it says without a crash,
// and what it accepts without a loss it gives back.
func FuzzParse(f *testing.F) {
	f.Add(ExampleFile(), []byte(`{"price":"7","lines":[{"cents":1}]}`))
	for _, rule := range []string{
		"move: {from: \"\", to: /a/b}", "set: {at: /a, value: {x: [1, ~]}, lossy: drop}", "default: {at: /a, value: 0x10}", "drop: {at: /a}",
		"map: {at: /a, values: {1: x, true: \"1\"}}", "convert: {at: /a, from: minor-units, to: decimal, scale: 18}",
		"join: {at: /a, by: \"-\", from: [/b, /c]}", "unwrap: {at: \"\"}", "each: {at: \"\", steps: [{wrap: {at: /x}}, each: {at: /x, steps: []}]}",
	} {
		f.Add([]byte(head+rule+"\n"), []byte(`{"a":"1-2","x":{"y":[1,{"x":2}]}}`))
		f.Add([]byte(head+rule+"\nexamples:\n- {from: {a: 1}, to: {b: 1}}\n"), []byte(`[{"x":1},{}]`))
	}
	f.Fuzz(func(t *testing.T, file, doc []byte) {
		tr, err := Parse(file, "f.yaml")
		if err != nil {
			if wire.CodeOf(err) != wire.InvalidArgument || Check(file, "f.yaml") == nil {
				t.Fatalf("%v", err)
			}
			return
		}
		Check(file, "f.yaml")
		forward, backward := tr.Losses()
		out, losses, err := tr.Forward(doc)
		if err != nil || losses != nil || forward != nil || backward != nil {
			return
		}
		if _, _, err := tr.Backward(out); err != nil && wire.CodeOf(err) != wire.TooLarge {
			t.Fatalf("%q became %q: %v", doc, out, err)
		}
	})
}

// FuzzAlign takes any text for versions, as a peer may send it.
func FuzzAlign(f *testing.F) {
	f.Add("1.0.0 ~2.0.0", "2.0.0 v1.0.0")
	f.Add("~1.0.0 1.0.0-rc.1+x", "1.0.0-rc.1 ~ ~~1.0.0 99999999999999999999.0.0")
	f.Fuzz(func(t *testing.T, a, b string) {
		ours, theirs := []Offer{{"a", strings.Fields(a)}}, []Offer{{"a", strings.Fields(b)}}
		here, err := Align(ours, theirs)
		there, errThere := Align(theirs, ours)
		if (err == nil) != (errThere == nil) {
			t.Fatalf("%v, %v", err, errThere)
		}
		if err == nil && (here[0].Version != there[0].Version || here[0].Ours != there[0].Theirs || here[0].Theirs != there[0].Ours) {
			t.Fatalf("%+v, %+v", here, there)
		}
		if err != nil && len(err.Error()) > 8192 {
			t.Fatalf("an error of %d bytes", len(err.Error()))
		}
	})
}
