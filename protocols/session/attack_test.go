package session_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"openmesh/protocols/session"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/session/seal"
	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// tally counts what reached the handlers and receivers of all nodes; whatever is
// sent is sent once.
type tally struct {
	mu   sync.Mutex
	seen map[string]int
	sent int
}

func (y *tally) count(s string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.seen[s]++
}

// fresh returns a text that was not sent yet.
func (y *tally) fresh() string {
	y.sent++
	return fmt.Sprint(y.sent)
}

// check fails the test unless each text arrived once.
func (y *tally) check(t *testing.T) {
	t.Helper()
	y.mu.Lock()
	defer y.mu.Unlock()
	for s, n := range y.seen {
		if n != 1 {
			t.Errorf("%q arrived %d times", s, n)
		}
	}
	if len(y.seen) != y.sent {
		t.Errorf("%d texts arrived, %d were sent", len(y.seen), y.sent)
	}
}

// node makes a node on an open network that tells the tally what arrives.
func (y *tally) node(t *testing.T, w *wires) *wired {
	return w.node(t, func(c *session.Config) {
		keep(c)
		exposed(c)
		c.Contract.RekeyInterval = 30 * time.Second
		c.Handler = func(_ context.Context, in *session.Inbound) (*session.Response, error) {
			y.count(string(in.Body))
			return &session.Response{Encoding: in.Encoding, Body: in.Body}, nil
		}
		c.Data = func(_ *session.Session, b []byte) { y.count(string(b)) }
	})
}

// work uses a session in every way from both ends, for two minutes: requests,
// messages with and without a promise, keys and channels that change.
func (y *tally) work(t *testing.T, w *wires, ends ...*session.Session) {
	t.Helper()
	for round := range 4 {
		for _, s := range ends {
			text := y.fresh()
			if resp, _, err := s.Call(t.Context(), request(text)); err != nil || string(resp.Body) != text {
				t.Fatalf("call: %v, %v", resp, err)
			}
			if err := s.Send([]byte(y.fresh())); err != nil {
				t.Fatal(err)
			}
			seq, err := s.Post(t.Context(), &delivery.Message{Capability: "test/work", Body: []byte(y.fresh())})
			if err != nil {
				t.Fatal(err)
			}
			if o, err := s.Outcome(t.Context(), seq); err != nil || o.Status != delivery.Delivered {
				t.Fatalf("outcome %v, %v", o, err)
			}
		}
		time.Sleep(30 * time.Second)
		if round == 1 {
			w.snap("tcp")
		}
	}
}

// lasting asks for a session with all that one can have.
func lasting() session.Want {
	return session.Want{Exclusive: true, Contract: signal.Contract{QoS: signal.AtLeastOnce}}
}

func (n *wired) find(t *testing.T, id signal.ID) *session.Session {
	t.Helper()
	s, _, err := n.Find(id.String())
	if err != nil || s == nil {
		t.Fatalf("session %s: %v", id, err)
	}
	return s
}

