package market

import (
	"testing"
	"time"

	"openmesh/protocols/identity"
	deal "openmesh/protocols/market"
	"openmesh/protocols/market/document"
	"openmesh/protocols/wire"
)

// A buyer asks, three sellers answer, one is countered, amends, and is accepted; both
// settle.
func TestDeal(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, a, b, c := w.agent("buyer"), w.agent("a"), w.agent("b"), w.agent("c")
		rfp := buyer.post(10)
		var ids []string
		for seller, amount := range map[*side]string{a: "9.00", b: "8.50", c: "8.75"} {
			seller.has(rfp)
			id := seller.proposes(rfp, amount)
			if seller == b {
				ids = append([]string{id}, ids...)
			} else {
				ids = append(ids, id)
			}
			reach(t, id, "proposed", buyer, seller)
		}
		id, ctx := ids[0], t.Context()
		_, err := buyer.engine.Offer(ctx, id, deal.Counter, price("7.00"))
		check(t, err)
		reach(t, id, "countered", buyer, b)
		_, err = b.engine.Offer(ctx, id, deal.Amend, price("7.50"))
		check(t, err)
		reach(t, id, "amended", buyer, b)
		d, err := buyer.engine.Accept(ctx, id, "")
		check(t, err)
		if !d.Delivered || d.Contract == "" {
			t.Errorf("accepted: %+v", d)
		}
		reach(t, id, "contracted", buyer, b)
		if s, err := buyer.engine.Request(ctx, rfp); err != nil || s.Awarded != 10 || s.Reserved != 0 || s.State != "closed" {
			t.Errorf("the request: %+v, %v", s, err)
		}
		_, err = buyer.engine.Accept(ctx, ids[1], "")
		refused(t, err, wire.IllegalTransition)
		_, err = b.engine.Settle(ctx, d.Contract, deal.Fulfil, "")
		check(t, err)
		reach(t, id, "settling", buyer, b)
		_, err = buyer.engine.Settle(ctx, id, deal.Fulfil, "")
		check(t, err)
		reach(t, id, "fulfilled", buyer, b)
		for _, s := range []*side{buyer, b} {
			if r, err := s.log.Verify(ctx); err != nil || !r.OK {
				t.Errorf("the log of %s: %+v, %v", s.name, r, err)
			}
		}
	})
}

// A seller that appears before the deadline gets the request; one that appears later
// does not.
func TestLateSeller(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer := w.agent("buyer")
		rfp := buyer.post(1)
		<-time.After(30 * time.Minute)
		late := w.agent("late")
		late.has(rfp)
		<-time.After(31 * time.Minute)
		never := w.agent("too late")
		<-time.After(5 * time.Minute)
		if _, err := never.engine.Request(t.Context(), rfp); wire.CodeOf(err) != wire.NotFound {
			t.Errorf("after the deadline: %v", err)
		}
		if s, err := buyer.engine.Request(t.Context(), rfp); err != nil || s.State != "expired" || s.Reached != 1 {
			t.Errorf("%+v, %v", s, err)
		}
		_, err := late.engine.Propose(t.Context(), rfp, price("1"))
		refused(t, err, wire.IllegalTransition)
	})
}

// Two sellers accept the buyer's counteroffers for all of the quantity: one gets the
// contract.
func TestSecondAcceptance(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, a, b := w.agent("buyer"), w.agent("a"), w.agent("b")
		rfp, ctx := buyer.post(5), t.Context()
		ids := make(map[*side]string)
		for _, s := range []*side{a, b} {
			s.has(rfp)
			ids[s] = s.proposes(rfp, "9")
			reach(t, ids[s], "proposed", buyer, s)
			_, err := buyer.engine.Offer(ctx, ids[s], deal.Counter, price("8"))
			check(t, err)
			reach(t, ids[s], "countered", buyer, s)
		}
		done := make(chan error, 2)
		for _, s := range []*side{a, b} {
			go func() { _, err := s.engine.Accept(ctx, ids[s], ""); done <- err }()
		}
		check(t, <-done)
		check(t, <-done)
		states := map[string]int{}
		for _, s := range []*side{a, b} {
			reach(t, ids[s], buyer.state(ids[s]), buyer, s)
			states[s.state(ids[s])]++
		}
		if states["contracted"] != 1 || states["rejected"] != 1 {
			t.Errorf("%v, want one contract and one rejection", states)
		}
	})
}

