package session_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"openmesh/protocols/identity"
	"openmesh/protocols/session"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/session/delivery/deliverytest"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// office keeps letters, as mailboxes would.
type office struct {
	mu    sync.Mutex
	boxes map[identity.AgentID][]mailed
	fail  error // of deposits
}

type mailed struct {
	from *identity.Certificate
	*session.Letter
}

// counter is where one agent deposits.
type counter struct {
	office *office
	own    func() *identity.Certificate
}

func (c counter) Deposit(_ context.Context, to *identity.Certificate, l *session.Letter) error {
	o := c.office
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.fail != nil {
		return o.fail
	}
	o.boxes[to.Agent] = append(o.boxes[to.Agent], mailed{c.own(), l})
	return nil
}

func (o *office) letters(n *wired) []mailed {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.boxes[n.agent.Agent])
}

func (o *office) lose(n *wired) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.boxes, n.agent.Agent)
}

// collect gives a node its letters, each as often as copies says.
func (o *office) collect(t *testing.T, n *wired, copies int) (taken int) {
	t.Helper()
	o.mu.Lock()
	letters := o.boxes[n.agent.Agent]
	delete(o.boxes, n.agent.Agent)
	o.mu.Unlock()
	for range copies {
		for _, l := range letters {
			if err := n.take(t, l.from, l.Payload); err != nil {
				t.Errorf("letter: %v", err)
			}
		}
	}
	return len(letters)
}

// errInHand is what take returns of a letter that is in hand.
var errInHand = errors.New("the letter is in hand")

// take gives a node a letter, and returns what it says of that within a second.
func (n *wired) take(t *testing.T, from *identity.Certificate, payload []byte) error {
	t.Helper()
	said := make(chan error, 2)
	n.TakeLetter(t.Context(), from, payload, func(err error) { said <- err })
	select {
	case err := <-said:
		return err
	case <-time.After(time.Second):
		return errInHand
	}
}

// count is how often the handler was asked for a key.
func (w *worker) count(key string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked[key]
}

// stop ends the node's process, in order or not; its store stays.
func (n *wired) stop(crash bool) {
	if crash {
		n.net.unplug(n.agent.Certificate.Peer)
		n.cfg.Store = n.cfg.Store.(*deliverytest.Store).Crash()
	}
	n.kill()
}

// postal makes a node that can deliver by mail; handle may be nil.
func (w *wires) postal(t *testing.T, o *office, handle session.Handler) *wired {
	t.Helper()
	var n *wired
	n = w.node(t, func(c *session.Config) {
		keep(c)
		c.Mail = counter{o, func() *identity.Certificate { return n.agent.Certificate }}
		if handle != nil {
			c.Handler = handle
		}
	})
	return n
}

func (n *wired) mailTarget() session.Target {
	t := n.target()
	t.Mailbox = n.agent.Certificate
	return t
}

func newOffice() *office { return &office{boxes: make(map[identity.AgentID][]mailed)} }

// outcome waits for what became of the message with key in a's session id.
func (n *wired) outcome(t *testing.T, id signal.ID, key string, patience time.Duration) delivery.Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, _, err := n.Find(id.String())
	if err != nil {
		t.Fatal(err)
	}
	if s == nil {
		_, o, err := n.Recall(ctx, id, key)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	seq, o, err := s.Lookup(ctx, key)
	if err == nil && o.Status == delivery.Pending {
		if o, err = s.Outcome(ctx, seq); ctx.Err() != nil {
			return delivery.Outcome{}
		}
	}
	if err != nil {
		t.Fatalf("outcome of %s: %v", key, err)
	}
	return o
}

