package market

import (
	"context"
	"sync"
	"time"

	"openmesh/node/audit"
	"openmesh/node/store"
	"openmesh/protocols/descriptor"
	"openmesh/protocols/identity"
	deal "openmesh/protocols/market"
	"openmesh/protocols/wire"
)

// use is what was used of a contract that this agent sells.
type use struct {
	mu   sync.Mutex
	keys map[string]bool // of the calls; nil: not read yet
}

// under returns the negotiation of a contract by the contract's id or a unique prefix.
func (e *Engine) under(ctx context.Context, id string) (*talk, error) {
	if err := checkID("contract", id); err != nil {
		return nil, err
	}
	row, err := e.rows.Contract(ctx, id)
	if err != nil {
		return nil, err
	}
	return e.reopen(ctx, row.ID)
}

// Contract returns the negotiation of a contract.
func (e *Engine) Contract(ctx context.Context, id string) (deal.Negotiation, error) {
	if err := e.await(ctx); err != nil {
		return deal.Negotiation{}, err
	}
	t, err := e.under(ctx, id)
	if err != nil {
		return deal.Negotiation{}, err
	}
	return t.now(), nil
}

// sold returns a contract that this agent sells to buyer, and its negotiation, if work
// may be done under it now.
func (e *Engine) sold(ctx context.Context, id string, buyer identity.AgentID) (*deal.Agreement, deal.Negotiation, error) {
	n, err := e.Contract(ctx, id)
	if err != nil {
		return nil, n, err
	}
	a := n.Agreement()
	if a == nil || a.Conclude == nil || a.ID != id || n.Seller() != e.cfg.Agent || n.Buyer() != buyer {
		return a, n, wire.Errorf(wire.NotFound, "there is no contract %s with %s", id, buyer)
	}
	now := time.Now()
	if s := n.State(now); s != deal.Contracted && s != deal.Settling {
		return a, n, wire.Errorf(wire.Denied, "contract %s is %s", id, s)
	}
	if now.Before(a.Contract.ValidFrom.Add(-maxSkew)) || !now.Before(a.Contract.ValidUntil) {
		return a, n, wire.Errorf(wire.Denied, "contract %s is valid from %s until %s", id, a.Contract.ValidFrom.Format(time.RFC3339), a.Contract.ValidUntil.Format(time.RFC3339))
	}
	return a, n, nil
}

// Admit reports whether buyer may open a session under a contract. Errors: wire.NotFound
// for one that is unknown or another's, wire.Denied for one that is over, not in force or
// used up.
func (e *Engine) Admit(ctx context.Context, id string, buyer identity.AgentID) error {
	a, _, err := e.sold(ctx, id, buyer)
	if err != nil {
		return err
	}
	used, err := e.Used(ctx, id)
	if err == nil && used >= a.Contract.Terms.Quantity {
		err = usedUp(a)
	}
	return err
}

func usedUp(a *deal.Agreement) error {
	return wire.Errorf(wire.Denied, "all %d units of contract %s are used", a.Contract.Terms.Quantity, a.ID)
}

// Used returns how many units of a contract were used.
func (e *Engine) Used(ctx context.Context, id string) (int64, error) {
	u := e.useOf(id)
	u.mu.Lock()
	defer u.mu.Unlock()
	err := e.readUses(ctx, id, u)
	return int64(len(u.keys)), err
}

func (e *Engine) useOf(id string) *use {
	e.mu.Lock()
	defer e.mu.Unlock()
	u := e.uses[id]
	if u == nil {
		u = new(use)
		e.uses[id] = u
	}
	return u
}

func (e *Engine) readUses(ctx context.Context, id string, u *use) (err error) {
	if u.keys == nil {
		u.keys, err = e.rows.Uses(ctx, id)
	}
	return err
}

// Begin takes one unit of a contract for a call of buyer, durably. A call with the same
// key takes none. done gives the unit back if the work was not done.
func (e *Engine) Begin(ctx context.Context, id, capability, key string, buyer identity.AgentID) (done func(ok bool), err error) {
	a, n, err := e.sold(ctx, id, buyer)
	if err != nil {
		return nil, err
	}
	if !descriptor.Covers(a.Contract.Terms.Capability, capability) {
		return nil, wire.Errorf(wire.Denied, "contract %s is for %s", id, a.Contract.Terms.Capability)
	}
	u := e.useOf(id)
	u.mu.Lock()
	err = e.readUses(ctx, id, u)
	known := u.keys[key]
	switch {
	case err != nil || known:
	case int64(len(u.keys)) >= a.Contract.Terms.Quantity:
		err = usedUp(a)
	default:
		u.keys[key] = true
	}
	u.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if !known {
		var b store.Batch
		e.rows.PutUse(&b, id, key)
		if err := e.recordUse(ctx, &b, a, key, "used"); err != nil {
			u.forget(key)
			return nil, err
		}
		e.events.publish(Event{Event: "used", RFP: a.Contract.RFP.ID(), Negotiation: &n, Contract: id, From: buyer, At: time.Now()})
	}
	return func(ok bool) {
		if ok {
			return
		}
		var b store.Batch
		e.rows.DeleteUse(&b, id, key)
		if err := e.recordUse(ctx, &b, a, key, "returned"); err == nil {
			u.forget(key)
		}
	}, nil
}

func (u *use) forget(key string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.keys, key)
}

func (e *Engine) recordUse(ctx context.Context, b *store.Batch, a *deal.Agreement, key, note string) error {
	_, _, err := e.cfg.Log.Commit(context.WithoutCancel(ctx), "store a use of a contract", b, audit.Entry{
		At: time.Now(), Kind: "contract.used", Direction: "local", Agent: a.Contract.Buyer.Agent, Ref: a.ID, Payload: []byte(key), Note: note,
	})
	return err
}

// Spent notes that a call of this agent under a contract was answered, for its own
// account: what counts is that of the seller.
func (e *Engine) Spent(id, key string) {
	e.jobs.add(func(ctx context.Context) {
		u := e.useOf(id)
		u.mu.Lock()
		defer u.mu.Unlock()
		var b store.Batch
		e.rows.PutUse(&b, id, key)
		err := e.readUses(ctx, id, u)
		if err == nil {
			_, err = e.cfg.DB.Exec(ctx, "store a use of a contract", &b)
		}
		if err == nil {
			u.keys[key] = true
		}
	})
}
