package market

import (
	"context"
	"time"

	"go.uber.org/zap"

	"openmesh/node/store"
	"openmesh/protocols/identity"
	deal "openmesh/protocols/market"
	"openmesh/protocols/wire"
)

// mind looks for providers of a request of this agent when that is due, and closes a
// request that is over.
func (e *Engine) mind(ctx context.Context, r *request, now time.Time) {
	r.mu.Lock()
	over := r.over(now)
	due := r.sent && !over && !r.searching && !now.Before(r.next)
	unknown := len(r.asked) == 0
	if due {
		r.searching = true
		r.next = now.Add(r.wait)
		r.wait = min(r.wait*2, lastAsk)
	}
	r.mu.Unlock()
	switch {
	case due:
		e.jobs.add(func(ctx context.Context) { e.ask(ctx, r) })
		if unknown { // beside the search: it may wait for somebody to listen
			e.jobs.add(func(ctx context.Context) { e.cfg.Peers.Broadcast(ctx, r.rfp, r.move.Raw) })
		}
	case over:
		e.closeRequest(ctx, r, now)
	}
}

// ask sends a request to providers that do not have it yet.
func (e *Engine) ask(ctx context.Context, r *request) {
	searching, cancel := context.WithTimeout(ctx, patience)
	found, err := e.cfg.Peers.Providers(searching, r.rfp, e.cfg.Reach)
	cancel()
	if err != nil {
		e.cfg.Logger.Debug("no providers found", zap.String("rfp", r.id), zap.Error(err))
	}
	var send []identity.AgentID
	r.mu.Lock()
	for _, a := range found {
		if _, asked := r.asked[a]; !asked && a != e.cfg.Agent && len(r.asked) < e.cfg.Reach {
			r.asked[a] = false
			send = append(send, a)
		}
	}
	r.searching = false
	r.mu.Unlock()
	e.sendTo(r, send)
	if len(send) > 0 {
		e.storeAsked(ctx, r)
	}
}

// askAgain sends a request that was brought back to those who were asked and do not have
// it: nobody else may find them a second time.
func (e *Engine) askAgain(r *request) {
	if !r.sent || r.isCancelled() {
		return
	}
	var send []identity.AgentID
	r.mu.Lock()
	for a, has := range r.asked {
		if !has {
			send = append(send, a)
		}
	}
	r.mu.Unlock()
	e.sendTo(r, send)
}

func (e *Engine) sendTo(r *request, agents []identity.AgentID) {
	for _, a := range agents {
		e.jobs.add(func(ctx context.Context) { e.sendRequest(ctx, r, a, 0, 0) })
	}
}

// storeAsked stores who was asked and who has the request.
func (e *Engine) storeAsked(ctx context.Context, r *request) {
	r.mu.Lock()
	var b store.Batch
	e.rows.PutRequest(&b, r.row())
	stored := e.put("store who has a request", &b)
	r.mu.Unlock()
	if err := stored(ctx); err != nil {
		e.cfg.Logger.Debug("who has a request is not stored", zap.Error(err)) // it would be sent again
	}
}

// sendRequest sends a request to one provider until it has it, or the request is over. Fails
// counts attempts, tries those whose message came to nothing.
func (e *Engine) sendRequest(ctx context.Context, r *request, to identity.AgentID, tries, fails int) {
	if !r.rfp.Deadline.After(time.Now()) || r.isCancelled() {
		return
	}
	receipt, session, err := e.post(ctx, to, attempt(r.move.Hash, tries), r.move.Raw)
	e.cfg.Observe("sent", deal.Request, err)
	switch code := wire.CodeOf(err); {
	case ctx.Err() != nil:
		return
	case err != nil && permanent(code):
		e.cfg.Logger.Debug("request refused", zap.String("rfp", r.id), zap.String("agent", string(to)), zap.Error(err))
		r.mu.Lock()
		r.spoken[to] = true
		r.mu.Unlock()
		return
	case err != nil:
		if fails++; code != wire.DeadlineExceeded { // else the message is still on its way
			tries++
		}
		time.AfterFunc(retryAfter(fails, code), func() {
			e.jobs.add(func(ctx context.Context) { e.sendRequest(ctx, r, to, tries, fails) })
		})
		return
	}
	e.cfg.Log.Note(e.receiptEntry(r.id, to, session, receipt))
	r.mu.Lock()
	r.asked[to] = true
	r.mu.Unlock()
	e.storeAsked(ctx, r)
	e.events.publish(Event{Event: "reached", RFP: r.id, From: to, At: time.Now()})
	e.takeAll(ctx, to, session, receipt.Moves)
}
