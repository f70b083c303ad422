package descriptor_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"openmesh/protocols/descriptor"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

func TestMerge(t *testing.T) {
	t.Parallel()
	claim := func(agent string, version uint32, seq uint64) descriptor.Claim {
		return descriptor.Claim{Agent: identity.AgentID(agent), KeyVersion: version, Sequence: seq}
	}
	for _, tc := range []struct {
		name string
		in   []descriptor.Claim
		want []int
	}{
		{"nothing", nil, nil},
		{"newer sequence", []descriptor.Claim{claim("a", 1, 5), claim("a", 1, 6)}, []int{1}},
		{"older sequence", []descriptor.Claim{claim("a", 1, 6), claim("a", 1, 5)}, []int{0}},
		{"newer key, lower sequence", []descriptor.Claim{claim("a", 1, 9), claim("a", 2, 1)}, []int{1}},
		{"two agents, by id", []descriptor.Claim{claim("b", 1, 1), claim("a", 1, 1)}, []int{1, 0}},
		{"three agents", []descriptor.Claim{claim("c", 9, 9), claim("b", 1, 1), claim("a", 1, 1)}, []int{2, 1}},
	} {
		if got := descriptor.Merge(tc.in); !slices.Equal(got, tc.want) {
			t.Errorf("%s: Merge = %v, want %v", tc.name, got, tc.want)
		}
	}
}

// In whatever order and grouping records arrive, all who hold them agree.
func TestMergeConverges(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfN(claims(), 1, 8).Draw(t, "claims")
		cut := rapid.IntRange(0, len(all)).Draw(t, "cut")
		want := merge(all)
		if got := merge(append(merge(all[:cut]), merge(all[cut:])...)); !slices.Equal(got, want) {
			t.Fatalf("merged in two parts: %v, at once: %v", got, want)
		}
		if got := merge(rapid.Permutation(all).Draw(t, "order")); !slices.Equal(got, want) {
			t.Fatalf("in another order: %v, want %v", got, want)
		}
	})
}

// Select is a total order: it does not matter in which order values are met. A
// proof of ambiguity is never given up for a value without.
func TestSelectIsStableAndSticky(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var values [][]descriptor.Claim
		for range rapid.IntRange(1, 5).Draw(t, "n") {
			values = append(values, merge(rapid.SliceOfN(claims(), 1, 3).Draw(t, "value")))
		}
		best := values[descriptor.Select(values)]
		again := rapid.Permutation(values).Draw(t, "order")
		if got := again[descriptor.Select(again)]; !slices.Equal(got, best) {
			t.Fatalf("Select = %v, in another order %v", best, got)
		}
		for _, v := range values {
			if len(v) > len(best) {
				t.Fatalf("Select = %v, though %v proves more", best, v)
			}
		}
	})
	if descriptor.Select(nil) != -1 {
		t.Error("Select of nothing is something")
	}
}

func claims() *rapid.Generator[descriptor.Claim] {
	return rapid.Custom(func(t *rapid.T) descriptor.Claim {
		return descriptor.Claim{
			Agent:      identity.AgentID(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "agent")),
			KeyVersion: rapid.Uint32Range(1, 2).Draw(t, "version"),
			Sequence:   rapid.Uint64Range(1, 3).Draw(t, "sequence"),
		}
	})
}

func merge(cs []descriptor.Claim) (out []descriptor.Claim) {
	for _, i := range descriptor.Merge(cs) {
		out = append(out, cs[i])
	}
	return out
}

// A value with two agents' proofs is an error that names both.
func TestAmbiguous(t *testing.T) {
	t.Parallel()
	v := descriptor.Value{
		{Certificate: &identity.Certificate{Agent: "did:key:z6MkA"}},
		{Certificate: &identity.Certificate{Agent: "did:key:z6MkB"}},
	}
	err := v.Ambiguous()
	if !errors.Is(err, wire.AmbiguousAddress) || !strings.Contains(err.Error(), "z6MkA") || !strings.Contains(err.Error(), "z6MkB") {
		t.Errorf("Ambiguous = %v; want ambiguous_address that names both", err)
	}
	if err := v[:1].Ambiguous(); err != nil {
		t.Errorf("Ambiguous of one record = %v", err)
	}
}
