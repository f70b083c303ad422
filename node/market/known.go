package market

import (
	"context"
	"encoding/json"
	"fmt"
	"weak"

	"openmesh/node/store/deals"
	deal "openmesh/protocols/market"
)

// All that is promised of a request is counted in one place: whoever works on a request
// has the same *request, also if it is over and known to nobody else. So has whoever works
// on a negotiation the same *talk: moves are made of it one after another.

// request returns a request by its id or a unique prefix, also one that is over.
func (e *Engine) request(ctx context.Context, id string) (*request, error) {
	if err := checkID("request", id); err != nil {
		return nil, err
	}
	if r := e.inMemory(id); r != nil {
		return r, nil
	}
	row, err := e.rows.Request(ctx, id)
	if err != nil {
		return nil, err
	}
	release, err := e.claim(ctx, row.ID)
	if err != nil {
		return nil, err
	}
	defer release()
	return e.claimed(ctx, row.ID)
}

// claimed is request by the whole id, for who has claimed it.
func (e *Engine) claimed(ctx context.Context, id string) (*request, error) {
	if r := e.inMemory(id); r != nil {
		return r, nil
	}
	row, err := e.rows.Request(ctx, id)
	if err != nil {
		return nil, err
	}
	r, err := e.readRequest(ctx, row)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.known[r.id] = weak.Make(r)
	return r, nil
}

// inMemory returns a request by its id, if somebody has it.
func (e *Engine) inMemory(id string) *request {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.known[id].Value()
}

// add has a request in memory; e.mu is held.
func (e *Engine) add(r *request) {
	if e.requests[r.id] == nil {
		e.requests[r.id] = r
		e.known[r.id] = weak.Make(r)
		if !r.sent {
			e.count(r.move.Author, 1)
		}
	}
}

// readRequest makes a request of its row.
func (e *Engine) readRequest(ctx context.Context, row deals.Request) (*request, error) {
	var s stored
	err := json.Unmarshal(row.Data, &s)
	var m *deal.Signed
	if err == nil {
		m, err = deal.Parse(s.Move)
	}
	if err != nil {
		return nil, fmt.Errorf("stored request %s: %w", row.ID, err)
	}
	r := newRequest(m, row.Sent)
	r.cancelled, r.reason, r.done = s.Cancelled, s.Reason, row.Done
	if s.Asked != nil {
		r.asked = s.Asked
	}
	if !s.Since.IsZero() {
		r.since = s.Since
	}
	err = e.rows.Under(ctx, r.id, func(row deals.Negotiation) error {
		t, err := readTalk(r, row)
		if err == nil {
			r.count(t.id, t.now())
			r.sellers++
		}
		return err
	})
	return r, err
}

// find returns a negotiation by its id or a unique prefix, also one that is over.
func (e *Engine) find(ctx context.Context, id string) (*talk, error) {
	if err := checkID("negotiation", id); err != nil {
		return nil, err
	}
	if t := e.talkInMemory(id); t != nil {
		return t, nil
	}
	row, err := e.rows.Negotiation(ctx, id)
	if err != nil {
		return nil, err
	}
	return e.reopen(ctx, row.ID)
}

// reopen returns a negotiation by its whole id.
func (e *Engine) reopen(ctx context.Context, id string) (*talk, error) {
	release, err := e.claim(ctx, id)
	if err != nil {
		return nil, err
	}
	defer release()
	if t := e.talkInMemory(id); t != nil {
		return t, nil
	}
	row, err := e.rows.Negotiation(ctx, id)
	if err != nil {
		return nil, err
	}
	r, err := e.request(ctx, row.Request)
	if err != nil {
		return nil, err
	}
	t, err := readTalk(r, row)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.negotiations[id] = weak.Make(t)
	return t, nil
}

// talkInMemory returns a negotiation by its id, if somebody has it.
func (e *Engine) talkInMemory(id string) *talk {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.negotiations[id].Value()
}

// clean forgets what nobody has any more; e.mu is held.
func (e *Engine) clean() {
	for id, r := range e.known {
		if r.Value() == nil {
			delete(e.known, id)
		}
	}
	for id, t := range e.negotiations {
		if t.Value() == nil {
			delete(e.negotiations, id)
		}
	}
}

// claim waits until nobody else takes or reads the request or negotiation with that id: it
// comes over sessions and topics at the same time, and is taken once.
func (e *Engine) claim(ctx context.Context, id string) (release func(), err error) {
	for {
		e.mu.Lock()
		other := e.taking[id]
		if other == nil {
			break
		}
		e.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	defer e.mu.Unlock()
	done := make(chan struct{})
	e.taking[id] = done
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.taking, id)
		close(done)
	}, nil
}
