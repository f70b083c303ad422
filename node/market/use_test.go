package market

import "testing"

// A call under a contract is told with the negotiation that it came of, once.
func TestUsedIsTold(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller := w.agent("buyer"), w.agent("seller")
		rfp := buyer.post(2)
		seller.has(rfp)
		id := seller.proposes(rfp, "9")
		reach(t, id, "proposed", buyer, seller)
		d, err := buyer.engine.Accept(t.Context(), id, "")
		check(t, err)
		reach(t, id, "contracted", buyer, seller)
		events, stop := seller.engine.Watch()
		defer stop()
		for range 2 {
			done, err := seller.engine.Begin(t.Context(), d.Contract, "fx/quote", "call", buyer.Agent.Agent)
			check(t, err)
			done(true)
		}
		ev := <-events
		if ev.Event != "used" || ev.Contract != d.Contract || ev.Negotiation == nil || ev.Negotiation.ID() != id || ev.From != buyer.Agent.Agent {
			t.Errorf("%+v", ev)
		}
		if n := len(events); n > 0 {
			t.Errorf("%d more events", n)
		}
	})
}
