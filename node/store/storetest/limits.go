package storetest

import (
	"bytes"
	"context"
	"errors"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/wire"
)

func testFields(t *testing.T, b *bench) {
	bytes := "\x00\xff\xfe ü'\"\\" // strings come from peers
	full := delivery.Message{Sequence: 1, Key: strings.Repeat("k", 251) + "\x00\xff'$1", Capability: "a/b" + bytes, Version: "^1.2" + bytes,
		Schema: "s@v1" + bytes, Encoding: 255, Body: []byte(bytes), Traceparent: "tp" + bytes, Tracestate: "ts" + bytes,
		CorrelationID: "id" + bytes, Accepted: start(), Expires: time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC), Redelivered: true}
	zero := delivery.Message{Sequence: math.MaxInt64}
	outcome := delivery.Outcome{Status: 255, Code: math.MaxUint32, Pointers: []string{"", bytes}, Encoding: 255,
		Response: []byte(bytes), Attempts: math.MaxUint32, At: start()}
	one := session(1)
	b.do(enqueue(one, full), enqueue(one, zero), receive(one, full), receive(one, zero),
		delivery.Finish{Session: one, Sequence: 5, Outcome: outcome}, delivery.Finish{Session: one, Sequence: 6})
	b.check(func() {
		b.outbox(one, 0, 10, math.MaxInt64, full, zero)
		b.inbox(one, 0, 10, 0, full, zero)
		b.window(one, 0, map[uint64]delivery.Outcome{5: outcome, 6: {}})
	})
	b.do(delivery.Settle{Session: one, Sequence: 1, Outcome: outcome}, delivery.Settle{Session: one, Sequence: math.MaxInt64, Outcome: delivered(time.Time{})})
	b.check(func() {
		b.outcome(one, full.Key, 1, outcome)
		b.outcome(one, "", math.MaxInt64, delivered(time.Time{}))
	})
}

func testRefused(t *testing.T, b *bench) {
	one := session(1)
	longKey := message(1)
	longKey.Key = strings.Repeat("k", 257)
	for _, c := range []delivery.Change{
		enqueue(one, longKey), receive(one, longKey), enqueue(one, message(1<<63)), receive(one, message(math.MaxUint64)),
		delivery.Consume{Session: one, Cursor: 1 << 63}, delivery.Advance{Session: one, Floor: 1 << 63}, delivery.Enqueue{Session: one},
		delivery.Finish{Session: one, Sequence: 1 << 63}, delivery.Settle{Session: one, Sequence: 1 << 63}, nil,
	} {
		b.code(b.try(c, true), wire.InvalidArgument)
	}
	large := message(1)
	large.Body = make([]byte, 65<<20)
	b.code(b.try(enqueue(one, large), true), wire.TooLarge)
	b.check(func() {
		b.outbox(one, 0, 10, 0)
		b.inbox(one, 0, 10, 0)
		b.window(one, 0, nil)
	})
}

func testLarge(t *testing.T, b *bench) {
	one := session(1)
	large := message(1)
	large.Body = bytes.Repeat([]byte("0123456\x00"), 1<<20)
	b.do(enqueue(one, large), receive(one, large), enqueue(one, message(2)))
	b.check(func() {
		b.outbox(one, 0, 10, 2, large, message(2))
		b.inbox(one, 0, 10, 0, large)
	})
	b.do(delivery.Settle{Session: one, Sequence: 1, Outcome: delivery.Outcome{Status: delivery.Delivered, Response: large.Body}})
	b.check(func() {
		b.outcome(one, large.Key, 1, delivery.Outcome{Status: delivery.Delivered, Response: large.Body})
	})
}