// Moves cross: both sides find the same, whoever was faster.
func TestCrossing(t *testing.T) {
	for name, tc := range map[string]struct {
		seller, buyer func(s *side, id string) error
		want          string
	}{
		"withdraw and accept":  {withdraw, accept, "withdrawn"},
		"amend and accept":     {amend, accept, "amended"},
		"amend and counter":    {amend, counter, "amended"},
		"withdraw and counter": {withdraw, counter, "withdrawn"},
		"withdraw and reject":  {withdraw, reject, "withdrawn"},
	} {
		t.Run(name, func(t *testing.T) {
			within(t, func(t *testing.T, w *world) {
				buyer, seller := w.agent("buyer"), w.agent("seller")
				rfp := buyer.post(1)
				seller.has(rfp)
				id := seller.proposes(rfp, "9")
				reach(t, id, "proposed", buyer, seller)
				cut := true
				w.mu.Lock()
				w.fault = func(_, _ identity.AgentID, _ int) fault {
					if cut {
						return lost
					}
					return none
				}
				w.mu.Unlock()
				done := make(chan error, 2)
				go func() { done <- tc.seller(seller, id) }()
				go func() { done <- tc.buyer(buyer, id) }()
				check(t, <-done)
				check(t, <-done)
				w.mu.Lock()
				cut = false
				w.mu.Unlock()
				reach(t, id, tc.want, buyer, seller)
				if s, err := buyer.engine.Request(t.Context(), rfp); err != nil || s.Awarded+s.Reserved != 0 {
					t.Errorf("the request: %+v, %v", s, err)
				}
			})
		})
	}
}

func withdraw(s *side, id string) error { return end(s, id, deal.Withdraw) }
func reject(s *side, id string) error   { return end(s, id, deal.Reject) }
func amend(s *side, id string) error    { return offer(s, id, deal.Amend, "8") }
func counter(s *side, id string) error  { return offer(s, id, deal.Counter, "7") }

func accept(s *side, id string) error {
	_, err := s.engine.Accept(s.w.t.Context(), id, "")
	return err
}

func end(s *side, id string, k deal.Kind) error {
	_, err := s.engine.End(s.w.t.Context(), id, k, "")
	return err
}

func offer(s *side, id string, k deal.Kind, amount string) error {
	_, err := s.engine.Offer(s.w.t.Context(), id, k, price(amount))
	return err
}

// An acceptance that is made in time and arrives too late is answered: both sides agree
// that the offer had expired.
func TestLateAcceptance(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller := w.agent("buyer"), w.agent("seller")
		rfp := buyer.post(1)
		seller.has(rfp)
		d, err := seller.engine.Propose(t.Context(), rfp, text(map[string]any{
			"terms": map[string]any{"price": map[string]any{"amount": "9"}}, "valid_until": time.Now().Add(time.Minute).UTC().Format(time.RFC3339),
		}))
		check(t, err)
		id := d.Negotiation.ID()
		reach(t, id, "proposed", buyer, seller)
		seller.stop()
		check(t, accept(buyer, id))
		<-time.After(2 * time.Minute)
		if got := buyer.state(id); got != "accepted" {
			t.Errorf("the buyer is bound until it is answered, but its state is %s", got)
		}
		seller.start()
		reach(t, id, "expired", buyer, seller)
		if s, err := buyer.engine.Request(t.Context(), rfp); err != nil || s.Awarded+s.Reserved != 0 {
			t.Errorf("the request: %+v, %v", s, err)
		}
	})
}

// A cancelled request ends its negotiations, also one that has not begun at the buyer.
func TestCancel(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, a, b := w.agent("buyer"), w.agent("a"), w.agent("b")
		rfp := buyer.post(1)
		a.has(rfp)
		b.has(rfp)
		id := a.proposes(rfp, "9")
		reach(t, id, "proposed", buyer, a)
		_, err := buyer.engine.CancelRFP(t.Context(), rfp, "not needed any more")
		check(t, err)
		reach(t, id, "cancelled", buyer, a)
		until(t, "b knows", func() (string, bool) {
			_, err := b.engine.Propose(t.Context(), rfp, price("1"))
			return "", wire.CodeOf(err) == wire.IllegalTransition
		})
	})
}

