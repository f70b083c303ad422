package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/session/delivery/outbox"
	"openmesh/protocols/wire"
)

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
	again(&delivery.Message{Key: "b"}, 2, 0)
	s.wants("1.1 2.1")
	s.restart(s.memory.Crash())
	again(&delivery.Message{Key: "b"}, 2, 0)
	again(&delivery.Message{Key: "b", Body: []byte("x")}, 0, wire.InvalidArgument)
	if n, out, err := s.Lookup(t.Context(), "b"); n != 2 || out.Status != delivery.Pending || err != nil {
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
	if n := unsafe.Sizeof(outbox.Outbox{}); n > 208 {
		t.Errorf("an idle outbox takes %d bytes", n)
	}
	cfg := outbox.Config{Terms: terms(delivery.AtLeastOnce)}
	if n := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			o := outbox.New(cfg)
			o.Resume(start)
			o.Due(start)
		}
	}).AllocedBytesPerOp(); n > 208 {
		t.Errorf("an idle outbox makes %d bytes", n)
	}
}
