package market

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"openmesh/node/audit"
	deal "openmesh/protocols/market"
)

// Two requests with one document are two, even if they are posted at the same time.
func TestSameRequestTwice(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer := w.agent("buyer")
		var all sync.WaitGroup
		var mu sync.Mutex
		ids := make(map[deal.Hash]bool)
		for range 3 {
			all.Go(func() {
				state, err := buyer.engine.PostRFP(t.Context(), rfp(10, time.Hour))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				ids[state.Move.Hash] = true
			})
		}
		all.Wait()
		if len(ids) != 3 {
			t.Errorf("%d requests, want 3", len(ids))
		}
	})
}

// A request that comes over sessions and topics at the same time is taken once.
func TestRequestComesOften(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer := w.agent("buyer")
		rfp := buyer.post(10)
		s, err := buyer.engine.Request(t.Context(), rfp)
		check(t, err)
		seller := w.agent("seller")
		events, stop := seller.engine.Watch()
		defer stop()
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				seller.engine.Hear(s.Move.Raw)
				_, err := seller.engine.Receive(t.Context(), buyer.Agent.Agent, string(buyer.Agent.Agent), s.Move.Raw)
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		synctest.Wait()
		if n := len(events); n != 1 {
			t.Errorf("%d events, want 1", n)
		}
		entries, err := seller.log.List(t.Context(), audit.Filter{Of: []string{rfp}})
		check(t, err)
		if len(entries) != 1 {
			t.Errorf("%d entries in the audit log, want 1", len(entries))
		}
		if seller.engine.received != 1 {
			t.Errorf("%d requests are counted, want 1", seller.engine.received)
		}
	})
}