func (n *wired) post(t *testing.T, id signal.ID, key string) {
	t.Helper()
	s, _, err := n.Find(id.String())
	if err != nil || s == nil {
		t.Fatal("session is gone", err)
	}
	if _, err := s.Post(t.Context(), &delivery.Message{Key: key, Capability: "test/work", Body: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
}

// Sender and recipient are never there at the same time: the message is worked on
// once and its sender learns it, by mail alone. That holds whether they had a
// session before or not, if letters come twice, and through crashes in between.
func TestNeverTogether(t *testing.T) {
	for _, qos := range []signal.QoS{signal.AtLeastOnce, signal.ExactlyOnce} {
		for _, known := range []bool{false, true} {
			for _, crash := range []bool{false, true} {
				for _, copies := range []int{1, 2} {
					t.Run(fmt.Sprintf("%s/known=%t/crash=%t/copies=%d", qos, known, crash, copies), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) { neverTogether(t, qos, known, crash, copies) })
					})
				}
			}
		}
	}
}

func neverTogether(t *testing.T, qos signal.QoS, known, crash bool, copies int) {
	net, post, work := newWires(5*time.Millisecond), newOffice(), &worker{asked: map[string]int{}}
	a := net.postal(t, post, nil)
	b := net.postal(t, post, work.handle)
	want := session.Want{Contract: signal.Contract{QoS: qos}}
	if known {
		a.open(t, b, want)
	}
	b.stop(crash)
	s, err := a.Open(t.Context(), b.mailTarget(), want)
	if err != nil {
		t.Fatal(err)
	}
	id := s.ID()
	for i := range 10 {
		a.post(t, id, fmt.Sprint(i))
	}
	time.Sleep(30 * time.Second)
	if s.Path().Kind != "mailbox" {
		t.Errorf("path is %v", s.Path())
	}
	a.stop(crash)
	if n := len(post.letters(b)); n != 10 {
		t.Errorf("%d letters for ten messages", n)
	}

	b.start(t)
	post.collect(t, b, copies)
	time.Sleep(30 * time.Second)
	b.stop(crash)
	a.start(t)
	post.collect(t, a, copies)
	for i := range 10 {
		if o := a.outcome(t, id, fmt.Sprint(i), time.Second); o.Status != delivery.Delivered || string(o.Response) != `"done"` {
			t.Errorf("message %d: %+v", i, o)
		}
	}
	for i := range 10 {
		if n := work.count(fmt.Sprint(i)); n != 1 {
			t.Errorf("message %d was worked on %d times", i, n)
		}
	}
}

// Whatever becomes of the letters, the two agree once they meet: the letter may be
// lost, still be in the mailbox, or have come.
func TestMeetAfterMail(t *testing.T) {
	for _, fate := range []string{"lost", "late", "came"} {
		for _, known := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/known=%t", fate, known), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					net, post, work := newWires(5*time.Millisecond), newOffice(), &worker{asked: map[string]int{}}
					a := net.postal(t, post, nil)
					b := net.postal(t, post, work.handle)
					want := session.Want{Contract: signal.Contract{QoS: signal.ExactlyOnce}}
					if known {
						a.open(t, b, want)
					}
					b.stop(false)
					s, err := a.Open(t.Context(), b.mailTarget(), want)
					if err != nil {
						t.Fatal(err)
					}
					a.post(t, s.ID(), "key")
					time.Sleep(time.Minute)
					b.start(t)
					switch fate {
					case "came":
						post.collect(t, b, 1)
					case "lost":
						post.lose(b)
					}
					if o := a.outcome(t, s.ID(), "key", time.Minute); o.Status != delivery.Delivered {
						t.Errorf("%+v", o)
					}
					a.post(t, s.ID(), "next") // over the channel that there is now
					if o := a.outcome(t, s.ID(), "next", time.Second); o.Status != delivery.Delivered {
						t.Errorf("%+v", o)
					}
					if kind := s.Path().Kind; kind != "direct" {
						t.Errorf("path is %s", kind)
					}
					post.collect(t, b, 1)
					time.Sleep(10 * time.Second)
					if work.count("key") != 1 || work.count("next") != 1 {
						t.Errorf("worked on: %v", work.asked)
					}
					_, ours, _ := a.Find(s.ID().String())
					_, theirs, err := b.Find(s.ID().String())
					if err != nil || ours.State != session.Active || theirs.State != session.Active || ours.Contract != theirs.Contract {
						t.Errorf("%v: %+v, %+v", err, ours, theirs)
					}
				})
			})
		}
	}
}

