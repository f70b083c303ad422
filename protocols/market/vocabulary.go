package market

import (
	"fmt"
	"slices"

	"openmesh/protocols/market/document"
	"openmesh/protocols/wire"
)

// The documents of package document, under the names that negotiation gives them.
type (
	Hash        = document.Hash
	RFP         = document.RFP
	Proposal    = document.Proposal
	Contract    = document.Contract
	Terms       = document.Terms
	Money       = document.Money
	PriceRange  = document.PriceRange
	Delivery    = document.Delivery
	Constraints = document.Constraints
	Decimal     = document.Decimal
	SchemaRef   = document.SchemaRef
	Party       = document.Party
	Checkpoint  = document.Checkpoint
	Checkpoints = document.Checkpoints
	Change      = document.Change
)

// ParseDecimal reads an amount such as 12.50.
func ParseDecimal(s string) (Decimal, error) { return document.ParseDecimal(s) }

// Diff returns what the second offer changes of the first.
func Diff(old, new *Proposal) []Change { return document.Diff(old, new) }

// Kind is what a move does. Values are on the wire: append only.
type Kind uint8

// The kinds of moves.
const (
	Request  Kind = iota + 1 // "rfp": the buyer asks for offers
	Propose                  // the seller's first offer
	Counter                  // another offer, in answer to one
	Amend                    // another offer, in place of one's own
	Withdraw                 // takes one's own offer back
	Accept                   // signs the contract that the offer comes to
	Reject                   // ends it, in answer to an offer or acceptance
	Cancel                   // the buyer gives up
	Conclude                 // "contract": the offeror signs the contract too
	Expire                   // the acceptance came too late
	Fulfil                   // the work was done
	Fail                     // it was not
)

var kinds = [...]string{"", "rfp", "propose", "counter", "amend", "withdraw", "accept", "reject", "cancel", "contract", "expire", "fulfil", "fail"}

// String returns the kind's name, such as "propose".
func (k Kind) String() string { return nameOf(kinds[:], k, "move") }

// ParseKind reads what String writes. The error is wire.InvalidArgument.
func ParseKind(s string) (Kind, error) { return parseName[Kind](kinds[:], s, "move") }

// offers reports whether a move of kind k puts an offer on the table.
func (k Kind) offers() bool { return k == Propose || k == Counter || k == Amend }

// settles reports whether a move of kind k says how the work under a contract went.
func (k Kind) settles() bool { return k == Fulfil || k == Fail }

// Role is a side of a negotiation. The zero value is neither.
type Role uint8

// The sides.
const (
	Buyer Role = iota + 1
	Seller
)

var roles = [...]string{"", "buyer", "seller"}

// String returns "buyer", "seller", or "" for neither.
func (r Role) String() string { return nameOf(roles[:], r, "role") }

// Other returns the other side; of neither, neither.
func (r Role) Other() Role {
	switch r {
	case Buyer:
		return Seller
	case Seller:
		return Buyer
	}
	return 0
}

// State is where a negotiation is.
type State uint8

// The states. In the first four an offer, or the request for one, is on the table.
const (
	Requested State = iota + 1 // "rfp"
	Proposed
	Countered
	Amended
	Accepted   // one side has signed the contract
	Contracted // both have
	Settling   // one side says that the work was done
	Fulfilled
	Failed
	Withdrawn
	Rejected
	Cancelled
	Expired
)

var states = [...]string{"", "rfp", "proposed", "countered", "amended", "accepted", "contracted", "settling",
	"fulfilled", "failed", "withdrawn", "rejected", "cancelled", "expired"}

// String returns the state's name, such as "proposed".
func (s State) String() string { return nameOf(states[:], s, "state") }

// ParseState reads what String writes. The error is wire.InvalidArgument.
func ParseState(s string) (State, error) { return parseName[State](states[:], s, "state") }

// Done reports whether nothing can follow.
func (s State) Done() bool { return s >= Fulfilled }

func nameOf[T ~uint8](names []string, v T, what string) string {
	if int(v) < len(names) {
		return names[v]
	}
	return fmt.Sprintf("%s-%d", what, v)
}

func parseName[T ~uint8](names []string, s, what string) (T, error) {
	if i := slices.Index(names[1:], s); i >= 0 {
		return T(i + 1), nil
	}
	return 0, wire.Errorf(wire.InvalidArgument, "%s %.40q is not one of %q", what, s, names[1:])
}
