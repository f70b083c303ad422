package node

import (
	"context"
	"sync"
	"time"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/catalog"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// checkDetails checks a document's details against the schema that it names, which its
// author has. The error is wire.NoCommonSchema if the author does not, and
// wire.HandlerUnavailable if it could not be asked.
func (n *Node) checkDetails(ctx context.Context, from identity.AgentID, name, cid string, details []byte) error {
	if _, err := n.catalog.Fetch(ctx, from, cid); err != nil {
		return wire.Errorf(unfetched(err), "schema %s (%s) of the details: %w", name, cid, err)
	}
	return n.catalog.Validate(ctx, cid, details)
}

// unfetched tells what cannot be had from what could not be had just then.
func unfetched(err error) wire.Code {
	switch wire.CodeOf(err) {
	case wire.NotFound, wire.InvalidArgument, wire.InvalidRequest, wire.InvalidResponse, wire.Malformed, wire.TooLarge, wire.Unsupported, wire.Denied:
		return wire.NoCommonSchema
	}
	return wire.HandlerUnavailable
}

const (
	schemaTime = 20 * time.Second // to find an agent and have its answer
	maxAsked   = 4                // schemas that one agent is asked for at once
)

// asking counts what agents are asked for: one that takes its time keeps few waiting.
type asking struct {
	mu sync.Mutex
	of map[identity.AgentID]int
}

func (a *asking) begin(of identity.AgentID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.of[of] >= maxAsked {
		return false
	}
	if a.of == nil {
		a.of = make(map[identity.AgentID]int)
	}
	a.of[of]++
	return true
}

func (a *asking) end(of identity.AgentID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.of[of]--; a.of[of] == 0 {
		delete(a.of, of)
	}
}

// fetchSchema asks an agent for a schema. The error is wire.NotFound only if that is its
// answer.
func (n *Node) fetchSchema(ctx context.Context, from identity.AgentID, cid string) ([]byte, error) {
	if from == n.cfg.Keys.Agent {
		return nil, wire.Errorf(wire.NotFound, "no schema %s", cid).WithHint("Add it with: openmesh market schema add")
	}
	if !n.asking.begin(from) {
		return nil, wire.Errorf(wire.ResourceExhausted, "%s has yet to answer about %d schemas", from, maxAsked)
	}
	defer n.asking.end(from)
	ctx, cancel := context.WithTimeout(ctx, schemaTime)
	defer cancel()
	r := &openmeshv1.CallRequest{
		Target: string(from), Capability: catalog.Capability, Body: &openmeshv1.CallRequest_Json{Json: string(catalog.Question(cid))},
	}
	if _, ok := n.inSession(r); !ok {
		if _, err := n.resolve(ctx, r.Target); err != nil {
			return nil, wire.Errorf(wire.Unreachable, "%w", err)
		}
	}
	deadline, _ := ctx.Deadline()
	resp, err := n.callBy(ctx, r, "", deadline, n.collect)
	if err != nil {
		return nil, err
	}
	return catalog.ReadAnswer([]byte(resp.GetJson()))
}
