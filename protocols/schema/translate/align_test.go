package translate

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"openmesh/protocols/wire"
)

func TestAlign(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ ours, theirs, want string }{
		{"1.0.0 2.1.0", "1.0.0 2.1.0 3.0.0", "2.1.0"},
		{"v1.0.0", "1.0.0", "1.0.0"},
		{"1.10.0 1.9.0", "1.9.0 1.10.0", "1.10.0"},
		{"1.0.0", "2.1.0 ~1.0.0", "1.0.0 they"}, // only they have the file
		{"1.0.0 ~2.1.0", "2.1.0", "2.1.0 we"},   // only we
		{"1.0.0 ~2.1.0", "2.1.0 ~1.0.0", "2.1.0 we"},
		{"1.0.0 ~2.1.0", "1.0.0 2.1.0", "1.0.0"}, // native to both before higher
		{"1.0.0 ~1.5.0 ~2.0.0", "2.0.0 1.5.0", "2.0.0 we"},
		{"1.0.0 ~2.0.0", "3.0.0 ~2.0.0", ""}, // native to neither
		{"1.0.0", "2.0.0", ""},
		{"1.0.0 2.0.0-rc.1", "2.0.0-rc.1 1.0.0", "2.0.0-rc.1"},
		{"1.0.0 one 1 ~~2.0.0 3.0.0+x", "one 1 ~~2.0.0 3.0.0+y 3.0.0+x", ""},
		{"", "1.0.0", ""},
	} {
		ours, theirs := []Offer{{"a", strings.Fields(tc.ours)}}, []Offer{{"a", strings.Fields(tc.theirs)}}
		choices, err := Align(ours, theirs)
		var got string
		for _, c := range choices {
			got = c.Version
			if c.Ours {
				got += " we"
			}
			if c.Theirs {
				got += " they"
			}
		}
		if got != tc.want || (tc.want == "") != errors.Is(err, wire.NoCommonSchema) {
			t.Errorf("%s | %s: %q, %v", tc.ours, tc.theirs, got, err)
		}
		version, ok := Choose(ours[0].Versions, theirs[0].Versions)
		if ok != (err == nil) || ok && version != choices[0].Version {
			t.Errorf("%s | %s: %s, %v", tc.ours, tc.theirs, version, ok)
		}
	}
}

func TestAlignNames(t *testing.T) {
	t.Parallel()
	ours := []Offer{{"b", []string{"1.0.0"}}, {"a", []string{"1.0.0"}}, {"x", []string{"1.0.0"}}}
	theirs := []Offer{{"a", []string{"~1.0.0"}}, {"b", []string{"2.0.0"}}, {"y", []string{"1.0.0"}}, {"b", []string{"1.0.0"}}}
	got, err := Align(ours, theirs)
	if diff := cmp.Diff([]Choice{{"a", "1.0.0", false, true}, {"b", "1.0.0", false, false}}, got); diff != "" || err != nil {
		t.Errorf("%v -want +got:\n%s", err, diff)
	}
	long := make([]string, 100)
	for i := range long {
		long[i] = fmt.Sprintf("7.%d.0", i)
	}
	_, err = Align([]Offer{{"a", []string{"2.0.0", "1.0.0", "~3.0.0"}}}, []Offer{{"a", long}})
	const want = `no_common_schema: no common version of "a": we speak 2.0.0, 1.0.0, ~3.0.0, the other side 7.63.0, 7.62.0`
	if err == nil || !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), "7.48.0 and 48 more") {
		t.Error(err)
	}
}

// Whoever asks, and whichever side has the file, both choose the same version,
// and the side that shall translate can.
func TestAlignIsSymmetric(t *testing.T) {
	t.Parallel()
	versions := []string{"1.0.0", "1.1.0", "2.0.0", "2.1.0", "3.0.0-rc.1", "3.0.0"}
	side := func(t *rapid.T, name string) (native []string, g *Registry) {
		g = NewRegistry()
		for i := range rapid.IntRange(0, 4).Draw(t, name+" files") {
			pair := rapid.SliceOfNDistinct(rapid.SampledFrom(versions), 2, 2, rapid.ID).Draw(t, fmt.Sprint(name, i))
			file := fmt.Sprintf("translate: {from: a@%s, to: a@%s}\nsteps: []\n", pair[0], pair[1])
			_ = g.Add([]byte(file), "f.yaml") // a pair that is there already is refused
		}
		return rapid.SliceOfNDistinct(rapid.SampledFrom(versions), 1, 3, rapid.ID).Draw(t, name), g
	}
	rapid.Check(t, func(t *rapid.T) {
		ourNative, ourFiles := side(t, "ours")
		theirNative, theirFiles := side(t, "theirs")
		ours, theirs := []Offer{ourFiles.Offer("a", ourNative)}, []Offer{theirFiles.Offer("a", theirNative)}
		here, err := Align(ours, theirs)
		there, errThere := Align(theirs, ours)
		if (err == nil) != (errThere == nil) {
			t.Fatalf("%v here, %v there", err, errThere)
		}
		if err != nil {
			for _, native := range ourNative {
				if slices.Contains(theirNative, native) || slices.Contains(theirs[0].Versions, ByTranslation+native) {
					t.Fatalf("%v, but both speak %s", err, native)
				}
			}
			return
		}
		c, d := here[0], there[0]
		if c.Version != d.Version || c.Ours != d.Theirs || c.Theirs != d.Ours || c.Ours && c.Theirs {
			t.Fatalf("%+v here, %+v there", c, d)
		}
		native, ok := ourFiles.Native("a", c.Version, ourNative)
		if !ok || !slices.Contains(ourNative, native) || c.Ours == (native == c.Version) || !ourFiles.Has("a@"+c.Version, "a@"+native) {
			t.Fatalf("%+v: we have %v and translate to %q", c, ourNative, native)
		}
	})
}

func TestOffer(t *testing.T) {
	t.Parallel()
	g := registry(t, "1.0.0 2.1.0", "2.1.0 3.0.0")
	got := g.Offer("a", []string{"v2.1.0", "1.0.0", "nonsense"})
	if diff := cmp.Diff(Offer{"a", []string{"2.1.0", "1.0.0", "~3.0.0"}}, got); diff != "" {
		t.Error(diff)
	}
	if got := g.Offer("b", []string{"1.0.0"}); len(got.Versions) != 1 {
		t.Error(got)
	}
	for chosen, want := range map[string]string{"3.0.0": "2.1.0", "v1.0.0": "1.0.0", "9.0.0": "", "x": ""} {
		if got, ok := g.Native("a", chosen, []string{"1.0.0", "2.1.0"}); got != want || ok != (want != "") {
			t.Errorf("%s: %s, %v", chosen, got, ok)
		}
	}
}
