package session_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"openmesh/protocols/session"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/session/seal"
	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// repeat calls f n times, a hundred calls every ten milliseconds.
func repeat(n int, f func(i int)) {
	for i := range n {
		f(i)
		if i%100 == 99 {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// gaps is a Received with n gaps, the first of which reaches down from newest.
func gaps(newest uint64, n int) *sessionpb.Received {
	m := &sessionpb.Received{Newest: newest}
	for i := range uint64(n) {
		m.Missing = append(m.Missing, newest-2*i-1, newest-2*i-1)
	}
	return m
}

// message is a data frame's plaintext with the promise of delivery.
func message(sequence uint64) []byte {
	m := &delivery.Message{Sequence: sequence, Body: []byte("x"), Expires: time.Now().Add(time.Hour)}
	return delivery.AppendMessage(nil, m, 1, time.Now())
}

// work is message for a handler that waits.
func work(sequence, floor uint64, body []byte) []byte {
	m := &delivery.Message{Sequence: sequence, Capability: "wait", Body: body, Expires: time.Now().Add(time.Hour)}
	return delivery.AppendMessage(nil, m, floor, time.Now())
}

func unbounded(c *signal.Contract) { c.QoS, c.Persistent = signal.AtLeastOnce, true }

// floods are what a peer may try that has a session and obeys no rule. With a code
// the session is terminated for it; without, it goes on.
var floods = []struct {
	name  string
	flood func(r *rogue)
	want  wire.Code
}{
	{"received that was never sent", func(r *rogue) {
		repeat(1000, func(i int) {
			for _, m := range []*sessionpb.Received{
				{Newest: math.MaxUint64}, {Newest: 1 << 40, Missing: []uint64{1, 1<<40 - 1}}, {Missing: []uint64{0, math.MaxUint64}},
				{Newest: 10, Missing: []uint64{9, 3, 4, 8, 3, 9}}, {Newest: 100, Missing: []uint64{50, 60, 40, 55, 1}},
			} {
				r.message(seal.Received, m)
			}
		})
	}, 0},
	{"received with 10,000 gaps", func(r *rogue) {
		repeat(50, func(int) { r.message(seal.Received, gaps(1<<30, 10_000)) })
	}, 0},
	{"rebind back and forth", func(r *rogue) {
		ends := []*wireEnd{r.end, r.dial(nil)}
		time.Sleep(time.Second)
		b := []byte{0x10, 1} // primary
		repeat(10_000, func(i int) { r.sendOver(ends[i%2], seal.Rebind, b) })
	}, 0},
	{"1,000 channels", func(r *rogue) { repeat(1000, func(int) { r.dial(nil) }) }, 0},
	{"requests whose answers it never acknowledges", func(r *rogue) {
		repeat(10_000, func(i int) { r.message(seal.Request, &sessionpb.Request{Id: uint64(i + 1), Body: make([]byte, 100)}) })
	}, wire.ResourceExhausted},
	{"more requests than it may make", func(r *rogue) {
		repeat(8_000, func(i int) { r.message(seal.Request, &sessionpb.Request{Id: uint64(i + 1), Capability: "wait"}) })
	}, wire.ResourceExhausted},
	{"one request again and again", func(r *rogue) {
		repeat(8_000, func(int) { r.message(seal.Request, &sessionpb.Request{Id: 1, Capability: "wait"}) })
	}, wire.ResourceExhausted},
	{"large requests", func(r *rogue) {
		body := make([]byte, 4<<20-100)
		for i := range 30 {
			r.message(seal.Request, &sessionpb.Request{Id: uint64(i + 1), Capability: "wait", Body: body})
			time.Sleep(10 * time.Millisecond)
		}
	}, 0},
	{"large answers that it never acknowledges", func(r *rogue) {
		body := make([]byte, 4<<20-100)
		for i := range 30 {
			if _, told := r.heard(seal.Close); told == 0 {
				r.message(seal.Request, &sessionpb.Request{Id: uint64(i + 1), Body: body})
			}
			time.Sleep(10 * time.Millisecond)
		}
	}, wire.ResourceExhausted},
	{"messages whose acks it never acknowledges", func(r *rogue) {
		repeat(6_000, func(int) { r.send(seal.Data, message(1)) })
	}, 0},
	{"messages for a handler, one after the other", func(r *rogue) {
		repeat(8_000, func(i int) { r.send(seal.Data, work(uint64(i+1), 1, make([]byte, 64<<10))) })
	}, 0},
	{"messages for a handler, each the only one it cares about", func(r *rogue) {
		repeat(8_000, func(i int) { r.send(seal.Data, work(uint64(i+1), uint64(i+1), make([]byte, 64<<10))) })
	}, 0},
	{"messages beyond every window", func(r *rogue) {
		repeat(3000, func(i int) { r.send(seal.Data, message(uint64(i)<<20+1)) })
	}, 0},
	{"pings", func(r *rogue) { repeat(10_000, func(int) { r.send(seal.Ping, make([]byte, 8)) }) }, 0},
	{"acks of what was never sent", func(r *rogue) {
		a := delivery.Ack{Delivered: []delivery.Range{{From: 1, To: delivery.MaxSequence}}}
		for i := range uint64(1000) {
			a.Responses = append(a.Responses, delivery.Response{Sequence: i + 1, Body: []byte("x")})
		}
		repeat(100, func(int) { r.send(seal.Ack, delivery.AppendAck(nil, a)) })
	}, 0},
	{"answers to what was never asked", func(r *rogue) {
		repeat(8_000, func(i int) {
			r.message(seal.Response, &sessionpb.Response{Id: uint64(i)})
			r.message(seal.Error, &sessionpb.Error{Id: uint64(i), Cancel: i%2 == 0, Code: math.MaxUint32})
		})
	}, 0},
	{"frames of types to come", func(r *rogue) {
		repeat(8_000, func(i int) { r.send(seal.Type(100+i%150), make([]byte, 100)) })
	}, 0},
	{"streams", func(r *rogue) {
		repeat(8000, func(i int) {
			r.send(seal.StreamOpen, binary.AppendUvarint(binary.AppendUvarint(nil, uint64(2*i+1)), 1<<20))
		})
	}, wire.PolicyViolation},
	{"data of a stream that was refused", func(r *rogue) {
		r.send(seal.StreamOpen, binary.AppendUvarint(binary.AppendUvarint(nil, 1), 1<<20))
		repeat(1000, func(i int) {
			r.send(seal.StreamData, append(binary.AppendUvarint([]byte{1}, uint64(i)<<10), make([]byte, 1<<10)...))
		})
	}, 0},
	{"policy notices", func(r *rogue) {
		repeat(5000, func(int) { r.message(seal.PolicyNotice, &sessionpb.Notice{Effect: 2, Reason: "you know"}) })
	}, 0},
	{"frame over the contract's size", func(r *rogue) {
		r.end.Write(binary.AppendUvarint(nil, 4<<20+64<<10)) // the length is enough
		time.Sleep(time.Second)
		r.dial(nil)
	}, 0},
	{"data with a header that is cut", func(r *rogue) { r.send(seal.Data, []byte{200, 1, 2}) }, wire.Malformed},
	{"data with a floor above it", func(r *rogue) {
		r.send(seal.Data, delivery.AppendMessage(nil, &delivery.Message{Sequence: 5, Expires: time.Now().Add(time.Hour)}, 9, time.Now()))
	}, wire.Malformed},
	{"ack that is none", func(r *rogue) { r.send(seal.Ack, []byte{0xff}) }, wire.Malformed},
	{"rekey that is none", func(r *rogue) { r.send(seal.Rekey, []byte{0xff}) }, wire.Malformed},
	{"rekey without a key", func(r *rogue) { r.message(seal.Rekey, &sessionpb.Rekey{Epoch: 1}) }, wire.PolicyViolation},
	{"rekey with a short key", func(r *rogue) {
		r.message(seal.Rekey, &sessionpb.Rekey{Epoch: 1, PublicKey: make([]byte, 1215)})
	}, wire.PolicyViolation},
	{"rekey with a long key", func(r *rogue) {
		r.message(seal.Rekey, &sessionpb.Rekey{Epoch: 1, PublicKey: make([]byte, 1<<16)})
	}, wire.PolicyViolation},
	{"rekey to the same epoch", func(r *rogue) { r.rekey(0) }, wire.PolicyViolation},
	{"rekey over an epoch", func(r *rogue) { r.rekey(2) }, wire.PolicyViolation},
	{"rekey to the last epoch", func(r *rogue) { r.rekey(math.MaxUint32) }, wire.PolicyViolation},
	{"rekey in the responder's part", func(r *rogue) {
		r.message(seal.Rekey, &sessionpb.Rekey{Epoch: 1, Enc: bytes.Repeat([]byte{9}, 1120)})
	}, wire.PolicyViolation},
	{"rekeys in a loop", func(r *rogue) {
		for i := range 20 {
			r.rekey(uint32(1 + i))
		}
	}, wire.PolicyViolation},
	{"sequence numbers at their end", func(r *rogue) {
		r.sequence = math.MaxUint64 - 2
		repeat(1000, func(int) { r.send(seal.Ping, make([]byte, 8)) })
	}, wire.Unreachable},
}

// rekey proposes an epoch with a key that is in order.
func (r *rogue) rekey(epoch uint32) {
	m, err := r.keys.Propose()
	if err != nil {
		panic(err)
	}
	m.Epoch = epoch
	r.message(seal.Rekey, m)
}

// footprint is the memory in use and the goroutines there are.
func footprint() (bytes uint64, goroutines int) {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc, runtime.NumGoroutine()
}

// What one flood may cost its victim: the requests and answers that it may have in
// hand, and what pools keep; a goroutine for each request.
const (
	maxFloodBytes      = 160 << 20
	maxFloodGoroutines = 2*1024 + 50
)

// A peer that floods a session costs a bounded amount of memory; its session ends
// for the right reason or goes on, and the calls of others take as long as ever.
func TestFloods(t *testing.T) {
	for _, tc := range floods {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWires(5 * time.Millisecond)
				victim := w.node(t, func(c *session.Config) {
					keep(c)
					c.Handler = func(ctx context.Context, in *session.Inbound) (*session.Response, error) {
						if in.Capability == "wait" {
							<-ctx.Done()
							return nil, ctx.Err()
						}
						return &session.Response{Encoding: in.Encoding, Body: in.Body}, nil
					}
				})
				honest := w.node(t, nil).open(t, victim, session.Want{})
				r := w.rogue(t, victim, unbounded)
				heap, goroutines := footprint()
				slowest := make(chan time.Duration, 1)
				stop, stopped := context.WithCancel(t.Context())
				go func() { slowest <- slowestCall(t, stop, honest) }()
				tc.flood(r)
				time.Sleep(500 * time.Millisecond)
				if bytes, n := footprint(); bytes > heap+maxFloodBytes || n > goroutines+maxFloodGoroutines {
					t.Errorf("%d KiB and %d goroutines, from %d KiB and %d", bytes>>10, n, heap>>10, goroutines)
				}
				if n := victim.Stats().Channels; n > 5 {
					t.Errorf("%d channels are open", n)
				}
				time.Sleep(30 * time.Second)
				stopped()
				if d := <-slowest; d > 11*time.Millisecond {
					t.Errorf("a call of another peer took %v", d)
				}
				r.verify(t, tc.want)
			})
		})
	}
}

