package session_test

import (
	"context"
	"encoding/binary"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"openmesh/protocols/session"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// numbers sends the numbers from 0 to n-1, one every interval, as data.
func numbers(t *testing.T, s *session.Session, n int, interval time.Duration) {
	for i := range n {
		if err := s.Send(binary.BigEndian.AppendUint64(nil, uint64(i))); err != nil {
			t.Errorf("send %d: %v", i, err)
			return
		}
		time.Sleep(interval)
	}
}

// count takes what arrived and checks that every number from 0 to n-1 is there
// once.
func count(t *testing.T, data chan []byte, n int) {
	t.Helper()
	seen := make([]int, n)
	for len(data) > 0 {
		seen[binary.BigEndian.Uint64(<-data)]++
	}
	lost, doubled := 0, 0
	for _, c := range seen {
		if c == 0 {
			lost++
		} else if c > 1 {
			doubled++
		}
	}
	if lost+doubled > 0 {
		t.Errorf("of %d messages %d were lost and %d doubled", n, lost, doubled)
	}
}

// A session of a day changes its keys every five minutes, over a path that loses
// every twentieth frame and lets others overtake, and neither loses nor doubles a
// message.
func TestDayLongSessionRekeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(20 * time.Millisecond)
		a, b := w.node(t, nil), w.node(t, nil)
		s := a.open(t, b, session.Want{})
		w.disturb(0.05, 200*time.Millisecond)
		const n = 24 * 60 * 6
		go numbers(t, b.Session(a.agent.Agent), n, 10*time.Second)
		numbers(t, s, n, 10*time.Second)
		w.disturb(0, 0)
		time.Sleep(time.Minute)
		count(t, b.data, n)
		count(t, a.data, n)
		ia, ib := a.Sessions(true)[0], b.Sessions(true)[0]
		t.Logf("epochs %d and %d, %d frames sent, %d rejected", ia.Epoch, ib.Epoch, ia.Sent, ia.Rejected)
		if ia.Epoch < 280 || ia.Epoch > 289 || ib.Epoch != ia.Epoch {
			t.Errorf("epochs %d and %d, want about 288 on both sides", ia.Epoch, ib.Epoch)
		}
		if ia.Rejected+ib.Rejected > 0 {
			t.Errorf("%d and %d frames were rejected", ia.Rejected, ib.Rejected)
		}
	})
}

// The transport in use is cut, without a word or with one, in the middle of a
// transfer: the session goes on over the next one, and then the next.
func TestFailover(t *testing.T) {
	for _, tc := range []struct {
		name  string
		cut   func(w *wires, transport string)
		limit time.Duration // how long nothing may arrive
	}{
		{"silence", func(w *wires, tr string) { w.silence(tr, true) }, 20 * time.Second},
		{"reset", func(w *wires, tr string) { w.silence(tr, true); w.snap(tr) }, time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWires(20 * time.Millisecond)
				a, b := w.node(t, nil), w.node(t, nil)
				s := a.open(t, b, session.Want{})
				const n = 20000
				go numbers(t, s, n, 10*time.Millisecond)
				go numbers(t, b.Session(a.agent.Agent), n, 10*time.Millisecond)
				for _, tr := range []string{"quic-v1", "tcp"} {
					time.Sleep(40 * time.Second)
					before := len(b.data)
					tc.cut(w, tr)
					begin := time.Now()
					for len(b.data) <= before+3 && time.Since(begin) < time.Minute {
						time.Sleep(10 * time.Millisecond)
					}
					t.Logf("%s: nothing arrived for %v", tr, time.Since(begin))
					if gap := time.Since(begin); gap > tc.limit {
						t.Errorf("%s: nothing arrived for %v", tr, gap)
					}
				}
				time.Sleep(5 * time.Minute)
				count(t, b.data, n)
				count(t, a.data, n)
				if i := a.Sessions(false)[0]; i.State != session.Active || i.Channels[0].Path.Transport != "ws" {
					t.Errorf("session is %s over %v", i.State, i.Channels)
				}
			})
		})
	}
}

