package market

import (
	"context"
	"encoding/json"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"openmesh/protocols/identity"
	deal "openmesh/protocols/market"
	"openmesh/protocols/wire"
)

const schemaCID = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"

// detailed is an offer with details.
func detailed(amount string) []byte {
	return text(map[string]any{
		"terms":   map[string]any{"price": map[string]any{"amount": amount}},
		"details": map[string]any{"colour": "red"}, "details_schema": map[string]any{"name": "acme/colour@v1.0.0", "cid": schemaCID},
	})
}

// withDetails adds the same to a request.
func withDetails(rfp []byte) []byte {
	var doc, with map[string]any
	for _, err := range []error{json.Unmarshal(rfp, &doc), json.Unmarshal(detailed("1"), &with)} {
		if err != nil {
			panic(err)
		}
	}
	doc["details"], doc["details_schema"] = with["details"], with["details_schema"]
	return text(doc)
}

// asked is a check of details that waits for the author; its schema is that of everybody
// at home.
type asked struct {
	home    identity.AgentID
	begun   atomic.Int32
	answers chan error
}

func (a *asked) check(ctx context.Context, from identity.AgentID, _, _ string, _ []byte) error {
	if from == a.home {
		return nil
	}
	a.begun.Add(1)
	select {
	case err := <-a.answers:
		return err
	case <-ctx.Done():
		return wire.Errorf(wire.HandlerUnavailable, "%s has not answered", from)
	}
}

// uses has an agent check details with a.
func (s *side) uses(a *asked) {
	a.home, a.answers = s.Agent.Agent, make(chan error)
	s.detail = a.check
	s.restart()
}

// While the author of an offer is asked for the schema of its details, everything else
// goes on, and what happens meanwhile counts.
func TestDetailsKeepNobodyWaiting(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller := w.agent("buyer"), w.agent("seller")
		var a asked
		buyer.uses(&a)
		rfp := buyer.post(1)
		seller.has(rfp)
		done := make(chan error, 1)
		go func() { _, err := seller.engine.Propose(t.Context(), rfp, detailed("9")); done <- err }()
		until(t, "the seller is asked", func() (string, bool) { return "", a.begun.Load() == 1 })
		for _, talk := range buyer.engine.ongoing() {
			if !talk.mu.TryLock() {
				t.Fatal("the negotiation is locked")
			}
			talk.mu.Unlock()
		}
		_, err := buyer.engine.CancelRFP(t.Context(), rfp, "")
		check(t, err)
		_, err = buyer.engine.Negotiations(t.Context(), rfp, false, 10)
		check(t, err)
		close(a.answers)
		<-done
		id := buyer.engine.ongoing()
		for _, talk := range id {
			reach(t, talk.id, "cancelled", buyer, seller)
		}
		if len(id) != 1 {
			t.Errorf("%d negotiations, want 1", len(id))
		}
	})
}

// Who makes a move that does not count is not asked about its details.
func TestDetailsOfIllegalMove(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller := w.agent("buyer"), w.agent("seller")
		var a asked
		buyer.uses(&a)
		close(a.answers)
		rfp := buyer.post(1)
		seller.has(rfp)
		d, err := seller.engine.Propose(t.Context(), rfp, detailed("9"))
		check(t, err)
		id := d.Negotiation.ID()
		reach(t, id, "proposed", buyer, seller)
		again := d.Negotiation.Moves()[0].Move
		again.At = again.At.Add(time.Millisecond)
		before := a.begun.Load()
		r, err := buyer.engine.Receive(t.Context(), seller.Agent.Agent, string(seller.Agent.Agent), seller.sign(again).Raw)
		check(t, err)
		if r.Code != wire.IllegalTransition || a.begun.Load() != before || before != 1 {
			t.Errorf("%s; asked %d times, then %d", r.Code, before, a.begun.Load())
		}
	})
}

// Requests that were broadcast and whose buyers do not answer leave the workers that send
// alone.
func TestBroadcastsWaitByThemselves(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		quiet, buyer, seller := w.agent("quiet"), w.agent("buyer"), w.agent("seller")
		var a asked
		seller.uses(&a)
		w.fails(func(from, _ identity.AgentID, _ int) fault {
			if from == quiet.Agent.Agent {
				return lost
			}
			return none
		})
		for range workers + hearers {
			state, err := quiet.engine.PostRFP(t.Context(), withDetails(rfp(1, time.Hour)))
			check(t, err)
			seller.engine.Hear(state.Move.Raw)
		}
		synctest.Wait()
		if got := a.begun.Load(); got == 0 || got > hearers {
			t.Errorf("%d are waited for", got)
		}
		begin := time.Now()
		id := buyer.post(1)
		seller.has(id)
		reach(t, seller.proposes(id, "9"), "proposed", buyer, seller)
		if took := time.Since(begin); took > time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

// An offer of this agent's goes out only with details that fit.
func TestOwnDetailsAreChecked(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller, id := stage(w)
		seller.detail = func(context.Context, identity.AgentID, string, string, []byte) error {
			return &wire.Error{Code: wire.InvalidRequest, Message: "it is no colour", Pointers: []string{"/colour"}}
		}
		seller.restart()
		_, err := seller.engine.Offer(t.Context(), id, deal.Amend, detailed("8"))
		refused(t, err, wire.InvalidRequest)
		if got := buyer.state(id); got != "proposed" {
			t.Errorf("the buyer's state is %s", got)
		}
	})
}
