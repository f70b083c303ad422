package automation

import (
	"slices"
	"strings"
	"time"

	"openmesh/node/automation/strategy"
	"openmesh/node/handlers/capability"
	"openmesh/protocols/identity"
	"openmesh/protocols/market"
	"openmesh/protocols/wire"
)

// Event is a situation in which this agent may move, or that it has a contract. As JSON
// it is what a handler reads.
type Event struct {
	On       string           `json:"on"`       // market.rfp, market.proposal or market.contract
	RFP      string           `json:"rfp"`      // id of the request
	Proposal string           `json:"proposal"` // id of the negotiation
	Buyer    identity.AgentID `json:"buyer"`
	Seller   identity.AgentID `json:"seller"`
	Role     string           `json:"role"` // of this agent: buyer or seller
	State    string           `json:"state"`
	Turn     string           `json:"turn"`  // buyer, seller, or empty: nobody in particular
	Round    int              `json:"round"` // offers so far
	Expires  time.Time        `json:"expires,omitzero"`
	Moves    []string         `json:"moves"` // what this agent may answer, besides wait

	Request  *market.RFP      `json:"request"`
	Offer    *market.Proposal `json:"offer,omitempty"` // on the table
	Own      *market.Proposal `json:"own,omitempty"`   // this agent's last one
	Contract *market.Contract `json:"contract,omitempty"`

	head   market.Hash
	offers int // of this agent
	kinds  []market.Kind
	now    time.Time
}

// decided are the moves that automation may make. The others follow from them, or
// are for somebody who has seen the work.
var decided = []market.Kind{market.Propose, market.Counter, market.Amend, market.Accept, market.Reject, market.Withdraw}

// EventOf is the situation of agent self in a negotiation at a time; n is nil while
// nothing was said about the request, of which self may be a seller then.
func EventOf(self identity.AgentID, rfp *market.Signed, n *market.Negotiation, now time.Time) (Event, error) {
	e := Event{On: capability.OnRequest, Moves: []string{}, RFP: rfp.Hash.ID(), Request: rfp.Request(), now: now}
	if n == nil {
		first, err := market.NewNegotiation(rfp, self)
		if err != nil {
			return Event{}, err
		}
		n = &first
	}
	role := n.RoleOf(self)
	e.Proposal, e.Buyer, e.Seller, e.head = n.ID(), n.Buyer(), n.Seller(), n.Head()
	e.Role, e.State, e.Round, e.Expires = role.String(), n.State(now).String(), n.Round(), n.Deadline()
	e.Turn = n.Turn(now).String()
	for _, k := range n.Legal(role, now) {
		if slices.Contains(decided, k) {
			e.kinds, e.Moves = append(e.kinds, k), append(e.Moves, k.String())
		}
	}
	switch n.State(now) {
	case market.Requested:
	case market.Contracted, market.Settling, market.Fulfilled, market.Failed:
		e.On, e.head = capability.OnContract, n.Prev(market.Fulfil)
	default:
		e.On = capability.OnNegotiation
	}
	e.offersOf(self, n)
	return e, nil
}

// offersOf fills in what was offered, and agreed on.
func (e *Event) offersOf(self identity.AgentID, n *market.Negotiation) {
	if t := n.Table(); t != nil {
		e.Offer = t.Offer()
	}
	for _, m := range n.Moves() {
		if m.Author == self && m.Offer() != nil {
			e.Own, e.offers = m.Offer(), e.offers+1
		}
		if c := m.Contract(); c != nil {
			e.Contract = c
		}
	}
}

// sells reports whether this agent is a seller who is to answer a request or offer.
func (e Event) sells() bool {
	answers := slices.Contains(e.kinds, market.Propose) || slices.Contains(e.kinds, market.Accept)
	return e.Role == market.Seller.String() && e.Turn == e.Role && answers
}

// situation is the event as a strategy sees it.
func (e Event) situation() strategy.Situation {
	return strategy.Situation{Own: e.Own, Table: e.Offer, Offers: e.offers, Legal: e.kinds}
}

// other is the agent on the other side.
func (e Event) other() identity.AgentID {
	if e.Role == market.Seller.String() {
		return e.Buyer
	}
	return e.Seller
}

// key is the same whenever the same situation is asked about.
func (e Event) key() string { return e.Proposal + "/" + e.head.ID() }

// legal passes a decision that the state allows.
func (e Event) legal(d Decision) (Decision, error) {
	if d.Kind != 0 && !slices.Contains(e.kinds, d.Kind) {
		return Decision{}, wire.Errorf(wire.IllegalTransition, "%s in state %s: want wait, %s", d.Kind, e.State, e.allowed())
	}
	return d, nil
}

func (e Event) allowed() string { return strings.Join(e.Moves, ", ") }
