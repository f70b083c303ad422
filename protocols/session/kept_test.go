package session_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"openmesh/protocols/session"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// leaveLetter has a message wait for b in the mail, whose sender is off from then on.
func leaveLetter(t *testing.T, post *office, a, b *wired, qos signal.QoS) signal.ID {
	t.Helper()
	id := a.open(t, b, session.Want{Contract: signal.Contract{QoS: qos}}).ID()
	b.stop(false)
	a.post(t, id, "key")
	time.Sleep(10 * time.Second)
	a.stop(false)
	if n := len(post.letters(b)); n != 1 {
		t.Fatalf("%d letters", n)
	}
	return id
}

// A letter has to be kept while a handler works on it: the process may end in
// between. Then the message comes again, marked, and its sender learns the answer by
// mail.
func TestLetterIsKeptWhileInHand(t *testing.T) {
	for _, qos := range []signal.QoS{signal.AtLeastOnce, signal.ExactlyOnce} {
		for _, crash := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/crash=%t", qos, crash), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					net, post, asked := newWires(5*time.Millisecond), newOffice(), make(chan bool, 10)
					hang := true
					a := net.postal(t, post, nil)
					b := net.postal(t, post, func(ctx context.Context, in *session.Inbound) (*session.Response, error) {
						asked <- in.Redelivered
						if hang {
							<-ctx.Done()
							return nil, ctx.Err()
						}
						return &session.Response{Encoding: in.Encoding, Body: []byte(`"done"`)}, nil
					})
					id := leaveLetter(t, post, a, b, qos)
					letter := post.letters(b)[0]
					b.start(t)
					for range 2 { // also if it comes twice
						if err := b.take(t, letter.from, letter.Payload); !errors.Is(err, errInHand) {
							t.Errorf("while a handler works: %v", err)
						}
					}
					<-asked
					b.stop(crash)
					hang = false
					b.start(t)
					if err := b.take(t, letter.from, letter.Payload); err != nil {
						t.Errorf("letter: %v", err)
					}
					if redelivered := <-asked; !redelivered {
						t.Error("the handler may have seen the message, and does not learn that")
					}
					time.Sleep(10 * time.Second)
					b.stop(crash)
					a.start(t)
					post.collect(t, a, 1)
					if o := a.outcome(t, id, "key", time.Second); o.Status != delivery.Delivered || string(o.Response) != `"done"` {
						t.Errorf("%+v", o)
					}
				})
			})
		}
	}
}

// Who was closed in order tells at once that its letters are to be kept.
func TestLetterOfAProcessThatEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, post := newWires(5*time.Millisecond), newOffice()
		a := net.postal(t, post, nil)
		b := net.postal(t, post, func(ctx context.Context, _ *session.Inbound) (*session.Response, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		leaveLetter(t, post, a, b, signal.AtLeastOnce)
		letter, said := post.letters(b)[0], make(chan error, 2)
		b.start(t)
		b.TakeLetter(t.Context(), letter.from, letter.Payload, func(err error) { said <- err })
		time.Sleep(time.Second)
		b.stop(false)
		if err := <-said; !wire.CodeOf(err).Retry() || err == nil {
			t.Errorf("letter: %v", err)
		}
	})
}

// A message that nobody can take now is left in the mailbox, and its sender is not
// written to about that: so it is worked on when somebody can.
func TestLetterThatNobodyTakesYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, post := newWires(5*time.Millisecond), newOffice()
		ready := false
		a := net.postal(t, post, nil)
		b := net.postal(t, post, func(_ context.Context, in *session.Inbound) (*session.Response, error) {
			if !ready {
				return nil, wire.HandlerUnavailable
			}
			return &session.Response{Encoding: in.Encoding, Body: in.Body}, nil
		})
		id := leaveLetter(t, post, a, b, signal.AtLeastOnce)
		letter := post.letters(b)[0]
		b.start(t)
		for range 3 {
			if err := b.take(t, letter.from, letter.Payload); !errors.Is(err, wire.HandlerUnavailable) {
				t.Errorf("letter: %v", err)
			}
			time.Sleep(time.Minute)
		}
		if n := len(post.letters(a)); n > 0 {
			t.Errorf("%d letters to the sender", n)
		}
		ready = true
		if err := b.take(t, letter.from, letter.Payload); err != nil {
			t.Errorf("letter: %v", err)
		}
		time.Sleep(10 * time.Second)
		b.stop(false)
		a.start(t)
		post.collect(t, a, 1)
		if o := a.outcome(t, id, "key", time.Second); o.Status != delivery.Delivered {
			t.Errorf("%+v", o)
		}
	})
}
