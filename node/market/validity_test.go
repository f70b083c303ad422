package market

import (
	"testing"
	"time"

	deal "openmesh/protocols/market"
)

// The request's deadline is for the first offer, which stands as long as it says, or as
// the configuration does. One that answers or replaces another and does not say stands
// as long as that.
func TestHowLongOffersStand(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller := w.agent("buyer"), w.agent("seller")
		rfp, ctx, began := buyer.post(1), t.Context(), time.Now()
		seller.has(rfp)
		id := seller.proposes(rfp, "9")
		stands := func(want time.Duration) {
			t.Helper()
			n, err := seller.engine.Negotiation(ctx, id)
			check(t, err)
			if got := n.Negotiation.Deadline().Sub(began); got < want-time.Minute || got > want+time.Minute {
				t.Errorf("the offer stands for %s, want %s", got, want)
			}
		}
		stands(seller.engine.cfg.ProposalTTL)
		reach(t, id, "proposed", buyer)
		<-time.After(2 * time.Hour) // the request is over
		_, err := buyer.engine.Offer(ctx, id, deal.Counter, price("8"))
		check(t, err)
		reach(t, id, "countered", seller)
		stands(seller.engine.cfg.ProposalTTL)
		_, err = seller.engine.Offer(ctx, id, deal.Counter, text(map[string]any{"valid_until": began.Add(3 * time.Hour).UTC()}))
		check(t, err)
		stands(3 * time.Hour)
		reach(t, id, "countered", buyer)
		_, err = buyer.engine.Accept(ctx, id, "")
		check(t, err)
		reach(t, id, "contracted", buyer, seller)
	})
}