// Every frame of a session, and every message that began a channel, is played
// again to both ends, as it was and with another header: later in the same
// session, once it was resumed under new keys, in the next session of the same
// peers and in one of others. Nothing happens, and the sessions go on.
func TestReplayedAndSplicedFrames(t *testing.T) {
	for _, tc := range []struct {
		name string
		then func(t *testing.T, w *wires, y *tally, a, b *wired, s *session.Session) (x, z *session.Session)
	}{
		{"same session", func(t *testing.T, _ *wires, _ *tally, _, b *wired, s *session.Session) (x, z *session.Session) {
			return s, b.find(t, s.ID())
		}},
		{"after it was resumed", func(t *testing.T, w *wires, y *tally, a, b *wired, s *session.Session) (x, z *session.Session) {
			b.crash(t)
			time.Sleep(time.Minute)
			y.work(t, w, s)
			return s, b.find(t, s.ID())
		}},
		{"next session of the same peers", func(t *testing.T, _ *wires, _ *tally, a, b *wired, s *session.Session) (x, z *session.Session) {
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			next := a.open(t, b, lasting())
			return next, b.find(t, next.ID())
		}},
		{"session of other peers", func(t *testing.T, w *wires, y *tally, a, b *wired, s *session.Session) (x, z *session.Session) {
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			c := y.node(t, w)
			next := c.open(t, b, lasting())
			return next, b.find(t, next.ID())
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, y := newWires(5*time.Millisecond), &tally{seen: map[string]int{}}
				a, b := y.node(t, w), y.node(t, w)
				w.record(true)
				s := a.open(t, b, lasting())
				y.work(t, w, s, b.find(t, s.ID()))
				tape := w.recorded()
				x, z := tc.then(t, w, y, a, b, s)
				if tc.name == "next session of the same peers" {
					tape = w.recorded() // with the end of the first one
				}
				requireVariety(t, tape, s.ID())
				replay(t, w, x, z, tape, a, b)
				y.work(t, w, x, z)
				y.check(t)
				if p, q := x.Info(), z.Info(); p.State != session.Active || q.State != session.Active || p.Epoch != q.Epoch {
					t.Errorf("sessions are %s in epoch %d and %s in epoch %d", p.State, p.Epoch, q.State, q.Epoch)
				}
			})
		})
	}
}

// requireVariety fails the test unless the tape has frames of every type that a
// session of today sends, from several epochs.
func requireVariety(t *testing.T, tape [][]byte, id signal.ID) {
	t.Helper()
	types, epochs := map[seal.Type]bool{}, map[byte]bool{}
	for _, f := range tape {
		if len(f) >= seal.Overhead && bytes.Equal(f[2:18], id[:]) {
			types[seal.Type(f[1])], epochs[f[21]] = true, true
		}
	}
	for _, want := range []seal.Type{seal.Data, seal.Ack, seal.Request, seal.Response, seal.Ping, seal.Pong, seal.Rekey, seal.Rebind, seal.Received} {
		if !types[want] {
			t.Errorf("no frame of type %d was recorded", want)
		}
	}
	if len(epochs) < 4 {
		t.Errorf("%d epochs were recorded", len(epochs))
	}
}

// replay plays a tape again: on the conduits of the session that x and z are the
// ends of, under its header too, and on new conduits.
func replay(t *testing.T, w *wires, x, z *session.Session, tape [][]byte, victims ...*wired) {
	t.Helper()
	w.record(false)
	before := x.Info().Rejected + z.Info().Rejected
	for i, f := range tape {
		w.inject(f)
		w.inject(relabel(f, x.ID(), x.Info().Epoch, 1<<20+uint64(i)))
		time.Sleep(20 * time.Millisecond)
	}
	if n := x.Info().Rejected + z.Info().Rejected - before; n < uint64(len(tape)) {
		t.Errorf("%d frames were rejected, %d were forged", n, len(tape))
	}
	for _, victim := range victims {
		channels := victim.Stats().Channels
		for i, f := range tape {
			raw := wire.AppendFrame(nil, f)
			if i+1 < len(tape) {
				raw = wire.AppendFrame(raw, tape[i+1]) // an Attach is followed by its first frame
			}
			for _, raw := range [][]byte{raw, attachment(x.ID(), f)} {
				if v := w.strike(victim, "", raw, false); v.got != "" || v.took > 10*time.Second {
					t.Fatalf("frame %d (%x…) begins a channel: %+v", i, f[:min(len(f), 40)], v)
				}
			}
		}
		if n := victim.Stats().Channels; n > channels {
			t.Errorf("%d channels are open, there were %d", n, channels)
		}
	}
}

// recorder notes the offers and answers that pass.
type recorder struct {
	session.Network
	offers, replies *[][]byte
	instead         *[]byte // in place of the reply, if not empty
}

func (r recorder) Signal(ctx context.Context, to session.Route, offer []byte) ([]byte, bool, error) {
	reply, proven, err := r.Network.Signal(ctx, to, offer)
	*r.offers, *r.replies = append(*r.offers, offer), append(*r.replies, reply)
	if len(*r.instead) > 0 {
		reply = *r.instead
	}
	return reply, proven, err
}