// Whatever the network loses or repeats and whenever a side is restarted, both come to
// the same.
func TestFaults(t *testing.T) {
	for _, f := range []fault{lost, unheard, repeated} {
		t.Run([]string{"none", "lost", "unheard", "repeated"}[f], func(t *testing.T) {
			within(t, func(t *testing.T, w *world) {
				w.fault = func(_, _ identity.AgentID, n int) fault {
					if n%3 != 0 {
						return f
					}
					return none
				}
				buyer, seller := w.agent("buyer"), w.agent("seller")
				rfp := buyer.post(1)
				seller.has(rfp)
				id := seller.proposes(rfp, "9")
				for _, step := range []struct {
					by    *side
					do    func(*side, string) error
					state string
				}{
					{buyer, counter, "countered"}, {seller, amend, "amended"}, {buyer, counter, "countered"}, {seller, accept, "contracted"},
					{buyer, fulfil, "settling"}, {seller, fulfil, "fulfilled"},
				} {
					until(t, "the move", func() (string, bool) {
						err := step.do(step.by, id)
						if err != nil {
							return err.Error(), false
						}
						return "", true
					})
					buyer.restart()
					seller.restart()
					reach(t, id, step.state, buyer, seller)
				}
			})
		})
	}
}

func fulfil(s *side, id string) error {
	_, err := s.engine.Settle(s.w.t.Context(), id, deal.Fulfil, "")
	return err
}

// Who speaks the old version of proposals is answered in it, and means the same.
func TestOldVersion(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller := w.agent("buyer"), w.agent("seller")
		seller.speaks = document.SchemaProposalV1
		rfp := buyer.post(4)
		seller.has(rfp)
		d, err := seller.engine.Propose(t.Context(), rfp, text(map[string]any{"schema": document.SchemaProposalV1, "price": "9.50", "note": "by hand"}))
		check(t, err)
		id := d.Negotiation.ID()
		reach(t, id, "proposed", buyer, seller)
		check(t, counter(buyer, id))
		reach(t, id, "countered", buyer, seller)
		check(t, accept(seller, id))
		reach(t, id, "contracted", buyer, seller)
		n, err := buyer.engine.Negotiation(t.Context(), id)
		check(t, err)
		moves := n.Negotiation.Moves()
		for i, want := range []string{document.SchemaProposalV1, document.SchemaProposalV1, document.SchemaContract} {
			if moves[i].Schema != want {
				t.Errorf("%s is in %s, want %s", moves[i].Kind, moves[i].Schema, want)
			}
		}
		if o := moves[0].Offer(); o.Terms.Price.Amount.String() != "9.50" || o.Terms.Quantity != 4 || o.Note != "by hand" {
			t.Errorf("the offer: %+v", o)
		}
		if c := n.Negotiation.Agreement().Contract; c.Terms.Total.String() != "28" {
			t.Errorf("the contract: %+v", c.Terms)
		}
	})
}

// Who makes a move that the other side will not have is told.
func TestRefused(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller := w.agent("buyer"), w.agent("seller")
		rfp := buyer.post(1)
		seller.has(rfp)
		id := seller.proposes(rfp, "9")
		reach(t, id, "proposed", buyer, seller)
		w.mu.Lock()
		w.fault = func(from, _ identity.AgentID, _ int) fault {
			if from == buyer.Agent.Agent {
				return denied
			}
			return none
		}
		w.mu.Unlock()
		refused(t, counter(buyer, id), wire.Denied)
		check(t, amend(seller, id)) // which the counteroffer crossed
		reach(t, id, "amended", buyer, seller)
	})
}

// About one request all negotiations are listed, of all requests those that go on.
func TestLists(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, a, b := w.agent("buyer"), w.agent("a"), w.agent("b")
		rfp := buyer.post(1)
		for _, s := range []*side{a, b} {
			s.has(rfp)
			id := s.proposes(rfp, "9")
			reach(t, id, "proposed", buyer, s)
			if s == a {
				check(t, reject(buyer, id))
			}
		}
		for _, tc := range []struct {
			rfp  string
			all  bool
			want int
		}{{"", false, 1}, {"", true, 2}, {rfp, false, 2}, {rfp, true, 2}} {
			if list, err := buyer.engine.Negotiations(t.Context(), tc.rfp, tc.all, 10); err != nil || len(list) != tc.want {
				t.Errorf("%+v: %d, %v", tc, len(list), err)
			}
		}
	})
}
