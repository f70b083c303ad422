package session_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"openmesh/protocols/session"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// Whoever is on the path of an open network resets channels with codes of its
// choice, cuts frames short, adds junk and holds up what passes. The session goes
// on, and nothing is lost or doubled.
func TestAttackerOnThePath(t *testing.T) {
	for _, tc := range []struct {
		name   string
		strike func(w *wires, e *wireEnd, r *rand.Rand)
	}{
		{"resets", func(_ *wires, e *wireEnd, r *rand.Rand) {
			code := wire.Codes()[r.IntN(len(wire.Codes()))]
			e.shut(code)
			e.far.shut(code)
		}},
		{"not found", func(_ *wires, e *wireEnd, _ *rand.Rand) {
			e.shut(wire.NotFound)
			e.far.shut(wire.NotFound)
		}},
		{"truncation", func(_ *wires, e *wireEnd, _ *rand.Rand) {
			e.take([]byte{100, 1, 1, 1})
			e.far.Close()
		}},
		{"end of stream", func(_ *wires, e *wireEnd, _ *rand.Rand) { e.far.Close() }},
		{"junk", func(_ *wires, e *wireEnd, _ *rand.Rand) {
			for range 20 {
				e.take(wire.AppendFrame(nil, make([]byte, 100)))
			}
		}},
		{"delay", func(w *wires, _ *wireEnd, r *rand.Rand) {
			w.disturb(0, time.Duration(1+r.IntN(3000))*time.Millisecond)
		}},
		{"silence", func(w *wires, _ *wireEnd, r *rand.Rand) {
			w.silence("tcp", true)
			time.Sleep(time.Duration(r.IntN(5000)) * time.Millisecond)
			w.silence("tcp", false)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, random := newWires(20*time.Millisecond), rand.New(rand.NewPCG(1, 2))
				a, b := w.node(t, exposed), w.node(t, exposed)
				s := a.open(t, b, session.Want{})
				if _, _, err := s.Call(t.Context(), request("x")); err != nil {
					t.Fatal(err)
				}
				const n = 3000
				var senders sync.WaitGroup
				senders.Go(func() { numbers(t, s, n, 50*time.Millisecond) })
				senders.Go(func() { numbers(t, b.Session(a.agent.Agent), n, 50*time.Millisecond) })
				for range 60 {
					time.Sleep(time.Duration(random.IntN(5000)) * time.Millisecond)
					if ends := w.alive(); len(ends) > 0 {
						tc.strike(w, ends[random.IntN(len(ends))], random)
					}
				}
				w.disturb(0, 0)
				senders.Wait()
				time.Sleep(2 * time.Minute)
				count(t, b.data, n)
				count(t, a.data, n)
				if all := a.Sessions(true); len(all) != 1 || all[0].State != session.Active {
					t.Errorf("sessions %+v", all)
				}
			})
		})
	}
}

// holder is a network whose owner can hold back what one of its nodes sends.
type holder struct {
	session.Network
	held *bytes.Buffer
	hold *bool
}

type holding struct {
	session.Conduit
	holder
}

func (n holder) Dial(ctx context.Context, r session.Route) (session.Conduit, error) {
	c, err := n.Network.Dial(ctx, r)
	return holding{c, n}, err
}

func (h holding) Write(b []byte) (int, error) {
	if *h.hold {
		return h.held.Write(b)
	}
	return h.Conduit.Write(b)
}

// A frame that is taken off its way opens no channel: else whoever took it could
// have its receiver believe that it has it, and nobody would send it again.
func TestFrameTakenOffItsWayIsSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(5 * time.Millisecond)
		h := holder{held: new(bytes.Buffer), hold: new(bool)}
		a := w.node(t, func(c *session.Config) {
			exposed(c)
			h.Network = c.Network
			c.Network = h
		})
		b := w.node(t, exposed)
		s := a.open(t, b, session.Want{})
		time.Sleep(100 * time.Millisecond) // pings and pongs have passed
		synctest.Wait()
		*h.hold = true
		if err := s.Send([]byte("precious")); err != nil {
			t.Fatal(err)
		}
		*h.hold = false
		if v := w.strike(b, "", append(attachment(s.ID()), h.held.Bytes()...), false); v.reset != wire.NotFound {
			t.Errorf("the frame begins a channel: %+v", v)
		}
		for _, e := range w.alive() {
			e.shut(wire.Unreachable)
		}
		time.Sleep(time.Minute)
		if len(b.data) != 1 {
			t.Errorf("the message arrived %d times", len(b.data))
		}
	})
}

// A peer that has restarted counts its requests anew. The answer to one of before
// is not taken for that of a later one with the same number.
func TestAnswerOfBeforeARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(5 * time.Millisecond)
		a := w.node(t, keep)
		b := w.node(t, func(c *session.Config) {
			keep(c)
			c.Handler = func(_ context.Context, in *session.Inbound) (*session.Response, error) {
				time.Sleep(30 * time.Second)
				return &session.Response{Encoding: in.Encoding, Body: in.Body}, nil
			}
		})
		id := a.open(t, b, session.Want{Contract: signal.Contract{QoS: signal.AtLeastOnce}}).ID()
		first := make(chan error)
		go func() {
			_, _, err := a.find(t, id).Call(t.Context(), request("first"))
			first <- err
		}()
		time.Sleep(5 * time.Second)
		a.crash(t)
		if err := <-first; err == nil {
			t.Error("the first request was answered")
		}
		s, err := a.Open(t.Context(), b.target(), session.Want{Contract: signal.Contract{QoS: signal.AtLeastOnce}})
		if err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(time.Minute); !s.Ready() && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(5 * time.Second) // both sides may have resumed it, one after the other
		if resp, number, err := s.Call(t.Context(), request("second")); err != nil || string(resp.Body) != "second" || number != 1 {
			t.Errorf("Call = %v, %v; number %d", resp, err, number)
		}
	})
}
