package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

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
			s.became(1, delivery.Pending, 0)
			s.ack(1, 1)
			s.became(1, delivery.Delivered, 0)
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

func TestSendWaitsForTheDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSending(t, terms(delivery.AtLeastOnce))
		s.memory.Hold()
		results := make(chan error, 2)
		for range 2 { // the second is the same message
			go func() {
				n, err := s.Send(context.Background(), &delivery.Message{Key: "a"}, s.now)
				if n != 1 {
					err = fmt.Errorf("sequence %d", n)
				}
				results <- err
			}()
		}
		synctest.Wait()
		if len(results) > 0 || len(s.sent) > 0 {
			t.Error("accepted before it was on disk")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if n, err := s.Send(ctx, &delivery.Message{Key: "a"}, s.now); n != 1 || wire.CodeOf(err) != wire.Cancelled {
			t.Errorf("%d, %v; want 1, cancelled", n, err)
		}
		s.memory.Flush(-1)
		for range 2 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
		s.wants("1.1")
	})
}

func TestSameKey(t *testing.T) {
	t.Parallel()
	s := newSending(t, terms(delivery.ExactlyOnce))
	again := func(m *delivery.Message, want uint64, code wire.Code) {
		t.Helper()
		n, err := s.Send(t.Context(), m, s.now)
		if n != want || code == 0 && err != nil || code != 0 && wire.CodeOf(err) != code {
			t.Errorf("%d, %v; want %d, %s", n, err, want, code)
		}
	}
	s.send("a")
	again(&delivery.Message{Key: "a", Body: []byte("a")}, 1, 0)
	again(&delivery.Message{Key: "a", Body: []byte("b")}, 0, wire.InvalidArgument)
	again(&delivery.Message{Key: "a", Body: []byte("a"), Capability: "c"}, 0, wire.InvalidArgument)
	s.ack(1, 1)
	again(&delivery.Message{Key: "a", Body: []byte("a")}, 1, 0) // the store knows it
	again(&delivery.Message{Key: "b"}, 3, 0)
	s.wants("1.1 3.1")
	s.restart(s.memory.Crash())
	again(&delivery.Message{Key: "b"}, 3, 0)
	again(&delivery.Message{Key: "b", Body: []byte("x")}, 0, wire.InvalidArgument)
	if n, out, err := s.Lookup(t.Context(), "b"); n != 3 || out.Status != delivery.Pending || err != nil {
		t.Errorf("%d, %+v, %v", n, out, err)
	}
	if n, out, err := s.Lookup(t.Context(), "a"); n != 1 || out.Status != delivery.Delivered || err != nil {
		t.Errorf("%d, %+v, %v", n, out, err)
	}
	if _, _, err := s.Lookup(t.Context(), "c"); wire.CodeOf(err) != wire.NotFound {
		t.Errorf("%v, want not_found", err)
	}
}

func TestRefusedToSend(t *testing.T) {
	t.Parallel()
	few := terms(delivery.AtLeastOnce)
	few.MaxBacklog, few.MaxBacklogBytes = 2, 10
	for name, c := range map[string]struct {
		m      delivery.Message
		before int
		want   wire.Code
	}{
		"too many":        {delivery.Message{}, 2, wire.ResourceExhausted},
		"too large a lot": {delivery.Message{Body: make([]byte, 10)}, 1, wire.ResourceExhausted},
		"late":            {delivery.Message{Expires: start}, 0, wire.DeadlineExceeded},
		"long key":        {delivery.Message{Key: strings.Repeat("k", 257)}, 0, wire.TooLarge},
		"long capability": {delivery.Message{Capability: strings.Repeat("c", 121)}, 0, wire.TooLarge},
		"long state":      {delivery.Message{Tracestate: strings.Repeat("c", 8<<10)}, 0, wire.TooLarge},
		"not UTF-8":       {delivery.Message{CorrelationID: "\xff"}, 0, wire.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSending(t, few)
			s.send([]string{"x", "y"}[:c.before]...)
			if _, err := s.Send(t.Context(), &c.m, s.now); wire.CodeOf(err) != c.want {
				t.Errorf("%v, want %s", err, c.want)
			}
			s.ack(1, 2)
			s.send("z") // there is room again
		})
	}
}

