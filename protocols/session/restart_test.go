package session_test

import (
	"context"
	"fmt"
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

// Answers that wait for their turn while the peer restarts are not taken for those
// of its new requests, which it counts anew.
func TestAnswersThatWaitThroughARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(5 * time.Millisecond)
		slow := func(c *session.Config) {
			keep(c)
			terms := c.Signal.Terms()
			terms.Contract.MessageRate = 1
			c.Signal.Terms = func() signal.Terms { return terms }
		}
		gate := make(chan struct{})
		a := w.node(t, slow)
		b := w.node(t, func(c *session.Config) {
			slow(c)
			c.Handler = func(_ context.Context, in *session.Inbound) (*session.Response, error) {
				if string(in.Body) == "before" {
					<-gate
				} else {
					time.Sleep(30 * time.Second)
				}
				return &session.Response{Encoding: in.Encoding, Body: in.Body}, nil
			}
		})
		const n = 10
		s := a.open(t, b, session.Want{Contract: signal.Contract{QoS: signal.AtLeastOnce}})
		for range n {
			go s.Call(t.Context(), request("before"))
		}
		time.Sleep(time.Minute)
		close(gate)
		time.Sleep(time.Millisecond)
		a.crash(t)
		after := a.find(t, s.ID())
		for deadline := time.Now().Add(time.Minute); !after.Ready() && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
		}
		bodies := make(chan string, n)
		for i := range n {
			go func() {
				resp, _, err := after.Call(t.Context(), request(fmt.Sprint("after ", i)))
				if err == nil && string(resp.Body) == "before" {
					err = fmt.Errorf("got the answer to another request")
				}
				bodies <- fmt.Sprint(err)
			}()
		}
		for range n {
			if err := <-bodies; err != "<nil>" {
				t.Error(err)
			}
		}
	})
}

// shut is a network that a node is reached by, but reaches nobody else.
type shut struct{ session.Network }

func (shut) Signal(context.Context, session.Route, []byte) ([]byte, bool, error) {
	return nil, false, wire.Unreachable
}

func (shut) Dial(context.Context, session.Route) (session.Conduit, error) {
	return nil, wire.Unreachable
}

// A peer that has restarted resumes a session while there is no room for another
// channel: what it has forgotten is sent again over the next one.
func TestResumedWithoutRoomForAChannel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newWires(5 * time.Millisecond)
		a := net.node(t, func(c *session.Config) { keep(c); c.MaxChannels, c.Network = 1, shut{c.Network} })
		b := net.node(t, func(c *session.Config) {
			keep(c)
			handle := c.Handler
			c.Handler = func(ctx context.Context, in *session.Inbound) (*session.Response, error) {
				if !in.Redelivered {
					<-ctx.Done()
				}
				return handle(ctx, in)
			}
		})
		c := net.node(t, keep)
		s := a.find(t, b.open(t, a, session.Want{Contract: signal.Contract{QoS: signal.AtLeastOnce}}).ID())
		sequence, err := s.Post(t.Context(), &delivery.Message{Capability: "test/work", Body: []byte("{}")})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second) // b has said that it works on it
		net.unplug(b.agent.Certificate.Peer)
		other := c.open(t, a, session.Want{})
		b.cfg.Store = b.cfg.Store.(*deliverytest.Store).Crash()
		b.kill()
		b.start(t)
		time.Sleep(20 * time.Second)
		if err := other.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if o, err := s.Outcome(ctx, sequence); err != nil || o.Status != delivery.Delivered {
			t.Errorf("outcome %v, %v; want delivered", o, err)
		}
	})
}
