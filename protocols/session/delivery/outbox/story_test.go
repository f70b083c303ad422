package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/session/delivery/deliverytest"
	"openmesh/protocols/session/delivery/outbox"
	"openmesh/protocols/wire"
)

// sending is an outbox whose peer is the test.
type sending struct {
	*testing.T
	*outbox.Outbox
	store    delivery.Store
	memory   *deliverytest.Store
	terms    delivery.Terms
	now      time.Time
	away     bool // no channel
	sent     []string
	observed []string
}

var start = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func terms(q delivery.QoS) delivery.Terms {
	return delivery.Terms{
		QoS: q, TTL: time.Hour, AckTimeout: 10 * time.Second,
		Retry: delivery.Retry{Max: 2, Initial: time.Second, Multiplier: 3, MaxInterval: time.Minute},
	}
}

func newSending(t *testing.T, terms delivery.Terms) *sending {
	t.Helper()
	s := &sending{T: t, memory: deliverytest.NewStore(), terms: terms, now: start}
	s.store = s.memory
	s.open()
	return s
}

func (s *sending) open() {
	s.Outbox = outbox.New(outbox.Config{
		Terms: s.terms, Store: s.store,
		Transmit: func(m *delivery.Message, floor uint64) bool {
			if !s.away {
				s.sent = append(s.sent, text(m, floor))
			}
			return !s.away
		},
		Observe: func(m *delivery.Message, out delivery.Outcome) {
			s.observed = append(s.observed, fmt.Sprintf("%d %s %q %d %s", m.Sequence, m.Key, m.Body, out.Status, out.Code))
		},
	})
}

// text is a transmission as "sequence.attempt", with "r" if it is redelivered and
// the floor if that is not the sequence.
func text(m *delivery.Message, floor uint64) string {
	s := fmt.Sprintf("%d.%d", m.Sequence, m.Attempt)
	if m.Redelivered {
		s += "r"
	}
	if floor != m.Sequence {
		s += fmt.Sprintf(">%d", floor)
	}
	return s
}

// wants checks what was transmitted since it was called last.
func (s *sending) wants(want string) {
	s.Helper()
	if got := strings.Join(s.sent, " "); got != want {
		s.Errorf("transmitted %q, want %q", got, want)
	}
	s.sent = nil
}

func (s *sending) send(keys ...string) {
	s.Helper()
	for _, key := range keys {
		if _, err := s.Send(context.Background(), &delivery.Message{Key: key, Body: []byte(key)}, s.now); err != nil {
			s.Fatal(err)
		}
	}
}

func (s *sending) ack(from, to uint64) {
	s.Ack(delivery.Ack{Delivered: []delivery.Range{{From: from, To: to}}}, s.now)
}

func (s *sending) refuse(sequence uint64, attempt uint32, code wire.Code) {
	s.Ack(delivery.Ack{Failed: []delivery.Failure{{Sequence: sequence, Attempt: attempt, Code: code}}}, s.now)
}

func (s *sending) later(d time.Duration) time.Time {
	s.now = s.now.Add(d)
	return s.Due(s.now)
}

// became checks an outcome.
func (s *sending) became(sequence uint64, want delivery.Status, code wire.Code) {
	s.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	out, err := s.Wait(ctx, sequence)
	if want == delivery.Pending && wire.CodeOf(err) == wire.Cancelled {
		return
	}
	if err != nil || out.Status != want || out.Code != code {
		s.Errorf("message %d is %+v, %v; want %d %s", sequence, out, err, want, code)
	}
}

func (s *sending) restart(next *deliverytest.Store) {
	s.Helper()
	s.memory, s.store = next, next
	s.open()
	if err := s.Restore(context.Background(), s.now); err != nil {
		s.Fatal(err)
	}
}

