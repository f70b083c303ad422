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

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/wire"
)

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
