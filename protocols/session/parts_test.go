package session_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"openmesh/protocols/session"
	"openmesh/protocols/wire"
)

// producing is a handler whose response has the parts that f sends.
func producing(f func(ctx context.Context, body string, send func([]byte) error) error) func(*session.Config) {
	return func(c *session.Config) {
		c.Handler = func(_ context.Context, in *session.Inbound) (*session.Response, error) {
			if string(in.Body) == "one" {
				return &session.Response{Encoding: in.Encoding, Body: in.Body}, nil
			}
			return &session.Response{Encoding: in.Encoding, Produce: func(ctx context.Context, send func([]byte) error) error {
				return f(ctx, string(in.Body), send)
			}}, nil
		}
	}
}

func (n *wired) callParts(t *testing.T, s *session.Session, body string) *session.Parts {
	t.Helper()
	resp, _, err := s.Call(t.Context(), request(body))
	if err != nil || resp.Parts == nil {
		t.Fatalf("Call = %+v, %v", resp, err)
	}
	return resp.Parts
}

// However slowly the parts are read, all that were sent come before the error that
// ended them, with its pointers; and streams that ended do not add up.
func TestPartsComeBeforeTheError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(5 * time.Millisecond)
		a, b := w.node(t, nil), w.node(t, producing(func(_ context.Context, body string, send func([]byte) error) error {
			for i := range 3 {
				if err := send(fmt.Append(nil, i)); err != nil {
					return err
				}
			}
			switch body {
			case "panic":
				panic("x")
			case "large":
				return send(make([]byte, 5<<20))
			case "invalid":
				e := wire.Errorf(wire.InvalidResponse, "secret")
				e.Pointers = []string{"/rate"}
				return e
			}
			return nil
		}))
		s := a.open(t, b, session.Want{})
		for i := range 600 { // more than there may be streams at a time
			body, want := "", error(io.EOF)
			switch i {
			case 0:
				body, want = "panic", wire.Internal
			case 1:
				body, want = "large", wire.TooLarge
			case 2:
				body, want = "invalid", wire.InvalidResponse
			}
			parts := a.callParts(t, s, body)
			synctest.Wait()
			if i < 3 {
				time.Sleep(10 * time.Second)
			}
			for i := range 3 {
				if p, err := parts.Next(); err != nil || string(p) != fmt.Sprint(i) {
					t.Fatalf("%s: part %d = %q, %v", body, i, p, err)
				}
			}
			_, err := parts.Next()
			if !errors.Is(err, want) {
				t.Fatalf("call %d %s ended with %v, want %v", i, body, err, want)
			}
			var e *wire.Error
			if body == "invalid" && (!errors.As(err, &e) || len(e.Pointers) != 1) {
				t.Errorf("pointers of %v", err)
			}
		}
	})
}

// Who gives up its parts, or lets the deadline pass, ends the work on them: whether
// the handler waits for room to send, or for something of its own.
func TestPartsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(5 * time.Millisecond)
		ended := make(chan error, 1)
		a, b := w.node(t, nil), w.node(t, producing(func(ctx context.Context, body string, send func([]byte) error) error {
			var err error
			for err == nil && (body == "flood" || body == "late") {
				err = send(make([]byte, 64<<10))
			}
			if err == nil {
				err = send([]byte("1"))
				<-ctx.Done()
			}
			ended <- err
			return ctx.Err()
		}))
		s := a.open(t, b, session.Want{})
		for _, body := range []string{"flood", "wait"} {
			parts := a.callParts(t, s, body)
			if _, err := parts.Next(); err != nil {
				t.Fatal(err)
			}
			next := make(chan error, 1)
			if body == "wait" {
				go func() { _, err := parts.Next(); next <- err }()
				synctest.Wait()
			} else {
				next <- wire.Cancelled
			}
			time.Sleep(time.Second)
			begin := time.Now()
			parts.Close()
			<-ended
			if took := time.Since(begin); took > 20*time.Millisecond || !errors.Is(<-next, wire.Cancelled) {
				t.Errorf("%s: ended after %v", body, took)
			}
		}
		late := request("late")
		late.Deadline = time.Now().Add(5 * time.Second)
		begin := time.Now()
		resp, _, err := s.Call(t.Context(), late)
		if err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, wire.DeadlineExceeded) || time.Since(begin) > 7*time.Second {
			t.Errorf("send ended with %v after %v", err, time.Since(begin))
		}
		for err == nil {
			_, err = resp.Parts.Next()
		}
		if !errors.Is(err, wire.DeadlineExceeded) {
			t.Errorf("the parts ended with %v", err)
		}
	})
}

// A reader that is slow holds up its own response: others of the session go on, and
// no more is sent than there is credit for.
func TestSlowReaderOfParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(5 * time.Millisecond)
		sent := make(chan struct{}, 1<<20)
		part := bytes.Repeat([]byte("x"), 1000)
		a, b := w.node(t, nil), w.node(t, producing(func(_ context.Context, body string, send func([]byte) error) error {
			for range 10_000 {
				if err := send(part); err != nil {
					return err
				}
				if body == "slow" {
					sent <- struct{}{}
				}
			}
			return nil
		}))
		s := a.open(t, b, session.Want{})
		slow := a.callParts(t, s, "slow")
		defer slow.Close()
		time.Sleep(time.Minute)
		if n := len(sent); n < 100 || n > 600 {
			t.Errorf("%d parts of 1000 bytes were sent to a reader that reads none", n)
		}
		if resp, _, err := s.Call(t.Context(), request("one")); err != nil || string(resp.Body) != "one" {
			t.Errorf("another call: %v", err)
		}
		fast := a.callParts(t, s, "fast")
		n := 0
		for {
			p, err := fast.Next()
			if err == io.EOF {
				break
			}
			if n++; err != nil || !bytes.Equal(p, part) {
				t.Fatalf("part %d: %d bytes, %v", n, len(p), err)
			}
		}
		if n != 10_000 {
			t.Errorf("%d parts", n)
		}
		before := len(sent)
		for range 1000 {
			if _, err := slow.Next(); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		if after := len(sent); after < before+500 {
			t.Errorf("%d parts sent, %d before it read 1000", after, before)
		}
	})
}
