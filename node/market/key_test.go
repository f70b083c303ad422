package market

import (
	"testing"
	"time"

	"openmesh/protocols/identity"
)

// stage is a proposal that both sides have.
func stage(w *world) (buyer, seller *side, id string) {
	buyer, seller = w.agent("buyer"), w.agent("seller")
	rfp := buyer.post(1)
	seller.has(rfp)
	id = seller.proposes(rfp, "9")
	reach(w.t, id, "proposed", buyer, seller)
	return buyer, seller, id
}

// An acceptance that was signed with a former key counts when it arrives at last.
func TestAcceptanceOfFormerKey(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller, id := stage(w)
		seller.stop()
		check(t, accept(buyer, id))
		buyer.stop()
		buyer.rotate()
		buyer.start()
		seller.start()
		reach(t, id, "contracted", buyer, seller)
	})
}

// A contract whose receipt was lost before the seller changed its key comes with the
// next one.
func TestContractOfFormerKey(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller, id := stage(w)
		w.fails(func(from, _ identity.AgentID, _ int) fault {
			if from == buyer.Agent.Agent {
				return unheard
			}
			return none
		})
		check(t, accept(buyer, id))
		reach(t, id, "contracted", seller)
		if got := buyer.state(id); got != "accepted" {
			t.Fatalf("the buyer's state is %s, want accepted", got)
		}
		seller.stop()
		seller.rotate()
		seller.start()
		w.fails(nil)
		reach(t, id, "contracted", buyer, seller)
	})
}

// An acceptance binds until it is answered, and so it is sent until then: a receipt is
// not enough.
func TestAcceptanceIsSentUntilAnswered(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller, id := stage(w)
		w.fails(func(identity.AgentID, identity.AgentID, int) fault { return bare })
		check(t, accept(buyer, id))
		<-time.After(time.Hour)
		if got := buyer.state(id); got != "accepted" {
			t.Fatalf("the buyer's state is %s, want accepted", got)
		}
		w.fails(nil)
		reach(t, id, "contracted", buyer, seller)
	})
}
