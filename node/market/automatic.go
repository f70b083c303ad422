package market

import (
	"context"
	"encoding/json"
	"time"

	"go.uber.org/zap"

	deal "openmesh/protocols/market"
	"openmesh/protocols/wire"
)

// Decider says what to do in a negotiation when it is this agent's turn: n is nil while
// nothing was said about the request. It may be asked about the same situation again. It
// is also told of a contract, by whichever side was made, and then has nothing to decide.
type Decider func(ctx context.Context, rfp *deal.Signed, n *deal.Negotiation) (Decision, error)

// Decision is a move to make; of kind 0 none.
type Decision struct {
	Kind     deal.Kind
	Document json.RawMessage // of propose, counter and amend: what is not as before
	Reason   string
}

// decide asks the decider, if it is this agent's turn to answer, or tells it of a contract.
func (e *Engine) decide(t *talk) {
	n := t.now()
	switch {
	case e.cfg.Decide == nil:
		return
	case contractOf(n) != "":
		e.announce(t)
		return
	case n.Turn(time.Now()) != n.RoleOf(e.cfg.Agent) || n.State(time.Now()).Done():
		return
	}
	head := n.Head()
	e.decisions.add(func(ctx context.Context) {
		if t.now().Head() != head {
			return
		}
		d, err := e.cfg.Decide(ctx, t.request.move, &n)
		if err == nil && d.Kind != 0 {
			err = e.follow(ctx, t, head, d)
		}
		e.decided(t.id, err)
	})
}

// announce tells the decider of a contract, once. A decider that fails is told again after
// the next start, and so is one for which it was not stored any more that it knows.
func (e *Engine) announce(t *talk) {
	if !t.telling.CompareAndSwap(false, true) {
		return
	}
	e.decisions.add(func(ctx context.Context) {
		n := t.now()
		if _, err := e.cfg.Decide(ctx, t.request.move, &n); err != nil {
			if ctx.Err() == nil {
				e.cfg.Logger.Warn("contract not told", zap.String("negotiation", t.id), zap.Error(err))
			}
			return
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		t.told = true
		e.soil(t)
	})
}

// decideRequest asks the decider about a request of another agent.
func (e *Engine) decideRequest(r *request) {
	if e.cfg.Decide == nil || r.sent {
		return
	}
	e.decisions.add(func(ctx context.Context) {
		d, err := e.cfg.Decide(ctx, r.move, nil)
		if err == nil && d.Kind != 0 {
			var t *talk
			if t, err = e.sells(ctx, r.id); err == nil {
				err = e.follow(ctx, t, r.move.Hash, d)
			}
		}
		e.decided(r.id, err)
	})
}

func (e *Engine) decided(id string, err error) {
	if err != nil && wire.CodeOf(err) != wire.IllegalTransition {
		e.cfg.Logger.Warn("automatic move not made", zap.String("negotiation", id), zap.Error(err))
	} else if err != nil {
		e.cfg.Logger.Debug("automatic move not made", zap.String("negotiation", id), zap.Error(err))
	}
}

// follow does what was decided when head was the last move. Whoever decides does not wait
// until the move has reached the other side.
func (e *Engine) follow(ctx context.Context, t *talk, head deal.Hash, d Decision) error {
	var build builder
	switch d.Kind {
	case deal.Propose, deal.Counter, deal.Amend:
		build = e.offering(t, d.Kind, d.Document)
	case deal.Accept:
		build = accepting(t, d.Reason)
	case deal.Reject, deal.Withdraw:
		build = ending(d.Kind, d.Reason)
	default:
		return wire.Errorf(wire.IllegalTransition, "nobody decides to %s by itself", d.Kind)
	}
	_, err := e.move(ctx, t, &head, build)
	return err
}
