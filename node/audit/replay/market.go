package replay

import (
	"errors"
	"slices"
	"strings"

	"openmesh/node/audit"
	"openmesh/protocols/market"
	"openmesh/protocols/market/document"
	"openmesh/protocols/wire"
)

// The kinds of entries of the market that are not moves of a negotiation.
const (
	kindMarket  = "market."
	kindRequest = "market.rfp"
	kindReceipt = "market.receipt"
)

// requestOf is the request that a move is about.
func requestOf(e *audit.Entry) []string {
	if e.Kind == kindRequest || e.Kind == kindReceipt {
		return nil
	}
	m, err := market.Parse(e.Payload)
	if err != nil {
		return nil
	}
	return []string{m.RFP.ID()}
}

// IDs are the ids by which an entry can be asked for: its session, what it belongs to,
// and the contract that it signs.
func IDs(e *audit.Entry) (ids []string) {
	for _, id := range []string{e.Session, e.Ref} {
		if id != "" {
			ids = append(ids, id)
		}
	}
	if e.Kind == kindMarket+market.Accept.String() {
		if m, err := market.Parse(e.Payload); err == nil {
			ids = append(ids, document.ContractID(m.Document))
		}
	}
	return ids
}

// market runs the negotiations that an id stands for: of a negotiation itself, of its
// contract, or all that are about a request.
func (r *run) market(id string) {
	requests := make(map[string]*audit.Entry)
	talks := make(map[string][]*audit.Entry)
	var order []string
	for i := range r.entries {
		e := &r.entries[i]
		switch {
		case e.Kind == kindRequest:
			if requests[e.Ref] == nil {
				requests[e.Ref] = e
			}
		case strings.HasPrefix(e.Kind, kindMarket) && e.Kind != kindReceipt:
			if talks[e.Ref] == nil {
				order = append(order, e.Ref)
			}
			talks[e.Ref] = append(talks[e.Ref], e)
		}
	}
	if e := requests[id]; e != nil {
		r.request(e)
	}
	for _, ref := range order {
		t := &talk{run: r, requests: requests}
		t.play(ref, talks[ref])
		if !t.is(id, ref) {
			continue
		}
		for _, s := range t.steps {
			r.steps[s.Index] = s
		}
		r.outcome = t.outcome
	}
}

// request validates a request again.
func (r *run) request(e *audit.Entry) *market.Signed {
	m, err := r.parse(e)
	if err == nil && (m.Kind != market.Request || m.Hash.ID() != e.Ref) {
		err = wire.Errorf(wire.Malformed, "it is %s %s", m.Kind, m.Hash.ID())
	}
	if err != nil {
		r.step(e, e.Note, refusal(err))
		return nil
	}
	r.outcome = market.Requested.String()
	r.step(e, e.Note, r.outcome)
	return m
}

// parse validates the envelope and document of an entry, and that they are of whom
// the log says.
func (r *run) parse(e *audit.Entry) (*market.Signed, error) {
	if e.Omit {
		return nil, errMissing
	}
	m, err := market.ParseBy(e.Payload, r.certificate)
	if err != nil {
		return nil, err
	}
	own := m.Author == r.agent
	if own != (e.Direction == audit.Sent) || !own && m.Author != e.Agent {
		return nil, wire.Errorf(wire.Unauthenticated, "it is by %s, which the log does not say", m.Author)
	}
	if e.Kind != kindMarket+m.Kind.String() {
		return nil, wire.Errorf(wire.Malformed, "it is a %s", m.Kind)
	}
	return m, nil
}

// errMissing is of an entry whose original retention has removed.
var errMissing = errors.New(missing)

func refusal(err error) string {
	if err == errMissing {
		return missing
	}
	return "refused: " + err.Error()
}

// talk is one negotiation that is run again.
type talk struct {
	*run
	requests map[string]*audit.Entry
	n        market.Negotiation
	begun    bool
	rfp      string // id of the request
	steps    []*Step
	outcome  string
}

// is reports whether an id stands for the negotiation.
func (t *talk) is(id, ref string) bool {
	if id == ref || t.rfp == id {
		return true
	}
	contracted := t.begun && t.n.Agreement() != nil
	return contracted && t.n.Agreement().ID == id
}

// play runs the moves of a negotiation in the order in which they were recorded.
func (t *talk) play(ref string, entries []*audit.Entry) {
	for _, e := range entries {
		state, err := t.move(ref, e)
		s := &Step{
			Index: e.Index, At: e.At, Kind: e.Kind, Direction: e.Direction, Agent: e.Agent, Recorded: e.Note, Recomputed: state,
		}
		if err != nil {
			s.Recomputed = refusal(err)
		} else {
			t.outcome = state
		}
		s.OK = s.Recorded == s.Recomputed
		t.steps = append(t.steps, s)
	}
}

// move runs one, and returns the state after it.
func (t *talk) move(ref string, e *audit.Entry) (string, error) {
	m, err := t.parse(e)
	if err != nil {
		return "", err
	}
	if !t.begun {
		if err := t.begin(ref, m); err != nil {
			return "", err
		}
	}
	next, res, err := t.n.Next(m, e.At)
	if err != nil {
		return "", err
	}
	if res.Duplicate {
		return "", wire.Errorf(wire.AlreadyExists, "it is in the log before")
	}
	t.n = next
	return next.StateAfter(m.Hash).String(), nil
}

// begin makes the negotiation of the request that its first move is about.
func (t *talk) begin(ref string, first *market.Signed) error {
	t.rfp = first.RFP.ID()
	e := t.requests[t.rfp]
	if e == nil {
		return wire.Errorf(wire.NotFound, "the log does not have request %s", t.rfp)
	}
	rfp := t.asked(e)
	if rfp == nil {
		return wire.Errorf(wire.NotFound, "request %s cannot be used: see entry %d", t.rfp, e.Index)
	}
	seller := first.Author
	if seller == rfp.Author {
		seller = first.To
	}
	n, err := market.NewNegotiation(rfp, seller)
	if err != nil {
		return err
	}
	if n.ID() != ref {
		return wire.Errorf(wire.Denied, "it is of negotiation %s", n.ID())
	}
	t.n, t.begun, t.outcome = n, true, market.Requested.String()
	return nil
}

// asked validates the request, as a step of this negotiation.
func (t *talk) asked(e *audit.Entry) *market.Signed {
	aside := &run{agent: t.agent, certificate: t.certificate, steps: make(map[uint64]*Step)}
	m := aside.request(e)
	t.steps = slices.Insert(t.steps, 0, aside.steps[e.Index])
	return m
}
