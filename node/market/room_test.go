package market

import (
	"testing"
	"time"

	deal "openmesh/protocols/market"
	"openmesh/protocols/wire"
)

// A few identities take all the room that there is, until the end of the century. Who
// comes later is heard all the same, and what is negotiated stays.
func TestNobodyTakesAllRoom(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		seller := w.agent("seller")
		seller.most = 8
		seller.restart()
		var first string
		for _, name := range []string{"p", "q", "r", "s"} {
			s := w.agent(name)
			for range 3 { // the third is one too many
				state, err := s.engine.PostRFP(t.Context(), rfp(1, 70*365*24*time.Hour))
				check(t, err)
				if first == "" {
					first = state.Move.Hash.ID()
					seller.has(first)
					reach(t, seller.proposes(first, "9"), "proposed", s, seller)
				}
			}
			<-time.After(time.Second)
			s.stop()
		}
		if n := seller.kept(); n != 8 {
			t.Fatalf("%d requests are kept, want all 8", n)
		}
		buyer := w.agent("buyer")
		rfp := buyer.post(1)
		seller.has(rfp)
		if n := seller.kept(); n != 8 || !seller.keeps(first) || !seller.keeps(rfp) {
			t.Errorf("%d requests are kept; the one that is negotiated: %v; the new one: %v", n, seller.keeps(first), seller.keeps(rfp))
		}
		reach(t, seller.proposes(rfp, "9"), "proposed", buyer, seller)
	})
}

// Who says what cannot be said about its own request does not keep it in memory.
func TestNonsenseTakesNoRoom(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller := w.agent("buyer"), w.agent("seller")
		rfp := buyer.post(1)
		seller.has(rfp)
		r, err := buyer.engine.request(t.Context(), rfp)
		check(t, err)
		m, err := deal.Sign(deal.Move{
			Kind: deal.Withdraw, RFP: r.move.Hash, Prev: r.move.Hash, Author: buyer.Agent.Agent, To: seller.Agent.Agent, At: time.Now().UTC().Truncate(time.Millisecond),
		}, buyer.Host, buyer.Certificate)
		check(t, err)
		receipt, err := seller.engine.Receive(t.Context(), buyer.Agent.Agent, string(buyer.Agent.Agent), m.Raw)
		if err != nil || receipt.Code != wire.IllegalTransition {
			t.Errorf("%+v, %v", receipt, err)
		}
		if n := len(seller.engine.ongoing()); n != 0 {
			t.Errorf("%d negotiations are kept", n)
		}
		reach(t, seller.proposes(rfp, "9"), "proposed", buyer, seller)
	})
}

// A request that is declined takes no room, whether the buyer hears of it or not.
func TestDeclined(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller := w.agent("buyer"), w.agent("seller")
		rfp, other := buyer.post(1), buyer.post(1)
		seller.has(rfp)
		seller.has(other)
		_, err := seller.engine.Decline(t.Context(), rfp, "")
		check(t, err)
		w.cut(true)
		_, err = seller.engine.Decline(t.Context(), other, "")
		check(t, err)
		<-time.After(2 * tick)
		if n := seller.kept(); n != 0 {
			t.Errorf("%d requests are kept", n)
		}
		w.cut(false)
		r, err := buyer.engine.Request(t.Context(), other)
		check(t, err)
		reach(t, deal.NegotiationID(r.Move.Hash, seller.Agent.Agent), "rejected", buyer, seller)
	})
}

// A request to which nothing is said takes room for a while, restarts included. It can
// still be answered.
func TestQuiet(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller := w.agent("buyer"), w.agent("seller")
		state, err := buyer.engine.PostRFP(t.Context(), rfp(1, 30*24*time.Hour))
		check(t, err)
		rfp := state.Move.Hash.ID()
		seller.has(rfp)
		buyer.stop()
		seller.stop()
		<-time.After(quiet - time.Hour)
		seller.start()
		if seller.kept() != 1 {
			t.Fatal("it is not kept so long")
		}
		<-time.After(2 * time.Hour)
		if seller.kept() != 0 {
			t.Error("it is kept still")
		}
		seller.restart()
		if seller.kept() != 0 {
			t.Error("it was brought back")
		}
		reach(t, seller.proposes(rfp, "9"), "proposed", seller)
		if seller.kept() != 1 {
			t.Error("it is negotiated and not kept")
		}
	})
}

// A contract that has run out takes no room, and can still be settled.
func TestContractRunsOut(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller := w.agent("buyer"), w.agent("seller")
		rfp := buyer.post(1)
		seller.has(rfp)
		d, err := seller.engine.Propose(t.Context(), rfp, text(map[string]any{"terms": map[string]any{
			"price": map[string]any{"amount": "9"}, "delivery": map[string]any{"by": time.Now().Add(2 * time.Hour).UTC().Format(time.RFC3339)},
		}}))
		check(t, err)
		id := d.Negotiation.ID()
		reach(t, id, "proposed", buyer, seller)
		check(t, accept(buyer, id))
		reach(t, id, "contracted", buyer, seller)
		<-time.After(90 * time.Minute)
		if len(seller.engine.ongoing()) != 1 {
			t.Error("a contract in force is not kept")
		}
		<-time.After(time.Hour)
		for _, s := range []*side{buyer, seller} {
			if n := len(s.engine.ongoing()); n != 0 || len(s.engine.requests) != 0 {
				t.Errorf("%s keeps %d negotiations and %d requests", s.name, n, len(s.engine.requests))
			}
		}
		check(t, fulfil(seller, id))
		reach(t, id, "settling", buyer, seller)
		buyer.restart()
		check(t, fulfil(buyer, id))
		reach(t, id, "fulfilled", buyer, seller)
	})
}

// kept is how many requests of others an agent keeps.
func (s *side) kept() int {
	s.engine.mu.Lock()
	defer s.engine.mu.Unlock()
	return s.engine.received
}

func (s *side) keeps(rfp string) bool {
	s.engine.mu.Lock()
	defer s.engine.mu.Unlock()
	return s.engine.requests[rfp] != nil
}
