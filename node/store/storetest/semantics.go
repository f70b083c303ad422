package storetest

import (
	"errors"
	"math"
	"testing"
	"time"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/wire"
)

func testSessions(t *testing.T, b *bench) {
	want := func(want map[delivery.SessionID][]byte) {
		t.Helper()
		got, err := b.Sessions(t.Context())
		if diff := difference(want, got); diff != "" || err != nil {
			t.Errorf("Sessions(): error %v\n%s", err, diff)
		}
	}
	want(nil)
	one, two := session(1), session(2)
	b.do(delivery.SaveSession{Session: one, Data: []byte("first")}, delivery.SaveSession{Session: two, Data: []byte{0, 0xff}},
		delivery.SaveSession{Session: one, Data: []byte("second")}, enqueue(session(3), message(1)))
	b.check(func() { want(map[delivery.SessionID][]byte{one: []byte("second"), two: {0, 0xff}}) })
	b.do(delivery.ForgetSession{Session: one})
	b.check(func() { want(map[delivery.SessionID][]byte{two: {0, 0xff}}) })
}

func testOutbox(t *testing.T, b *bench) {
	one, two := session(1), session(2)
	b.outbox(one, 0, 10, 0)
	b.do(enqueue(one, message(1)), enqueue(one, message(2)), enqueue(two, message(7)), enqueue(one, message(5)), enqueue(one, message(300)))
	b.check(func() {
		b.outbox(one, 0, 10, 300, message(1), message(2), message(5), message(300))
		b.outbox(one, 0, 2, 300, message(1), message(2))
		b.outbox(one, 2, 1, 300, message(5))
		b.outbox(one, 300, 10, 300)
		b.outbox(one, math.MaxUint64, 10, 300)
		b.outbox(one, 0, 0, 300)
		b.outbox(two, 0, 10, 7, message(7))
	})
}

func testDuplicate(t *testing.T, b *bench) {
	one, two := session(1), session(2)
	again := message(2)
	again.Key = message(1).Key
	errs := make(chan error, 5)
	done := func(err error) { errs <- err }
	b.Commit(enqueue(one, message(1)), true, done)
	b.Commit(enqueue(one, again), true, done) // fails, and in one batch with the others
	b.Commit(enqueue(two, again), true, done)
	b.Commit(enqueue(one, message(3)), true, done)
	b.Commit(delivery.Settle{Session: one, Sequence: 1, Outcome: delivered(start())}, true, done)
	for i := range 5 {
		if err := <-errs; (i == 1) != errors.Is(err, wire.AlreadyExists) || i != 1 && err != nil {
			t.Errorf("change %d: error %v", i, err)
		}
	}
	b.code(b.try(enqueue(one, again), false), wire.AlreadyExists) // of a settled one as well
	b.check(func() {
		b.outbox(one, 0, 10, 3, message(3))
		b.outbox(two, 0, 10, 2, again)
		b.outcome(one, again.Key, 1, delivered(start()))
	})
	other := message(3)
	other.Key = "other"
	b.code(b.try(enqueue(one, other), true), wire.AlreadyExists)
	b.outbox(one, 0, 10, 3, message(3))
}

func testSettle(t *testing.T, b *bench) {
	one := session(1)
	b.do(enqueue(one, message(1)), enqueue(one, message(2)), enqueue(one, message(3)))
	failed := delivery.Outcome{Status: delivery.Failed, Code: wire.InvalidRequest, Pointers: []string{"/a", "/b~1c"}, Attempts: 3, At: start()}
	b.do(delivery.Settle{Session: one, Sequence: 2, Outcome: failed},
		delivery.Settle{Session: one, Sequence: 2, Outcome: delivered(start())}, // final is final
		delivery.Settle{Session: one, Sequence: 9, Outcome: failed},             // never was
		delivery.Settle{Session: session(2), Sequence: 1, Outcome: failed})
	b.check(func() {
		b.outbox(one, 0, 10, 3, message(1), message(3))
		b.outcome(one, message(2).Key, 2, failed)
		b.outcome(one, message(1).Key, 1, delivery.Outcome{})
		for _, s := range []delivery.SessionID{one, session(2)} {
			_, _, err := b.Outcome(t.Context(), s, "no such key")
			b.code(err, wire.NotFound)
		}
	})
}

