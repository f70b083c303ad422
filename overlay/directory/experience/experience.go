// Package experience remembers what this node has itself seen of other agents:
// how long they take to answer, how often they do, and whether dealings with
// them went well. Nothing in it is anyone's word.
//
//	latency   exponentially weighted moving average of round trips, weight 0.3
//	uptime    share of this node's probes that were answered; a probe counts
//	          half after a day
//	trust     (s+1)/(s+f+2), the mean of a beta distribution over s successes
//	          and f failures (Jøsang, Ismail 2002), each counting half after a
//	          week; 0.5 for a stranger
//
// It is kept in one JSON file, written by rename; of at most 4,096 agents, those
// heard of last.
package experience

import (
	"math"
	"slices"
	"sync"
	"time"

	"openmesh/protocols/identity"
)

const (
	// MaxAgents bounds how many agents are remembered.
	MaxAgents = 4096

	latencyWeight  = 0.3
	uptimeHalfLife = 24 * time.Hour
	trustHalfLife  = 7 * 24 * time.Hour
)

// Outcome is how a dealing with an agent ended.
type Outcome bool

// The outcomes.
const (
	Failure Outcome = false
	Success Outcome = true
)

// View is what is known of one agent.
type View struct {
	Latency time.Duration // 0 if never measured
	Uptime  float64       // percent; 0 if never probed
	Probed  bool
	Trust   float64 // 0 to 1
}

// Book holds what is known of all agents. Safe for concurrent use.
type Book struct {
	mu     sync.Mutex
	agents map[identity.AgentID]*entry
	dirty  bool
}

// entry is one agent's page. Counts are as of At; they decay from there.
type entry struct {
	LatencyMS float64   `json:"latency_ms,omitempty"`
	Answered  float64   `json:"answered,omitempty"`
	Asked     float64   `json:"asked,omitempty"`
	Good      float64   `json:"good,omitempty"`
	Bad       float64   `json:"bad,omitempty"`
	At        time.Time `json:"at"`
}

// New returns an empty book.
func New() *Book { return &Book{agents: make(map[identity.AgentID]*entry)} }

// Probe records that agent was probed at now, whether it answered and, if so,
// after how long.
func (b *Book) Probe(agent identity.AgentID, answered bool, rtt time.Duration, now time.Time) {
	b.change(agent, now, func(e *entry) {
		e.Asked++
		if !answered {
			return
		}
		e.Answered++
		if ms := float64(rtt) / float64(time.Millisecond); e.LatencyMS == 0 {
			e.LatencyMS = ms
		} else {
			e.LatencyMS += latencyWeight * (ms - e.LatencyMS)
		}
	})
}

// Record records how a dealing with agent ended.
func (b *Book) Record(agent identity.AgentID, o Outcome, now time.Time) {
	b.change(agent, now, func(e *entry) {
		if o == Success {
			e.Good++
		} else {
			e.Bad++
		}
	})
}

func (b *Book) change(agent identity.AgentID, now time.Time, f func(*entry)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.agents[agent]
	if e == nil {
		if len(b.agents) >= MaxAgents {
			b.forget()
		}
		e = &entry{At: now}
		b.agents[agent] = e
	}
	*e = e.at(now)
	f(e)
	b.dirty = true
}

// forget drops the tenth of agents that was heard of longest ago.
func (b *Book) forget() {
	ids := make([]identity.AgentID, 0, len(b.agents))
	for id := range b.agents {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(x, y identity.AgentID) int { return b.agents[x].At.Compare(b.agents[y].At) })
	for _, id := range ids[:max(len(ids)/10, len(ids)-MaxAgents+1)] {
		delete(b.agents, id)
	}
}

// Of returns what is known of agent at now.
func (b *Book) Of(agent identity.AgentID, now time.Time) View {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.agents[agent]
	if e == nil {
		return View{Trust: trust(0, 0)}
	}
	n := e.at(now)
	v := View{
		Latency: time.Duration(n.LatencyMS * float64(time.Millisecond)),
		Probed:  n.Asked > 0,
		Trust:   trust(n.Good, n.Bad),
	}
	if v.Probed {
		v.Uptime = 100 * min(n.Answered/n.Asked, 1) // exactly 100 if all were answered
	}
	return v
}

func trust(good, bad float64) float64 { return (good + 1) / (good + bad + 2) }

// at returns e with its counts decayed to now.
func (e *entry) at(now time.Time) entry {
	n := *e
	dt := max(now.Sub(e.At), 0)
	up, tr := decay(dt, uptimeHalfLife), decay(dt, trustHalfLife)
	n.Answered, n.Asked = n.Answered*up, n.Asked*up
	n.Good, n.Bad = n.Good*tr, n.Bad*tr
	n.At = e.At.Add(dt)
	return n
}

// decay is the factor by which a count shrinks over dt.
func decay(dt, halfLife time.Duration) float64 {
	return math.Exp2(-float64(dt) / float64(halfLife))
}
