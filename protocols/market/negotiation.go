package market

import (
	"crypto/sha256"
	"slices"
	"time"

	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// Limits on a negotiation.
const (
	MaxRounds = 64   // offers, of both sides together
	maxMoves  = 1024 // moves, superseded ones included
)

// Negotiation is what one buyer and one seller have said to each other about one
// request. It is a value: moves make new ones. The zero value is none.
type Negotiation struct {
	seller  identity.AgentID
	chain   []position // from the request on
	dropped []*Signed  // superseded
	journal []applied
}

// position is where a negotiation is after a move.
type position struct {
	move    *Signed
	state   State
	offeror Role
	table   *Signed // the offer on the table, or that was accepted
	rounds  int     // offers so far
	settled Role    // who has said first how the work went
}

// applied is a move and when it was applied.
type applied struct {
	move *Signed
	at   time.Time
}

// NewNegotiation returns that of a request with one seller, before the seller has
// said anything. Errors: wire.InvalidArgument.
func NewNegotiation(rfp *Signed, seller identity.AgentID) (Negotiation, error) {
	if rfp.Kind != Request {
		return Negotiation{}, wire.Errorf(wire.InvalidArgument, "negotiate: move %s is not a request", rfp.Kind)
	}
	if _, err := identity.ParseAgentID(string(seller)); err != nil {
		return Negotiation{}, wire.Errorf(wire.InvalidArgument, "negotiate: seller: %w", err)
	}
	if seller == rfp.Author {
		return Negotiation{}, wire.Errorf(wire.InvalidArgument, "negotiate: %s is buyer and seller", seller)
	}
	return Negotiation{seller: seller, chain: []position{{move: rfp, state: Requested, offeror: Buyer}}}, nil
}

// NegotiationID returns the id of the negotiation of the request with that hash and
// a seller: 32 hexadecimal digits.
func NegotiationID(rfp Hash, seller identity.AgentID) string {
	b := append([]byte("openmesh/market/negotiation/1\x00"), rfp[:]...)
	return Hash(sha256.Sum256(append(b, seller...))).ID()
}

// ID returns the negotiation's id; see [NegotiationID].
func (n Negotiation) ID() string { return NegotiationID(n.RFP().Hash, n.seller) }

// RFP returns the request.
func (n Negotiation) RFP() *Signed { return n.chain[0].move }

// Buyer returns who made the request.
func (n Negotiation) Buyer() identity.AgentID { return n.RFP().Author }

// Seller returns the other side.
func (n Negotiation) Seller() identity.AgentID { return n.seller }

// RoleOf returns an agent's side; 0 of a stranger.
func (n Negotiation) RoleOf(agent identity.AgentID) Role {
	switch agent {
	case n.Buyer():
		return Buyer
	case n.seller:
		return Seller
	}
	return 0
}

// Party returns the agent on a side; empty for neither.
func (n Negotiation) Party(r Role) identity.AgentID {
	switch r {
	case Buyer:
		return n.Buyer()
	case Seller:
		return n.seller
	}
	return ""
}

func (n Negotiation) head() position { return n.chain[len(n.chain)-1] }

// Head returns the hash of the newest move; at first of the request. It is what the
// next move has as Prev; see [Negotiation.Prev] for settlements.
func (n Negotiation) Head() Hash { return n.head().move.Hash }

// Prev returns what a move of that kind made now has as Prev: [Negotiation.Head],
// or the hash of the contract move if it settles and there is one.
func (n Negotiation) Prev(k Kind) Hash {
	if c := n.concluded(); k.settles() && c != nil {
		return c.Hash
	}
	return n.Head()
}

// Moves returns what was applied and counts, in order, without the request.
func (n Negotiation) Moves() []*Signed {
	var out []*Signed
	for _, p := range n.chain[1:] {
		out = append(out, p.move)
	}
	return out
}

// Superseded returns moves that were applied and then lost against one that they
// crossed, in the order in which they were dropped.
func (n Negotiation) Superseded() []*Signed { return slices.Clone(n.dropped) }

// Round returns how many offers were made.
func (n Negotiation) Round() int { return n.head().rounds }

// Table returns the offer on the table, or the one that was accepted or ended; nil
// if there was none.
func (n Negotiation) Table() *Signed { return n.head().table }

// Offeror returns whose request or offer is on the table.
func (n Negotiation) Offeror() Role { return n.head().offeror }

// Turn returns who is to move: the offeree; of an acceptance the offeror; of a
// contract that one side has settled, the other. 0: nobody in particular.
func (n Negotiation) Turn(now time.Time) Role {
	switch p := n.head(); n.State(now) {
	case Requested, Proposed, Countered, Amended:
		return p.offeror.Other()
	case Accepted:
		return p.offeror
	case Settling:
		return p.settled.Other()
	}
	return 0
}

// Deadline returns when what is on the table expires: the request's deadline, or
// the offer's validity. It is zero once there is nothing that can expire.
func (n Negotiation) Deadline() time.Time { return n.head().deadline() }

func (p position) deadline() time.Time {
	switch p.state {
	case Requested:
		return p.move.request.Deadline
	case Proposed, Countered, Amended:
		return p.table.offer.ValidUntil
	}
	return time.Time{}
}

// State returns where the negotiation is at that time.
func (n Negotiation) State(now time.Time) State { return n.head().at(now) }

// at is the state with the clock's rules of the table done.
func (p position) at(now time.Time) State {
	if d := p.deadline(); !d.IsZero() && !now.Before(d) {
		return Expired
	}
	return p.state
}

// Legal returns what a side may do at that time, in the order of the table.
func (n Negotiation) Legal(by Role, now time.Time) []Kind {
	p := n.head()
	if p.at(now) != p.state {
		return nil
	}
	var out []Kind
	for _, r := range Table() {
		if r.From == p.state && p.plays(by, r.By) {
			out = append(out, r.Move)
		}
	}
	return out
}

// plays reports whether a side is that actor here.
func (p position) plays(by Role, a Actor) bool {
	switch a {
	case Offeror:
		return by == p.offeror
	case Offeree:
		return by == p.offeror.Other()
	case ByBuyer:
		return by == Buyer
	case Either:
		return by == Buyer || by == Seller
	case Second:
		return by == p.settled.Other()
	}
	return false
}

// concluded returns the contract move, or nil.
func (n Negotiation) concluded() *Signed {
	for _, p := range n.chain {
		if p.move.Kind == Conclude {
			return p.move
		}
	}
	return nil
}
