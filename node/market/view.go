package market

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"openmesh/node/store/deals"
	deal "openmesh/protocols/market"
)

// NegotiationState is how a negotiation stands.
type NegotiationState struct {
	Negotiation deal.Negotiation
	Contract    string // its id; empty: none
	Unsent      int    // moves of this agent that the other side has not answered
}

func (t *talk) state() NegotiationState {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.now()
	return NegotiationState{n, contractOf(n), len(t.unsent)}
}

// Request tells how a request stands, by its id or a unique prefix.
func (e *Engine) Request(ctx context.Context, id string) (RequestState, error) {
	if err := e.await(ctx); err != nil {
		return RequestState{}, err
	}
	r, err := e.request(ctx, id)
	if err != nil {
		return RequestState{}, err
	}
	return e.stateOf(r), nil
}

// Direction says which requests are listed.
type Direction = deals.Direction

// The directions.
const (
	Both     = deals.Both
	Sent     = deals.Sent
	Received = deals.Received
)

// Requests returns open requests of a direction, and if all is set those that are over,
// newest first.
func (e *Engine) Requests(ctx context.Context, d Direction, all bool, limit int) ([]RequestState, error) {
	if err := e.await(ctx); err != nil {
		return nil, err
	}
	found := make(map[string]*request)
	e.mu.Lock()
	for _, r := range e.requests {
		if d.Has(r.sent) {
			found[r.id] = r
		}
	}
	e.mu.Unlock()
	var rows []deals.Request
	if all {
		if err := e.rows.Requests(ctx, d, limit, func(r deals.Request) error { rows = append(rows, r); return nil }); err != nil {
			return nil, err
		}
	}
	for _, row := range rows {
		if found[row.ID] != nil {
			continue
		}
		r, err := e.readRequest(ctx, row)
		if err != nil {
			return nil, err
		}
		found[r.id] = r
	}
	return e.statesOf(slices.Collect(maps.Values(found)), all, limit), nil
}

// statesOf tells how requests stand, of all or those that are open, newest first.
func (e *Engine) statesOf(requests []*request, all bool, limit int) (states []RequestState) {
	slices.SortFunc(requests, func(a, b *request) int { return cmp.Or(b.move.At.Compare(a.move.At), cmp.Compare(a.id, b.id)) })
	for _, r := range requests {
		if len(states) == limit {
			break
		}
		if s := e.stateOf(r); all || s.State == "open" {
			states = append(states, s)
		}
	}
	return states
}

// Negotiation tells how a negotiation stands, by its id, that of its contract, or a
// unique prefix.
func (e *Engine) Negotiation(ctx context.Context, id string) (NegotiationState, error) {
	t, err := e.opened(ctx, id)
	if err != nil {
		return NegotiationState{}, err
	}
	return t.state(), nil
}

// Negotiations returns those of one request if its id is given, else those that are not
// over, and if all is set the others too; oldest first.
func (e *Engine) Negotiations(ctx context.Context, rfp string, all bool, limit int) ([]NegotiationState, error) {
	if err := e.await(ctx); err != nil {
		return nil, err
	}
	open := e.ongoing()
	var rows []deals.Negotiation
	collect := func(n deals.Negotiation) error { rows = append(rows, n); return nil }
	switch {
	case rfp != "":
		r, err := e.request(ctx, rfp)
		if err != nil {
			return nil, err
		}
		rfp = r.id
		if err := e.rows.Under(ctx, rfp, collect); err != nil {
			return nil, err
		}
	case all:
		if err := e.rows.Negotiations(ctx, limit, collect); err != nil {
			return nil, err
		}
	}
	return e.gather(ctx, open, rows, rfp, all || rfp != "", limit)
}

// ongoing are the negotiations that are open. Who lists others too takes these first:
// one that is closed meanwhile is in both.
func (e *Engine) ongoing() []*talk {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Values(e.talks))
}

// gather are the open negotiations and those of rows, of one request if it is given.
func (e *Engine) gather(ctx context.Context, open []*talk, rows []deals.Negotiation, rfp string, all bool, limit int) ([]NegotiationState, error) {
	found := make(map[string]NegotiationState)
	for _, t := range open {
		if len(t.now().Moves()) > 0 && (rfp == "" || t.request.id == rfp) {
			found[t.id] = t.state()
		}
	}
	for _, row := range rows {
		if _, there := found[row.ID]; there {
			continue
		}
		t, err := e.reopen(ctx, row.ID)
		if err != nil {
			return nil, err
		}
		found[t.id] = t.state()
	}
	var list []NegotiationState
	for _, s := range found {
		if all || !s.Negotiation.State(time.Now()).Done() {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b NegotiationState) int {
		return cmp.Or(a.Negotiation.Moves()[0].At.Compare(b.Negotiation.Moves()[0].At), cmp.Compare(a.Negotiation.ID(), b.Negotiation.ID()))
	})
	return list[max(0, len(list)-limit):], nil
}

// Contracts returns the negotiations that have a contract, newest first; those that are
// settled if all is set.
func (e *Engine) Contracts(ctx context.Context, all bool, limit int) ([]deal.Negotiation, error) {
	if err := e.await(ctx); err != nil {
		return nil, err
	}
	open := e.ongoing()
	var rows []deals.Negotiation
	if all {
		if err := e.rows.Contracts(ctx, limit, func(n deals.Negotiation) error { rows = append(rows, n); return nil }); err != nil {
			return nil, err
		}
	}
	states, err := e.gather(ctx, open, rows, "", all, maxContracts)
	var list []deal.Negotiation
	for _, s := range slices.Backward(states) {
		a := s.Negotiation.Agreement()
		if s.Contract != "" && len(list) < limit && (all || time.Now().Before(a.Contract.ValidUntil)) {
			list = append(list, s.Negotiation)
		}
	}
	return list, err
}

// maxContracts bounds what is looked through for contracts.
const maxContracts = 1 << 20