// slowestCall calls every 100 ms until ctx ends, and returns the longest time that
// a call took.
func slowestCall(t *testing.T, ctx context.Context, s *session.Session) (slowest time.Duration) {
	for ctx.Err() == nil {
		begin := time.Now()
		if _, _, err := s.Call(t.Context(), request("x")); err != nil {
			t.Errorf("call of another peer: %v", err)
			return 0
		}
		slowest = max(slowest, time.Since(begin))
		time.Sleep(100 * time.Millisecond)
	}
	return slowest
}

// verify checks how the session ended, or that it goes on.
func (r *rogue) verify(t *testing.T, want wire.Code) {
	t.Helper()
	i := r.state(t)
	if _, told := r.heard(seal.Close); want != 0 && want != wire.Unreachable && told != want {
		t.Errorf("the peer was told %s, want %s", told, want)
	}
	if n, _ := r.heard(seal.Rekey); n > 1 {
		t.Errorf("%d rekeys were answered", n)
	}
	if n := r.kept(); n > seal.Window/2+50 {
		t.Errorf("%d frames were sent that have to be kept until they are acknowledged", n)
	}
	switch {
	case want == wire.Unreachable: // nothing comes any more that opens
		if i.State != session.Migrating && i.State != session.Terminated {
			t.Errorf("the session is %s", i.State)
		}
	case want != 0:
		if i.State != session.Terminated || i.Reason != want {
			t.Errorf("the session is %s (%s), want terminated (%s)", i.State, i.Reason, want)
		}
	default:
		before, _ := r.heard(seal.Pong)
		r.dial(nil)
		time.Sleep(time.Second)
		r.send(seal.Ping, make([]byte, 8))
		time.Sleep(time.Second)
		if after, _ := r.heard(seal.Pong); after == before || i.State.Done() {
			t.Errorf("the session is %s (%s), and answers %d pings", i.State, i.Reason, after-before)
		}
	}
}

