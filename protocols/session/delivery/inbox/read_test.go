package inbox_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/session/delivery/deliverytest"
	"openmesh/protocols/session/delivery/inbox"
	"openmesh/protocols/wire"
)

// At most once, the oldest make room, and readers see that.
func TestRing(t *testing.T) {
	t.Parallel()
	r := newReceiving(t, terms(delivery.AtMostOnce, false))
	for n := range uint64(1030) {
		r.put(n+1, 1)
	}
	r.reads(0, 1, "7 [1:6] >7")
	r.Receive(&delivery.Message{Sequence: 1031, Body: make([]byte, 4<<20)}, 1, r.now)
	r.reads(1030, 1, strings.Repeat("\x00", 4<<20)+" >1031")
	r.reads(0, 1, strings.Repeat("\x00", 4<<20)+" [1:1030] >1031")
	r.put(1033, 1)
	r.put(1032, 1)
	r.reads(1031, 9, "1032 1033 >1033")
}

func TestReadWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newReceiving(t, terms(delivery.AtLeastOnce, false))
		r.store.Hold()
		got := make(chan string, 9)
		read := func(ctx context.Context) {
			b, err := r.Read(ctx, 0, 9, true)
			got <- fmt.Sprint(len(b.Messages), b.Cursor, wire.CodeOf(err))
		}
		want := func(want string) {
			t.Helper()
			if got := <-got; got != want {
				t.Errorf("read %q, want %q", got, want)
			}
		}
		go read(t.Context())
		r.get(1, 1, 1) // not for readers
		r.put(2, 1)
		synctest.Wait()
		if len(got) > 0 {
			t.Error("read what is not on disk")
		}
		r.store.Flush(-1)
		want("1 2 internal")

		if err := r.consume(2); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		go read(ctx)
		want("0 0 deadline_exceeded")
		cancel()
		ctx, cancel = context.WithCancel(t.Context())
		go read(ctx)
		synctest.Wait()
		cancel()
		want("0 0 cancelled")
		go read(t.Context())
		synctest.Wait()
		r.Close()
		want("0 0 session_closed")
	})
}

func (r *receiving) consume(cursor uint64) error {
	result := make(chan error, 1)
	go func() { result <- r.Consume(r.Context(), cursor) }()
	synctest.Wait()
	r.store.Flush(-1)
	return <-result
}

// What was consumed is not told to be missing: not if who consumed it did not wait,
// nor if another reader did so at the same moment. Of numbers from before a restart
// only the store knows.
func TestConsumedIsNoGap(t *testing.T) {
	t.Parallel()
	before := func(t *testing.T) *receiving {
		r := newReceiving(t, terms(delivery.AtLeastOnce, false))
		for n := range uint64(4) {
			r.put(n+1, 1)
		}
		r.floor(5)
		r.later(0)
		r.restart(r.store.Crash())
		return r
	}
	t.Run("nobody waits", func(t *testing.T) {
		t.Parallel()
		r := before(t)
		r.store.Hold()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := r.Consume(ctx, 2); wire.CodeOf(err) != wire.Cancelled {
			t.Errorf("%v, want cancelled", err)
		}
		r.store.Flush(-1)
		r.reads(0, 9, "3 4 >4")
	})
	t.Run("another reader", func(t *testing.T) {
		t.Parallel()
		r := before(t)
		r.Inbox = inbox.New(inbox.Config{Terms: r.terms, Store: rival{r.store}, SendAck: func(delivery.Ack) bool { return true }})
		if err := r.Restore(t.Context()); err != nil {
			t.Fatal(err)
		}
		b, err := r.Read(t.Context(), 0, 9, false)
		if err != nil || len(b.Messages) != 2 || len(b.Gaps) > 0 || b.Cursor != 4 {
			t.Errorf("%+v, %v; want two messages without a gap", b, err)
		}
	})
}

// rival is a store in which another reader has consumed two messages whenever it is
// read from the beginning.
type rival struct{ *deliverytest.Store }

func (s rival) Inbox(ctx context.Context, id delivery.SessionID, after uint64, limit int) ([]delivery.Message, uint64, error) {
	if after == 0 {
		s.Commit(delivery.Consume{Session: id, Cursor: 2}, true, nil)
	}
	return s.Store.Inbox(ctx, id, after, limit)
}

// Of numbers from before a restart it is not known who had them.
func TestGapsOfFormerLife(t *testing.T) {
	t.Parallel()
	r := newReceiving(t, terms(delivery.AtLeastOnce, false))
	r.put(1, 1)
	r.get(2, 1, 1)
	r.finish(2, "")
	r.put(5, 3)
	r.floor(7)
	r.reads(0, 9, "1 5 [3:4] [6:6] >6")
	r.later(0) // the store learns the floor
	r.restart(r.store.Crash())
	r.reads(0, 9, "1 5 [2:4] [6:6] >6")
	r.put(8, 7)
	r.reads(6, 9, ">6")
	r.restart(r.store.Crash())
	r.reads(6, 9, ">6")
	r.floor(9)
	r.reads(6, 9, "8 [7:7] >8")
}

