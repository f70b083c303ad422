package market

import (
	"testing"
	"time"

	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// A seller that changes its offer before it hears that the request is cancelled does not
// bring it back.
func TestAmendCrossesCancel(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller, id := stage(w)
		rfp := buyer.negotiation(id).RFP().Hash.ID()
		w.fails(func(identity.AgentID, identity.AgentID, int) fault { return lost })
		_, err := buyer.engine.CancelRFP(t.Context(), rfp, "not needed any more")
		check(t, err)
		check(t, amend(seller, id))
		w.fails(nil)
		reach(t, id, "cancelled", buyer, seller)
		<-time.After(time.Hour)
		reach(t, id, "cancelled", buyer, seller)
		moves := seller.negotiation(id).Moves()
		if last := moves[len(moves)-1]; last.Reason != "not needed any more" {
			t.Errorf("the reason is %q", last.Reason)
		}
	})
}

// Under a cancelled request nothing is accepted, be it that its negotiations do not know
// yet: neither by the buyer, nor what a seller accepts.
func TestNothingIsAcceptedOnceCancelled(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller, id := stage(w)
		talk, err := buyer.engine.find(t.Context(), id)
		check(t, err)
		cancelled := func(is bool) {
			talk.request.mu.Lock()
			defer talk.request.mu.Unlock()
			talk.request.cancelled = is
		}
		cancelled(true)
		refused(t, accept(buyer, id), wire.IllegalTransition)
		cancelled(false)
		check(t, counter(buyer, id))
		reach(t, id, "countered", buyer, seller)
		cancelled(true)
		check(t, accept(seller, id))
		reach(t, id, "rejected", buyer, seller)
	})
}
