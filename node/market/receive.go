package market

import (
	"bytes"
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"openmesh/node/audit"
	"openmesh/node/store"
	"openmesh/protocols/identity"
	deal "openmesh/protocols/market"
	"openmesh/protocols/wire"
)

// Receive takes a move of another agent that came over a session, or by mail. The error
// is for one that cannot be answered: wire.HandlerUnavailable asks to send it again.
// Everything else is told by the receipt.
func (e *Engine) Receive(ctx context.Context, from identity.AgentID, session string, raw []byte) (*deal.Receipt, error) {
	if err := e.await(ctx); err != nil {
		return nil, wire.Errorf(wire.HandlerUnavailable, "not ready: %w", err)
	}
	m, err := deal.ParseFrom(raw, from, func(cert []byte) (*identity.Certificate, error) { return e.cfg.VerifyFrom(session, cert) })
	if err == nil {
		err = e.credible(m)
	}
	if err != nil {
		return nil, err
	}
	return e.take(ctx, session, m)
}

// maxHeard bounds the broadcasts that wait to be looked at.
const maxHeard = 4096

// Hear takes a request that was broadcast. It does not block. Listeners of their own look
// at it: they may have to wait for its author.
func (e *Engine) Hear(raw []byte) {
	e.heard.addUpTo(maxHeard, func(ctx context.Context) {
		if err := e.hear(ctx, raw); err != nil {
			e.cfg.Logger.Debug("broadcast request not taken", zap.Error(err))
		}
	})
}

func (e *Engine) hear(ctx context.Context, raw []byte) error {
	m, err := deal.ParseBy(raw, e.cfg.Verify)
	if err == nil && m.Kind != deal.Request {
		err = wire.Errorf(wire.Malformed, "a broadcast %s", m.Kind)
	}
	if err == nil {
		err = e.credible(m)
	}
	if err == nil && !e.isTaken(m.Hash.ID()) {
		_, err = e.take(ctx, "", m)
	}
	return err
}

// isTaken reports whether a request is just being taken: once is enough.
func (e *Engine) isTaken(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.taking[id] != nil
}

// credible checks what a move that was parsed with this node's verifier does not say by
// itself: that its time has come, which it may later, and the checkpoint is its author's.
func (e *Engine) credible(m *deal.Signed) error {
	if m.At.After(time.Now().Add(maxSkew)) {
		return wire.Errorf(wire.HandlerUnavailable, "a move of the future: %s", m.At.Format(time.RFC3339))
	}
	if len(m.Checkpoint) > 0 {
		if c, err := audit.ParseCheckpointBy(m.Checkpoint, certificateOf(m)); err != nil || c.Agent != m.Author {
			return wire.Errorf(wire.Unauthenticated, "a checkpoint that is not of %s: %w", m.Author, err)
		}
	}
	return nil
}

// certificateOf parses certificates, but for that of a move, which was verified with it.
func certificateOf(m *deal.Signed) func(raw []byte) (*identity.Certificate, error) {
	return func(raw []byte) (*identity.Certificate, error) {
		if bytes.Equal(raw, m.Certificate.Raw) {
			return m.Certificate, nil
		}
		return identity.ParseCertificate(raw)
	}
}

// take works on a move that is what it says.
func (e *Engine) take(ctx context.Context, session string, m *deal.Signed) (receipt *deal.Receipt, err error) {
	defer func() { e.cfg.Observe("received", m.Kind, err) }()
	if m.Kind == deal.Request {
		return e.takeRequest(ctx, session, m)
	}
	if m.To != e.cfg.Agent {
		return nil, wire.Errorf(wire.Denied, "a move to %s", m.To)
	}
	r, err := e.request(ctx, m.RFP.ID())
	if err != nil {
		return nil, err
	}
	seller := m.Author
	if !r.sent {
		seller = e.cfg.Agent
	}
	if r.move.Hash != m.RFP || !r.sent && m.Author != r.move.Author {
		return nil, wire.Errorf(wire.NotFound, "there is no request %s of that agent", m.RFP.ID())
	}
	return e.takeMove(ctx, r, seller, session, m)
}

// errUnchecked is about a move that counts if the details of its document are right.
var errUnchecked = errors.New("the details are to be checked")

// takeMove works on a move of a negotiation. Its author may have to be asked for the schema
// of its details: nobody waits for that but the move itself, and only one that would count
// is worth it.
func (e *Engine) takeMove(ctx context.Context, r *request, seller identity.AgentID, session string, m *deal.Signed) (*deal.Receipt, error) {
	receipt, err := e.apply(ctx, r, seller, session, m, false)
	if !errors.Is(err, errUnchecked) {
		return receipt, err
	}
	if err := e.details(ctx, m); err != nil {
		return nil, err
	}
	return e.apply(ctx, r, seller, session, m, true)
}

