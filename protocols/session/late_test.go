package session_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"openmesh/protocols/session"
	"openmesh/protocols/wire"
)

// lateNetwork opens the first channel only when the other side waits for it no more.
type lateNetwork struct {
	session.Network
	anonymous bool // the other side proves nothing
	dials     atomic.Int32
}

func (n *lateNetwork) Dial(ctx context.Context, r session.Route) (session.Conduit, error) {
	if n.dials.Add(1) == 1 {
		time.Sleep(7 * time.Second)
	}
	c, err := n.Network.Dial(ctx, r)
	if n.anonymous && err == nil {
		c = anonymous{c.(*wireEnd)}
	}
	return c, err
}

// Calls in a session whose first channel was refused were seen by nobody: they may be
// made again, which the error says, unless anybody on the path may have refused it.
func TestCallsInRefusedSession(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		anonymous bool
		want      wire.Code
	}{"by the peer": {false, wire.ResourceExhausted}, "by anybody": {true, wire.SessionClosed}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWires(20 * time.Millisecond)
				var calls atomic.Int32
				b := w.node(t, func(c *session.Config) {
					c.Signal.Timeout = time.Second
					c.Handler = func(_ context.Context, in *session.Inbound) (*session.Response, error) {
						calls.Add(1)
						return &session.Response{Encoding: in.Encoding, Body: in.Body}, nil
					}
				})
				a := w.node(t, func(c *session.Config) { c.Network = &lateNetwork{Network: c.Network, anonymous: tc.anonymous} })
				s, err := a.Open(t.Context(), b.target(), session.Want{})
				if err != nil {
					t.Fatal(err)
				}
				if _, id, err := s.Call(t.Context(), request("x")); wire.CodeOf(err) != tc.want || (id != 0) != tc.anonymous {
					t.Errorf("call %d in a session that was refused: %v, want %v", id, err, tc.want)
				}
				if n := calls.Load(); n != 0 {
					t.Errorf("%d calls were worked on", n)
				}
				if s, err = a.Open(t.Context(), b.target(), session.Want{}); err != nil {
					t.Fatal(err)
				}
				if _, _, err := s.Call(t.Context(), request("x")); err != nil || calls.Load() != 1 {
					t.Errorf("the same again: %v, %d calls worked on", err, calls.Load())
				}
			})
		})
	}
}

// A crash of the peer ends a session at most once. What was sent before may have been
// worked on; what waited for a channel was not, and the caller learns that.
func TestCallsWhileThePeerRestarts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWires(20 * time.Millisecond)
		b := w.node(t, func(c *session.Config) {
			c.Handler = func(ctx context.Context, _ *session.Inbound) (*session.Response, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
		})
		a := w.node(t, nil)
		s, err := a.Open(t.Context(), b.target(), session.Want{})
		if err != nil {
			t.Fatal(err)
		}
		type outcome struct {
			id  uint64
			err error
		}
		call := func() chan outcome {
			done := make(chan outcome, 1)
			go func() {
				_, id, err := s.Call(t.Context(), request("x"))
				done <- outcome{id, err}
			}()
			return done
		}
		sent := call()
		time.Sleep(time.Second)
		b.kill()
		time.Sleep(time.Second)
		waiting := call()
		time.Sleep(time.Second)
		b.start(t)
		if o := <-sent; o.id == 0 || wire.CodeOf(o.err) != wire.SessionClosed {
			t.Errorf("call under way: id %d, %v", o.id, o.err)
		}
		if o := <-waiting; o.id != 0 || wire.CodeOf(o.err) != wire.SessionClosed {
			t.Errorf("call that was never sent: id %d, %v", o.id, o.err)
		}
	})
}
