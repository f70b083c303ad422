package session

import (
	"strings"

	"openmesh/protocols/wire"
)

// ParseState reads the name of a state, such as "active".
func ParseState(name string) (State, error) {
	for i, n := range stateNames {
		if n == name {
			return State(i), nil
		}
	}
	return 0, wire.Errorf(wire.InvalidArgument, "session state %.40q: want one of %s", name, strings.Join(stateNames[:], ", "))
}

// Next returns to if a session may go there from s; else [wire.IllegalTransition].
// It is for those who follow a session that is not theirs to move: a log of one.
func (s State) Next(to State) (State, error) { return s.next(to) }
