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
	"openmesh/protocols/wire"
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

// Of a persistent session that was refused for want of a channel, by either side,
// nothing comes back with a restart.
func TestRefusedSessionIsNotRestored(t *testing.T) {
	for _, full := range []string{"opener", "other side"} {
		t.Run(full, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newWires(5 * time.Millisecond)
				limited := func(c *session.Config) { keep(c); c.MaxChannels = 1 }
				a, b := net.node(t, limited), net.node(t, keep)
				if full == "other side" {
					a, b = net.node(t, keep), net.node(t, limited)
				}
				want := session.Want{Exclusive: true, Contract: signal.Contract{QoS: signal.AtLeastOnce}}
				a.open(t, b, want)
				for range 3 {
					if _, err := a.Open(t.Context(), b.target(), want); wire.CodeOf(err) != wire.ResourceExhausted {
						t.Errorf("one too many: %v", err)
					}
				}
				for _, n := range []*wired{a, b} {
					n.crash(t)
				}
				time.Sleep(time.Minute)
				for _, n := range []*wired{a, b} {
					if left := n.Sessions(false); len(left) != 1 {
						t.Errorf("%d sessions after a restart, want 1", len(left))
					}
				}
			})
		})
	}
}

// heldStore stores new sessions only once it may.
type heldStore struct {
	delivery.Store
	gate chan struct{}
}

func (s heldStore) Commit(c delivery.Change, durable bool, done func(error)) {
	if _, ok := c.(delivery.SaveSession); !ok || !durable {
		s.Store.Commit(c, durable, done)
		return
	}
	go func() {
		<-s.gate
		s.Store.Commit(c, durable, done)
	}()
}

// A session that was offered by mail is taken up by a letter and by the peer
// itself at the same moment: it begins once.
func TestBegunTwiceAtOnce(t *testing.T) {
	for _, letterFirst := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			net, post, work := newWires(5*time.Millisecond), newOffice(), &worker{asked: map[string]int{}}
			a, b := net.postal(t, post, nil), net.postal(t, post, work.handle)
			b.stop(false)
			s, err := a.Open(t.Context(), b.mailTarget(), session.Want{Contract: signal.Contract{QoS: signal.ExactlyOnce}})
			if err != nil {
				t.Fatal(err)
			}
			a.post(t, s.ID(), "key")
			time.Sleep(30 * time.Second)
			letter := post.letters(b)[0]
			post.lose(b)
			gate := make(chan struct{})
			b.cfg.Store = heldStore{b.cfg.Store, gate}
			b.start(t)
			meet := func() { time.Sleep(time.Minute) } // a tries again and again
			if !letterFirst {
				meet()
			}
			read := make(chan error, 1)
			go b.TakeLetter(t.Context(), letter.from, letter.Payload, func(err error) { read <- err })
			meet()
			close(gate)
			if err := <-read; err != nil && !wire.CodeOf(err).Retry() {
				t.Errorf("letter: %v", err)
			}
			if o := a.outcome(t, s.ID(), "key", 2*time.Minute); o.Status != delivery.Delivered {
				t.Errorf("%+v", o)
			}
			a.post(t, s.ID(), "next")
			if o := a.outcome(t, s.ID(), "next", time.Minute); o.Status != delivery.Delivered {
				t.Errorf("%+v", o)
			}
			if n := work.count("key"); n != 1 {
				t.Errorf("the message was worked on %d times", n)
			}
			if left := b.Sessions(false); len(left) != 1 {
				t.Errorf("%d sessions, want 1", len(left))
			}
		})
	}
}