// hasty is for nodes that agree to keepalives of a second.
func hasty(c *session.Config) {
	terms := c.Signal.Terms()
	terms.Contract.Keepalive = time.Second
	c.Signal.Terms = func() signal.Terms { return terms }
}

// The next path may be slower than a channel with a short keepalive may be silent: it
// has the time of a handshake to bring its first answer, on either side, and is not
// given up for another one that would do no better.
func TestFailoverToASlowPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(20 * time.Millisecond)
		a, b := w.node(t, hasty), w.node(t, hasty)
		s := a.open(t, b, session.Want{})
		const n = 600
		go numbers(t, s, n, 100*time.Millisecond)
		go numbers(t, b.Session(a.agent.Agent), n, 100*time.Millisecond)
		time.Sleep(10 * time.Second)
		w.slow(600 * time.Millisecond)
		w.silence("quic-v1", true)
		w.snap("quic-v1")
		time.Sleep(2 * time.Minute)
		if i := s.Info(); i.State != session.Active || len(i.Channels) == 0 || i.Channels[0].Path.Transport != "tcp" || len(i.History) > 5 {
			t.Errorf("session is %s over %v: %v", i.State, i.Channels, i.History)
		}
		count(t, b.data, n)
		count(t, a.data, n)
	})
}

// A channel that is cut a moment after it began, but has been at work, is noticed as
// soon as any other.
func TestFailoverOfAYoungChannel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(20 * time.Millisecond)
		a, b := w.node(t, hasty), w.node(t, hasty)
		s := a.open(t, b, session.Want{})
		const n = 400
		go numbers(t, s, n, 10*time.Millisecond)
		time.Sleep(300 * time.Millisecond)
		w.silence("quic-v1", true)
		time.Sleep(50 * time.Millisecond)
		before, begin := len(b.data), time.Now()
		for len(b.data) == before && time.Since(begin) < time.Minute {
			time.Sleep(10 * time.Millisecond)
		}
		if gap := time.Since(begin); gap > 1500*time.Millisecond {
			t.Errorf("nothing arrived for %v", gap)
		}
		time.Sleep(time.Minute)
		count(t, b.data, n)
	})
}

// However long no path works, up to a minute, a session has a channel again within
// two keepalives of when one does.
func TestLooksOftenForALostPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(20 * time.Millisecond)
		a, b := w.node(t, hasty), w.node(t, hasty)
		s := a.open(t, b, session.Want{})
		for _, outage := range []time.Duration{5 * time.Second, 20 * time.Second, 50 * time.Second} {
			w.blackOut(true)
			time.Sleep(outage)
			w.blackOut(false)
			begin := time.Now()
			if _, _, err := s.Call(t.Context(), request("x")); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begin); took > 3*time.Second {
				t.Errorf("%v after an outage of %v", took, outage)
			}
			time.Sleep(5 * time.Second)
		}
	})
}

// News of the peer's host, or of this one's own place, end the wait for the next
// attempt; however often they come there are no more than ten attempts a second.
func TestNewsEndTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(20 * time.Millisecond)
		tries := &triesNetwork{}
		a, b := w.node(t, func(c *session.Config) {
			keep(c)
			tries.Network, c.Network = c.Network, tries
		}), w.node(t, keep)
		s := a.open(t, b, session.Want{Contract: signal.Contract{QoS: signal.AtLeastOnce, Persistent: true}})
		for _, news := range []peer.ID{b.agent.Certificate.Peer, ""} {
			w.blackOut(true)
			if _, err := s.Post(t.Context(), &delivery.Message{Capability: "test/work", Body: []byte("{}")}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Minute)
			before := tries.count.Load()
			for range 5000 {
				a.Retry(news)
				time.Sleep(time.Millisecond)
			}
			if n := tries.count.Load() - before; n < 10 || n > 100 {
				t.Errorf("%d attempts in 5 s of news", n)
			}
			time.Sleep(5 * time.Minute)
			w.blackOut(false)
			a.Retry(a.agent.Certificate.Peer)
			time.Sleep(10 * time.Millisecond)
			if i := s.Info(); len(i.Channels) > 0 {
				t.Error("news of another host end the wait")
			}
			a.Retry(news)
			time.Sleep(500 * time.Millisecond)
			if i := s.Info(); len(i.Channels) == 0 {
				t.Errorf("no channel half a second after the news of %q", news)
			}
			time.Sleep(5 * time.Second)
		}
	})
}

