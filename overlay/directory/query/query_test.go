package query

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"testing"
	"time"

	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

func TestCompile(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		q  Query
		ok bool
	}{
		"a name":        {Query{Capability: "finance/fx"}, true},
		"everything":    {Query{Capability: "a", Version: ">=1.4 <3", MinUptime: 99.5, MaxLatency: time.Second, MinTrust: 0.5, Limit: 256, Sort: ByLoad}, true},
		"no name":       {Query{}, false},
		"bad name":      {Query{Capability: "Finance"}, false},
		"bad range":     {Query{Capability: "a", Version: "one"}, false},
		"limit":         {Query{Capability: "a", Limit: 257}, false},
		"negative":      {Query{Capability: "a", Limit: -1}, false},
		"uptime":        {Query{Capability: "a", MinUptime: 101}, false},
		"trust":         {Query{Capability: "a", MinTrust: math.NaN()}, false},
		"column":        {Query{Capability: "a", Sort: "colour"}, false},
		"negative time": {Query{Capability: "a", MaxLatency: -1}, false},
	} {
		_, err := tc.q.Compile()
		var e *wire.Error
		if tc.ok != (err == nil) || err != nil && (!errors.As(err, &e) || e.Code != wire.InvalidArgument || e.Hint == "") {
			t.Errorf("%s: Compile = %v; want ok %v, else invalid_argument with a hint", name, err, tc.ok)
		}
	}
}

func TestOffers(t *testing.T) {
	t.Parallel()
	c := &descriptorpb.Capability{Name: "finance/fx-pricing", Version: "1.4.0", Tags: map[string]string{"asset": "fx"}}
	for _, tc := range []struct {
		q    Query
		want bool
	}{
		{Query{Capability: "finance"}, true},
		{Query{Capability: "finance/fx-pricing"}, true},
		{Query{Capability: "finance/fx"}, false},
		{Query{Capability: "finance/fx-pricing/eu"}, false},
		{Query{Capability: "finance", Version: "^1.2"}, true},
		{Query{Capability: "finance", Version: "~1.4"}, true},
		{Query{Capability: "finance", Version: "1.x"}, true},
		{Query{Capability: "finance", Version: ">=1.4 <3"}, true},
		{Query{Capability: "finance", Version: "^1.5 || ^2"}, false},
		{Query{Capability: "finance", Version: "2"}, false},
		{Query{Capability: "finance", Tags: map[string]string{"asset": "fx"}}, true},
		{Query{Capability: "finance", Tags: map[string]string{"asset": "gold"}}, false},
		{Query{Capability: "finance", Tags: map[string]string{"asset": "fx", "venue": ""}}, false},
	} {
		if got := compile(t, tc.q).Offers(c); got != tc.want {
			t.Errorf("%+v: Offers = %v", tc.q, got)
		}
	}
}

func compile(t *testing.T, q Query) *Filter {
	t.Helper()
	f, err := q.Compile()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestAccepts(t *testing.T) {
	t.Parallel()
	r := &Row{Uptime: 90, Trust: 0.5, Latency: 100 * time.Millisecond, Capability: &descriptorpb.Capability{Domain: "trading"}}
	claims := Claims{Region: "eu", Jurisdictions: []string{"DE", "EU"}, Domain: "acme"}
	for _, tc := range []struct {
		q    Query
		want bool
	}{
		{Query{}, true},
		{Query{MinUptime: 90, MinTrust: 0.5, MaxLatency: 100 * time.Millisecond}, true},
		{Query{MinUptime: 90.1}, false},
		{Query{MinTrust: 0.51}, false},
		{Query{MaxLatency: 99 * time.Millisecond}, false},
		{Query{Region: "eu"}, true},
		{Query{Region: "us"}, false},
		{Query{Jurisdiction: "EU"}, true},
		{Query{Jurisdiction: "US"}, false},
		{Query{Domain: "acme"}, true},
		{Query{Domain: "trading"}, true},
		{Query{Domain: "other"}, false},
	} {
		tc.q.Capability = "a"
		if got := compile(t, tc.q).Accepts(r, claims); got != tc.want {
			t.Errorf("%+v: Accepts = %v", tc.q, got)
		}
	}
}

func TestScore(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		r    Row
		want float64
	}{
		{Row{Trust: 1, Uptime: 100}, 1},
		{Row{Load: 1, Latency: time.Hour}, 0},
		{Row{Trust: 0.5, Uptime: 100, Latency: 100 * time.Millisecond, Load: 0.5}, 0.35*0.5 + 0.25 + 0.125 + 0.075},
	} {
		if got := tc.r.score(); math.Abs(got-tc.want) > 1e-4 {
			t.Errorf("score of %+v = %v, want %v", tc.r, got, tc.want)
		}
	}
}

func TestFinish(t *testing.T) {
	t.Parallel()
	row := func(agent, version string, edit func(*Row)) Row {
		r := Row{Agent: identity.AgentID(agent), Name: "n" + agent, Version: version, Trust: 0.5, Uptime: 100, KeyVersion: 1}
		if edit != nil {
			edit(&r)
		}
		return r
	}
	rows := []Row{
		row("c", "1.10.0", func(r *Row) { r.Latency, r.Load, r.Age = 3, 0.1, 3 }),
		row("a", "1.9.0", func(r *Row) { r.Latency, r.Load, r.Trust, r.Age = 1, 0.9, 0.9, 1 }),
		row("b", "2.0.0", func(r *Row) { r.Latency, r.Load, r.Uptime, r.Age = 2, 0.5, 10, 2 }),
		row("a", "1.9.0", func(r *Row) { r.KeyVersion = 2; r.Latency, r.Load, r.Trust, r.Age = 1, 0.9, 0.9, 1 }),
	}
	for sort, want := range map[Column]string{
		"": "acb", ByScore: "acb", ByLatency: "abc", ByLoad: "cba", ByUptime: "acb", ByTrust: "abc", ByAge: "abc", ByName: "abc", ByVersion: "acb",
	} {
		got := ""
		for _, r := range compile(t, Query{Capability: "n", Sort: sort}).Finish(slices.Clone(rows)) {
			got += string(r.Agent)
			if r.Agent == "a" && r.KeyVersion != 2 {
				t.Errorf("the older key's row is kept")
			}
		}
		if got != want {
			t.Errorf("by %q: %s, want %s", cmp.Or(sort, "default"), got, want)
		}
	}
	if got := compile(t, Query{Capability: "n", Limit: 2}).Finish(slices.Clone(rows)); len(got) != 2 {
		t.Errorf("limit 2: %d rows", len(got))
	}
}

func TestMajor(t *testing.T) {
	t.Parallel()
	for rng, want := range map[string]int{
		"1": 1, "1.4.0": 1, "^1.2": 1, "~2.0": 2, "=3.1.4": 3, "0.x": 0, "10": 10,
		"": -1, ">=1": -1, ">=1 <2": -1, "^1 || ^2": -1, "*": -1, "1 - 2": -1, "!=1": -1,
	} {
		got, ok := compile(t, Query{Capability: "a", Version: rng}).Major()
		if ok != (want >= 0) || ok && int(got) != want {
			t.Errorf("Major of %q = %d, %v; want %d", rng, got, ok, want)
		}
	}
}

func FuzzCompile(f *testing.F) {
	f.Add("finance/fx", ">=1.4 <3")
	f.Fuzz(func(t *testing.T, name, versions string) {
		if c, err := (Query{Capability: name, Version: versions}).Compile(); err == nil {
			c.Offers(&descriptorpb.Capability{Name: name, Version: "1.2.3"})
			c.Major()
		}
	})
}
