package node

import (
	"context"
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

// Details whose schema could not be had just then are not refused for good.
func TestUnfetched(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]wire.Code{
		wire.Errorf(wire.NotFound, "no schema"):         wire.NoCommonSchema,
		wire.Errorf(wire.InvalidResponse, "not it"):     wire.NoCommonSchema,
		wire.Errorf(wire.Unreachable, "away"):           wire.HandlerUnavailable,
		wire.Errorf(wire.DeadlineExceeded, "no answer"): wire.HandlerUnavailable,
		wire.Errorf(wire.SessionClosed, "cut"):          wire.HandlerUnavailable,
		wire.Errorf(wire.ResourceExhausted, "busy"):     wire.HandlerUnavailable,
		context.Canceled: wire.HandlerUnavailable,
	} {
		if got := unfetched(fmt.Errorf("fetch: %w", err)); got != want {
			t.Errorf("%v: %s, want %s", err, got, want)
		}
	}
}

// An agent that does not answer is asked for a few schemas at once, and others all the same.
func TestAskingIsBounded(t *testing.T) {
	t.Parallel()
	var a asking
	for range maxAsked {
		if !a.begin("slow") {
			t.Fatal("refused too early")
		}
	}
	if a.begin("slow") || !a.begin("other") {
		t.Error("the slow one is asked again, or another one is not")
	}
	a.end("slow")
	if !a.begin("slow") {
		t.Error("refused though it has answered")
	}
}
