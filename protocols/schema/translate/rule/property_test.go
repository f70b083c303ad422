package rule

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"openmesh/protocols/wire"
)

// pointers are few, so that rules meet each other and the document.
func pointers(least int) *rapid.Generator[Pointer] {
	return rapid.Custom(func(t *rapid.T) Pointer {
		return rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), least, 2).Draw(t, "pointer")
	})
}

// documents are of the same few names, and of values that some rule wants.
func documents(depth int) *rapid.Generator[any] {
	scalar := rapid.SampledFrom([]any{nil, true, "x", "y", "x-y", "x-y-", "-", "", "X", "1.50", "-0.05", "2026-01-02T03:04:05Z",
		json.Number("0"), json.Number("-5"), json.Number("1.5"), json.Number("12e1"), json.Number("1")})
	if depth == 0 {
		return scalar
	}
	return rapid.Custom(func(t *rapid.T) any {
		switch rapid.IntRange(0, 7).Draw(t, "kind") {
		case 0:
			array := []any{}
			return append(array, rapid.SliceOfN(documents(depth-1), 0, 3).Draw(t, "array")...)
		case 1, 2:
			return scalar.Draw(t, "scalar")
		}
		return rapid.MapOfN(rapid.SampledFrom([]string{"a", "b", "c", "d"}), documents(depth-1), 0, 3).Draw(t, "object")
	})
}

// lossless draws steps without a loss either way.
func lossless(depth int) *rapid.Generator[[]Step] {
	one := rapid.Custom(func(t *rapid.T) Step {
		at := pointers(0).Draw(t, "at")
		kinds := 9
		if depth > 0 {
			kinds++
		}
		var r Rule
		switch rapid.IntRange(0, kinds).Draw(t, "rule") {
		case 0:
			r = Set(pointers(1).Draw(t, "at"), documents(1).Draw(t, "value"), Strict)
		case 1:
			var table Table
			if err := errors.Join(table.Add("x", json.Number("1")), table.Add("y", true), table.Add(true, "x")); err != nil {
				t.Fatal(err)
			}
			r = Map(at, table)
		case 2:
			formats := rapid.SampledFrom([][2]string{{"number", "decimal"}, {"lower", "upper"}}).Draw(t, "formats")
			r, _ = Convert(at, formats[0], formats[1], NoScale)
		case 3:
			r = SplitInto(at, "-", rapid.SliceOfN(pointers(1), 2, 3).Draw(t, "into"))
		case 4:
			r = Split(at, rapid.SampledFrom([]string{"-", "x-", "--"}).Draw(t, "by"))
		case 5:
			r = Wrap(at)
		case 10:
			r = Each(at, lossless(depth-1).Draw(t, "steps"))
		default:
			r = Move(at, pointers(0).Draw(t, "to"))
		}
		if rapid.Bool().Draw(t, "inverse") {
			r = r.inverse()
		}
		return Step{r, "rule", "here"}
	})
	return rapid.SliceOfN(one, 1, 4)
}

// What a translation accepts it gives back, whatever its rules and the document,
// as long as no rule says that it loses something.
func TestThereAndBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		steps := lossless(1).Draw(t, "steps")
		for i := range 40 {
			doc := documents(3).Draw(t, "document")
			text, err := Encode(doc)
			if err != nil {
				t.Fatal(err)
			}
			out, losses, err := Apply(text, steps)
			if err != nil {
				checkMisfit(t, err)
				continue
			}
			back, more, err := Apply(out, Invert(steps))
			if err != nil || losses != nil || more != nil {
				t.Fatalf("%d: %s became %s; back: %v, losses %v %v", i, text, out, err, losses, more)
			}
			got, err := Decode(back)
			if err != nil {
				t.Fatal(err)
			}
			if d := Difference(got, doc, nil); d != "" {
				t.Fatalf("%s became %s became %s: %s", text, out, back, d)
			}
		}
	})
}