// Stories of one message or a few, in each way of delivery.
func TestStories(t *testing.T) {
	t.Parallel()
	const once, durable = delivery.AtMostOnce, delivery.AtLeastOnce
	for name, c := range map[string]struct {
		qos  delivery.QoS
		tell func(*sending)
	}{
		"agreed to be smaller": {durable, func(s *sending) {
			s.away = true
			s.send("a", "much larger", "b")
			s.memory.Hold()
			smaller := s.terms
			smaller.MaxBody = 5
			s.Agree(smaller)
			s.away = false
			s.Resume(s.now)
			s.wants("1.1 3.1>1")
			s.ack(1, 1)
			s.became(2, delivery.Pending, 0)
			s.memory.Flush(-1)
			s.became(2, delivery.Failed, wire.TooLarge)
			s.later(time.Second)
			s.wants("0.0>3")
		}},
		"agreed to be smaller, before a restart": {durable, func(s *sending) {
			s.away = true
			s.send("a", "much larger", "b")
			s.terms.MaxBody, s.away = 5, false
			s.restart(s.memory.Crash())
			s.Due(s.now)
			s.became(2, delivery.Failed, wire.TooLarge)
			s.wants("1.1r 3.1r>1")
		}},
		"delivered": {durable, func(s *sending) {
			s.send("a", "b")
			s.wants("1.1 2.1>1")
			s.ack(1, 1)
			s.send("c")
			s.wants("3.1>2")
			s.ack(2, 3)
			s.became(3, delivery.Delivered, 0)
			s.later(0)
			s.wants("0.0>4") // the receiver can forget
		}},
		"answered": {durable, func(s *sending) {
			s.send("a")
			s.Ack(delivery.Ack{Responses: []delivery.Response{{Sequence: 1, Encoding: 2, Body: []byte("yes")}}}, s.now)
			if out, err := s.Wait(context.Background(), 1); err != nil || string(out.Response) != "yes" || out.Encoding != 2 || out.Attempts != 1 || !out.At.Equal(s.now) {
				s.Errorf("%+v, %v", out, err)
			}
		}},
		"refused, then taken": {durable, func(s *sending) {
			s.send("a")
			s.refuse(1, 1, wire.HandlerUnavailable)
			s.later(time.Second - 1)
			s.wants("1.1")
			s.later(1)
			s.wants("1.2")
			s.refuse(1, 2, wire.ResourceExhausted)
			s.later(3*time.Second - 1)
			s.wants("")
			s.later(1)
			s.wants("1.3")
			s.ack(1, 1)
			s.became(1, delivery.Delivered, 0)
		}},
		"refused too often": {durable, func(s *sending) {
			s.send("a")
			for i := range uint32(3) {
				s.became(1, delivery.Pending, 0)
				s.refuse(1, i+1, wire.Unreachable)
				s.later(5 * time.Second)
			}
			s.became(1, delivery.Failed, wire.Unreachable)
			s.wants("1.1 1.2 1.3 0.0>2")
		}},
		"an old refusal": {durable, func(s *sending) {
			s.send("a")
			s.later(10 * time.Second)
			s.wants("1.1 1.2r")
			for range 5 {
				s.refuse(1, 1, wire.HandlerUnavailable)
			}
			s.later(5 * time.Second)
			s.wants("") // the second is on its way
			s.ack(1, 1)
			s.became(1, delivery.Delivered, 0)
		}},
		"a hole from a former life": {durable, func(s *sending) {
			s.send("a")
			s.memory.FailNext(errors.New("disk on fire"))
			if _, err := s.Send(context.Background(), &delivery.Message{}, s.now); err == nil {
				s.Error("accepted without a disk")
			}
			s.send("c")
			s.restart(s.memory.Crash())
			s.Resume(s.now)
			s.sent = nil
			s.ack(1, 1)
			s.wants("0.0>3") // 2 will not come
		}},
		"failed": {durable, func(s *sending) {
			s.send("a", "b")
			s.refuse(1, 1, wire.HandlerFailed)
			s.became(1, delivery.Failed, wire.HandlerFailed)
			s.ack(1, 1) // too late
			s.became(1, delivery.Failed, wire.HandlerFailed)
		}},
		"a code of a newer peer": {durable, func(s *sending) {
			s.send("a")
			s.refuse(1, 1, 0xffff)
			s.became(1, delivery.Failed, wire.Internal)
		}},
		"no answer": {durable, func(s *sending) {
			s.send("a")
			for range 70 {
				s.later(time.Second)
			}
			s.wants("1.1 1.2r 1.3r 1.4r") // after 10, 20 and 40 s
		}},
		"in hand": {durable, func(s *sending) {
			s.send("a")
			s.Ack(delivery.Ack{Working: []delivery.Range{{From: 1, To: 1}}}, s.now)
			s.later(30 * time.Minute)
			s.wants("1.1")
			s.later(30 * time.Minute)
			s.became(1, delivery.Expired, 0)
		}},
		"expired": {durable, func(s *sending) {
			m := &delivery.Message{Expires: s.now.Add(time.Second)}
			if _, err := s.Send(context.Background(), m, s.now); err != nil {
				s.Fatal(err)
			}
			s.send("b")
			if next := s.later(time.Second - 1); !next.Equal(s.now.Add(1)) {
				s.Errorf("due at %s, want in 1 ns", next.Sub(s.now))
			}
			s.became(1, delivery.Pending, 0)
			s.later(1)
			s.became(1, delivery.Expired, 0)
			s.wants("1.1 2.1>1 0.0>2") // nobody should wait for it
		}},
		"expired before its turn": {durable, func(s *sending) {
			s.away = true
			s.send("a")
			s.away, s.now = false, s.now.Add(time.Hour)
			s.Resume(s.now)
			s.became(1, delivery.Expired, 0)
			s.wants("0.0>2")
		}},
		"no channel": {durable, func(s *sending) {
			s.away = true
			s.send("a", "b")
			s.later(time.Minute)
			s.away = false
			s.later(time.Minute)
			s.wants("1.1 2.1>1")
		}},
		"resumed": {durable, func(s *sending) {
			s.send("a", "b", "c", "d")
			s.ack(2, 2)
			s.refuse(3, 1, wire.Unreachable)
			s.sent = nil
			s.Resume(s.now)
			s.wants("1.2r 4.2r>1")
			s.later(time.Second)
			s.wants("3.2r>1")
		}},
		"once, delivered": {once, func(s *sending) {
			s.send("a", "b")
			s.ack(1, 2)
			s.became(2, delivery.Delivered, 0)
			s.wants("1.1 2.1>1")
		}},
		"once, refused": {once, func(s *sending) {
			s.send("a")
			s.refuse(1, 1, wire.HandlerUnavailable)
			s.became(1, delivery.Failed, wire.HandlerUnavailable)
		}},
		"once, never sent": {once, func(s *sending) {
			s.away = true
			s.send("a")
			s.later(10*time.Second - 1)
			s.became(1, delivery.Pending, 0)
			s.later(1)
			s.became(1, delivery.Failed, wire.Unreachable) // certainly no effect
		}},
		"once, no answer": {once, func(s *sending) {
			s.send("a")
			s.later(10 * time.Second)
			s.became(1, delivery.Failed, wire.DeadlineExceeded)
			s.wants("1.1 0.0>2")
		}},
		"once, resumed": {once, func(s *sending) {
			s.send("a")
			s.away = true
			s.send("b")
			s.away = false
			s.Resume(s.now)
			s.became(1, delivery.Failed, wire.SessionClosed) // it may have had an effect
			s.became(2, delivery.Pending, 0)
			s.wants("1.1 2.1")
		}},
		"once, closed": {once, func(s *sending) {
			s.send("a")
			s.Close(wire.PolicyViolation, s.now)
			s.became(1, delivery.Failed, wire.PolicyViolation)
			if _, err := s.Send(context.Background(), &delivery.Message{}, s.now); wire.CodeOf(err) != wire.SessionClosed {
				s.Errorf("sent after the end: %v", err)
			}
		}},
		"once, after a restart": {once, func(s *sending) {
			if err := s.Restore(context.Background(), s.now); err != nil {
				s.Fatal(err)
			}
			s.send("a")
			n := uint64(s.now.UnixMicro()) + 1
			s.wants(fmt.Sprintf("%d.1", n))
			s.ack(n, n)
			s.became(n, delivery.Delivered, 0)
		}},
		"closed": {durable, func(s *sending) {
			s.send("a")
			s.Close(0, s.now)
			if _, err := s.Wait(context.Background(), 1); wire.CodeOf(err) != wire.SessionClosed {
				s.Errorf("%v, want session_closed", err)
			}
			s.restart(s.memory.PowerFailure())
			s.Resume(s.now)
			s.wants("1.1 1.1r")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.tell(newSending(t, terms(c.qos)))
		})
	}
}