func TestWindow(t *testing.T) {
	t.Parallel()
	narrow := terms(delivery.AtLeastOnce)
	narrow.MaxPending = 3
	s := newSending(t, narrow)
	for i := range 40 {
		s.send(fmt.Sprint("key", i))
	}
	s.wants("1.1 2.1>1 3.1>1")
	s.refuse(2, 1, wire.Unreachable) // still in the window
	s.ack(1, 1)
	s.wants("4.1>2")
	for i := range uint64(38) {
		s.ack(i+3, i+3)
	}
	if want := "40.1>2"; s.sent[len(s.sent)-1] != want || len(s.sent) != 36 || !slices.IsSortedFunc(s.sent, byNumber) {
		t.Errorf("transmitted %v", s.sent)
	}
	if s.Pending() != 1 {
		t.Errorf("%d pending, want 1", s.Pending())
	}

	s = newSending(t, terms(delivery.AtLeastOnce))
	for i := range 9 {
		m := &delivery.Message{Key: fmt.Sprint("key", i), Body: make([]byte, 4<<20)}
		if _, err := s.Send(t.Context(), m, s.now); err != nil {
			t.Fatal(err)
		}
	}
	s.wants("1.1 2.1>1 3.1>1 4.1>1") // 16 MiB
	s.ack(1, 4)
	s.wants("5.1 6.1>5 7.1>5 8.1>5")
}

func byNumber(a, b string) int {
	var x, y int
	fmt.Sscan(a, &x)
	fmt.Sscan(b, &y)
	return x - y
}

// A message may be stuck for long, but the receiver's memory is bounded.
func TestSpan(t *testing.T) {
	t.Parallel()
	s := newSending(t, terms(delivery.AtMostOnce))
	s.send("stuck")
	for i := range uint64(delivery.MaxSpan + 10) {
		if _, err := s.Send(t.Context(), &delivery.Message{}, s.now); err != nil {
			t.Fatal(err)
		}
		if i+2 <= delivery.MaxSpan {
			s.ack(i+2, i+2)
		}
	}
	if len(s.sent) != delivery.MaxSpan {
		t.Errorf("transmitted %d, want %d", len(s.sent), delivery.MaxSpan)
	}
	s.ack(1, 1)
	if len(s.sent) != delivery.MaxSpan+11 {
		t.Errorf("transmitted %d, want all", len(s.sent))
	}
}

// reads counts what is read from a store.
type reads struct {
	delivery.Store
	mu       sync.Mutex
	messages int
	err      error
}

func (r *reads) Outbox(ctx context.Context, id delivery.SessionID, after uint64, limit int) ([]delivery.Message, uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return nil, 0, r.err
	}
	ms, last, err := r.Store.Outbox(ctx, id, after, limit)
	r.messages += len(ms)
	return ms, last, err
}

func TestRestore(t *testing.T) {
	t.Parallel()
	narrow := terms(delivery.AtLeastOnce)
	narrow.MaxPending = 3
	s := newSending(t, narrow)
	s.away = true
	const n = 500
	for i := range n {
		s.send(fmt.Sprint("key", i))
	}
	counter := &reads{Store: s.memory.PowerFailure()}
	s.store, s.away = counter, false
	s.open()
	if err := s.Restore(t.Context(), s.now); err != nil {
		t.Fatal(err)
	}
	s.send("new")
	s.wants("1.1r 2.1r>1 3.1r>1")
	if counter.messages > 16 {
		t.Errorf("read %d messages, where 3 are transmitted", counter.messages)
	}
	counter.err = errors.New("disk on fire")
	for i := range uint64(20) {
		s.ack(i+1, i+1)
	}
	stuck := len(s.sent)
	counter.err = nil
	s.later(0)
	for i := range uint64(n + 1) {
		s.ack(i+1, i+1)
	}
	s.sent = slices.DeleteFunc(s.sent, func(s string) bool { return strings.HasPrefix(s, "0.0") })
	if stuck == n-2 || len(s.sent) != n-2 || s.sent[n-3] != "501.1>499" || s.sent[n-4] != "500.1r>498" {
		t.Errorf("transmitted %d: %v", len(s.sent), s.sent[max(0, len(s.sent)-5):])
	}
	for i := range uint64(n + 1) {
		s.became(i+1, delivery.Delivered, 0)
	}
}