// Enough of what is drawn for TestThereAndBack says something: documents fit the rules
// and are changed by them. These draws are always the same.
func TestDrawsFit(t *testing.T) {
	t.Parallel()
	changed := 0
	for n := range 300 {
		steps := lossless(1).Example(n)
		for i := range 40 {
			text, err := Encode(documents(3).Example(i))
			if err != nil {
				t.Fatal(err)
			}
			if out, _, err := Apply(text, steps); err == nil && string(out) != string(text) {
				changed++
			}
		}
	}
	if changed < 100 {
		t.Errorf("%d of 12000 documents were accepted and changed", changed)
	}
}

func checkMisfit(t interface{ Fatalf(string, ...any) }, err error) {
	var e *Misfit
	if !errors.As(err, &e) || e.Code != wire.InvalidRequest && e.Code != wire.TooLarge || len(e.At.String()) > maxPointer {
		t.Fatalf("%v", err)
	}
}

// FuzzApply has one translation of every lossless rule and any document.
func FuzzApply(f *testing.F) {
	var table Table
	if err := errors.Join(table.Add("x", "y"), table.Add("y", "x")); err != nil {
		f.Fatal(err)
	}
	decimal, err := Convert(Pointer{"n"}, "number", "decimal", NoScale)
	if err != nil {
		f.Fatal(err)
	}
	minor, err := Convert(Pointer{"m"}, "minor-units", "decimal", 2)
	if err != nil {
		f.Fatal(err)
	}
	upper, err := Convert(nil, "lower", "upper", NoScale)
	if err != nil {
		f.Fatal(err)
	}
	var steps []Step
	for _, r := range []Rule{
		decimal, minor, Map(Pointer{"t"}, table), Move(Pointer{"p"}, Pointer{"p", "q"}), Move(Pointer{"c"}, Pointer{"p", "c"}),
		Set(Pointer{"p", "s"}, map[string]any{"k": nil}, Strict), SplitInto(Pointer{"i"}, "/", []Pointer{{"j"}, {"k"}}),
		Split(Pointer{"l"}, ", "), Wrap(Pointer{"w"}), Each(Pointer{"e"}, []Step{{upper, "upper", "2"}, {Move(nil, Pointer{"z"}), "move", "3"}}),
	} {
		steps = append(steps, Step{r, "rule", "1"})
	}
	for _, seed := range []string{
		`{"n":1.50e3,"m":-7,"t":"x","p":"1","c":"EUR","i":"a/b","l":"a, b","w":{},"e":["x","y"],"?":[1,{"\u00e9":null}]}`,
		`{"e":{"a":"b","c":null}}`, `{"w":null,"l":"","n":0e-9}`, `[]`, `{"\ud83d\ude00":"\\\ud83d"}`, strings.Repeat("[", 99), `{"p":{}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, way := range [][]Step{steps, Invert(steps)} {
			out, losses, err := Apply(text, way)
			if err != nil {
				checkMisfit(t, err)
				continue
			}
			if len(out) > 2*len(text)+MaxGrowth || !json.Valid(out) {
				t.Fatalf("%q became %q", text, out)
			}
			back, _, err := Apply(out, Invert(way))
			if err != nil && strings.Contains(err.Error(), "larger") || losses != nil {
				continue
			}
			if err != nil {
				t.Fatalf("%q became %q: %v", text, out, err)
			}
			compare(t, text, back, way)
		}
	})
}

// compare wants documents to be equal, or, where decimals may come back written
// in another way, to become the same again.
func compare(t *testing.T, text, back []byte, way []Step) {
	t.Helper()
	if Losses(way) != nil {
		first, _, _ := Apply(text, way)
		again, _, err := Apply(back, way)
		if err != nil || string(first) != string(again) {
			t.Fatalf("%q came back as %q, which becomes %q, %v", text, back, again, err)
		}
		return
	}
	want, err := Decode(text)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(back)
	if err != nil {
		t.Fatal(err)
	}
	if d := Difference(got, want, nil); d != "" {
		t.Fatalf("%q came back as %q: %s", text, back, d)
	}
}
