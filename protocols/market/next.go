package market

import (
	"slices"
	"time"

	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// Result is what a move changed.
type Result struct {
	Duplicate  bool      // it was known: nothing changed, and the answer is the same again
	Superseded []*Signed // moves that lost against it and are dropped
	Changes    []Change  // of an offer: what it changes of the one on the table before
}

// Next applies a move at time now, of whichever side. It decides by what the moves
// themselves say, the author's time included, so that both sides come to the same
// whatever their clocks show; now is only compared with the move's time, which may
// not be in the future by more than [identity.ClockSkew].
//
// A move that follows not the head but an earlier one was made before its author
// knew the rest. If the rest is all the other side's, and its author was the offeror
// at that earlier move, it counts and the rest is dropped: an offeror who withdraws
// or amends is not held to an acceptance that it had not seen. Otherwise it has lost.
//
// Errors are [*wire.Error], and nothing changes: wire.IllegalTransition naming state
// and move; wire.HandlerUnavailable if a move before it has not come yet, or its time
// has not (both: try again); wire.Denied for an author that is not of this
// negotiation; wire.InvalidRequest with pointers for a contract that is not what the
// offer says; wire.Unauthenticated for a contract signature; wire.ResourceExhausted
// for more moves than are kept.
func (n Negotiation) Next(m *Signed, now time.Time) (Negotiation, Result, error) {
	if n.knows(m.Hash) {
		return n, Result{Duplicate: true}, nil
	}
	if err := n.admit(m, now); err != nil {
		return n, Result{}, err
	}
	i, err := n.place(m)
	if err != nil {
		return n, Result{}, err
	}
	before := Negotiation{seller: n.seller, chain: n.chain[:i+1]}
	p, err := before.after(m)
	if err != nil {
		return n, Result{}, err
	}
	var res Result
	for _, lost := range n.chain[i+1:] {
		res.Superseded = append(res.Superseded, lost.move)
	}
	if was := before.Table(); m.offer != nil && was != nil {
		res.Changes = Diff(was.offer, m.offer)
	}
	return Negotiation{
		seller:  n.seller,
		chain:   append(slices.Clip(before.chain), p),
		dropped: append(slices.Clip(n.dropped), res.Superseded...),
		journal: append(slices.Clip(n.journal), applied{m, now}),
	}, res, nil
}

func (n Negotiation) knows(h Hash) bool {
	is := func(m *Signed) bool { return m.Hash == h }
	return n.index(h) >= 0 || slices.ContainsFunc(n.dropped, is)
}

// index returns the place of a move in the chain, or -1.
func (n Negotiation) index(h Hash) int {
	return slices.IndexFunc(n.chain, func(p position) bool { return p.move.Hash == h })
}

// admit checks what does not depend on the state.
func (n Negotiation) admit(m *Signed, now time.Time) error {
	if m.Kind == Request || m.RFP != n.RFP().Hash {
		return wire.Errorf(wire.Denied, "%s of another request", m.Kind)
	}
	if by := n.RoleOf(m.Author); by == 0 || m.To != n.Party(by.Other()) {
		return wire.Errorf(wire.Denied, "%s by %s to %s is not of the negotiation of %s and %s", m.Kind, m.Author, m.To, n.Buyer(), n.seller)
	}
	if m.offer != nil && m.offer.Seller != n.seller {
		err := wire.Errorf(wire.InvalidRequest, "%s: /seller is not the seller", m.Kind)
		err.Pointers = []string{"/seller"}
		return err
	}
	if m.At.After(now.Add(identity.ClockSkew)) {
		return wire.Errorf(wire.HandlerUnavailable, "%s: its time, %s, is in the future", m.Kind, m.At.Format(time.RFC3339)).
			WithHint("Clocks may differ by %s; correct the one that is wrong.", identity.ClockSkew)
	}
	if len(n.journal) >= maxMoves {
		return wire.Errorf(wire.ResourceExhausted, "%s: negotiation of %d moves", m.Kind, len(n.journal))
	}
	return nil
}

// place returns the index of the position that m follows, where all that comes after
// it gives way to m.
func (n Negotiation) place(m *Signed) (int, error) {
	i := n.index(m.Prev)
	if i < 0 && n.knows(m.Prev) {
		return 0, n.illegal(m, "the move that it follows has lost against another")
	}
	if i < 0 {
		return 0, wire.Errorf(wire.HandlerUnavailable, "%s: a move before this one is missing", m.Kind)
	}
	last := len(n.chain) - 1
	if m.Kind.settles() {
		if n.chain[i].move.Kind != Conclude {
			return 0, n.illegal(m, "it does not follow the contract")
		}
		return last, nil // settlements commute: either may come first
	}
	if i == last {
		return i, nil
	}
	own := func(p position) bool { return p.move.Author == m.Author }
	if n.RoleOf(m.Author) != n.chain[i].offeror || slices.ContainsFunc(n.chain[i+1:], own) {
		return 0, n.illegal(m, "another move has followed the same one, and counts")
	}
	return i, nil
}

func (n Negotiation) illegal(m *Signed, why string) error {
	p := n.head()
	err := wire.Errorf(wire.IllegalTransition, "%s by the %s in state %s", m.Kind, n.RoleOf(m.Author), p.at(m.At))
	if why != "" {
		err.Message += ": " + why
	}
	return err
}

// after returns the position after m, which follows the head.
func (n Negotiation) after(m *Signed) (position, error) {
	p := n.head()
	by := n.RoleOf(m.Author)
	to, ok := p.allows(by, m.Kind)
	if !ok || p.at(m.At) != p.state {
		return p, n.illegal(m, "")
	}
	if followed := n.chain[n.index(m.Prev)].move; m.At.Before(followed.At.Add(-identity.ClockSkew)) {
		return p, n.illegal(m, "its time is before that of the move it follows")
	}
	if err := n.binding(m); err != nil {
		return p, err
	}
	p.move, p.state = m, to
	switch {
	case m.Kind.offers():
		if p.rounds++; p.rounds > MaxRounds {
			return p, n.illegal(m, "there were too many offers")
		}
		p.table, p.offeror = m, by
	case m.Kind.settles():
		p.settled = by
	}
	return p, nil
}

// allows looks a move up in the table.
func (p position) allows(by Role, k Kind) (State, bool) {
	for _, r := range Table() {
		if r.From == p.state && r.Move == k && p.plays(by, r.By) {
			return r.To, true
		}
	}
	return 0, false
}

// binding checks the contract of the moves that sign one.
func (n Negotiation) binding(m *Signed) error {
	switch m.Kind {
	case Accept:
		return n.checkAccept(m)
	case Conclude:
		return n.checkConclude(m)
	}
	return nil
}
