package session_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"openmesh/protocols/session"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/session/delivery/deliverytest"
	"openmesh/protocols/signal"
)

// slowStore takes a while to tell its sessions.
type slowStore struct{ delivery.Store }

func (s slowStore) Sessions(ctx context.Context) (map[delivery.SessionID][]byte, error) {
	time.Sleep(3 * time.Second)
	return s.Store.Sessions(ctx)
}

// A peer that comes while a restarted node still reads its store is not told that
// its session is not known there.
func TestResumedBeforeTheStoreIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newWires(5 * time.Millisecond)
		a, b := net.node(t, keep), net.node(t, keep)
		s := a.open(t, b, session.Want{Contract: signal.Contract{QoS: signal.AtLeastOnce}})
		net.unplug(b.agent.Certificate.Peer)
		sequence, err := s.Post(t.Context(), &delivery.Message{Body: []byte("{}")})
		if err != nil {
			t.Fatal(err)
		}
		b.cfg.Store = slowStore{b.cfg.Store.(*deliverytest.Store).Crash()}
		b.kill()
		b.start(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if o, err := s.Outcome(ctx, sequence); err != nil || o.Status != delivery.Delivered {
			t.Errorf("outcome %v, %v; want delivered", o, err)
		}
	})
}
