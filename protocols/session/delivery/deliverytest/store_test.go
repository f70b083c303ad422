package deliverytest_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/session/delivery/deliverytest"
	"openmesh/protocols/wire"
)

func enqueue(sequence uint64, key string) delivery.Change {
	return delivery.Enqueue{Message: &delivery.Message{Sequence: sequence, Key: key}}
}

// What a crash and a power failure leave.
func TestCrash(t *testing.T) {
	t.Parallel()
	s := deliverytest.NewStore()
	var done []string
	give := func(c delivery.Change, durable bool, name string) {
		s.Commit(c, durable, func(err error) {
			if err != nil {
				name += " failed"
			}
			done = append(done, name)
		})
	}
	left := func(s *deliverytest.Store, want ...uint64) {
		t.Helper()
		ms, _, err := s.Outbox(t.Context(), delivery.SessionID{}, 0, 9)
		var got []uint64
		for _, m := range ms {
			got = append(got, m.Sequence)
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("left are %v, %v; want %v", got, err, want)
		}
	}
	give(enqueue(1, "a"), true, "1")
	give(enqueue(2, "a"), true, "2")
	s.Hold()
	give(enqueue(3, "c"), false, "3")
	give(enqueue(4, "d"), true, "4")
	s.FlushLazy(-1)
	give(enqueue(5, "e"), false, "5")
	if want := []string{"1", "2 failed", "3"}; !slices.Equal(done, want) {
		t.Errorf("done are %q, want %q", done, want)
	}
	left(s, 1, 3)
	left(s.PowerFailure(), 1)
	s.Flush(-1) // dead
	if _, _, err := s.Window(t.Context(), delivery.SessionID{}); len(done) != 3 || !errors.Is(err, deliverytest.ErrCrashed) {
		t.Errorf("done are %q, %v", done, err)
	}
}

func TestTables(t *testing.T) {
	t.Parallel()
	s, id := deliverytest.NewStore(), delivery.SessionID{1}
	now := time.Now()
	m := func(n uint64) *delivery.Message { return &delivery.Message{Sequence: n, Key: string(rune('a' + n))} }
	delivered := delivery.Outcome{Status: delivery.Delivered, At: now}
	for _, c := range []delivery.Change{
		delivery.SaveSession{Session: id, Data: []byte("data")},
		delivery.Enqueue{Session: id, Message: m(1)}, delivery.Enqueue{Session: id, Message: m(2)},
		delivery.Settle{Session: id, Sequence: 1, Outcome: delivered},
		delivery.Settle{Session: id, Sequence: 1, Outcome: delivery.Outcome{Status: delivery.Failed}},
		delivery.Receive{Session: id, Message: m(1)}, delivery.Receive{Session: id, Message: m(3)},
		delivery.Consume{Session: id, Cursor: 2},
		delivery.Finish{Session: id, Sequence: 4, Outcome: delivered}, delivery.Finish{Session: id, Sequence: 6, Outcome: delivered},
		delivery.Advance{Session: id, Floor: 5},
	} {
		s.Commit(c, false, nil)
	}
	s = s.Crash()
	all, err := s.Sessions(t.Context())
	if string(all[id]) != "data" || len(all) != 1 || err != nil {
		t.Errorf("sessions %v, %v", all, err)
	}
	if ms, last, err := s.Outbox(t.Context(), id, 0, 1); len(ms) != 1 || ms[0].Sequence != 2 || last != 2 || err != nil {
		t.Errorf("outbox %v, %d, %v", ms, last, err)
	}
	if n, out, err := s.Outcome(t.Context(), id, "b"); n != 1 || out.Status != delivery.Delivered || err != nil {
		t.Errorf("outcome %d, %v, %v", n, out, err)
	}
	if ms, cursor, err := s.Inbox(t.Context(), id, 0, 9); len(ms) != 1 || ms[0].Sequence != 3 || cursor != 2 || err != nil {
		t.Errorf("inbox %v, %d, %v", ms, cursor, err)
	}
	if floor, finished, err := s.Window(t.Context(), id); floor != 5 || len(finished) != 1 || err != nil {
		t.Errorf("window %d, %v, %v", floor, finished, err)
	}
	s.Commit(delivery.PruneOutbox{Session: id, Before: now.Add(1)}, true, nil)
	if _, _, err := s.Outcome(t.Context(), id, "b"); wire.CodeOf(err) != wire.NotFound {
		t.Errorf("%v, want not_found", err)
	}
	s.Commit(delivery.ForgetSession{Session: id}, true, nil)
	if all, err := s.Sessions(t.Context()); len(all) != 0 || err != nil {
		t.Errorf("sessions %v, %v", all, err)
	}
}
