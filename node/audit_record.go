package node

import (
	"time"

	"golang.org/x/time/rate"

	"openmesh/node/audit"
	"openmesh/node/audit/replay"
	"openmesh/protocols/identity"
	"openmesh/protocols/session"
	"openmesh/protocols/signal"
)

// What strangers can have this node record is bounded: an offer costs them a signature,
// and this node disk. Beyond the first bound the log keeps the hash of an offer's
// original only; beyond the second it does not tell of refusals.
const (
	offerBytes, offerBurst     = 1 << 20, 64 << 20 // a second; and at once
	refusalRate, refusalsBurst = 10, 200
)

// note records what nobody was promised: see [audit.Log.Note].
func (n *Node) note(entries ...audit.Entry) { n.audit.Note(entries...) }

// noteDecision records what policy said: on is the event that it was asked about,
// such as session.open; effect is allow, deny, warn, throttle or terminate; rule says
// which rule gave it. Session may be empty.
func (n *Node) noteDecision(on, effect string, who identity.AgentID, session, rule string) {
	n.note(audit.Entry{
		Kind: "policy.decision", Direction: audit.Local, Agent: who, Session: session, Note: effect + " " + on + ": " + rule,
	})
}

// noteState records a change of a session's state.
func (n *Node) noteState(ev session.Event) { n.note(replay.StateEntry(ev)) }

// signalRecorder returns what records the signaling messages of this node, both
// those that it sent and those that it received.
func (n *Node) signalRecorder() func(signal.Message) {
	bytes, refusals := rate.NewLimiter(offerBytes, offerBurst), rate.NewLimiter(refusalRate, refusalsBurst)
	return func(m signal.Message) {
		e := replay.SignalEntry(m)
		if !m.Sent && m.Kind == signal.KindOffer {
			now := time.Now()
			if m.Err != nil && !refusals.AllowN(now, 1) {
				return
			}
			e.Omit = !bytes.AllowN(now, len(m.Raw))
		}
		n.note(e)
	}
}
