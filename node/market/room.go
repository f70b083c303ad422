package market

import (
	"cmp"
	"context"
	"time"

	"go.uber.org/zap"

	"openmesh/node/store"
	"openmesh/protocols/identity"
	deal "openmesh/protocols/market"
	"openmesh/protocols/wire"
)

// Requests of others cost nothing to make, and their deadlines are what their buyers say.
// One takes room until its deadline, or until what was negotiated with this agent has
// ended, or for quiet if nothing was. It can be answered until its deadline all the same:
// then it is read again.

// quiet is how long a request of another agent is kept in memory to which nothing is said.
const quiet = 7 * 24 * time.Hour

// over reports whether a request has ended as far as this agent is concerned, but for
// what is negotiated under it; r.mu is held.
func (r *request) over(now time.Time) bool {
	if r.cancelled || !r.rfp.Deadline.After(now) {
		return true
	}
	return !r.sent && (r.sellers > 0 || !now.Before(r.since.Add(quiet)))
}

// busy reports whether something is negotiated under a request; e.mu is held. This agent
// is the only seller of a request that it received: once that negotiation has ended, it
// does not matter that the other side has not answered yet.
func (e *Engine) busy(r *request, now time.Time) bool {
	if r.sent || e.open[r.id] == 0 {
		return e.open[r.id] > 0
	}
	t := e.talks[deal.NegotiationID(r.move.Hash, e.cfg.Agent)]
	return t != nil && !ended(t.now(), now)
}

// count notes that a buyer has a request more here, or less; e.mu is held.
func (e *Engine) count(buyer identity.AgentID, change int) {
	e.received += change
	if e.buyers[buyer] += change; e.buyers[buyer] == 0 {
		delete(e.buyers, buyer)
	}
}

// reserve counts a request of a buyer that is about to be taken, until free; or refuses
// it: one buyer gets a quarter of what there is.
func (e *Engine) reserve(buyer identity.AgentID) (free func(), err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if of := e.buyers[buyer]; of >= max(e.cfg.MaxOpen/4, 1) {
		return nil, wire.Errorf(wire.ResourceExhausted, "%d requests of %s are open", of, buyer)
	}
	e.count(buyer, 1)
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.count(buyer, -1)
	}, nil
}

// room makes room for a request that is reserved: if it is one too many, another gives
// way.
func (e *Engine) room(ctx context.Context) error {
	gone, err := e.giveWay()
	if err != nil || gone == nil {
		return err
	}
	e.cfg.Logger.Debug("request gives way", zap.String("rfp", gone.id), zap.String("buyer", string(gone.move.Author)))
	return e.storeDone(ctx, gone)
}

// giveWay drops a request from memory if there are too many.
func (e *Engine) giveWay() (*request, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.received <= e.cfg.MaxOpen {
		return nil, nil
	}
	r := e.leastWanted(time.Now())
	if r == nil {
		return nil, wire.Errorf(wire.ResourceExhausted, "%d requests are negotiated", e.received-1)
	}
	e.remove(r)
	return r, nil
}

// leastWanted is the oldest request, of the buyer that has the most, about which nothing
// is negotiated; e.mu is held.
func (e *Engine) leastWanted(now time.Time) (least *request) {
	for _, r := range e.requests {
		if r.sent || e.busy(r, now) {
			continue
		}
		if least == nil || cmp.Or(cmp.Compare(e.buyers[r.move.Author], e.buyers[least.move.Author]), least.since.Compare(r.since)) > 0 {
			least = r
		}
	}
	return least
}

// remove drops a request from memory; e.mu is held.
func (e *Engine) remove(r *request) {
	if e.requests[r.id] == r {
		delete(e.requests, r.id)
		if !r.sent {
			e.count(r.move.Author, -1)
		}
	}
}

// closeRequest forgets a request that is over, once its negotiations are.
func (e *Engine) closeRequest(ctx context.Context, r *request, now time.Time) {
	e.mu.Lock()
	busy := e.busy(r, now)
	e.mu.Unlock()
	if busy || e.storeDone(ctx, r) != nil { // the next sweep tries again
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.busy(r, now) {
		e.remove(r)
	}
}

// storeDone stores that a request need not be brought back.
func (e *Engine) storeDone(ctx context.Context, r *request) error {
	r.mu.Lock()
	r.done = true
	var b store.Batch
	e.rows.PutRequest(&b, r.row())
	stored := e.put("close a request", &b)
	r.mu.Unlock()
	return stored(ctx)
}
