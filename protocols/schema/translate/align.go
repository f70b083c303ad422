package translate

import (
	"maps"
	"slices"
	"strings"

	"openmesh/protocols/wire"
)

// MaxVersions bounds an offer; the rest of a longer one is not looked at.
const MaxVersions = 64

// ByTranslation marks, in front of a version, that a side has only a
// translation for it: "~1.0.0". A program that does not know the mark takes it
// for a version that it does not have.
const ByTranslation = "~"

// Offer says which versions of a schema or protocol a side speaks. Those that
// its own programs read and write are native; the others, marked with
// [ByTranslation], it translates to and from native ones.
type Offer struct {
	Name     string
	Versions []string
}

// Choice is the version of one schema that travels between two sides. Who does
// not have it natively translates, at home: the other side never sees that.
type Choice struct {
	Name    string
	Version string // without v
	Ours    bool   // this side translates
	Theirs  bool   // the other side translates
}

// Offer returns what this node speaks, given its native versions: these, and
// those that translations lead to, each the highest first.
func (g *Registry) Offer(name string, native []string) Offer {
	known := spokenBy(native)
	for _, version := range slices.Collect(maps.Keys(known)) {
		for _, other := range g.reach(Ref{name, version}) {
			if _, ok := known[other]; !ok {
				known[other] = false
			}
		}
	}
	return Offer{name, known.list()}
}

// Native returns the native version that documents of a chosen version are best
// translated to: that with the fewest translations between, of several the
// highest.
func (g *Registry) Native(name, chosen string, native []string) (version string, ok bool) {
	chosen, ok = canonicalVersion(chosen)
	if !ok {
		return "", false
	}
	chains := g.chains(Ref{name, chosen})
	versions := slices.Collect(maps.Keys(spokenBy(native)))
	highestFirst(versions)
	hops := MaxHops + 1
	for _, v := range versions {
		if chain, reached := chains[Ref{name, v}]; reached && len(chain) < hops {
			version, hops = v, len(chain)
		}
	}
	return version, version != ""
}

// Align chooses a version of every schema that both sides name: the highest that
// is native to both, else the highest that is native to one and translated by
// the other. It does not matter which side asks: Align(theirs, ours) is the same
// choices with the sides changed over. Choices are in the order of their names.
//
// If a schema that both name has no such version, the error is a [*wire.Error]
// with code [wire.NoCommonSchema] that names the versions of both. Names that
// one side does not know are left out; versions that are none are not looked at.
func Align(ours, theirs []Offer) ([]Choice, error) {
	us, them := byName(ours), byName(theirs)
	var out []Choice
	for _, name := range slices.Sorted(maps.Keys(us)) {
		there, both := them[name]
		if !both {
			continue
		}
		version, ok := choose(us[name], there)
		if !ok {
			return nil, wire.Errorf(wire.NoCommonSchema, "no common version of %.120q: we speak %s, the other side %s",
				name, listed(us[name].list()), listed(there.list())).
				WithHint("One side needs a translation: openmesh schema example")
		}
		out = append(out, Choice{name, version, !us[name][version], !there[version]})
	}
	return out, nil
}

// Choose is [Align] for one schema: it chooses from the versions of two offers.
func Choose(ours, theirs []string) (version string, ok bool) {
	return choose(spokenBy(ours), spokenBy(theirs))
}

// spoken tells of each canonical version whether it is native.
type spoken map[string]bool

func spokenBy(versions []string) spoken {
	out := spoken{}
	for _, text := range versions[:min(len(versions), MaxVersions)] {
		text, translated := strings.CutPrefix(text, ByTranslation)
		if v, ok := canonicalVersion(text); ok {
			out[v] = out[v] || !translated
		}
	}
	return out
}

// byName joins offers of the same name.
func byName(offers []Offer) map[string]spoken {
	all := map[string][]string{}
	for _, o := range offers {
		all[o.Name] = append(all[o.Name], o.Versions...)
	}
	out := map[string]spoken{}
	for name, versions := range all {
		out[name] = spokenBy(versions)
	}
	return out
}

// list returns native versions, then the others, each the highest first, at
// most [MaxVersions].
func (s spoken) list() []string {
	versions := slices.Collect(maps.Keys(s))
	highestFirst(versions)
	var native, translated []string
	for _, v := range versions {
		if s[v] {
			native = append(native, v)
		} else {
			translated = append(translated, ByTranslation+v)
		}
	}
	all := append(native, translated...)
	return all[:min(len(all), MaxVersions)]
}

// choose does not tell its arguments apart, so that both sides choose the same.
func choose(a, b spoken) (version string, ok bool) {
	var toBoth bool
	for v, nativeA := range a {
		nativeB, common := b[v]
		if !common || !nativeA && !nativeB {
			continue
		}
		both := nativeA && nativeB
		if !ok || both && !toBoth || both == toBoth && compareVersions(v, version) > 0 {
			version, ok, toBoth = v, true, both
		}
	}
	return version, ok
}