// Who has no key cannot change the keys of a session, whatever it puts on the
// path: plain or sealed with keys that it made up.
func TestRekeyByAnOutsider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(5 * time.Millisecond)
		a, b := w.node(t, exposed), w.node(t, exposed)
		s := a.open(t, b, session.Want{})
		if _, _, err := s.Call(t.Context(), request("x")); err != nil {
			t.Fatal(err)
		}
		var guesses [][]byte
		for i, initiator := range []bool{true, false, true, false} {
			keys, err := seal.New(seal.Config{Session: s.ID(), Suite: s.Info().Suite, Initiator: initiator}, &[32]byte{byte(i / 2)}, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			m, err := keys.Propose()
			if err != nil {
				t.Fatal(err)
			}
			for _, plain := range [][]byte{nil, append([]byte{8, 1, 0x12, 0xc0, 9}, m.PublicKey...)} {
				guesses = append(guesses, keys.Seal(nil, seal.Rekey, 1000, plain), plain)
			}
		}
		for _, f := range slices.Concat(guesses, guesses, guesses) { // more than a channel takes
			w.inject(f)
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(10 * time.Second)
		if resp, _, err := s.Call(t.Context(), request("x")); err != nil || string(resp.Body) != "x" {
			t.Errorf("Call = %v, %v", resp, err)
		}
		for _, n := range []*wired{a, b} {
			if i := n.Sessions(false)[0]; i.Epoch != 0 || i.State != session.Active || i.Rejected == 0 {
				t.Errorf("session is %s in epoch %d, %d frames were rejected", i.State, i.Epoch, i.Rejected)
			}
		}
	})
}