func testManySessions(t *testing.T, b *bench) {
	const sessions = 1000
	var changes []delivery.Change
	for n := range sessions {
		changes = append(changes, delivery.SaveSession{Session: session(n), Data: []byte{byte(n)}},
			enqueue(session(n), message(1)), enqueue(session(n), message(2)), receive(session(n), message(uint64(n+1))))
	}
	b.do(changes...)
	b.check(func() {
		if all, err := b.Sessions(t.Context()); len(all) != sessions || err != nil {
			t.Errorf("%d sessions, error %v", len(all), err)
		}
		for n := range sessions {
			b.outbox(session(n), 1, 10, 2, message(2))
			b.inbox(session(n), 0, 10, 0, message(uint64(n+1)))
		}
	})
}

// Many commit, durably or not, each with several changes on their way: done is
// called once for each, in order, and then it is there.
func testConcurrent(t *testing.T, b *bench) {
	const committers, changes = 64, 100
	var all sync.WaitGroup
	for c := range committers {
		all.Go(func() {
			done := make(chan uint64, 2*changes)
			for n := uint64(1); n <= changes; n++ {
				b.Commit(enqueue(session(c), message(n)), n%3 == 0, func(err error) {
					if err != nil {
						t.Error(err)
					}
					done <- n
				})
				if n%10 != 0 {
					continue
				}
				for want := n - 9; want <= n; want++ {
					if got := <-done; got != want {
						t.Errorf("done of %d, want %d", got, want)
					}
				}
				if _, last, err := b.Outbox(t.Context(), session(c), n, 0); last < n || err != nil {
					t.Errorf("last = %d after done of %d; error %v", last, n, err)
				}
			}
		})
	}
	all.Wait()
	b.check(func() {
		for c := range committers {
			pending, last, err := b.Outbox(t.Context(), session(c), 0, 2*changes)
			if len(pending) != changes || last != changes || err != nil {
				t.Errorf("session %d: %d pending, last %d, error %v", c, len(pending), last, err)
			}
		}
	})
}

// No durable change follows, and still it is done.
func testNotDurable(t *testing.T, b *bench) {
	if err := b.try(enqueue(session(1), message(1)), false); err != nil {
		t.Fatal(err)
	}
	b.outbox(session(1), 0, 10, 1, message(1))
	b.Commit(enqueue(session(1), message(2)), false, nil)
	b.do(enqueue(session(1), message(3)))
	b.check(func() { b.outbox(session(1), 0, 10, 3, message(1), message(2), message(3)) })
}

// Done funcs commit more than a store would queue.
func testDoneCommits(t *testing.T, b *bench) {
	const chains, links = 8, 30
	body := make([]byte, 1<<20)
	var all sync.WaitGroup
	var link func(chain int, n uint64) func(error)
	link = func(chain int, n uint64) func(error) {
		m := message(n)
		m.Body = body
		return func(err error) {
			if err != nil {
				t.Error(err)
			}
			if n > links {
				all.Done()
				return
			}
			b.Commit(enqueue(session(chain), m), n%2 == 0, link(chain, n+1))
		}
	}
	for c := range chains {
		all.Add(1)
		link(c, 1)(nil)
	}
	all.Wait()
	for c := range chains {
		b.outbox(session(c), links, 10, links)
	}
}

func testClose(t *testing.T, b *bench) {
	const changes = 3000
	var mu sync.Mutex
	var calls []error
	for n := uint64(1); n <= changes; n++ {
		b.Commit(enqueue(session(1), message(n)), n%1000 == 0, func(err error) {
			mu.Lock()
			defer mu.Unlock()
			calls = append(calls, err)
		})
	}
	b.close()
	if len(calls) != changes || errors.Join(calls...) != nil {
		t.Errorf("after Close %d of %d are done; errors: %v", len(calls), changes, errors.Join(calls...))
	}
	if err := b.try(enqueue(session(1), message(changes+1)), true); err == nil {
		t.Error("a change after Close has no error")
	}
	b.Commit(enqueue(session(1), message(changes+2)), true, nil)
	b.Store = b.open()
	b.outbox(session(1), changes-1, 10, changes, message(changes))
}

func testCancelled(t *testing.T, b *bench) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := b.Outbox(ctx, session(1), 0, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("Outbox with a cancelled context: %v", err)
	}
}
