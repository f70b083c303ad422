// Package replay runs a session or negotiation again from the entries of an audit
// log: it validates what was signed and runs the machines over it, as the node did
// at the time, and compares each step with what was recorded. It reads no clock and
// does no I/O.
//
//	signal.offer, .answer, .confirm    signatures, transcript, certificates, contract, id
//	session.state                      the table of session states
//	market.rfp, .propose, … .fail      envelope and document, the negotiation machine, at
//	                                   the times recorded
//
// A log whose entries were altered shows it here even if its tree was made anew:
// whoever changes it cannot sign for the other side.
package replay

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"openmesh/node/audit"
	"openmesh/protocols/identity"
	"openmesh/protocols/market"
)

// Report is what came of running entries again.
type Report struct {
	OK      bool
	Steps   []Step // in the order of the log
	Outcome string // state at the end, as recomputed

	// Divergence says where recorded and recomputed first differ, or what is missing
	// to tell; empty if nowhere.
	Divergence string
}

// Step is one entry, run again.
type Step struct {
	Index      uint64
	At         time.Time
	Kind       string
	Direction  string
	Agent      identity.AgentID
	Recorded   string // outcome of the step in the log
	Recomputed string // and now
	OK         bool   // they are the same
}

// run is one replay.
type run struct {
	agent   identity.AgentID // whose log it is
	entries []audit.Entry

	certificate func(raw []byte) (*identity.Certificate, error) // parses those of moves
	steps       map[uint64]*Step
	outcome     string
}

// Run runs the entries of the log of agent that belong to an id again: of a session,
// a negotiation, a request or a contract. Entries are as [audit.Log.Of] and
// [audit.ReadExport] give them; those of other ids are left aside, save the request
// that a negotiation is about.
func Run(agent identity.AgentID, id string, entries []audit.Entry) Report {
	r := &run{agent: agent, certificate: market.Remembering(), steps: make(map[uint64]*Step)}
	r.entries = slices.Clone(entries)
	slices.SortStableFunc(r.entries, func(a, b audit.Entry) int { return cmp.Compare(a.Index, b.Index) })
	r.market(id)
	for _, s := range r.sessions(id) {
		r.session(s)
	}
	return r.report(id)
}

// sessions are the session of an id, and those that were opened under the contract
// that it is.
func (r *run) sessions(id string) []string {
	all := []string{id}
	for _, e := range r.entries {
		if e.Kind == kindOffer && e.Ref == id && e.Session != "" && !slices.Contains(all, e.Session) {
			all = append(all, e.Session)
		}
	}
	return all
}

// step notes what an entry's outcome is now.
func (r *run) step(e *audit.Entry, recorded, recomputed string) *Step {
	s := &Step{
		Index: e.Index, At: e.At, Kind: e.Kind, Direction: e.Direction, Agent: e.Agent,
		Recorded: recorded, Recomputed: recomputed, OK: recorded == recomputed,
	}
	r.steps[e.Index] = s
	return s
}

// missing is the outcome of a step whose original retention has removed.
const missing = "cannot be told: the original is gone, as it was older than audit.retention"

// report puts the steps in order and finds the first that differs.
func (r *run) report(id string) Report {
	report := Report{Outcome: r.outcome}
	for _, e := range r.entries {
		if s := r.steps[e.Index]; s != nil {
			report.Steps = append(report.Steps, *s)
		}
	}
	for i, s := range report.Steps {
		if !s.OK {
			report.Divergence = fmt.Sprintf("step %d, entry %d (%s): recorded %q; recomputed: %s", i+1, s.Index, s.Kind, s.Recorded, s.Recomputed)
			break
		}
	}
	if len(report.Steps) == 0 {
		report.Divergence = "the log has nothing of " + id + " that can be run again"
	}
	report.OK = report.Divergence == ""
	return report
}

// Related names the ids that an entry belongs with besides its own, for
// [audit.Config]: the request that a negotiation is about.
func Related(e *audit.Entry) []string {
	if !strings.HasPrefix(e.Kind, "market.") || len(e.Payload) == 0 {
		return nil
	}
	return requestOf(e)
}