func testPrune(t *testing.T, b *bench) {
	one, two := session(1), session(2)
	settle := func(s delivery.SessionID, n uint64, at time.Time) delivery.Change {
		return delivery.Settle{Session: s, Sequence: n, Outcome: delivered(at)}
	}
	b.do(enqueue(one, message(1)), enqueue(one, message(2)), enqueue(one, message(3)), enqueue(one, message(4)), enqueue(two, message(1)),
		settle(one, 1, start().Add(-1)), settle(one, 2, start()), settle(one, 4, time.Time{}), settle(two, 1, start().Add(-1)),
		delivery.PruneOutbox{Session: one, Before: start()}, delivery.PruneOutbox{Session: session(3), Before: start()})
	b.check(func() {
		b.outbox(one, 0, 10, 4, message(3)) // 4 is gone, and was given
		b.outcome(one, message(2).Key, 2, delivered(start()))
		b.outcome(two, message(1).Key, 1, delivered(start().Add(-1)))
		for _, n := range []uint64{1, 4} {
			_, _, err := b.Outcome(t.Context(), one, message(n).Key)
			b.code(err, wire.NotFound)
		}
	})
	b.do(delivery.PruneOutbox{Session: one}) // before the beginning of time
	b.outcome(one, message(2).Key, 2, delivered(start()))
	again := message(5)
	again.Key = message(1).Key
	b.do(enqueue(one, again))
	b.do(delivery.PruneOutbox{Session: one, Before: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)})
	b.check(func() { b.outbox(one, 0, 10, 5, message(3), again) })
}

func testInbox(t *testing.T, b *bench) {
	one, two := session(1), session(2)
	b.inbox(one, 0, 10, 0)
	twice := message(3)
	twice.Body = []byte("again")
	sameKey := message(6)
	sameKey.Key = message(3).Key // the peer's business
	b.do(receive(one, message(5)), receive(one, message(3)), receive(one, twice), receive(two, message(1)), receive(one, sameKey))
	b.check(func() {
		b.inbox(one, 0, 10, 0, message(3), message(5), sameKey)
		b.inbox(one, 3, 1, 0, message(5))
	})
	b.do(delivery.Consume{Session: one, Cursor: 5}, delivery.Consume{Session: one, Cursor: 4}, receive(one, message(8)))
	b.check(func() {
		b.inbox(one, 0, 10, 5, sameKey, message(8))
		b.inbox(two, 0, 10, 0, message(1))
	})
	b.do(delivery.Consume{Session: one, Cursor: 100}, delivery.Consume{Session: session(3), Cursor: 1})
	b.check(func() {
		b.inbox(one, 0, 10, 100)
		b.inbox(session(3), 0, 10, 1)
		b.outbox(one, 0, 10, 0) // a direction of its own
	})
}

func testWindow(t *testing.T, b *bench) {
	one, two := session(1), session(2)
	b.window(one, 0, nil)
	answer := delivery.Outcome{Status: delivery.Delivered, Encoding: 2, Response: []byte{0, 1, 2}, At: start()}
	other := delivery.Outcome{Status: delivery.Failed, Code: wire.HandlerFailed, At: start()}
	finish := func(s delivery.SessionID, n uint64, o delivery.Outcome) delivery.Change {
		return delivery.Finish{Session: s, Sequence: n, Outcome: o}
	}
	b.do(finish(one, 1, answer), finish(one, 4, other), finish(one, 1, other), finish(one, 2, other), finish(two, 1, other))
	b.check(func() { b.window(one, 0, map[uint64]delivery.Outcome{1: answer, 2: other, 4: other}) })
	b.do(delivery.Advance{Session: one, Floor: 2})
	b.check(func() { b.window(one, 2, map[uint64]delivery.Outcome{2: other, 4: other}) })
	b.do(delivery.Advance{Session: one, Floor: 4}, delivery.Advance{Session: one, Floor: 3}, finish(one, 3, answer), finish(one, 9, answer))
	b.check(func() {
		b.window(one, 4, map[uint64]delivery.Outcome{4: other, 9: answer}) // 3 is settled for good
		b.window(two, 0, map[uint64]delivery.Outcome{1: other})
	})
}

func testForget(t *testing.T, b *bench) {
	for n := range 2 {
		s := session(n)
		b.do(delivery.SaveSession{Session: s, Data: []byte("data")}, enqueue(s, message(1)), enqueue(s, message(2)),
			delivery.Settle{Session: s, Sequence: 2, Outcome: delivered(start())}, delivery.PruneOutbox{Session: s, Before: start().Add(1)},
			receive(s, message(3)), delivery.Consume{Session: s, Cursor: 2},
			delivery.Finish{Session: s, Sequence: 4, Outcome: delivered(start())}, delivery.Advance{Session: s, Floor: 4})
	}
	b.do(delivery.ForgetSession{Session: session(0)}, delivery.ForgetSession{Session: session(9)})
	b.check(func() {
		b.outbox(session(0), 0, 10, 0)
		b.inbox(session(0), 0, 10, 0)
		b.window(session(0), 0, nil)
		b.outbox(session(1), 0, 10, 2, message(1))
		b.inbox(session(1), 0, 10, 2, message(3))
		b.window(session(1), 4, map[uint64]delivery.Outcome{4: delivered(start())})
		if all, err := b.Sessions(t.Context()); len(all) != 1 || err != nil {
			t.Errorf("Sessions() = %v, %v; want one", all, err)
		}
	})
	b.do(enqueue(session(0), message(1))) // may begin anew
	b.outbox(session(0), 0, 10, 1, message(1))
}