// Every message of a handshake, of a new session and of one resumed, is played
// again to both ends and to a third: each is refused, and the session goes on.
func TestReplayedHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, y := newWires(5*time.Millisecond), &tally{seen: map[string]int{}}
		var offers, replies [][]byte
		var instead []byte
		record := func(c *session.Config) {
			keep(c)
			exposed(c)
			c.Network = recorder{c.Network, &offers, &replies, &instead}
		}
		a, b, third := w.node(t, record), y.node(t, w), y.node(t, w)
		w.record(true)
		s := a.open(t, b, lasting())
		b.crash(t)
		if seq, err := s.Post(t.Context(), &delivery.Message{Capability: "test/work", Body: []byte(y.fresh())}); err != nil {
			t.Fatal(err)
		} else if o, err := s.Outcome(t.Context(), seq); err != nil || o.Status != delivery.Delivered {
			t.Fatalf("outcome %v, %v", o, err)
		}
		time.Sleep(time.Second)
		if len(offers) != 2 {
			t.Fatalf("%d offers were made, want that of the session and that to resume it", len(offers))
		}
		tape, before := w.recorded(), s.Info()
		for i, offer := range offers {
			want := map[*wired]wire.Code{a: wire.Unauthenticated, b: wire.Replayed, third: wire.Unauthenticated}
			if i == 0 {
				delete(want, b) // it has forgotten the first one in its crash: see below
			}
			for n, code := range want {
				if got := refused(t, n, offer); got != code {
					t.Errorf("offer %d again: %s, want %s", i, got, code)
				}
			}
		}
		for i, reply := range replies {
			instead = reply
			for _, to := range []*wired{b, third} {
				want := wire.Replayed
				if to == third {
					want = wire.Unauthenticated
				}
				if _, err := a.Open(t.Context(), to.target(), lasting()); wire.CodeOf(err) != want {
					t.Errorf("answer %d again: %v, want %s", i, err, want)
				}
			}
		}
		confirms := 0
		for _, f := range tape {
			m := new(sessionpb.Attach)
			if proto.Unmarshal(f, m) != nil || len(m.Confirm) == 0 {
				continue
			}
			confirms++
			for _, n := range []*wired{a, b, third} {
				if v := w.strike(n, "", wire.AppendFrame(nil, f), false); v.got != "" || v.reset != wire.NotFound {
					t.Errorf("confirm again: %+v", v)
				}
			}
		}
		if confirms != 2 {
			t.Errorf("%d confirms were recorded", confirms)
		}
		instead = nil
		y.work(t, newWires(0), s)
		y.check(t)
		if i := s.Info(); i.State != session.Active || len(i.History) != len(before.History) {
			t.Errorf("the session went from %v to %v", before.History, i.History)
		}
	})
}

// refused is the code with which n refuses an offer; 0 if it answers.
func refused(t *testing.T, n *wired, offer []byte) wire.Code {
	t.Helper()
	reply, err := n.Exchange("attacker", offer)
	if err != nil {
		return wire.CodeOf(err)
	}
	_, _, err = signal.Open(t.Context(), func(context.Context, []byte) ([]byte, error) { return reply, nil },
		n.agent.Agent, signal.Terms{Suites: signal.Suites(), Contract: signal.DefaultContract()}, n.cfg.Signal)
	if strings.Contains(err.Error(), "refused the session") {
		return wire.CodeOf(err)
	}
	return 0
}