// triesNetwork counts attempts to open a channel.
type triesNetwork struct {
	session.Network
	count atomic.Int64
}

func (n *triesNetwork) Dial(ctx context.Context, r session.Route) (session.Conduit, error) {
	n.count.Add(1)
	return n.Network.Dial(ctx, r)
}

// When the transport that was lost works again, the session goes back to it, and
// loses nothing on the way.
func TestMovesToABetterChannel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(20 * time.Millisecond)
		a, b := w.node(t, nil), w.node(t, nil)
		s := a.open(t, b, session.Want{})
		const n = 12000
		go numbers(t, s, n, 10*time.Millisecond)
		go numbers(t, b.Session(a.agent.Agent), n, 10*time.Millisecond)
		time.Sleep(10 * time.Second)
		w.silence("quic-v1", true)
		w.snap("quic-v1")
		time.Sleep(10 * time.Second)
		if p := s.Path().Transport; p != "tcp" {
			t.Fatalf("the session runs over %s", p)
		}
		w.silence("quic-v1", false)
		begin := time.Now()
		for s.Path().Transport != "quic-v1" && time.Since(begin) < time.Minute {
			time.Sleep(100 * time.Millisecond)
		}
		t.Logf("moved back after %v", time.Since(begin))
		time.Sleep(2 * time.Minute)
		count(t, b.data, n)
		count(t, a.data, n)
		for _, node := range []*wired{a, b} {
			if i := node.Sessions(false)[0]; i.State != session.Active || len(i.Channels) != 1 || i.Channels[0].Path.Transport != "quic-v1" {
				t.Errorf("session is %s over %v", i.State, i.Channels)
			}
		}
		if h := s.Info().History; len(h) < 6 {
			t.Errorf("history %v", h)
		}
	})
}

// A session that runs over a relay moves as soon as it hears of a direct connection,
// and loses nothing on the way.
func TestMovesOffTheRelay(t *testing.T) {
	for _, hears := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWires(20 * time.Millisecond)
			w.relay = map[string]bool{"tcp": true}
			w.silence("quic-v1", true)
			a, b := w.node(t, nil), w.node(t, nil)
			s := a.open(t, b, session.Want{})
			const n = 1000
			go numbers(t, s, n, 10*time.Millisecond)
			go numbers(t, b.Session(a.agent.Agent), n, 10*time.Millisecond)
			time.Sleep(time.Second)
			if p := s.Path(); p.Kind != "relayed" {
				t.Fatalf("the session runs over %v", p)
			}
			w.silence("quic-v1", false)
			if hears {
				a.Upgrade(b.agent.Certificate.Peer, []string{"tcp", "quic-v1"})
				b.Upgrade(a.agent.Certificate.Peer, []string{"quic-v1"})
			}
			time.Sleep(500 * time.Millisecond)
			if p := s.Path(); (p.Kind == "direct") != hears {
				t.Errorf("half a second later it runs over %v", p)
			}
			time.Sleep(time.Minute)
			count(t, b.data, n)
			count(t, a.data, n)
			if p := s.Path(); p.Kind != "direct" {
				t.Errorf("a minute later it runs over %v", p)
			}
		})
	}
}

