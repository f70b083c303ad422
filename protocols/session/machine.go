package session

import (
	"fmt"

	"openmesh/protocols/wire"
)

// State is how far a session has come.
type State uint8

// The states of a session.
const (
	Offered      State = iota // an offer was made or answered, or left in a mailbox
	Establishing              // keys are there; the first channel is on its way
	Active                    // frames flow
	Migrating                 // moving to another channel; frames flow
	Draining                  // nothing new begins; what is under way ends
	Closed                    // ended in order
	Terminated                // ended for a reason
)

var stateNames = [...]string{"offered", "establishing", "active", "migrating", "draining", "closed", "terminated"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state-%d", uint8(s))
}

// Done reports whether nothing can follow s.
func (s State) Done() bool { return s >= Closed }

// transitions lists every legal move: the machine, its diagram and its test.
// Any state that is not done may also become Terminated.
var transitions = [...]struct{ from, to State }{
	{Offered, Establishing},
	{Offered, Draining}, // an offer by mail is taken back
	{Establishing, Active},
	{Active, Migrating},
	{Migrating, Active},
	{Active, Draining},
	{Migrating, Draining},
	{Draining, Closed},
}

// next returns to if a session may go there from s; else wire.IllegalTransition.
func (s State) next(to State) (State, error) {
	if to == Terminated && !s.Done() {
		return to, nil
	}
	for _, t := range transitions {
		if t.from == s && t.to == to {
			return to, nil
		}
	}
	return s, wire.Errorf(wire.IllegalTransition, "session: %s cannot follow %s", to, s)
}
