package market

import (
	"testing"
	"time"

	"openmesh/protocols/identity"
	deal "openmesh/protocols/market"
	"openmesh/protocols/wire"
)

// A proposal that comes too late is refused, and the seller learns of it: it does not
// pass for delivered.
func TestProposalThatComesLate(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller := w.agent("buyer"), w.agent("seller")
		rfp := buyer.post(1)
		seller.has(rfp)
		<-time.After(time.Until(seller.deadline(rfp).Add(-time.Minute)))
		buyer.stop()
		id := seller.proposes(rfp, "9")
		events, stop := seller.engine.Watch()
		defer stop()
		<-time.After(10 * time.Minute)
		buyer.start()
		d, err := seller.engine.find(t.Context(), id)
		check(t, err)
		until(t, "the seller knows", func() (string, bool) {
			d.mu.Lock()
			defer d.mu.Unlock()
			return d.reason.String(), d.refused == d.now().Head() && d.reason == wire.IllegalTransition && len(d.unsent) == 0
		})
		for ev := range events {
			if ev.Event == "refused" && ev.Negotiation.ID() == id && ev.From == buyer.Agent.Agent {
				break
			}
		}
	})
}

// An offer that the other side will not have is refused at once, also where the sides
// differ on how many there may be.
func TestOneOfferTooMany(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller, id := stage(w)
		buyer.rounds = 1
		buyer.restart()
		refused(t, amend(seller, id), wire.IllegalTransition)
		if got := buyer.state(id); got != "proposed" {
			t.Errorf("the buyer's state is %s, want proposed", got)
		}
	})
}

// What the other side does not answer is not sent for ever once a negotiation is over:
// not longer than it may think that there is an offer.
func TestEndIsNotToldForEver(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller, id := stage(w)
		until := seller.negotiation(id).Deadline()
		w.fails(func(from, _ identity.AgentID, _ int) fault {
			if from == seller.Agent.Agent {
				return lost
			}
			return none
		})
		check(t, withdraw(seller, id))
		<-time.After(time.Until(until.Add(30 * time.Minute)))
		if s, err := seller.engine.Negotiation(t.Context(), id); err != nil || s.Unsent != 1 {
			t.Errorf("half an hour after the end: %d unsent, %v", s.Unsent, err)
		}
		<-time.After(time.Hour)
		if s, err := seller.engine.Negotiation(t.Context(), id); err != nil || s.Unsent != 0 || s.Negotiation.State(time.Now()) != deal.Withdrawn {
			t.Errorf("later: %d unsent, %s, %v", s.Unsent, s.Negotiation.State(time.Now()), err)
		}
		if got := buyer.state(id); got != "expired" {
			t.Errorf("the buyer's state is %s, want expired", got)
		}
	})
}

// A move whose message has expired goes out in another one.
func TestMessageThatExpired(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller, id := stage(w)
		w.fails(func(identity.AgentID, identity.AgentID, int) fault { return expired })
		check(t, accept(buyer, id))
		w.fails(nil)
		reach(t, id, "contracted", buyer, seller)
	})
}

// Whoever does not answer is asked less and less often, and not so rarely that an answer
// stays unseen for long.
func TestSilence(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller, id := stage(w)
		posts := 0
		w.fails(func(identity.AgentID, identity.AgentID, int) fault { posts++; return silent })
		check(t, accept(buyer, id))
		<-time.After(time.Hour)
		w.fails(nil)
		if posts < 40 || posts > 60 {
			t.Errorf("asked %d times within the hour", posts)
		}
		begin := time.Now()
		reach(t, id, "contracted", buyer, seller)
		if took := time.Since(begin); took > 2*time.Minute {
			t.Errorf("it took %s", took)
		}
	})
}

// A provider that does not answer is not asked every second for as long as the request is
// open.
func TestSilentProvider(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, _ := w.agent("buyer"), w.agent("provider")
		posts := 0
		w.fails(func(identity.AgentID, identity.AgentID, int) fault { posts++; return silent })
		buyer.post(1)
		<-time.After(50 * time.Minute)
		w.fails(nil)
		if posts < 30 || posts > 50 {
			t.Errorf("asked %d times", posts)
		}
	})
}
