package node

import (
	"fmt"
	"testing"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/wire"
)

// What this node could not find is no answer to a move; what the other side answers is.
func TestUndelivered(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		err  error
		want wire.Code
	}{
		{"no record of the agent", fmt.Errorf("resolve: %w", wire.Errorf(wire.NotFound, "no agent has announced it")), wire.Unreachable},
		{"no such session", wire.Errorf(wire.NotFound, "session"), wire.Unreachable},
		{"outside the handshake's time window", wire.Errorf(wire.Replayed, "hello"), wire.Unreachable},
		{"policy", wire.Errorf(wire.Denied, "no"), wire.Denied},
		{"away", wire.Errorf(wire.Unreachable, "no path"), wire.Unreachable},
		{"answered", fmt.Errorf("post: %w", outcomeError("did:key:other", delivery.Outcome{Status: delivery.Failed, Code: wire.NotFound})), wire.NotFound},
	} {
		if got := wire.CodeOf(undelivered(tc.err)); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}