// An offer by mail begins a session when the other side is back, without any
// message; the terms are then those that both agree to.
func TestOfferByMail(t *testing.T) {
	for _, letter := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			net, post := newWires(5*time.Millisecond), newOffice()
			a, b := net.postal(t, post, nil), net.postal(t, post, nil)
			b.stop(false)
			terms := b.cfg.Signal.Terms
			b.cfg.Signal.Terms = func() signal.Terms {
				t := terms()
				t.Contract.MessageRate = 7
				return t
			}
			s, err := a.Open(t.Context(), b.mailTarget(), session.Want{Contract: signal.Contract{QoS: signal.AtLeastOnce}, Exclusive: true})
			if err != nil {
				t.Fatal(err)
			}
			if _, info, _ := a.Find(s.ID().String()); info.State != session.Offered {
				t.Errorf("state is %s", info.State)
			}
			time.Sleep(10 * time.Second)
			a.crash(t)
			if n := len(post.letters(b)); n != 1 {
				t.Errorf("%d letters", n)
			}
			b.start(t)
			if letter {
				post.collect(t, b, 1)
			}
			time.Sleep(40 * time.Second)
			for _, n := range []*wired{a, b} {
				_, info, err := n.Find(s.ID().String())
				if err != nil || info.State != session.Active || info.Contract.MessageRate != 7 {
					t.Errorf("%v: %+v", err, info)
				}
			}
		})
	}
}

// Who is back and does not want the session says so, and the sender learns it.
func TestOfferByMailRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, post := newWires(5*time.Millisecond), newOffice()
		a, b := net.postal(t, post, nil), net.postal(t, post, nil)
		b.stop(false)
		b.cfg.Signal.Allow = func(*identity.Certificate) error { return wire.Denied }
		s, err := a.Open(t.Context(), b.mailTarget(), session.Want{Contract: signal.Contract{QoS: signal.AtLeastOnce}})
		if err != nil {
			t.Fatal(err)
		}
		a.post(t, s.ID(), "key")
		time.Sleep(10 * time.Second)
		b.start(t)
		for _, l := range post.letters(b) {
			if err := b.take(t, l.from, l.Payload); wire.CodeOf(err) != wire.Denied {
				t.Errorf("letter: %v", err)
			}
		}
		time.Sleep(time.Minute)
		if o := a.outcome(t, s.ID(), "key", time.Second); o.Status != delivery.Failed || o.Code != wire.Denied {
			t.Errorf("%+v", o)
		}
		if n := len(b.Sessions(true)); n != 0 {
			t.Errorf("%d sessions", n)
		}
	})
}

// An offer by mail that nobody takes ends with its time.
func TestOfferByMailExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, post := newWires(5*time.Millisecond), newOffice()
		a, b := net.postal(t, post, nil), net.postal(t, post, nil)
		b.stop(false)
		want := session.Want{Contract: signal.Contract{QoS: signal.AtLeastOnce, TTL: time.Hour}}
		s, err := a.Open(t.Context(), b.mailTarget(), want)
		if err != nil {
			t.Fatal(err)
		}
		a.post(t, s.ID(), "key")
		time.Sleep(2 * time.Hour)
		if o := a.outcome(t, s.ID(), "key", time.Second); o.Status != delivery.Expired {
			t.Errorf("%+v", o)
		}
		if _, info, _ := a.Find(s.ID().String()); info.State != session.Terminated {
			t.Errorf("state is %s", info.State)
		}
		if _, err := a.Open(t.Context(), b.target(), want); wire.CodeOf(err) != wire.Unreachable {
			t.Errorf("without a mailbox: %v", err)
		}
	})
}

