// Package query says which capabilities are wanted, and picks and sorts those
// that fit. It is pure: what is known of each agent is handed in.
//
// Rows are sorted by one column, or by a score from 0 to 1, in which what this
// node has seen for itself weighs most, and load, the agent's word, least:
//
//	score = 0.35 trust + 0.25 uptime + 0.25 / (1 + latency/100ms) + 0.15 (1 - load)
package query

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/Masterminds/semver/v3"
	"github.com/libp2p/go-libp2p/core/peer"

	"openmesh/protocols/descriptor"
	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// The bounds of a query.
const (
	DefaultLimit = 50
	MaxLimit     = 256
	maxRange     = 256 // bytes of a version range
)

// Query says which capabilities are wanted. The zero value of a field asks for
// nothing.
type Query struct {
	Capability   string        // name or prefix, by whole segments; required
	Version      string        // semver range, such as "^1.2" or ">=1.4 <3"
	MinUptime    float64       // percent, as this node measured it
	MaxLatency   time.Duration // round trip, as this node measured it
	Region       string
	Jurisdiction string
	Domain       string // of the capability or of its agent
	Tags         map[string]string
	MinTrust     float64 // 0 to 1, this node's own experience
	Limit        int     // rows; 0: [DefaultLimit], at most [MaxLimit]
	Sort         Column  // "": by score
}

// Column is what rows are sorted by.
type Column string

// The columns. Score, uptime and trust sort descending, the others ascending.
const (
	ByScore   Column = "score"
	ByLatency Column = "latency"
	ByLoad    Column = "load"
	ByUptime  Column = "uptime"
	ByTrust   Column = "trust"
	ByAge     Column = "age"
	ByName    Column = "name"
	ByVersion Column = "version"
)

// Columns returns all columns.
func Columns() []Column {
	return []Column{ByScore, ByLatency, ByLoad, ByUptime, ByTrust, ByAge, ByName, ByVersion}
}

// Row is one capability of one agent that fits a query.
type Row struct {
	Agent        identity.AgentID
	Address      identity.Address
	Peer         peer.ID
	Name         string
	Version      string
	Latency      time.Duration // measured
	Load         float64       // 0 to 1, the agent's word
	Uptime       float64       // percent, measured
	Trust        float64       // 0 to 1, own experience
	Region       string
	KeyVersion   uint32
	Reachability string        // direct, holepunched, relayed or mailbox
	Age          time.Duration // since the descriptor was fetched
	Score        float64       // 0 to 1, see the package comment

	Capability *descriptorpb.Capability // all of it; shared, not to be changed
	Descriptor *descriptor.Descriptor   // it is from
}

// Result is the answer to a query.
type Result struct {
	Rows    []Row
	Elapsed time.Duration
	Cached  bool // no other node was asked
}

// The score's weights, and the latency that halves its part.
const (
	trustWeight   = 0.35
	uptimeWeight  = 0.25
	latencyWeight = 0.25
	loadWeight    = 0.15
	halfLatency   = 100 * time.Millisecond
)

// score says how good a choice r is, by the package comment's formula.
func (r *Row) score() float64 {
	speed := 1 / (1 + float64(r.Latency)/float64(halfLatency))
	return trustWeight*r.Trust + uptimeWeight*r.Uptime/100 + latencyWeight*speed + loadWeight*(1-r.Load)
}

// Claims is what is believed of where an agent is and whose it is.
type Claims struct {
	Region        string
	Jurisdictions []string
	Domain        string
}

// Filter is a checked query.
type Filter struct {
	Query
	versions *semver.Constraints // nil: any
}

// Compile checks q. Errors are wire.InvalidArgument with a hint.
func (q Query) Compile() (*Filter, error) {
	bad := func(hint, format string, args ...any) (*Filter, error) {
		return nil, wire.Errorf(wire.InvalidArgument, format, args...).WithHint("%s", hint)
	}
	if err := descriptor.CheckName(q.Capability); err != nil {
		return bad("a name is a-z, 0-9 and -, in up to 5 segments joined by /", "query: capability %.130q is no name", q.Capability)
	}
	f := &Filter{Query: q}
	if q.Version != "" {
		var err error
		if len(q.Version) > maxRange {
			return bad("shorten it", "query: version range of %d bytes", len(q.Version))
		}
		if f.versions, err = semver.NewConstraint(q.Version); err != nil {
			return bad("such as 1.4.0, ^1.2 or >=1.4 <3", "query: version range %q: %w", q.Version, err)
		}
	}
	if q.Limit < 0 || q.Limit > MaxLimit {
		return bad("ask for 1 to 256", "query: limit %d", q.Limit)
	}
	f.Limit = cmp.Or(q.Limit, DefaultLimit)
	f.Sort = cmp.Or(q.Sort, ByScore)
	if !slices.Contains(Columns(), f.Sort) {
		return bad("sort by score, latency, load, uptime, trust, age, name or version", "query: no column %q", q.Sort)
	}
	if !within(q.MinUptime, 100) || !within(q.MinTrust, 1) || q.MaxLatency < 0 {
		return bad("uptime is 0 to 100, trust 0 to 1, latency not negative", "query: a bound is out of range")
	}
	return f, nil
}

