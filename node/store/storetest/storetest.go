// Package storetest holds what every [delivery.Store] must do, as tests that
// each implementation runs.
package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/wire"
)

// Store is a store that can be closed; Close commits what was given before.
type Store interface {
	delivery.Store
	Close() error
}

// Run runs the suite. For each test fresh makes an empty place for a store, and
// returns what opens it; open is called again, after Close, to look whether all
// is still there.
func Run(t *testing.T, fresh func(t *testing.T) (open func() Store)) {
	for name, test := range map[string]func(*testing.T, *bench){
		"sessions":       testSessions,
		"outbox":         testOutbox,
		"duplicate":      testDuplicate,
		"settle":         testSettle,
		"prune":          testPrune,
		"inbox":          testInbox,
		"window":         testWindow,
		"forget":         testForget,
		"every field":    testFields,
		"refused":        testRefused,
		"large body":     testLarge,
		"many sessions":  testManySessions,
		"concurrent":     testConcurrent,
		"not durable":    testNotDurable,
		"done commits":   testDoneCommits,
		"close flushes":  testClose,
		"cancelled read": testCancelled,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			open := fresh(t)
			b := &bench{T: t, open: open, Store: open()}
			test(t, b)
			b.close()
		})
	}
}

// bench is a store under test.
type bench struct {
	*testing.T
	Store
	open func() Store
}

func (b *bench) close() {
	b.Helper()
	if err := b.Close(); err != nil {
		b.Fatalf("Close() = %v", err)
	}
}

// check runs a check, and again on the store reopened.
func (b *bench) check(f func()) {
	b.Helper()
	f()
	b.close()
	b.Store = b.open()
	f()
}

// try gives a change and waits for its error.
func (b *bench) try(c delivery.Change, durable bool) error {
	done := make(chan error, 1)
	b.Commit(c, durable, func(err error) { done <- err })
	return <-done
}

// do gives changes, waits for the last, and expects no errors.
func (b *bench) do(changes ...delivery.Change) {
	b.Helper()
	var all sync.WaitGroup
	for i, c := range changes {
		all.Add(1)
		b.Commit(c, i == len(changes)-1, func(err error) {
			defer all.Done()
			if err != nil {
				b.Errorf("change %d, %T: %v", i, c, err)
			}
		})
	}
	all.Wait()
}

// code expects an error with a code.
func (b *bench) code(err error, want wire.Code) {
	b.Helper()
	if !errors.Is(err, want) {
		b.Errorf("error %v, want code %v", err, want)
	}
}

func (b *bench) outbox(s delivery.SessionID, after uint64, limit int, wantLast uint64, want ...delivery.Message) {
	b.Helper()
	got, last, err := b.Outbox(b.Context(), s, after, limit)
	if diff := difference(want, got); diff != "" || last != wantLast || err != nil {
		b.Errorf("Outbox(%x, %d, %d): last %d, want %d; error %v\n%s", s[:2], after, limit, last, wantLast, err, diff)
	}
}

func (b *bench) inbox(s delivery.SessionID, after uint64, limit int, wantCursor uint64, want ...delivery.Message) {
	b.Helper()
	got, cursor, err := b.Inbox(b.Context(), s, after, limit)
	if diff := difference(want, got); diff != "" || cursor != wantCursor || err != nil {
		b.Errorf("Inbox(%x, %d, %d): cursor %d, want %d; error %v\n%s", s[:2], after, limit, cursor, wantCursor, err, diff)
	}
}

func (b *bench) outcome(s delivery.SessionID, key string, wantSequence uint64, want delivery.Outcome) {
	b.Helper()
	sequence, got, err := b.Outcome(b.Context(), s, key)
	if diff := difference(want, got); diff != "" || sequence != wantSequence || err != nil {
		b.Errorf("Outcome(%x, %q): sequence %d, want %d; error %v\n%s", s[:2], key, sequence, wantSequence, err, diff)
	}
}

func (b *bench) window(s delivery.SessionID, wantFloor uint64, want map[uint64]delivery.Outcome) {
	b.Helper()
	floor, got, err := b.Window(b.Context(), s)
	if diff := difference(want, got); diff != "" || floor != wantFloor || err != nil {
		b.Errorf("Window(%x): floor %d, want %d; error %v\n%s", s[:2], floor, wantFloor, err, diff)
	}
}

// difference compares large bodies fast, and takes nil for empty.
func difference(want, got any) string {
	other := func(p cmp.Path) bool { return p.Last().Type() != reflect.TypeFor[[]byte]() }
	return cmp.Diff(want, got, cmp.Comparer(bytes.Equal), cmp.FilterPath(other, cmpopts.EquateEmpty()))
}

// start is a time with all that a store has to keep of one: nanoseconds.
func start() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC) }

func session(n int) delivery.SessionID { return delivery.SessionID{byte(n), byte(n >> 8), 15: 0xff} }

func message(n uint64) delivery.Message {
	return delivery.Message{Sequence: n, Key: fmt.Sprintf("key %d", n), Body: []byte(fmt.Sprintf("body %d", n)),
		Capability: "finance/fx", Accepted: start(), Expires: start().Add(time.Hour)}
}

func enqueue(s delivery.SessionID, m delivery.Message) delivery.Enqueue {
	return delivery.Enqueue{Session: s, Message: &m}
}

func receive(s delivery.SessionID, m delivery.Message) delivery.Receive {
	return delivery.Receive{Session: s, Message: &m}
}

func delivered(at time.Time) delivery.Outcome {
	return delivery.Outcome{Status: delivery.Delivered, Attempts: 1, At: at}
}
