package session_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"openmesh/protocols/session"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// worker is a handler that counts how often it was asked for each key, and the
// effects that remain of one that minds the key.
type worker struct {
	mu       sync.Mutex
	asked    map[string]int
	unmarked int // repeats without a mark
	order    []string
}

func (w *worker) handle(_ context.Context, in *session.Inbound) (*session.Response, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked[in.IdempotencyKey]++
	if w.asked[in.IdempotencyKey] > 1 && !in.Redelivered {
		w.unmarked++
	}
	w.order = append(w.order, in.IdempotencyKey)
	return &session.Response{Encoding: in.Encoding, Body: []byte(`"done"`)}, nil
}

// Messages are sent while either side crashes again and again: every one that was
// accepted is delivered, and its sender learns it.
func TestDeliveryThroughCrashes(t *testing.T) {
	for _, qos := range []signal.QoS{signal.AtLeastOnce, signal.ExactlyOnce} {
		for _, ordered := range []bool{false, true} {
			for seed := range uint64(3) {
				t.Run(fmt.Sprintf("%s/ordered=%t/%d", qos, ordered, seed), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { throughCrashes(t, qos, ordered, seed) })
				})
			}
		}
	}
}

func throughCrashes(t *testing.T, qos signal.QoS, ordered bool, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1))
	net := newWires(5 * time.Millisecond)
	work := &worker{asked: map[string]int{}}
	a := net.node(t, keep)
	b := net.node(t, func(c *session.Config) { keep(c); c.Handler = work.handle })
	want := session.Want{Contract: signal.Contract{QoS: qos, Ordered: ordered}}
	id := a.open(t, b, want).ID()
	const n = 1000
	crashes := make(chan *wired, 64)
	go func() {
		defer close(crashes)
		random := rand.New(rand.NewPCG(seed, 2))
		for range 20 {
			select {
			case <-time.After(time.Duration(random.IntN(1000)) * time.Millisecond):
				crashes <- []*wired{a, b}[random.IntN(2)]
			case <-t.Context().Done():
				return
			}
		}
	}()
	next, redo := 0, 0
	for next < n || crashes != nil {
		select {
		case node, ok := <-crashes:
			if !ok {
				crashes = nil
				break
			}
			node.crash(t)
			time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
		default:
			if next == n {
				time.Sleep(100 * time.Millisecond)
				break
			}
			s, _, err := a.Find(id.String())
			if err != nil || s == nil {
				t.Fatalf("session is gone: %v %+v", err, a.Sessions(true))
			}
			_, err = s.Post(t.Context(), &delivery.Message{Key: fmt.Sprint(next), Capability: "test/work", Body: []byte("{}")})
			if err != nil {
				redo++
				time.Sleep(10 * time.Millisecond)
				break
			}
			next++
			time.Sleep(time.Duration(random.IntN(10)) * time.Millisecond)
		}
	}
	s, _, err := a.Find(id.String())
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		key := fmt.Sprint(i)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		seq, o, err := s.Lookup(ctx, key)
		if err == nil && o.Status == delivery.Pending {
			o, err = s.Outcome(ctx, seq)
		}
		cancel()
		if err != nil || o.Status != delivery.Delivered {
			t.Errorf("message %d: %v %v", i, o, err)
		}
	}
	work.mu.Lock()
	defer work.mu.Unlock()
	for i := range n {
		if work.asked[fmt.Sprint(i)] == 0 {
			t.Errorf("message %d was not delivered", i)
		}
	}
	repeats := 0
	for _, c := range work.asked {
		repeats += c - 1
	}
	t.Logf("%d messages, %d repeats, %d unmarked, accepted late %d", n, repeats, work.unmarked, redo)
	if work.unmarked > 0 {
		t.Errorf("%d repeats were not marked as redelivered", work.unmarked)
	}
	if qos == signal.ExactlyOnce && repeats > 20 {
		t.Errorf("%d repeats in 20 crashes", repeats)
	}
}

