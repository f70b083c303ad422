package outbox_test

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

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
