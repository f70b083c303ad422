package session_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"openmesh/protocols/session"
	"openmesh/protocols/session/mux"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// parts answers with three parts, and with an error after them if asked to fail.
func parts(_ context.Context, in *session.Inbound) (*session.Response, error) {
	return &session.Response{Encoding: in.Encoding, Produce: func(_ context.Context, send func([]byte) error) error {
		for i := range 3 {
			if err := send(fmt.Appendf(nil, "%d", i)); err != nil {
				return err
			}
			time.Sleep(time.Second)
		}
		if string(in.Body) == "fail" {
			return wire.Errorf(wire.HandlerFailed, "secret")
		}
		return nil
	}}, nil
}

// A response in parts comes as it is made, and its end says how it ended.
func TestResponseInParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(20 * time.Millisecond)
		a, b := w.node(t, nil), w.node(t, func(c *session.Config) { c.Handler = parts })
		s := a.open(t, b, session.Want{})
		for body, want := range map[string]error{"ok": io.EOF, "fail": wire.HandlerFailed} {
			resp, _, err := s.Call(t.Context(), request(body))
			if err != nil || resp.Parts == nil {
				t.Fatalf("Call = %+v, %v", resp, err)
			}
			begin := time.Now()
			for i := range 3 {
				if p, err := resp.Parts.Next(); err != nil || string(p) != fmt.Sprint(i) {
					t.Fatalf("part %d = %q, %v", i, p, err)
				}
				if took := time.Since(begin); took > time.Duration(i)*time.Second+100*time.Millisecond {
					t.Errorf("part %d came after %v", i, took)
				}
			}
			if _, err := resp.Parts.Next(); !errors.Is(err, want) {
				t.Errorf("%s: the end is %v, want %v", body, err, want)
			}
		}
	})
}

// Streams carry what was written while the channel under them is cut, and a slow
// reader holds up nobody else.
func TestStreamsSurviveFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(5 * time.Millisecond)
		streams := make(chan *mux.Stream, 1)
		stuck := make(chan *mux.Stream, 1)
		a := w.node(t, nil)
		b := w.node(t, func(c *session.Config) {
			c.Stream = func(_ *session.Session, st *mux.Stream, meta []byte) {
				if string(meta) == "stuck" {
					stuck <- st
				} else {
					streams <- st
				}
			}
		})
		s := a.open(t, b, session.Want{})
		idle, err := s.OpenStream(t.Context(), []byte("stuck"))
		if err != nil {
			t.Fatal(err)
		}
		go idle.Write(make([]byte, 4<<20)) // nobody reads it
		st, err := s.OpenStream(t.Context(), []byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		sent := make([]byte, 2<<20)
		rand.Read(sent)
		time.AfterFunc(1500*time.Millisecond, func() { w.silence("quic-v1", true); w.snap("quic-v1") })
		time.AfterFunc(10500*time.Millisecond, func() { w.silence("tcp", true) })
		go func() {
			for p := range slices.Chunk(sent, 64<<10) {
				st.Write(p)
				time.Sleep(time.Second)
			}
			st.CloseWrite()
		}()
		received, err := io.ReadAll(<-streams)
		if err != nil || !bytes.Equal(received, sent) {
			t.Errorf("%d bytes of %d arrived: %v", len(received), len(sent), err)
		}
		(<-stuck).Reset(wire.Cancelled)
	})
}

// An honest sender keeps to the rate of the contract, and is never warned.
func TestHonestSenderKeepsTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWires(5 * time.Millisecond)
		limited := func(c *session.Config) {
			keep(c)
			terms := c.Signal.Terms()
			terms.Contract.MessageRate = 50
			c.Signal.Terms = func() signal.Terms { return terms }
		}
		a, b := w.node(t, limited), w.node(t, limited)
		s := a.open(t, b, session.Want{})
		begin := time.Now()
		for range 1000 {
			if err := s.Send([]byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(begin); took < 18*time.Second || took > 21*time.Second {
			t.Errorf("1000 messages at 50 a second took %v", took)
		}
		time.Sleep(time.Second)
		if n := b.Sessions(false)[0].Notices; len(n) != 0 || len(b.data) != 1000 {
			t.Errorf("an honest sender was told %v; %d messages arrived", n, len(b.data))
		}
	})
}
