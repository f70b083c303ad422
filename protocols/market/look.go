package market

import (
	"slices"
	"time"
)

// Knows reports whether a move was applied, be it that it lost against another since.
func (n Negotiation) Knows(h Hash) bool { return n.knows(h) }

// Find returns a move that counts, or nil.
func (n Negotiation) Find(h Hash) *Signed {
	if i := n.index(h); i >= 0 {
		return n.chain[i].move
	}
	return nil
}

// Since returns the moves that count and come after the one with that hash, or after
// the place where it was before it lost; nil if it is not known.
func (n Negotiation) Since(h Hash) []*Signed {
	i := n.index(h)
	for i < 0 { // back to what still counts
		lost := slices.IndexFunc(n.dropped, func(m *Signed) bool { return m.Hash == h })
		if lost < 0 {
			return nil
		}
		h = n.dropped[lost].Prev
		i = n.index(h)
	}
	return n.Moves()[i:]
}

// StateAfter returns the state that a move led to; 0 if it does not count. The state
// after the request is [Requested].
func (n Negotiation) StateAfter(h Hash) State {
	if i := n.index(h); i >= 0 {
		return n.chain[i].state
	}
	return 0
}

// AppliedAt returns the time at which a move was applied, as Next was told; zero if it
// is not known.
func (n Negotiation) AppliedAt(h Hash) time.Time {
	for _, a := range n.journal {
		if a.move.Hash == h {
			return a.at
		}
	}
	return time.Time{}
}

// LastOffer returns the newest offer of a side that counts; nil if there is none.
func (n Negotiation) LastOffer(by Role) *Signed {
	for _, p := range slices.Backward(n.chain) {
		if p.move.offer != nil && n.RoleOf(p.move.Author) == by {
			return p.move
		}
	}
	return nil
}

// Promised returns the quantity that is accepted or under contract; 0 before, and once
// that came to nothing.
func (n Negotiation) Promised() int64 {
	switch p := n.head(); p.state {
	case Accepted, Contracted, Settling, Fulfilled:
		return p.table.offer.Terms.Quantity
	}
	return 0
}