// Who waits for a message of a former life learns what became of it.
func TestWaitForFormerLife(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		narrow := terms(delivery.AtLeastOnce)
		narrow.MaxPending = 1
		s := newSending(t, narrow)
		for i := range 30 {
			s.send(fmt.Sprint("key", i))
		}
		for i := range uint64(30) {
			if i != 0 && i != 28 {
				s.ack(i+1, i+1)
			}
		}
		s.restart(s.memory.Crash())
		s.send("new")
		results := make(chan error, 2)
		for _, n := range []uint64{20, 29} {
			go func() {
				_, err := s.Wait(t.Context(), n)
				results <- err
			}()
		}
		synctest.Wait()
		s.ack(1, 1)
		s.ack(29, 29)
		for range 2 {
			if err := <-results; err != nil && wire.CodeOf(err) != wire.NotFound {
				t.Error(err)
			}
		}
	})
}

// That a message failed or expired is told, and let pass by the floor, once it is
// on disk; of an answer that holds for the floor.
func TestFloorWaitsForTheDisk(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ack  delivery.Ack
		told delivery.Status // before it is stored
		pass bool
	}{
		"delivered": {delivery.Ack{Delivered: []delivery.Range{{From: 1, To: 1}}}, delivery.Delivered, true},
		"answered":  {delivery.Ack{Responses: []delivery.Response{{Sequence: 1, Body: []byte("x")}}}, delivery.Delivered, false},
		"failed":    {delivery.Ack{Failed: []delivery.Failure{{Sequence: 1, Code: wire.Denied}}}, delivery.Pending, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSending(t, terms(delivery.AtLeastOnce))
			s.send("a", "b")
			s.memory.Hold()
			s.Ack(c.ack, s.now)
			s.became(1, c.told, 0)
			s.sent = nil
			s.Resume(s.now)
			if c.pass {
				s.wants("2.2r")
			} else {
				s.wants("2.2r>1")
			}
			if c.told == delivery.Pending {
				s.memory.FlushLazy(-1)
				s.became(1, c.told, 0)
			}
			s.memory.Flush(-1)
			s.Resume(s.now)
			s.wants("2.3r")
		})
	}
}

func TestStoreFails(t *testing.T) {
	t.Parallel()
	s := newSending(t, terms(delivery.AtLeastOnce))
	fire := errors.New("disk on fire")
	s.send("a")
	s.memory.FailNext(fire)
	if _, err := s.Send(t.Context(), &delivery.Message{Key: "b"}, s.now); !errors.Is(err, fire) {
		t.Errorf("%v, want the store's error", err)
	}
	s.send("b") // the key is free
	s.wants("1.1 3.1>1")
	s.ack(1, 1)
	s.wants("0.0>3") // 2 will not come

	s.memory.FailNext(fire)
	s.refuse(3, 1, wire.Denied)
	if _, err := s.Wait(t.Context(), 3); !errors.Is(err, fire) {
		t.Errorf("%v, want the store's error", err)
	}
	s.later(time.Second)
	s.became(3, delivery.Failed, wire.Denied)
}

func TestFail(t *testing.T) {
	t.Parallel()
	narrow := terms(delivery.AtLeastOnce)
	narrow.MaxPending = 2
	s := newSending(t, narrow)
	for i := range 50 {
		s.send(fmt.Sprint("key", i))
	}
	s.ack(1, 1)
	s.restart(s.memory.PowerFailure())
	if err := s.Fail(t.Context(), wire.TrustRevoked, s.now); err != nil {
		t.Fatal(err)
	}
	s.restart(s.memory.PowerFailure())
	for i := range 50 {
		_, out, err := s.Lookup(t.Context(), fmt.Sprint("key", i))
		if err != nil || out.Status != delivery.Failed && i > 1 || i > 1 && out.Code != wire.TrustRevoked {
			t.Errorf("message %d is %+v, %v", i+1, out, err)
		}
	}
	if s.Pending() != 0 {
		t.Errorf("%d are pending", s.Pending())
	}
}

func TestFailWaitsForTheDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSending(t, terms(delivery.AtLeastOnce))
		s.send("a")
		s.memory.Hold()
		results := make(chan error, 1)
		go func() {
			s.Send(t.Context(), &delivery.Message{Key: "b"}, s.now) // being stored
		}()
		synctest.Wait()
		go func() { results <- s.Fail(t.Context(), wire.TrustRevoked, s.now) }()
		synctest.Wait()
		s.memory.Flush(1) // b is accepted
		synctest.Wait()
		if len(results) > 0 {
			t.Error("returned before all was on disk")
		}
		s.memory.Flush(-1)
		synctest.Wait()
		s.memory.Flush(-1)
		if err := <-results; err != nil {
			t.Error(err)
		}
		s.became(2, delivery.Failed, wire.TrustRevoked)
		fire := errors.New("disk on fire")
		s2 := newSending(t, terms(delivery.AtLeastOnce))
		s2.send("a")
		s2.memory.FailNext(fire)
		if err := s2.Fail(t.Context(), wire.TrustRevoked, s.now); !errors.Is(err, fire) {
			t.Errorf("%v, want the store's error", err)
		}
		if err := s2.Fail(t.Context(), wire.TrustRevoked, s.now); err != nil {
			t.Error(err)
		}
	})
}

func TestPrune(t *testing.T) {
	t.Parallel()
	s := newSending(t, terms(delivery.AtLeastOnce))
	known := func(key string, want bool) {
		t.Helper()
		if _, _, err := s.Lookup(t.Context(), key); err == nil != want {
			t.Errorf("%s after %s: %v", key, s.now.Sub(start), err)
		}
	}
	s.send("a")
	s.ack(1, 1)
	s.later(time.Hour)
	known("a", true)
	s.send("b")
	s.ack(2, 2)
	s.later(time.Hour)
	known("a", false)
	known("b", true)
	s.later(time.Hour)
	known("b", false)
	if next := s.later(time.Hour); !next.IsZero() {
		t.Errorf("due in %s, want never", next.Sub(s.now))
	}

	for i := range uint64(20_000) {
		s.send(fmt.Sprint("key", i))
		s.ack(3+i, 3+i)
		s.now = s.now.Add(time.Millisecond)
	}
	known("key0", false)
	known("key2500", false)
	known("key4000", true)
}

// Late waiters find an outcome for a while.
func TestWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSending(t, terms(delivery.AtMostOnce))
		s.send("a")
		results := make(chan delivery.Outcome, 3)
		for range 3 {
			go func() {
				out, err := s.Wait(t.Context(), 1)
				if err != nil {
					t.Error(err)
				}
				results <- out
			}()
		}
		synctest.Wait()
		s.ack(1, 1)
		for range 3 {
			if out := <-results; out.Status != delivery.Delivered {
				t.Errorf("%+v", out)
			}
		}
		if want := []string{`1 a "" 1 code_0x0`}; !slices.Equal(s.observed, want) {
			t.Errorf("observed %q, want %q", s.observed, want)
		}
		s.later(time.Minute - 1)
		s.became(1, delivery.Delivered, 0)
		if next := s.later(1); !next.IsZero() {
			t.Error("an idle outbox is due")
		}
		if _, err := s.Wait(t.Context(), 1); wire.CodeOf(err) != wire.NotFound {
			t.Errorf("%v, want not_found", err)
		}
		s.send("b") // goes on where it was
		s.wants("1.1 0.0>2 2.1")
	})
}

// What a peer says of messages that it cannot know changes nothing, at no cost.
func TestStrangeAck(t *testing.T) {
	t.Parallel()
	s := newSending(t, terms(delivery.AtLeastOnce))
	all := delivery.Ack{
		Delivered: []delivery.Range{{From: 2, To: delivery.MaxSequence}}, Working: []delivery.Range{{From: 3, To: delivery.MaxSequence}},
		Failed: []delivery.Failure{{Sequence: 7, Code: wire.Denied}}, Responses: []delivery.Response{{Sequence: 8}},
	}
	s.Ack(all, s.now)
	s.send("a")
	s.Ack(all, s.now)
	s.became(1, delivery.Pending, 0)
	s.send("b")
	s.wants("1.1 2.1>1")
}

// Ten thousand sessions that never sent anything should be small.
func TestIdleSize(t *testing.T) { // by itself: it counts what the process allocates
	if n := unsafe.Sizeof(outbox.Outbox{}); n >= 200 {
		t.Errorf("an idle outbox takes %d bytes", n)
	}
	cfg := outbox.Config{Terms: terms(delivery.AtLeastOnce)}
	if n := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			o := outbox.New(cfg)
			o.Resume(start)
			o.Due(start)
		}
	}).AllocedBytesPerOp(); n >= 200 {
		t.Errorf("an idle outbox makes %d bytes", n)
	}
}