func within(x, high float64) bool { return !math.IsNaN(x) && x >= 0 && x <= high }

// Offers reports whether c itself is what is asked for.
func (f *Filter) Offers(c *descriptorpb.Capability) bool {
	if !descriptor.Covers(f.Capability, c.Name) {
		return false
	}
	if f.versions != nil {
		v, err := semver.StrictNewVersion(c.Version)
		if err != nil || !f.versions.Check(v) {
			return false
		}
	}
	for k, want := range f.Tags {
		if got, ok := c.Tags[k]; !ok || got != want {
			return false
		}
	}
	return true
}

// Accepts reports whether the claims that are believed of r's agent, and what
// was measured of it, meet f's bounds.
func (f *Filter) Accepts(r *Row, c Claims) bool {
	return r.Uptime >= f.MinUptime &&
		r.Trust >= f.MinTrust &&
		(f.MaxLatency == 0 || r.Latency <= f.MaxLatency) &&
		(f.Region == "" || f.Region == c.Region) &&
		(f.Jurisdiction == "" || slices.Contains(c.Jurisdictions, f.Jurisdiction)) &&
		(f.Domain == "" || f.Domain == c.Domain || f.Domain == r.Capability.Domain)
}

// Finish scores rows, removes duplicates (the higher key version stays), sorts and
// cuts them. It reuses rows.
func (f *Filter) Finish(rows []Row) []Row {
	for i := range rows {
		rows[i].Score = rows[i].score()
	}
	slices.SortFunc(rows, func(a, b Row) int { return cmp.Or(identify(&a, &b), cmp.Compare(b.KeyVersion, a.KeyVersion)) })
	rows = slices.CompactFunc(rows, func(a, b Row) bool { return identify(&a, &b) == 0 })
	slices.SortStableFunc(rows, func(a, b Row) int { return f.Sort.compare(&a, &b) })
	return rows[:min(len(rows), f.Limit)]
}

// identify orders rows by what they are about.
func identify(a, b *Row) int {
	return cmp.Or(strings.Compare(string(a.Agent), string(b.Agent)), strings.Compare(a.Name, b.Name), strings.Compare(a.Version, b.Version))
}

func (c Column) compare(a, b *Row) int {
	switch c {
	case ByLatency:
		return cmp.Compare(a.Latency, b.Latency)
	case ByLoad:
		return cmp.Compare(a.Load, b.Load)
	case ByUptime:
		return cmp.Compare(b.Uptime, a.Uptime)
	case ByTrust:
		return cmp.Compare(b.Trust, a.Trust)
	case ByAge:
		return cmp.Compare(a.Age, b.Age)
	case ByName:
		return strings.Compare(a.Name, b.Name)
	case ByVersion:
		return compareVersions(a.Version, b.Version)
	}
	return cmp.Compare(b.Score, a.Score)
}

func compareVersions(a, b string) int {
	va, errA := semver.StrictNewVersion(a)
	vb, errB := semver.StrictNewVersion(b)
	if errA != nil || errB != nil {
		return strings.Compare(a, b)
	}
	return va.Compare(vb)
}

// Major returns the one major version that f's range is about, if it plainly is
// about one: 1, 1.4.0, ^1.2, ~1.2.3, =1.4.0.
func (f *Filter) Major() (uint64, bool) {
	s := strings.TrimLeft(f.Version, "^~= ")
	if s == "" || strings.ContainsAny(s, " ,|<>!*-") {
		return 0, false
	}
	head, _, _ := strings.Cut(s, ".")
	v, err := semver.NewVersion(head)
	if err != nil {
		return 0, false
	}
	return v.Major(), true
}
