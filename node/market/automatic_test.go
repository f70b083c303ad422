package market

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	deal "openmesh/protocols/market"
)

// The deciders of both sides are told that a contract is signed: once, also over a
// restart and once the work has begun to be settled; who fails is told again then.
func TestContractIsTold(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller := w.agent("buyer"), w.agent("seller")
		var fail atomic.Bool
		told := make(map[*side]*atomic.Int32)
		for _, s := range []*side{buyer, seller} {
			count := new(atomic.Int32)
			told[s] = count
			s.decide = func(_ context.Context, _ *deal.Signed, n *deal.Negotiation) (Decision, error) {
				if n == nil || contractOf(*n) == "" {
					return Decision{}, nil
				}
				count.Add(1)
				if fail.Load() && s == seller {
					return Decision{}, errors.New("the handler is away")
				}
				return Decision{}, nil
			}
			s.restart()
		}
		seen := func(want int32) {
			t.Helper()
			<-time.After(2 * time.Second)
			for s, count := range told {
				if got := count.Swap(0); got != want {
					t.Errorf("%s was told %d times, want %d", s.name, got, want)
				}
			}
		}
		for _, fails := range []bool{false, true} {
			fail.Store(fails)
			rfp := buyer.post(1)
			seller.has(rfp)
			id := seller.proposes(rfp, "9")
			reach(t, id, "proposed", buyer, seller)
			check(t, accept(buyer, id))
			reach(t, id, "contracted", buyer, seller)
			seen(1)
			fail.Store(false)
			buyer.restart()
			seller.restart()
			<-time.After(2 * time.Second)
			if again := told[seller].Swap(0); (again == 1) != fails || again > 1 || told[buyer].Swap(0) != 0 {
				t.Errorf("after a restart the seller was told %d times; it had failed: %v", again, fails)
			}
			check(t, fulfil(buyer, id))
			reach(t, id, "settling", buyer, seller)
			buyer.restart()
			seller.restart()
			check(t, fulfil(seller, id))
			reach(t, id, "fulfilled", buyer, seller)
			seen(0)
		}
	})
}

// Moves that are decided on do not keep each other from being sent, however many there
// are: who decides does not wait for the other side.
func TestManyDecisionsAreSent(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		const many = workers + 16
		buyer, seller := w.agent("buyer"), w.agent("seller")
		open := make(chan struct{})
		seller.decide = func(ctx context.Context, _ *deal.Signed, n *deal.Negotiation) (Decision, error) {
			select {
			case <-open:
			case <-ctx.Done():
			}
			if n != nil {
				return Decision{}, nil
			}
			return Decision{Kind: deal.Propose, Document: price("9")}, nil
		}
		seller.restart()
		for range many {
			seller.has(buyer.post(1))
		}
		begin := time.Now()
		close(open)
		until(t, "all proposals", func() (string, bool) {
			all, err := buyer.engine.Negotiations(t.Context(), "", false, many)
			check(t, err)
			return fmt.Sprint(len(all)), len(all) == many
		})
		if took := time.Since(begin); took > time.Second {
			t.Errorf("it took %s until all were there", took)
		}
	})
}
