package outbox_test

import (
	"fmt"
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
