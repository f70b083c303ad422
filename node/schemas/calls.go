package schemas

import (
	"slices"
	"strings"

	"github.com/Masterminds/semver/v3"

	"openmesh/protocols/schema/translate"
)

// RequestSchema and ResponseSchema are the names under which files translate the
// two documents of a call of a capability. Names of capabilities have no dots, so
// these are never capabilities themselves.
func RequestSchema(capability string) string  { return capability + ".request" }
func ResponseSchema(capability string) string { return capability + ".response" }

// Answers returns the versions that a capability can be called in, if version is
// its own: that one, and, marked with [translate.ByTranslation] and the highest
// first, those that requests can be translated from and responses to.
func Answers(g *Registry, capability, version string) []string {
	own := []string{version}
	requests := g.Offer(RequestSchema(capability), own).Versions
	responses := g.Offer(ResponseSchema(capability), own).Versions
	for _, v := range requests {
		if strings.HasPrefix(v, translate.ByTranslation) && slices.Contains(responses, v) {
			own = append(own, v)
		}
	}
	return own
}

// Within returns the first of some versions, its mark left off, that is in a
// semantic version range. What is no version or no range is in none.
func Within(versions []string, span string) (version string, ok bool) {
	const longest = 128 // as handlers have it
	if len(span) > longest {
		return "", false
	}
	want, err := semver.NewConstraint(span)
	if err != nil {
		return "", false
	}
	for _, text := range versions[:min(len(versions), translate.MaxVersions)] {
		text = strings.TrimPrefix(text, translate.ByTranslation)
		if v, err := semver.StrictNewVersion(text); err == nil && want.Check(v) {
			return text, true
		}
	}
	return "", false
}

// Bridge is how a call gets from the version that its caller speaks to one that
// the other side answers. If they differ, the caller translates.
type Bridge struct{ Ours, Theirs string }

// Meet finds the bridge for a caller that speaks a range of versions of a
// capability, when the other side has said which it answers, as [Answers] has it.
// What the other side can do by itself is left to it.
func Meet(g *Registry, capability, span string, theirs []string) (b Bridge, ok bool) {
	if v, ok := Within(theirs, span); ok {
		return Bridge{v, v}, true
	}
	for _, v := range theirs[:min(len(theirs), translate.MaxVersions)] {
		if strings.HasPrefix(v, translate.ByTranslation) {
			continue // it would be translated twice
		}
		if ours, ok := Within(Answers(g, capability, v), span); ok {
			return Bridge{ours, v}, true
		}
	}
	return Bridge{}, false
}

// Known returns the versions between which this side translates calls of a
// capability, in the order of their files.
func Known(g *Registry, capability string) []string {
	var out []string
	for _, t := range g.Translations() {
		for _, ref := range []translate.Ref{t.From, t.To} {
			if ref.Name == RequestSchema(capability) && !slices.Contains(out, ref.Version) && len(Answers(g, capability, ref.Version)) > 1 {
				out = append(out, ref.Version)
			}
		}
	}
	return out
}
