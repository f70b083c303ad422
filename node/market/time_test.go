package market

import (
	"testing"
	"time"

	deal "openmesh/protocols/market"
	"openmesh/protocols/wire"
)

// A move whose time has not come is not lost: it is sent again, and counts then.
func TestMoveOfTheFutureWaits(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller := w.agent("buyer"), w.agent("seller")
		rfp := buyer.post(1)
		seller.has(rfp)
		id := seller.proposes(rfp, "9")
		reach(t, id, "proposed", buyer, seller)
		n := buyer.negotiation(id)
		m := seller.sign(deal.Move{Kind: deal.Withdraw, RFP: n.RFP().Hash, Prev: n.Head(), To: n.Buyer(), At: time.Now().Add(maxSkew + time.Minute)})
		_, err := buyer.engine.Receive(t.Context(), seller.Agent.Agent, string(seller.Agent.Agent), m.Raw)
		refused(t, err, wire.HandlerUnavailable)
		<-time.After(2 * time.Minute)
		_, err = buyer.engine.Receive(t.Context(), seller.Agent.Agent, string(seller.Agent.Agent), m.Raw)
		check(t, err)
		if got := buyer.state(id); got != "withdrawn" {
			t.Errorf("the state is %s, want withdrawn", got)
		}
	})
}
