package session_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"openmesh/protocols/session"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// An offer by mail is answered with tighter terms: they hold at once for what was
// accepted before, and what is too large for them fails while all else goes on.
func TestOfferByMailAnsweredWithTighterTerms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, post := newWires(5*time.Millisecond), newOffice()
		a, b := net.postal(t, post, nil), net.postal(t, post, nil)
		b.stop(false)
		terms := b.cfg.Signal.Terms
		b.cfg.Signal.Terms = func() signal.Terms {
			t := terms()
			t.Contract.MaxMessageBytes, t.Contract.MaxPending = 1<<20, 3
			return t
		}
		s, err := a.Open(t.Context(), b.mailTarget(), session.Want{Contract: signal.Contract{QoS: signal.AtLeastOnce}})
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]delivery.Status{"large": delivery.Failed}
		for i := range 5 {
			a.post(t, s.ID(), fmt.Sprint(i))
			want[fmt.Sprint(i)] = delivery.Delivered
		}
		if _, err := s.Post(t.Context(), &delivery.Message{Key: "large", Body: make([]byte, 2<<20)}); err != nil {
			t.Fatal(err)
		}
		b.start(t)
		for key, status := range want {
			if o := a.outcome(t, s.ID(), key, time.Minute); o.Status != status || status == delivery.Failed && o.Code != wire.TooLarge {
				t.Errorf("%s: %+v", key, o)
			}
		}
		if _, err := s.Post(t.Context(), &delivery.Message{Body: make([]byte, 2<<20)}); wire.CodeOf(err) != wire.TooLarge {
			t.Errorf("a large message afterwards: %v", err)
		}
		errs := make(chan error, 4)
		for range 4 {
			go func() {
				_, _, err := s.Call(t.Context(), request("x"))
				errs <- err
			}()
		}
		if err := <-errs; wire.CodeOf(err) != wire.ResourceExhausted {
			t.Errorf("a fourth call: %v", err)
		}
	})
}
