package outbox_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"openmesh/protocols/session/delivery"
)

// An application that was not answered sends again, with the same key, at the very
// moment at which the first message gets its outcome: no second number is given
// to it, which the receiver would miss.
func TestSameKeyWhileItSettles(t *testing.T) {
	t.Parallel()
	s := newSending(t, terms(delivery.AtLeastOnce))
	const n = 300
	var settled atomic.Uint64
	acks := make(chan uint64)
	go func() {
		for i := range acks {
			s.ack(i, i)
			settled.Store(i)
		}
	}()
	defer close(acks)
	for i := range uint64(n) {
		key, want := fmt.Sprint("key", i), i+1
		send := func() {
			t.Helper()
			got, err := s.Send(t.Context(), &delivery.Message{Key: key}, s.now)
			if got != want || err != nil {
				t.Fatalf("%s: %d, %v; want %d", key, got, err, want)
			}
		}
		send()
		acks <- want
		for settled.Load() < want {
			send()
		}
	}
}

// slow is a store that takes its time to tell that it does not know a key.
type slow struct {
	delivery.Store
	gate chan struct{}
}

func (s slow) Outcome(ctx context.Context, id delivery.SessionID, key string) (uint64, delivery.Outcome, error) {
	sequence, out, err := s.Store.Outcome(ctx, id, key)
	if err != nil {
		select {
		case <-s.gate:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	return sequence, out, err
}

// Two send a message with one key at once, and one of them gets through to the end
// before the other has its answer from the store: there is one number.
func TestSameKeyWhileTheStoreIsAsked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSending(t, terms(delivery.AtLeastOnce))
		store := slow{s.memory, make(chan struct{})}
		s.store = store
		s.open()
		s.send("first")
		numbers := make(chan uint64, 2)
		for range 2 {
			go func() {
				n, err := s.Send(t.Context(), &delivery.Message{Key: "key"}, s.now)
				if err != nil {
					t.Error(err)
				}
				numbers <- n
			}()
		}
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Send(ctx, &delivery.Message{Key: "key"}, s.now); err == nil {
			t.Error("a message is accepted for nobody")
		}
		store.gate <- struct{}{}
		synctest.Wait()
		s.ack(2, 2)
		close(store.gate)
		if a, b := <-numbers, <-numbers; a != 2 || b != 2 {
			t.Errorf("numbers %d and %d, want 2", a, b)
		}
		if n, err := s.Send(t.Context(), &delivery.Message{}, s.now); n != 3 || err != nil {
			t.Errorf("the next message has number %d, %v; want 3", n, err)
		}
	})
}

// ordered notes in which order numbers come to the store.
type ordered struct {
	delivery.Store
	mu   sync.Mutex
	came []uint64
}

func (s *ordered) Commit(c delivery.Change, durable bool, done func(error)) {
	if e, ok := c.(delivery.Enqueue); ok {
		s.mu.Lock()
		s.came = append(s.came, e.Message.Sequence)
		s.mu.Unlock()
	}
	s.Store.Commit(c, durable, done)
}

// Numbers come to the store in order, however many send at once: else a crash
// could keep a number and lose one before it, which nobody would get any more,
// and the receiver would miss.
func TestNumbersAreStoredInOrder(t *testing.T) {
	t.Parallel()
	s := newSending(t, terms(delivery.AtLeastOnce))
	store := &ordered{Store: s.memory}
	s.store, s.away = store, true
	s.open()
	var group sync.WaitGroup
	for i := range 32 {
		group.Go(func() {
			for k := range 100 {
				if _, err := s.Send(t.Context(), &delivery.Message{Key: fmt.Sprint(i, " ", k)}, s.now); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if len(store.came) != 3200 || !slices.IsSorted(store.came) {
		t.Errorf("%d numbers came to the store, not in order", len(store.came))
	}
}