// Weeks of silence, and a restart of both sides, end no persistent session.
func TestWeeksOfSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newWires(5 * time.Millisecond)
		work := &worker{asked: map[string]int{}}
		a := net.node(t, keep)
		b := net.node(t, func(c *session.Config) { keep(c); c.Handler = work.handle })
		s := a.open(t, b, session.Want{Contract: signal.Contract{QoS: signal.AtLeastOnce}})
		id := s.ID().String()
		for _, silence := range []time.Duration{time.Hour, 21 * 24 * time.Hour} {
			a.crash(t)
			b.crash(t)
			a.kill()
			b.kill()
			time.Sleep(silence)
			a.start(t)
			b.start(t)
			for _, n := range []*wired{a, b} {
				s, _, err := n.Find(id)
				if err != nil || s == nil {
					t.Fatalf("session is gone: %v", err)
				}
				seq, err := s.Post(t.Context(), &delivery.Message{Capability: "test/work", Body: []byte("{}")})
				if err != nil {
					t.Fatal(err)
				}
				if o, err := s.Outcome(t.Context(), seq); err != nil || o.Status != delivery.Delivered {
					t.Fatalf("outcome %v, %v", o, err)
				}
			}
		}
	})
}

// Whoever learned the id of a session cannot go on with it, and the session does
// not mind.
func TestStolenSessionID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newWires(5 * time.Millisecond)
		a, b, thief := net.node(t, keep), net.node(t, keep), net.node(t, keep)
		s := a.open(t, b, session.Want{Contract: signal.Contract{QoS: signal.AtLeastOnce}})
		terms := thief.cfg.Signal.Terms()
		terms.Contract, terms.Resume = s.Contract(), s.ID()
		offer := func(ctx context.Context, offer []byte) ([]byte, error) { return b.Exchange("thief", offer) }
		_, _, err := signal.Open(t.Context(), offer, b.agent.Agent, terms, thief.cfg.Signal)
		if wire.CodeOf(err) != wire.NotFound {
			t.Errorf("the thief is told %v, want not_found", err)
		}
		seq, err := s.Post(t.Context(), &delivery.Message{Body: []byte("{}")})
		if err != nil {
			t.Fatal(err)
		}
		if o, err := s.Outcome(t.Context(), seq); err != nil || o.Status != delivery.Delivered {
			t.Errorf("outcome %v, %v", o, err)
		}
	})
}

// What became of a message can be asked after the session has ended, and after a
// restart; for as long as messages live.
func TestOutcomeOutlivesTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newWires(5 * time.Millisecond)
		a, b := net.node(t, keep), net.node(t, keep)
		s := a.open(t, b, session.Want{Contract: signal.Contract{QoS: signal.AtLeastOnce, TTL: time.Hour}})
		post := func(key string) {
			if _, err := s.Post(t.Context(), &delivery.Message{Key: key, Body: []byte("{}")}); err != nil {
				t.Fatal(err)
			}
		}
		post("arrives")
		time.Sleep(time.Second)
		net.unplug(b.agent.Certificate.Peer)
		post("does not")
		s.Terminate(wire.PolicyViolation)
		time.Sleep(time.Second)
		for range 2 {
			for key, want := range map[string]delivery.Status{"arrives": delivery.Delivered, "does not": delivery.Failed} {
				if _, o, err := a.Recall(t.Context(), s.ID(), key); err != nil || o.Status != want {
					t.Errorf("%s: %v, %v", key, o, err)
				}
			}
			if i := a.Sessions(true); len(i) != 1 || i[0].State != session.Terminated || i[0].Reason != wire.PolicyViolation {
				t.Errorf("sessions %v", i)
			}
			a.crash(t)
		}
		time.Sleep(2 * time.Hour)
		if _, _, err := a.Recall(t.Context(), s.ID(), "arrives"); wire.CodeOf(err) != wire.NotFound {
			t.Errorf("after its time: %v", err)
		}
	})
}

// One agent cannot fill a node with sessions, and others are not kept out by it.
func TestSessionsOfOneAgentAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newWires(5 * time.Millisecond)
		greedy, honest := net.node(t, keep), net.node(t, keep)
		b := net.node(t, func(c *session.Config) { keep(c); c.MaxPerAgent = 3 })
		want := session.Want{Exclusive: true, Contract: signal.Contract{QoS: signal.AtLeastOnce}}
		var last *session.Session
		for range 3 {
			last = greedy.open(t, b, want)
		}
		if _, err := greedy.Open(t.Context(), b.target(), want); wire.CodeOf(err) != wire.ResourceExhausted {
			t.Errorf("one too many: %v", err)
		}
		honest.open(t, b, want)
		b.crash(t) // what was there is there again
		time.Sleep(time.Minute)
		if n := len(b.Sessions(false)); n != 4 {
			t.Errorf("%d sessions after a restart", n)
		}
		s, _, err := greedy.Find(last.ID().String())
		if err != nil || s == nil || s.Close(t.Context()) != nil {
			t.Fatalf("session is gone: %v", err)
		}
		time.Sleep(time.Second)
		greedy.open(t, b, want)
	})
}
