package descriptor

import (
	"cmp"
	"maps"
	"slices"

	"openmesh/protocols/identity"
)

// Claim is what deciding between records needs to know: who claims a name, and
// how new the claim is.
type Claim struct {
	Agent      identity.AgentID
	KeyVersion uint32
	Sequence   uint64
}

// Compare orders claims of one agent: a higher key version is newer, then a
// higher sequence.
func (c Claim) Compare(o Claim) int {
	return cmp.Or(cmp.Compare(c.KeyVersion, o.KeyVersion), cmp.Compare(c.Sequence, o.Sequence))
}

// MaxClaims is how many agents' claims to one name are kept: two suffice to
// prove that it is ambiguous.
const MaxClaims = 2

// Merge returns the indexes of those claims that stand: the newest of each
// agent, and of several agents the two with the lowest ids, in that order. It
// does not matter in which order claims come or how often they are merged, so
// all who merge the same claims come to hold the same.
func Merge(claims []Claim) []int {
	newest := make(map[identity.AgentID]int)
	for i, c := range claims {
		if j, ok := newest[c.Agent]; !ok || c.Compare(claims[j]) > 0 {
			newest[c.Agent] = i
		}
	}
	agents := slices.Sorted(maps.Keys(newest))
	var out []int
	for _, a := range agents[:min(len(agents), MaxClaims)] {
		out = append(out, newest[a])
	}
	return out
}

// Select returns the index of the best of several values, each the claims of
// one [Merge]; -1 if there is none. A value that proves an ambiguity beats one
// that does not: it is not forgotten because one of the two refreshes its
// record. Then lower agent ids win, then newer claims.
func Select(values [][]Claim) int {
	best := -1
	for i, v := range values {
		if best < 0 || compareValues(v, values[best]) > 0 {
			best = i
		}
	}
	return best
}

func compareValues(a, b []Claim) int {
	if c := cmp.Compare(len(a), len(b)); c != 0 {
		return c
	}
	byAgent := func(x, y Claim) int { return cmp.Compare(y.Agent, x.Agent) } // lower wins
	return cmp.Or(slices.CompareFunc(a, b, byAgent), slices.CompareFunc(a, b, Claim.Compare))
}
