package market

import (
	"fmt"
	"strings"
)

// Actor is who may make a move, by the part that it plays.
type Actor uint8

// The actors.
const (
	Offeror Actor = iota + 1 // whose request or offer is on the table, or was accepted
	Offeree                  // the other side
	ByBuyer                  // the buyer, whichever it is
	Either                   // both
	Second                   // who has not said yet how the work went
	Clock                    // nobody: the deadline of what is on the table passes
)

var actors = [...]string{"", "offeror", "offeree", "buyer", "either", "second", "clock"}

// String returns the actor's name, such as "offeror".
func (a Actor) String() string { return nameOf(actors[:], a, "actor") }

// Rule is a legal transition.
type Rule struct {
	From State
	By   Actor
	Move Kind // 0 for that of the clock
	To   State
}

// Table returns the whole machine. What is not in it is illegal.
func Table() []Rule {
	rules := []Rule{
		{Requested, Offeree, Propose, Proposed},
		{Requested, Offeree, Reject, Rejected},
		{Requested, Offeror, Cancel, Cancelled},
		{Requested, Clock, 0, Expired},
	}
	for _, s := range []State{Proposed, Countered, Amended} {
		rules = append(rules,
			Rule{s, Offeree, Counter, Countered},
			Rule{s, Offeree, Accept, Accepted},
			Rule{s, Offeree, Reject, Rejected},
			Rule{s, Offeror, Amend, Amended},
			Rule{s, Offeror, Withdraw, Withdrawn},
			Rule{s, ByBuyer, Cancel, Cancelled},
			Rule{s, Clock, 0, Expired})
	}
	return append(rules,
		Rule{Countered, Offeree, Amend, Amended}, // answers the counteroffer by changing its own former offer
		Rule{Accepted, Offeror, Conclude, Contracted},
		Rule{Accepted, Offeror, Expire, Expired},
		Rule{Accepted, Offeror, Reject, Rejected},
		Rule{Contracted, Either, Fulfil, Settling},
		Rule{Contracted, Either, Fail, Failed},
		Rule{Settling, Second, Fulfil, Fulfilled},
		Rule{Settling, Second, Fail, Failed})
}

// Diagram returns the table as a Mermaid state diagram.
func Diagram() string {
	var b strings.Builder
	b.WriteString("stateDiagram-v2\n    [*] --> rfp\n")
	for _, r := range Table() {
		label := r.By.String() + ": " + r.Move.String()
		if r.By == Clock {
			label = "deadline"
		}
		fmt.Fprintf(&b, "    %s --> %s: %s\n", r.From, r.To, label)
	}
	for s := Requested; s <= Expired; s++ {
		if s.Done() {
			fmt.Fprintf(&b, "    %s --> [*]\n", s)
		}
	}
	return b.String()
}