// A thief has the id of a session, the certificate of one end, an offer to resume
// that was held back from the other, everything but a key. It gets no session, and
// the real one goes on under the keys that it has.
func TestStolenSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, y := newWires(5*time.Millisecond), &tally{seen: map[string]int{}}
		a, b, thief := y.node(t, w), y.node(t, w), y.node(t, w)
		s := a.open(t, b, lasting())
		epochs := len(s.Info().History)
		offer := func(local signal.Local) []byte {
			terms := thief.cfg.Signal.Terms()
			terms.Contract, terms.Resume = s.Contract(), s.ID()
			_, offer, err := signal.NewOffer(local, b.agent.Agent, terms, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			return offer
		}
		own := signal.Local{Certificate: thief.agent.Certificate, Key: thief.agent.Host}
		stolen := signal.Local{Certificate: a.agent.Certificate, Key: thief.agent.Host}
		if got := refused(t, b, offer(own)); got != wire.NotFound {
			t.Errorf("as itself: %s", got)
		}
		if got := refused(t, b, offer(stolen)); got != wire.Unauthenticated {
			t.Errorf("with a stolen certificate: %s", got)
		}
		held := offer(a.cfg.Signal.Local())
		if got := refused(t, b, held); got != 0 {
			t.Errorf("offer that was held back: %s", got)
		}
		if got := refused(t, b, held); got != wire.Replayed {
			t.Errorf("the same again: %s", got)
		}
		forged, _ := proto.Marshal(&sessionpb.Attach{Session: idBytes(s), Confirm: []byte("forged")})
		for _, raw := range [][]byte{attachment(s.ID()), wire.AppendFrame(nil, forged)} {
			for _, from := range []*wired{nil, thief} {
				if v := w.strike(b, hostOf(from), raw, true); v.got != "" || v.took > 10*time.Second {
					t.Errorf("attach: %+v", v)
				}
			}
		}
		y.work(t, w, s, b.find(t, s.ID()))
		y.check(t)
		if h := s.Info().History; len(h) > epochs+4 { // the channel that work cuts, and no more
			t.Errorf("history %v", h)
		}
	})
}

func idBytes(s *session.Session) []byte { id := s.ID(); return id[:] }

// Whoever does not hold its keys cannot find out whether a node has a session:
// whatever it sends, the bytes, the code and the time of the answer are those for
// an id that nobody has.
func TestNobodyLearnsWhetherASessionExists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, y := newWires(5*time.Millisecond), &tally{seen: map[string]int{}}
		a, b, gone, outsider := y.node(t, w), y.node(t, w), y.node(t, w), y.node(t, w)
		asleep := gone.open(t, b, lasting()).ID()
		gone.kill()
		b.crash(t)
		closed := a.open(t, b, lasting())
		closed.Close(t.Context())
		live := a.open(t, b, lasting())
		guess, err := seal.New(seal.Config{Session: live.ID(), Suite: live.Info().Suite, Initiator: true}, &[32]byte{1}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		junk := bytes.Repeat([]byte{1}, 200)
		for _, tc := range []struct {
			name string
			tail []byte
			eof  bool
		}{
			{name: "silence"},
			{name: "end", eof: true},
			{name: "junk", tail: wire.AppendFrame(nil, junk)},
			{name: "empty frame", tail: []byte{0}},
			{name: "guessed key", tail: wire.AppendFrame(nil, guess.Seal(nil, seal.Rebind, 1<<19, nil))},
			{name: "another type", tail: wire.AppendFrame(nil, guess.Seal(nil, seal.Ping, 1<<19, make([]byte, 8)))},
			{name: "half a frame", tail: wire.AppendFrame(nil, junk)[:50]},
			{name: "64 KiB", tail: []byte{0x80, 0x80, 4}},
			{name: "too large for any", tail: []byte{0x80, 0x80, 0x80, 0x80, 4}},
			{name: "no length", tail: bytes.Repeat([]byte{0xff}, 12)},
		} {
			for _, from := range []*wired{nil, outsider} {
				want := w.strike(b, hostOf(from), append(attachment(signal.ID{1}), tc.tail...), tc.eof)
				for name, id := range map[string]signal.ID{"live": live.ID(), "without keys": asleep, "closed": closed.ID()} {
					if got := w.strike(b, hostOf(from), append(attachment(id), tc.tail...), tc.eof); got != want {
						t.Errorf("%s, proven %t: for the %s session %+v, for none %+v", tc.name, from != nil, name, got, want)
					}
				}
				if want.got != "" || want.took > 10*time.Second {
					t.Errorf("%s: %+v", tc.name, want)
				}
			}
		}
		y.work(t, w, live, b.find(t, live.ID()))
		y.check(t)
	})
}
