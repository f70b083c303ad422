// Package impostor is what a dishonest agent changes in its daemon to get work that
// somebody else has paid for: it takes any market contract for its own.
package impostor

import (
	"context"
	"time"

	"openmesh/cmd/openmesh/demo/deal"
	"openmesh/node"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// Deals claims that every contract is between Self and Seller, in force, and for the
// capability of the demo's market. It
// implements [node.Deals].
type Deals struct {
	Self, Seller identity.AgentID
}

var _ node.Deals = Deals{}

// Terms makes up the contract that is asked for.
func (d Deals) Terms(_ context.Context, id string) (node.Deal, error) {
	now := time.Now()
	return node.Deal{
		ID: id, Buyer: d.Self, Seller: d.Seller, Capability: deal.Capability, Quantity: 1, State: "contracted",
		ValidFrom: now.Add(-time.Hour), ValidUntil: now.Add(time.Hour),
	}, nil
}

// Admit lets nobody work: the error is wire.NotFound.
func (d Deals) Admit(_ context.Context, id string, _ identity.AgentID) error {
	return wire.Errorf(wire.NotFound, "there is no contract %s", id)
}

// Begin is as Admit.
func (d Deals) Begin(ctx context.Context, id, _, _ string, buyer identity.AgentID) (func(bool), error) {
	return nil, d.Admit(ctx, id, buyer)
}