// A request that is under way when its channel breaks is answered over the next
// one, and worked on once.
func TestRequestSurvivesItsChannel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(20 * time.Millisecond)
		worked := 0
		a, b := w.node(t, nil), w.node(t, func(c *session.Config) {
			c.Handler = func(_ context.Context, in *session.Inbound) (*session.Response, error) {
				worked++
				time.Sleep(5 * time.Second)
				return &session.Response{Encoding: in.Encoding, Body: in.Body}, nil
			}
		})
		s := a.open(t, b, session.Want{})
		time.AfterFunc(2*time.Second, func() { w.silence("quic-v1", true); w.snap("quic-v1") })
		resp, _, err := s.Call(t.Context(), request("x"))
		if err != nil || string(resp.Body) != "x" || worked != 1 {
			t.Errorf("Call = %v, %v; worked on %d times", resp, err, worked)
		}
	})
}

// A session that nobody uses gives its channels back; the next use finds it as it
// was, from either side.
func TestParkedSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(20 * time.Millisecond)
		a, b := w.node(t, nil), w.node(t, nil)
		s := a.open(t, b, session.Want{})
		for range 3 {
			for _, s := range []*session.Session{s, b.Session(a.agent.Agent)} {
				time.Sleep(5 * time.Minute)
				if n := a.Stats().Channels + b.Stats().Channels; n != 0 {
					t.Fatalf("%d channels are open", n)
				}
				if resp, _, err := s.Call(t.Context(), request("x")); err != nil || string(resp.Body) != "x" {
					t.Fatalf("Call = %v, %v", resp, err)
				}
			}
		}
		if i := a.Sessions(true); len(i) != 1 || i[0].State != session.Active {
			t.Errorf("sessions %v", i)
		}
	})
}

// Who has forgotten an ephemeral session says so, and its peer ends it.
func TestEphemeralSessionEndsWithItsProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(20 * time.Millisecond)
		a, b := w.node(t, nil), w.node(t, nil)
		s := a.open(t, b, session.Want{})
		s.Call(t.Context(), request("x"))
		b.kill()
		b.start(t)
		<-s.Done()
		if i := a.Sessions(true)[0]; i.State != session.Terminated || i.Reason != wire.SessionClosed {
			t.Errorf("session is %s (%s)", i.State, i.Reason)
		}
		if _, _, err := a.open(t, b, session.Want{}).Call(t.Context(), request("x")); err != nil {
			t.Errorf("call in a new session: %v", err)
		}
	})
}

// While the peer is away, calls end when their time is up, however many there were
// before, and leave nothing behind.
func TestCallsWhileThePeerIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(5 * time.Millisecond)
		a, b := w.node(t, keep), w.node(t, keep)
		s := a.open(t, b, session.Want{Contract: signal.Contract{Persistent: true}})
		w.unplug(b.agent.Certificate.Peer)
		for round := range 8 {
			_, before := footprint()
			begin := time.Now()
			errs := make(chan error)
			for i := range 1000 {
				go func() {
					ctx, r := t.Context(), request("x")
					if i%2 == 0 {
						r.Deadline = begin.Add(10 * time.Second)
					} else {
						var cancel context.CancelFunc
						ctx, cancel = context.WithDeadline(ctx, begin.Add(10*time.Second))
						defer cancel()
					}
					_, _, err := s.Call(ctx, r)
					errs <- err
				}()
			}
			for range 1000 {
				if err := <-errs; wire.CodeOf(err) != wire.DeadlineExceeded {
					t.Fatalf("round %d: %v", round, err)
				}
			}
			if took := time.Since(begin); took > 12*time.Second {
				t.Errorf("round %d: the calls took %v", round, took)
			}
			synctest.Wait()
			if _, after := footprint(); after > before+10 {
				t.Errorf("round %d: %d goroutines, %d before", round, after, before)
			}
		}
		w.mu.Lock()
		w.nodes[b.agent.Certificate.Peer] = b
		w.mu.Unlock()
		time.Sleep(time.Minute)
		if resp, _, err := s.Call(t.Context(), request("back")); err != nil || string(resp.Body) != "back" {
			t.Errorf("Call = %v, %v", resp, err)
		}
	})
}