// The store learns the floor now and then, and of what was finished keeps what is
// above.
func TestAdvance(t *testing.T) {
	t.Parallel()
	r := newReceiving(t, terms(delivery.ExactlyOnce, false))
	stored := func(floor uint64, finished int) {
		t.Helper()
		f, all, err := r.store.Window(t.Context(), delivery.SessionID{})
		if err != nil || f != floor || len(all) != finished {
			t.Errorf("floor %d, %d finished, %v; want %d and %d", f, len(all), err, floor, finished)
		}
	}
	for n := range uint64(300) {
		r.get(n+1, max(n, 1), 1)
		r.finish(n+1, "")
	}
	stored(257, 44)
	r.later(0)
	stored(299, 2)
	r.restart(r.store.PowerFailure())
	r.acks, r.handled = nil, nil
	r.get(298, 298, 2)
	r.get(299, 299, 2)
	r.get(301, 299, 1)
	r.wants("[+298:298][+299:299]", "301")
}

// Answers are too large for one ack with others.
func TestAcksAreSplit(t *testing.T) {
	t.Parallel()
	r := newReceiving(t, terms(delivery.AtLeastOnce, false))
	var acks []delivery.Ack
	away := true
	r.Inbox = inbox.New(inbox.Config{
		Terms: r.terms, Store: r.store,
		Handle: func(m *delivery.Message, done func(delivery.Outcome)) {
			out := delivery.Outcome{Status: delivery.Delivered}
			switch m.Sequence % 8 {
			case 1:
				out.Response = make([]byte, 1<<20)
			case 2, 3:
				out.Response = make([]byte, 3<<10)
			case 4:
				out = delivery.Outcome{Status: delivery.Failed, Code: wire.InvalidRequest, Pointers: make([]string, 20)}
				for i := range out.Pointers {
					out.Pointers[i] = strings.Repeat("p", 256)
				}
			}
			if m.Sequence%2 == 0 || m.Sequence < 100 {
				done(out)
			} else {
				done(delivery.Outcome{Status: delivery.Failed, Code: wire.HandlerUnavailable})
			}
		},
		SendAck: func(a delivery.Ack) bool {
			if !away {
				acks = append(acks, a)
			}
			return !away
		},
	})
	for n := range uint64(900) {
		r.get(n+1, 1, 1)
	}
	away = false
	r.later(0)
	entries, settled := 0, map[uint64]bool{}
	for _, a := range acks {
		b := delivery.AppendAck(nil, a)
		longest := 0
		for _, x := range a.Responses {
			longest = max(longest, len(x.Body))
			settled[x.Sequence] = true
		}
		if len(b)-longest > 8<<10 {
			t.Errorf("an ack takes %d bytes besides its answer", len(b)-longest)
		}
		if _, err := delivery.ParseAck(b); err != nil {
			t.Error(err)
		}
		for _, x := range a.Delivered {
			for n := x.From; n <= x.To; n++ {
				settled[n] = true
			}
		}
		for _, x := range a.Failed {
			settled[x.Sequence] = true
		}
		entries += len(a.Delivered) + len(a.Failed) + len(a.Responses)
	}
	if len(settled) != 900 || entries < 500 {
		t.Errorf("%d of 900 acknowledged, in %d entries", len(settled), entries)
	}
}

// After its end an inbox takes nothing in, but stores what was done.
func TestClose(t *testing.T) {
	t.Parallel()
	r := newReceiving(t, terms(delivery.ExactlyOnce, false))
	r.get(1, 1, 1)
	r.put(2, 1)
	r.wants("[+2:2]", "1")
	if r.Busy() != 1 {
		t.Errorf("%d are busy, want 1", r.Busy())
	}
	r.Close()
	r.finish(1, "")
	r.get(3, 1, 1)
	r.later(time.Minute)
	r.wants("", "")
	r.reads(0, 9, "2 >2")
	_, finished, err := r.store.Window(t.Context(), delivery.SessionID{})
	if _, ok := finished[1]; !ok || err != nil {
		t.Errorf("%v, %v; want the outcome of 1", finished, err)
	}
}

// Ten thousand sessions that never received anything should be small, and so
// those that have nothing to do any more.
func TestIdleSize(t *testing.T) { // by itself: it counts what the process allocates
	if n := unsafe.Sizeof(inbox.Inbox{}); n >= 200 {
		t.Errorf("an idle inbox takes %d bytes", n)
	}
	cfg := inbox.Config{Terms: terms(delivery.AtLeastOnce, false)}
	if n := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			in := inbox.New(cfg)
			in.Resume()
			in.Due(start)
		}
	}).AllocedBytesPerOp(); n >= 200 {
		t.Errorf("an idle inbox makes %d bytes", n)
	}
}
