package market

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"openmesh/node/audit"
	"openmesh/node/market/fill"
	"openmesh/node/store"
	"openmesh/node/store/deals"
	"openmesh/protocols/identity"
	deal "openmesh/protocols/market"
	"openmesh/protocols/market/document"
	"openmesh/protocols/wire"
)

// request is a request for proposals, of this agent or received.
type request struct {
	id    string
	move  *deal.Signed
	rfp   *deal.RFP
	sent  bool      // by this agent
	since time.Time // when it was made or taken here

	mu        sync.Mutex
	cancelled bool
	reason    string                    // why it was
	done      bool                      // in the database, too
	asked     map[identity.AgentID]bool // of those it was sent to: who has it
	spoken    map[identity.AgentID]bool // sellers that have said something, or will not have it
	held      map[string]int64          // quantity accepted or under contract, by negotiation
	sellers   int
	searching bool      // for providers, right then
	next      time.Time // when providers are looked for again
	wait      time.Duration
}

// stored is what the row of a request holds.
type stored struct {
	Move      []byte                    `json:"move"`
	Cancelled bool                      `json:"cancelled,omitempty"`
	Reason    string                    `json:"reason,omitempty"`
	Asked     map[identity.AgentID]bool `json:"asked,omitempty"`
	Since     time.Time                 `json:"since,omitzero"`
}

func newRequest(m *deal.Signed, sent bool) *request {
	return &request{
		id: m.Hash.ID(), move: m, rfp: m.Request(), sent: sent, since: time.Now().UTC(),
		asked: make(map[identity.AgentID]bool), spoken: make(map[identity.AgentID]bool), held: make(map[string]int64), wait: firstAsk,
	}
}

// row is r as it is stored; r.mu is held.
func (r *request) row() deals.Request {
	data, err := json.Marshal(stored{r.move.Raw, r.cancelled, r.reason, r.asked, r.since})
	if err != nil {
		panic(err) // of plain values
	}
	return deals.Request{ID: r.id, Sent: r.sent, Created: r.move.At, Done: r.done, Data: data}
}

// RequestState is how a request stands.
type RequestState struct {
	Move                    *deal.Signed
	Sent                    bool
	State                   string // open, closed, cancelled or expired
	Awarded, Reserved       int64
	Asked, Reached, Sellers int
	Searching               bool // providers are being looked for: more may be asked
	Awaited                 int  // of those asked: who has not answered in any way
}

// PostRFP signs a request for proposals of this agent and has it sent to providers. The
// document is JSON of market/rfp@v1.0.0, of which buyer, time and schema are filled in.
// Errors: wire.InvalidRequest with JSON pointers.
func (e *Engine) PostRFP(ctx context.Context, given []byte) (RequestState, error) {
	if err := e.await(ctx); err != nil {
		return RequestState{}, err
	}
	now := time.Now().UTC()
	doc, err := fill.Request(given, e.cfg.Agent, now)
	if err != nil {
		return RequestState{}, err
	}
	var b store.Batch
	m, release, err := e.original(ctx, &b, doc, now)
	if err != nil {
		return RequestState{}, err
	}
	defer release()
	rfp := m.Request()
	if !rfp.Deadline.After(now) {
		return RequestState{}, &wire.Error{Code: wire.InvalidRequest, Message: "the deadline has passed", Pointers: []string{"/deadline"}}
	}
	if err := e.details(ctx, m); err != nil {
		return RequestState{}, err
	}
	r := newRequest(m, true)
	if err := e.keepRequest(ctx, &b, r, "sent", ""); err != nil {
		return RequestState{}, err
	}
	e.events.publish(Event{Event: "posted", RFP: r.id, From: e.cfg.Agent, At: now})
	e.mind(ctx, r, now)
	return e.stateOf(r), nil
}

