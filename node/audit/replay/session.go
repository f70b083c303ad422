package replay

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"openmesh/node/audit"
	"openmesh/protocols/session"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// The kinds of entries of a session.
const (
	kindOffer   = "signal.offer"
	kindAnswer  = "signal.answer"
	kindConfirm = "signal.confirm"
	kindState   = "session.state"
)

// agreed is the outcome of a message of an exchange that came to a session.
const agreed = "agreed"

// SignalEntry is the entry for a signaling message.
func SignalEntry(m signal.Message) audit.Entry {
	e := audit.Entry{
		Kind: "signal." + string(m.Kind), Direction: audit.Received, Agent: m.Agent, Ref: m.Market, Payload: m.Raw, Note: agreed,
	}
	if m.Sent {
		e.Direction = audit.Sent
	}
	if m.Session != (signal.ID{}) {
		e.Session = m.Session.String()
	}
	if m.Err != nil {
		e.Note = "refused: " + m.Err.Error()
	}
	return e
}

// StateEntry is the entry for a change of a session's state.
func StateEntry(ev session.Event) audit.Entry {
	return audit.Entry{
		At: ev.At, Kind: kindState, Direction: audit.Local, Agent: ev.Agent, Session: ev.Session.String(),
		Note: transition(ev.From, ev.To.String(), ev.Reason),
	}
}

// arrow is between the states of a change.
const arrow = " -> "

func transition(from session.State, to string, reason wire.Code) string {
	if reason == 0 {
		return from.String() + arrow + to
	}
	return fmt.Sprintf("%s%s%s: %s", from, arrow, to, reason)
}

// session runs the signaling and the states of a session.
func (r *run) session(id string) {
	open := make(map[bool]*exchange) // by whether this side made the offer
	var all []*exchange
	var states []*audit.Entry
	for i := range r.entries {
		e := &r.entries[i]
		if e.Session != id {
			continue
		}
		ours := (e.Direction == audit.Sent) == (e.Kind != kindAnswer)
		switch e.Kind {
		case kindOffer:
			open[ours] = &exchange{ours: ours, offer: e}
			all = append(all, open[ours])
		case kindAnswer, kindConfirm:
			if x := open[ours]; x == nil || !x.take(e) {
				r.step(e, e.Note, "refused: it belongs to no offer in the log")
			}
		case kindState:
			states = append(states, e)
		}
	}
	for _, x := range all {
		r.exchange(id, x)
	}
	r.states(states)
}

// exchange is the messages of one signaling.
type exchange struct {
	ours                   bool
	offer, answer, confirm *audit.Entry
}

// take adds a message; false if there is one already, or the one before it is not.
func (x *exchange) take(e *audit.Entry) bool {
	switch {
	case e.Kind == kindAnswer && x.answer == nil:
		x.answer = e
	case e.Kind == kindConfirm && x.answer != nil && x.confirm == nil:
		x.confirm = e
	default:
		return false
	}
	return true
}

// exchange validates the messages of one signaling again.
func (r *run) exchange(id string, x *exchange) {
	var payloads [3][]byte
	gone := x.answer == nil
	for i, e := range []*audit.Entry{x.offer, x.answer, x.confirm} {
		if e == nil {
			continue
		}
		payloads[i] = e.Payload
		gone = gone || len(e.Payload) == 0
		r.step(e, e.Note, agreed)
	}
	if gone {
		r.gone(x)
		return
	}
	reviewed, err := signal.Review(payloads[0], payloads[1], payloads[2])
	if err == nil {
		err = x.check(r, id, reviewed)
	}
	if err == nil {
		r.outcome = cmp.Or(r.outcome, agreed)
		return
	}
	at := x.offer
	if flaw := (*signal.Flaw)(nil); errors.As(err, &flaw) {
		at = map[signal.MessageKind]*audit.Entry{signal.KindOffer: x.offer, signal.KindAnswer: x.answer, signal.KindConfirm: x.confirm}[flaw.In]
	}
	r.step(at, at.Note, "refused: "+err.Error())
}

// gone marks the messages of an exchange that cannot be validated.
func (r *run) gone(x *exchange) {
	for _, e := range []*audit.Entry{x.offer, x.answer, x.confirm} {
		if e != nil {
			r.step(e, e.Note, missing)
		}
	}
	if x.answer == nil && len(x.offer.Payload) > 0 {
		r.step(x.offer, x.offer.Note, "cannot be told: the log has no answer to it")
	}
}

// check compares what the messages prove with what the log says of them.
func (x *exchange) check(r *run, id string, v *signal.Reviewed) error {
	us, them := v.Initiator.Agent, v.Responder.Agent
	if !x.ours {
		us, them = them, us
	}
	switch {
	case us != r.agent:
		return &signal.Flaw{In: signal.KindOffer, Err: wire.Errorf(wire.Unauthenticated, "this side of it is %s, the log is of %s", us, r.agent)}
	case them != x.offer.Agent:
		return &signal.Flaw{In: signal.KindOffer, Err: wire.Errorf(wire.Unauthenticated, "the other side of it is %s, the log says %s", them, x.offer.Agent)}
	case v.ID.String() != id:
		return &signal.Flaw{In: signal.KindAnswer, Err: wire.Errorf(wire.Unauthenticated, "the session that it gives is %s", v.ID)}
	case x.offer.Ref != v.Agreed.Market:
		return &signal.Flaw{In: signal.KindAnswer, Err: wire.Errorf(wire.PolicyViolation, "it is under market contract %q, the log says %q", v.Agreed.Market, x.offer.Ref)}
	}
	return nil
}

// states runs the table of session states over the changes recorded, in the order
// of their times: two that happen at once may be recorded the other way round.
func (r *run) states(entries []*audit.Entry) {
	slices.SortStableFunc(entries, func(a, b *audit.Entry) int { return a.At.Compare(b.At) })
	now := session.Offered
	for _, e := range entries {
		from, to, err := parseTransition(e.Note)
		if err != nil {
			r.step(e, e.Note, "refused: "+err.Error())
			continue
		}
		if from == session.Offered && !now.Done() {
			now = session.Offered // the node was started again, and took the session up from its store
		}
		if from != now {
			r.step(e, e.Note, fmt.Sprintf("refused: the session is %s", now))
			continue
		}
		next, err := now.Next(to)
		if err != nil {
			r.step(e, e.Note, "refused: "+err.Error())
			continue
		}
		r.step(e, e.Note, e.Note)
		now, r.outcome = next, next.String()
	}
}

func parseTransition(note string) (from, to session.State, err error) {
	a, b, ok := strings.Cut(note, arrow)
	if !ok {
		return 0, 0, wire.Errorf(wire.Malformed, "%.80q is no change of state", note)
	}
	b, reason, terminated := strings.Cut(b, ": ")
	if from, err = session.ParseState(a); err == nil {
		to, err = session.ParseState(b)
	}
	if _, known := wire.ParseCode(reason); err == nil && terminated && !known {
		err = wire.Errorf(wire.Malformed, "%.80q gives a reason that there is not", note)
	}
	return from, to, err
}
