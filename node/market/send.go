package market

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"openmesh/node/audit"
	"openmesh/protocols/identity"
	deal "openmesh/protocols/market"
	"openmesh/protocols/wire"
)

// kick has a negotiation's moves sent, if nobody is at it.
func (e *Engine) kick(t *talk) {
	if t.sending.CompareAndSwap(false, true) {
		e.jobs.add(func(ctx context.Context) { e.send(ctx, t) })
	}
}

// send sends the moves that have no receipt, in order.
func (e *Engine) send(ctx context.Context, t *talk) {
	for {
		t.mu.Lock()
		n := t.now()
		var m *deal.Signed
		if len(t.unsent) > 0 {
			m = n.Find(t.unsent[0])
		}
		if m == nil {
			t.sending.Store(false)
			more := len(t.unsent) > 0
			if more {
				t.unsent = t.unsent[1:]
			}
			t.mu.Unlock()
			if more {
				e.kick(t)
			}
			return
		}
		t.mu.Unlock()
		if err := e.sendMove(ctx, t, m); err != nil {
			t.sending.Store(false)
			if ctx.Err() == nil {
				e.cfg.Logger.Debug("move not answered yet", zap.String("negotiation", t.id), zap.Stringer("move", m.Kind), zap.Error(err))
			}
			return
		}
	}
}

// sendMove sends one move, and takes what the other side answers.
func (e *Engine) sendMove(ctx context.Context, t *talk, m *deal.Signed) error {
	receipt, session, err := e.post(ctx, t.peer(), attempt(m.Hash, int(t.tries.Load())), m.Raw)
	e.cfg.Observe("sent", m.Kind, err)
	if err == nil {
		e.cfg.Log.Note(e.receiptEntry(t.id, t.peer(), session, receipt))
		err = e.takeReceipt(ctx, t, session, m, receipt)
	}
	code := wire.CodeOf(err)
	switch {
	case err != nil && ctx.Err() != nil:
		return err
	case err != nil && !permanent(code):
		if code != wire.DeadlineExceeded { // else the message is still on its way
			t.tries.Add(1)
		}
		t.retry.Store(time.Now().Add(retryAfter(int(t.fails.Add(1)), code)).UnixNano())
		return err
	case err != nil:
		e.cfg.Logger.Warn("move refused", zap.String("negotiation", t.id), zap.Stringer("move", m.Kind), zap.String("code", code.String()))
	}
	t.tries.Store(0)
	t.fails.Store(0)
	t.mu.Lock()
	if err != nil {
		t.refused, t.reason = m.Hash, code
	}
	if len(t.unsent) > 0 && t.unsent[0] == m.Hash {
		t.unsent = t.unsent[1:]
		e.soil(t)
	}
	n := t.now()
	t.wake()
	t.mu.Unlock()
	if err != nil {
		e.events.publish(Event{Event: "refused", RFP: t.request.id, Negotiation: &n, Contract: contractOf(n), From: t.peer(), At: time.Now()})
	}
	return nil
}

// takeReceipt takes the answer to a move. The error says that the move was refused, though
// nothing came that counts in its place; or that the answer is not all there, and the
// move is to be sent again.
func (e *Engine) takeReceipt(ctx context.Context, t *talk, session string, m *deal.Signed, r *deal.Receipt) error {
	if err := e.takeAll(ctx, t.peer(), session, r.Moves); err != nil {
		return wire.Errorf(wire.HandlerUnavailable, "a move in the receipt was not taken: %w", err)
	}
	n := t.now()
	switch {
	case r.Code != 0 && n.Find(m.Hash) != nil:
		return wire.Errorf(r.Code, "%s is %s there", t.id, r.State)
	case m.Kind == deal.Accept && n.Head() == m.Hash: // which binds this agent until it is answered
		return wire.Errorf(wire.HandlerUnavailable, "the receipt does not answer the acceptance")
	}
	return nil
}

// takeAll takes the moves of a receipt. The error is that of a move that may be taken if
// it comes again.
func (e *Engine) takeAll(ctx context.Context, from identity.AgentID, session string, moves [][]byte) (missing error) {
	for _, raw := range moves {
		receipt, err := e.Receive(ctx, from, session, raw)
		if err == nil && receipt.Code != 0 {
			err = receipt.Code
		}
		if err != nil {
			e.cfg.Logger.Debug("move in a receipt not taken", zap.String("agent", string(from)), zap.Error(err))
		}
		if err != nil && !permanent(wire.CodeOf(err)) {
			missing = cmp.Or(missing, err)
		}
	}
	return missing
}

// post sends a move and waits for the receipt, but not for long.
func (e *Engine) post(ctx context.Context, to identity.AgentID, key string, move []byte) (*deal.Receipt, string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	reply, err := e.cfg.Peers.Post(ctx, to, key, move)
	if err != nil && ctx.Err() == nil && wire.CodeOf(err) == wire.DeadlineExceeded {
		// The message has expired, and that stays its outcome: only another one may arrive.
		err = wire.Errorf(wire.Unreachable, "%w", err)
	}
	if err != nil {
		return nil, "", err
	}
	receipt, err := deal.ParseReceipt(reply.Body)
	return receipt, reply.Session, err
}

// attempt is the key of the message by which a move is sent.
func attempt(h deal.Hash, tries int) string { return fmt.Sprintf("market/%s/%d", h, tries) }

// permanent reports whether a move that was refused with a code would be refused again.
func permanent(code wire.Code) bool {
	switch code {
	case wire.Malformed, wire.TooLarge, wire.Denied, wire.NotFound, wire.Unsupported, wire.InvalidRequest, wire.IllegalTransition,
		wire.Replayed, wire.NoCommonSchema, wire.InvalidArgument:
		return true
	}
	return false
}

// retryAfter is how long to wait after attempts that failed, the last with a code.
func retryAfter(fails int, code wire.Code) time.Duration {
	longest := lastRetry
	if code == wire.DeadlineExceeded {
		longest = lastLook
	}
	return min(firstRetry<<min(fails, 16), longest)
}

// receiptEntry records how a move was answered.
func (e *Engine) receiptEntry(ref string, from identity.AgentID, session string, r *deal.Receipt) audit.Entry {
	return audit.Entry{
		At: time.Now(), Kind: "market.receipt", Direction: "received", Agent: from, Session: session, Ref: ref, Payload: r.Encode(), Note: r.State,
	}
}