// original signs a request that is none of those that this agent has made: two of one
// document in one millisecond would be the same. Nobody else has it until release.
func (e *Engine) original(ctx context.Context, b *store.Batch, doc []byte, now time.Time) (m *deal.Signed, release func(), err error) {
	for ; ; now = now.Add(time.Millisecond) {
		m, err = e.sign(b, deal.Move{Kind: deal.Request, Author: e.cfg.Agent, At: now, Schema: document.SchemaRFP, Document: doc})
		if err != nil {
			return nil, nil, err
		}
		if release, err = e.claim(ctx, m.Hash.ID()); err != nil {
			return nil, nil, err
		}
		_, err = e.claimed(ctx, m.Hash.ID())
		if wire.CodeOf(err) == wire.NotFound {
			return m, release, nil
		}
		release()
		if err != nil {
			return nil, nil, err
		}
	}
}

// keepRequest stores a new request, which is claimed, together with b, and knows it from
// then on.
func (e *Engine) keepRequest(ctx context.Context, b *store.Batch, r *request, direction, session string) error {
	r.mu.Lock()
	e.rows.PutRequest(b, r.row())
	r.mu.Unlock()
	entry := audit.Entry{
		At: time.Now(), Kind: "market.rfp", Direction: direction, Session: session, Ref: r.id, Payload: r.move.Raw, Note: deal.Requested.String(),
	}
	if direction == "received" {
		entry.Agent = r.move.Author
	}
	if _, _, err := e.cfg.Log.Commit(context.WithoutCancel(ctx), "store a request for proposals", b, entry); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.add(r)
	return nil
}

// takeRequest is a request of another agent that came over a session, or a broadcast: it
// may come both ways at once.
func (e *Engine) takeRequest(ctx context.Context, session string, m *deal.Signed) (*deal.Receipt, error) {
	release, err := e.claim(ctx, m.Hash.ID())
	if err != nil {
		return nil, err
	}
	defer release()
	known, err := e.claimed(ctx, m.Hash.ID())
	if err == nil && known.move.Hash == m.Hash {
		return &deal.Receipt{State: deal.Requested.String(), Head: m.Hash}, nil
	}
	now, rfp := time.Now(), m.Request()
	switch {
	case m.Author == e.cfg.Agent:
		return nil, wire.Errorf(wire.Denied, "request %s is this agent's own", m.Hash.ID())
	case !rfp.Deadline.After(now):
		return nil, wire.Errorf(wire.IllegalTransition, "request %s had expired", m.Hash.ID())
	case !e.cfg.Offers(m.Author, rfp.Capability, rfp.Version):
		return nil, wire.Errorf(wire.NotFound, "%s is not offered here", rfp.Capability)
	}
	free, err := e.reserve(m.Author)
	if err != nil {
		return nil, err
	}
	defer free()
	if err := e.details(ctx, m); err != nil {
		return nil, err
	}
	if err := e.room(ctx); err != nil {
		return nil, err
	}
	r := newRequest(m, false)
	if err := e.keepRequest(ctx, new(store.Batch), r, "received", session); err != nil {
		return nil, err
	}
	e.events.publish(Event{Event: "posted", RFP: r.id, From: m.Author, At: now})
	e.decideRequest(r)
	return &deal.Receipt{State: deal.Requested.String(), Head: m.Hash}, nil
}

// details checks details of a move's document against the schema that they name.
func (e *Engine) details(ctx context.Context, m *deal.Signed) error {
	var ref *deal.SchemaRef
	var details []byte
	if r, o := m.Request(), m.Offer(); r != nil {
		ref, details = r.DetailsSchema, r.Details
	} else if o != nil {
		ref, details = o.DetailsSchema, o.Details
	}
	if ref == nil || e.cfg.Details == nil {
		return nil
	}
	err := e.cfg.Details(ctx, m.Author, ref.Name, ref.CID, details)
	var bad *wire.Error
	if errors.As(err, &bad) && len(bad.Pointers) > 0 {
		located := *bad
		located.Pointers = nil
		for _, p := range bad.Pointers {
			located.Pointers = append(located.Pointers, "/details"+p)
		}
		return &located
	}
	return err
}

