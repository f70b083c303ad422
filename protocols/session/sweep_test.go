package session_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"openmesh/protocols/session"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/signal"
)

// While its peer has no valid key, a persistent session waits for it as it does for
// one that is away: messages expire, and one that nobody uses is closed.
func TestSessionWhosePeerHasNoValidKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newWires(5 * time.Millisecond)
		a := net.node(t, func(c *session.Config) { keep(c); c.Retention = 2 * time.Hour })
		b := net.node(t, keep)
		s := a.open(t, b, session.Want{Contract: signal.Contract{QoS: signal.AtLeastOnce, TTL: time.Hour}})
		net.unplug(b.agent.Certificate.Peer)
		sequence, err := s.Post(t.Context(), &delivery.Message{Body: []byte("{}")})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.cfg.Signal.Verifier.Verify(b.agent.Rotate(t, 2, time.Now()).Raw); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour+time.Minute)
		defer cancel()
		if o, err := s.Outcome(ctx, sequence); err != nil || o.Status != delivery.Expired {
			t.Errorf("outcome %v, %v; want expired", o, err)
		}
		time.Sleep(2 * time.Hour)
		if i := a.Sessions(true)[0]; i.State != session.Closed {
			t.Errorf("the session is %s", i.State)
		}
	})
}