// apply adds a move to a negotiation as it stands. The error is errUnchecked if that would
// do, but for details that were not checked.
func (e *Engine) apply(ctx context.Context, r *request, seller identity.AgentID, session string, m *deal.Signed, checked bool) (*deal.Receipt, error) {
	t, err := e.talk(ctx, r, seller)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.usable(); err != nil {
		return nil, err
	}
	defer e.abandon(t)
	n := t.now()
	if n.Knows(m.Hash) {
		return e.receiptOf(n, m.Hash, nil), nil
	}
	if t.request.isCancelled() && m.Kind == deal.Propose && len(n.Moves()) == 0 {
		if err := e.cancelHeld(ctx, t, t.request.why()); err != nil {
			return nil, err
		}
		n = t.now()
	}
	now := time.Now()
	var b store.Batch
	next, res, err := e.next(n, m, now)
	if err == nil && !checked && m.Offer() != nil && m.Offer().DetailsSchema != nil {
		return nil, errUnchecked
	}
	if err != nil {
		if code := wire.CodeOf(err); code != wire.IllegalTransition {
			return nil, err
		}
		e.cfg.Logger.Debug("move refused", zap.String("negotiation", t.id), zap.Stringer("move", m.Kind), zap.Error(err))
		return e.receiptOf(n, m.Prev, err), nil
	}
	made := []*deal.Signed{m}
	if m.Kind == deal.Accept {
		if next, made, err = e.answer(&b, t, next, m, n.Deadline(), now); err != nil {
			t.request.count(t.id, n)
			return nil, err
		}
	}
	if err := e.commit(ctx, t, next, session, &b, made...); err != nil {
		t.request.count(t.id, n)
		return nil, err
	}
	for _, lost := range res.Superseded {
		e.events.publish(Event{Event: "superseded", RFP: t.request.id, Negotiation: &next, From: lost.Author, At: now})
	}
	for _, m := range made {
		e.tell(t, m)
	}
	if t.request.isCancelled() && allowed(next, t.role(), deal.Cancel) == nil { // the move has crossed that, and superseded it
		if err := e.cancelHeld(ctx, t, t.request.why()); err != nil {
			return nil, err
		}
	}
	return e.receiptOf(t.now(), m.Hash, nil), nil
}

// next is the negotiation after a move of the other side.
func (e *Engine) next(n deal.Negotiation, m *deal.Signed, now time.Time) (next deal.Negotiation, res deal.Result, err error) {
	if n.Round() >= e.cfg.MaxRounds && m.Offer() != nil {
		return n, res, wire.Errorf(wire.IllegalTransition, "%d offers were made, more than are considered here", n.Round())
	}
	if m.Offer() != nil && n.State(now.Add(-maxSkew)) == deal.Expired {
		return n, res, wire.Errorf(wire.IllegalTransition, "%s came after the deadline, %s", m.Kind, n.Deadline().Format(time.RFC3339))
	}
	return n.Next(m, now)
}

// answer is what the offeror says to an acceptance: it signs too, or says why not. Until
// expires the offer stood. What the answer promises is to be committed with b.
func (e *Engine) answer(b *store.Batch, t *talk, n deal.Negotiation, m *deal.Signed, expires, now time.Time) (deal.Negotiation, []*deal.Signed, error) {
	move := deal.Move{Kind: deal.Conclude, RFP: m.RFP, Author: e.cfg.Agent, To: m.Author, Prev: m.Hash, At: now}
	var err error
	switch {
	case !now.Before(expires):
		move.Kind, move.Reason = deal.Expire, "the offer expired at "+expires.Format(time.RFC3339)
	case t.request.isCancelled():
		move.Kind, move.Reason = deal.Reject, "the request is cancelled"
	case t.request.sent:
		if err = t.request.hold(t.id, n.Promised()); err != nil {
			move.Kind, move.Reason = deal.Reject, "the quantity is awarded"
		}
	}
	if move.Kind == deal.Conclude {
		key, _ := e.cfg.Signer()
		if move.ContractSignature, err = deal.SignContract(m.Document, key); err != nil {
			return n, nil, err
		}
	}
	own, err := e.sign(b, move)
	if err != nil {
		return n, nil, err
	}
	next, _, err := n.Next(own, now)
	return next, []*deal.Signed{m, own}, err
}

func (r *request) isCancelled() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent && r.cancelled
}

// why is the reason for which a request was cancelled.
func (r *request) why() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reason
}

// receiptOf answers a move after which, or after whose predecessor, the negotiation has
// moves of this side that the other one may not have.
func (e *Engine) receiptOf(n deal.Negotiation, after deal.Hash, err error) *deal.Receipt {
	r := &deal.Receipt{State: n.State(time.Now()).String(), Head: n.Head()}
	if err != nil {
		r.Code = wire.CodeOf(err)
	}
	for _, m := range n.Since(after) {
		if m.Author == e.cfg.Agent && len(r.Moves) < deal.MaxReceiptMoves {
			r.Moves = append(r.Moves, m.Raw)
		}
	}
	return r
}
