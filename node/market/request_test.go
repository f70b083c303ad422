package market

import (
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"openmesh/protocols/identity"
	deal "openmesh/protocols/market"
	"openmesh/protocols/wire"
)

// Offers that were made in time arrive when the request is over. A buyer that is
// restarted then still awards the quantity once.
func TestAwardedOnceAfterRestart(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, a, b := w.agent("buyer"), w.agent("a"), w.agent("b")
		rfp := buyer.post(5)
		a.has(rfp)
		b.has(rfp)
		<-time.After(time.Hour - 2*time.Second)
		w.cut(true)
		for _, s := range []*side{a, b} {
			go func() { _, _ = s.engine.Propose(t.Context(), rfp, offerFor(3*time.Hour)) }()
		}
		<-time.After(5 * time.Second)
		if open, err := buyer.engine.Requests(t.Context(), Both, false, 10); err != nil || len(open) > 0 {
			t.Fatalf("open at the buyer: %+v, %v", open, err)
		}
		w.cut(false)
		var ids []string
		for _, s := range []*side{a, b} {
			r, err := s.engine.Request(t.Context(), rfp)
			check(t, err)
			ids = append(ids, deal.NegotiationID(r.Move.Hash, s.Agent.Agent))
		}
		reach(t, ids[0], "proposed", buyer, a)
		reach(t, ids[1], "proposed", buyer, b)
		buyer.restart()
		check(t, accept(buyer, ids[0]))
		refused(t, accept(buyer, ids[1]), wire.IllegalTransition)
		if s, err := buyer.engine.Request(t.Context(), rfp); err != nil || s.Awarded != 5 {
			t.Errorf("the request: %+v, %v", s, err)
		}
	})
}

// Whoever works on a request that is over has the same, and it is forgotten after them.
func TestOneRequest(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer := w.agent("buyer")
		rfp := buyer.post(5)
		<-time.After(time.Hour + time.Minute)
		e := buyer.engine
		var all sync.WaitGroup
		got := make([]*request, 8)
		for i := range got {
			all.Go(func() {
				var err error
				if got[i], err = e.request(t.Context(), rfp[:6+i]); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		for _, r := range got[1:] {
			if r != got[0] {
				t.Error("two of one request")
			}
		}
		clear(got)
		runtime.GC()
		<-time.After(2 * tick)
		e.mu.Lock()
		defer e.mu.Unlock()
		if len(e.known) > 0 {
			t.Errorf("%d requests are known still", len(e.known))
		}
	})
}

// Whoever works on a negotiation has the same one, also if it is over: else two answers to
// the same late move could be made of it at once.
func TestOneNegotiation(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller := w.agent("buyer"), w.agent("seller")
		rfp := buyer.post(1)
		seller.has(rfp)
		id := seller.proposes(rfp, "9")
		reach(t, id, "proposed", buyer, seller)
		check(t, reject(buyer, id))
		reach(t, id, "rejected", buyer, seller)
		e := seller.engine
		until(t, "it is over", func() (string, bool) { return "", len(e.ongoing()) == 0 })
		got := make([]*talk, 8)
		var all sync.WaitGroup
		for i := range got {
			all.Go(func() {
				var err error
				if got[i], err = e.find(t.Context(), id[:len(id)-i]); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		for _, n := range got[1:] {
			if n != got[0] {
				t.Error("two of one negotiation")
			}
		}
		clear(got)
		runtime.GC()
		<-time.After(2 * tick)
		e.mu.Lock()
		defer e.mu.Unlock()
		if len(e.negotiations) > 0 {
			t.Errorf("%d negotiations are known still", len(e.negotiations))
		}
	})
}

// Lists have as many of the requests that are asked for as there are, however many others
// came later.
func TestRequestsOfDirection(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		a, b := w.agent("a"), w.agent("b")
		ended, open := a.post(1), a.post(1)
		_, err := a.engine.CancelRFP(t.Context(), ended, "")
		check(t, err)
		for range 3 {
			<-time.After(time.Second)
			a.has(b.post(1))
		}
		for _, tc := range []struct {
			d    Direction
			all  bool
			want []string
		}{
			{Sent, false, []string{open}}, {Sent, true, []string{open, ended}},
		} {
			list, err := a.engine.Requests(t.Context(), tc.d, tc.all, 2)
			check(t, err)
			var ids []string
			for _, s := range list {
				ids = append(ids, s.Move.Hash.ID())
			}
			if slices.Sort(ids); !slices.Equal(ids, slices.Sorted(slices.Values(tc.want))) {
				t.Errorf("direction %d, all %v: %v, want %v", tc.d, tc.all, ids, tc.want)
			}
		}
		if list, err := a.engine.Requests(t.Context(), Received, true, 2); err != nil || len(list) != 2 || list[0].Sent || list[1].Sent {
			t.Errorf("received: %+v, %v", list, err)
		}
	})
}

// offerFor is an offer that stands for so long.
func offerFor(stands time.Duration) []byte {
	return text(map[string]any{
		"terms": map[string]any{"price": map[string]any{"amount": "9"}}, "valid_until": time.Now().Add(stands).UTC().Format(time.RFC3339),
	})
}

// cut has nothing arrive, or all again.
func (w *world) cut(off bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = func(_, _ identity.AgentID, _ int) fault {
		if off {
			return lost
		}
		return none
	}
}
