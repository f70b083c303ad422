package session

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// noNetwork is a network without a way to anybody; it counts who wants one.
type noNetwork struct{ wanted chan Route }

func (n noNetwork) Signal(context.Context, Route, []byte) ([]byte, bool, error) {
	return nil, false, wire.Unreachable
}

func (n noNetwork) Dial(_ context.Context, r Route) (Conduit, error) {
	n.wanted <- r
	return nil, wire.Unreachable
}

func (n noNetwork) Offer() []signal.Transport { return nil }

// A call that is made at the very moment at which an idle session gives up its
// channel goes to the one that is lost: the next sweep sees to another one.
func TestCallWhileTheSessionIsParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := newSides(t, 1)
		network := noNetwork{make(chan Route, 100)}
		a.owner.cfg.Network = network
		a.Peer().NotAfter = time.Now().Add(time.Hour)
		answered := make(chan error)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		go func() {
			_, _, err := a.Call(ctx, &Request{Capability: "test/work"})
			answered <- err
		}()
		synctest.Wait()
		a.park() // found it resting before
		a.sweep(time.Now())
		synctest.Wait()
		if len(network.wanted) == 0 {
			t.Error("nobody looks for a channel")
		}
		if err := <-answered; wire.CodeOf(err) != wire.DeadlineExceeded {
			t.Errorf("Call = %v", err)
		}
		a.Terminate(wire.SessionClosed)
		a.owner.stop()
		a.owner.group.Wait()
	})
}