// Letters prove who wrote them, and nothing more: they change no session of others,
// bring none back that ended, and begin none that was not offered.
func TestHostileLetters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, post, work := newWires(5*time.Millisecond), newOffice(), &worker{asked: map[string]int{}}
		a, mallory := net.postal(t, post, nil), net.postal(t, post, nil)
		b := net.postal(t, post, work.handle)
		want := session.Want{Contract: signal.Contract{QoS: signal.AtLeastOnce}}
		s := a.open(t, b, want)
		b.stop(false)
		a.post(t, s.ID(), "key")
		time.Sleep(10 * time.Second)
		letter := post.letters(b)[0]
		a.stop(false)
		b.start(t)
		for _, c := range []struct {
			name    string
			from    *wired
			payload []byte
			want    wire.Code
		}{
			{"of another's session", mallory, letter.Payload, wire.NotFound},
			{"empty", a, nil, wire.Malformed},
			{"garbage", a, []byte("garbage"), wire.Malformed},
			{"cut", a, letter.Payload[:len(letter.Payload)-3], wire.Malformed},
		} {
			if err := b.take(t, c.from.agent.Certificate, c.payload); wire.CodeOf(err) != c.want || err == nil {
				t.Errorf("%s: %v, want %s", c.name, err, c.want)
			}
		}
		if n := work.count("key"); n > 0 {
			t.Errorf("worked on %d times", n)
		}
		former := *a.agent.Certificate
		former.Version = 0
		if err := b.take(t, &former, letter.Payload); wire.CodeOf(err) != wire.KeySuperseded || wire.CodeOf(err).Retry() {
			t.Errorf("under a former key of the session's: %v", err)
		}
		there, _, _ := b.Find(s.ID().String())
		there.Terminate(wire.PolicyViolation)
		time.Sleep(time.Second)
		if err := b.take(t, a.agent.Certificate, letter.Payload); wire.CodeOf(err) != wire.NotFound {
			t.Errorf("of a session that ended: %v", err)
		}
		a.start(t)
		if o := a.outcome(t, s.ID(), "key", time.Minute); o.Status != delivery.Failed {
			t.Errorf("%+v", o)
		}
	})
}

// While mailboxes are out of reach letters wait, and go when they are back; nothing
// piles up beyond its bound.
func TestMailboxesOutOfReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, post, work := newWires(5*time.Millisecond), newOffice(), &worker{asked: map[string]int{}}
		a := net.postal(t, post, nil)
		b := net.postal(t, post, work.handle)
		b.stop(false)
		post.fail = wire.Unreachable
		s, err := a.Open(t.Context(), b.mailTarget(), session.Want{Contract: signal.Contract{QoS: signal.AtLeastOnce}})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 200 {
			a.post(t, s.ID(), fmt.Sprint(i))
		}
		time.Sleep(5 * time.Minute)
		post.mu.Lock()
		post.fail = nil
		post.mu.Unlock()
		time.Sleep(5 * time.Minute)
		a.stop(false)
		b.start(t)
		if n := post.collect(t, b, 1); n != 200 {
			t.Errorf("%d letters, want 200", n)
		}
		time.Sleep(10 * time.Second)
		for i := range 200 {
			if n := work.count(fmt.Sprint(i)); n != 1 {
				t.Errorf("message %d was worked on %d times", i, n)
			}
		}
	})
}

// What waited for a peer without a mailbox was not there before: it is not marked as
// redelivered when the peer is back.
func TestAwayWithoutMailbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, post := newWires(5*time.Millisecond), newOffice()
		post.fail = wire.Unreachable
		var first, again atomic.Int32
		a := net.postal(t, post, nil)
		b := net.postal(t, post, func(_ context.Context, in *session.Inbound) (*session.Response, error) {
			if in.Redelivered {
				again.Add(1)
			}
			first.Add(1)
			return &session.Response{Encoding: in.Encoding, Body: in.Body}, nil
		})
		id := a.open(t, b, session.Want{Contract: signal.Contract{QoS: signal.ExactlyOnce}}).ID()
		b.stop(false)
		time.Sleep(time.Second)
		for i := range 20 {
			a.post(t, id, fmt.Sprint(i))
		}
		time.Sleep(10 * time.Minute)
		b.start(t)
		for i := range 20 {
			if o := a.outcome(t, id, fmt.Sprint(i), time.Minute); o.Status != delivery.Delivered {
				t.Errorf("message %d: %+v", i, o)
			}
		}
		if first.Load() != 20 || again.Load() != 0 {
			t.Errorf("worked on %d, of which %d as redelivered", first.Load(), again.Load())
		}
	})
}