// count notes that a seller speaks, and what the negotiation holds of the quantity. What
// failed may be awarded again.
func (r *request) count(id string, n deal.Negotiation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(n.Moves()) > 0 {
		r.spoken[n.Seller()] = true
	}
	if q := n.Promised(); q > 0 {
		r.held[id] = q
	} else {
		delete(r.held, id)
	}
}

// hold takes a quantity for a negotiation, if so much is left.
func (r *request) hold(id string, quantity int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	left := r.rfp.Quantity
	for other, q := range r.held {
		if other != id {
			left -= q
		}
	}
	if quantity > left {
		return wire.Errorf(wire.IllegalTransition, "%d units are wanted, %d of %d are not awarded yet", quantity, max(left, 0), r.rfp.Quantity).
			WithHint("Ask for fewer in a counteroffer, or post another request.")
	}
	r.held[id] = quantity
	return nil
}

// CancelRFP ends a request of this agent, and tells those who have it.
func (e *Engine) CancelRFP(ctx context.Context, id, reason string) (RequestState, error) {
	if err := e.await(ctx); err != nil {
		return RequestState{}, err
	}
	r, err := e.request(ctx, id)
	if err != nil {
		return RequestState{}, err
	}
	if !r.sent {
		return RequestState{}, wire.Errorf(wire.Denied, "request %s is of %s: only its buyer cancels it", r.id, r.move.Author)
	}
	r.mu.Lock()
	if r.done || r.cancelled {
		r.mu.Unlock()
		return RequestState{}, wire.Errorf(wire.IllegalTransition, "request %s is over", r.id)
	}
	r.cancelled, r.reason = true, reason
	var b store.Batch
	e.rows.PutRequest(&b, r.row())
	stored := e.put("cancel a request", &b)
	r.mu.Unlock()
	if err := stored(context.WithoutCancel(ctx)); err != nil {
		return RequestState{}, err
	}
	e.cancelAll(ctx, r)
	return e.stateOf(r), nil
}

// cancelAll cancels what is negotiated under a cancelled request and not yet accepted,
// with all who were asked and all who have offered.
func (e *Engine) cancelAll(ctx context.Context, r *request) {
	r.mu.Lock()
	reason := r.reason
	sellers := slices.Collect(maps.Keys(r.asked))
	r.mu.Unlock()
	e.mu.Lock()
	for _, t := range e.talks {
		if t.request == r && !slices.Contains(sellers, t.peer()) {
			sellers = append(sellers, t.peer())
		}
	}
	e.mu.Unlock()
	slices.Sort(sellers)
	for _, a := range sellers {
		t, err := e.talk(ctx, r, a)
		if err == nil {
			err = e.cancel(ctx, t, reason)
		}
		if err != nil && wire.CodeOf(err) != wire.IllegalTransition {
			e.cfg.Logger.Warn("negotiation not cancelled", zap.String("rfp", r.id), zap.String("agent", string(a)), zap.Error(err))
		}
	}
}

// stateOf tells how a request stands.
func (e *Engine) stateOf(r *request) RequestState {
	r.mu.Lock()
	held := slices.Collect(maps.Keys(r.held))
	r.mu.Unlock()
	reserved := make(map[string]bool)
	e.mu.Lock()
	for _, id := range held {
		t := e.talks[id]
		reserved[id] = t != nil && t.now().State(time.Time{}) == deal.Accepted
	}
	e.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	s := RequestState{Move: r.move, Sent: r.sent, State: "open", Asked: len(r.asked), Sellers: r.sellers, Searching: r.searching}
	for id, q := range r.held {
		if reserved[id] {
			s.Reserved += q
		} else {
			s.Awarded += q
		}
	}
	for a, has := range r.asked {
		if has {
			s.Reached++
		}
		if !r.spoken[a] {
			s.Awaited++
		}
	}
	switch {
	case r.cancelled:
		s.State = "cancelled"
	case s.Awarded >= r.rfp.Quantity:
		s.State = "closed"
	case !r.rfp.Deadline.After(time.Now()):
		s.State = "expired"
	}
	return s
}
