// Package policy decides who may do what. It is pure: a decision is a function
// of the rules and the request, and names the rule that made it.
//
// The rules there are today are visibility: what is in a circle is for the
// circle's members; what is private is for those who know where it is; the rest
// is for all.
package policy

import (
	"slices"

	"openmesh/protocols/identity"
)

// On is what a request wants to do.
type On string

// What can be decided on.
const (
	SessionOpen On = "session.open" // an agent offers a session
	Discover    On = "discover"     // an agent asks for a capability's descriptor
	Call        On = "call"         // an agent calls a capability
)

// Effect is what becomes of a request.
type Effect string

// The effects.
const (
	Allow Effect = "allow"
	Deny  Effect = "deny"
)

// Request is what is to be decided.
type Request struct {
	On     On
	Agent  identity.AgentID // who wants it
	Circle string           // the circle that a capability is visible to; "" for none
}

// Decision is an effect and why.
type Decision struct {
	Effect Effect
	Rule   string // the rule that decided
}

// Circles are named sets of agents: the members of each circle that this node
// knows, by agent id. A nil Circles has none.
type Circles map[string][]identity.AgentID

// Has reports whether agent a is a member of circle. Nobody is a member of a
// circle that is not known.
func (c Circles) Has(circle string, a identity.AgentID) bool {
	return slices.Contains(c[circle], a)
}

// Of returns the circles that a is a member of, in order.
func (c Circles) Of(a identity.AgentID) []string {
	var names []string
	for name := range c {
		if c.Has(name, a) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Decide decides r. Deny wins; what no rule speaks of is allowed.
func (c Circles) Decide(r Request) Decision {
	switch {
	case r.Circle == "":
		return Decision{Allow, "default"}
	case c.Has(r.Circle, r.Agent):
		return Decision{Allow, "member of circle:" + r.Circle}
	}
	return Decision{Deny, "not a member of circle:" + r.Circle}
}
