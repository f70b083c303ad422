package market

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	id   string
	move *deal.Signed
	rfp  *deal.RFP
	sent bool // by this agent

	mu        sync.Mutex
	cancelled bool
	reason    string                    // why it was
	done      bool                      // in the database, too
	asked     map[identity.AgentID]bool // of those it was sent to: who has it
	held      map[string]int64          // quantity accepted or under contract, by negotiation
	sellers   int
	next      time.Time // when providers are looked for again
	wait      time.Duration
}

// stored is what the row of a request holds.
type stored struct {
	Move      []byte                    `json:"move"`
	Cancelled bool                      `json:"cancelled,omitempty"`
	Reason    string                    `json:"reason,omitempty"`
	Asked     map[identity.AgentID]bool `json:"asked,omitempty"`
}

func newRequest(m *deal.Signed, sent bool) *request {
	return &request{
		id: m.Hash.ID(), move: m, rfp: m.Request(), sent: sent,
		asked: make(map[identity.AgentID]bool), held: make(map[string]int64), wait: firstAsk,
	}
}

// row is r as it is stored; r.mu is held.
func (r *request) row() deals.Request {
	data, err := json.Marshal(stored{r.move.Raw, r.cancelled, r.reason, r.asked})
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
		_, err = e.request(ctx, m.Hash.ID())
		if wire.CodeOf(err) == wire.NotFound {
			return m, release, nil
		}
		release()
		if err != nil {
			return nil, nil, err
		}
	}
}

// keepRequest stores a new request, together with b, and knows it from then on.
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
	if _, known := e.requests[r.id]; !known {
		e.requests[r.id] = r
		e.count(r, 1)
	}
	return nil
}

// count notes that a request is there, or is not any more; e.mu is held.
func (e *Engine) count(r *request, change int) {
	if r.sent {
		return
	}
	buyer := r.move.Author
	e.received += change
	if e.buyers[buyer] += change; e.buyers[buyer] == 0 {
		delete(e.buyers, buyer)
	}
}

// claim waits until nobody else takes the request with that id: it comes over sessions
// and topics at the same time, and is taken once.
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

// takeRequest is a request of another agent that came over a session, or a broadcast: it
// may come both ways at once.
func (e *Engine) takeRequest(ctx context.Context, session string, m *deal.Signed) (*deal.Receipt, error) {
	release, err := e.claim(ctx, m.Hash.ID())
	if err != nil {
		return nil, err
	}
	defer release()
	known, err := e.request(ctx, m.Hash.ID())
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
	if err := e.room(m.Author); err != nil {
		return nil, err
	}
	if err := e.details(ctx, m); err != nil {
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

// room refuses a request that is one too many: one buyer gets a quarter of what there
// is.
func (e *Engine) room(buyer identity.AgentID) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	of := e.buyers[buyer]
	if e.received >= e.cfg.MaxOpen || of >= max(e.cfg.MaxOpen/4, 1) {
		return wire.Errorf(wire.ResourceExhausted, "%d requests are open, %d of them of %s", e.received, of, buyer)
	}
	return nil
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

// request returns a request by its id or a unique prefix, also one that is over.
func (e *Engine) request(ctx context.Context, id string) (*request, error) {
	if err := checkID("request", id); err != nil {
		return nil, err
	}
	e.mu.Lock()
	r := e.requests[id]
	e.mu.Unlock()
	if r != nil {
		return r, nil
	}
	row, err := e.rows.Request(ctx, id)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	r = e.requests[row.ID]
	e.mu.Unlock()
	if r != nil {
		return r, nil
	}
	return e.readRequest(ctx, row)
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

// count notes what a negotiation holds of the quantity. What failed may be awarded again.
func (r *request) count(id string, n deal.Negotiation) {
	r.mu.Lock()
	defer r.mu.Unlock()
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

// mind looks for providers of a request of this agent when that is due, and closes a
// request that is over.
func (e *Engine) mind(ctx context.Context, r *request, now time.Time) {
	r.mu.Lock()
	over := r.cancelled || !r.rfp.Deadline.After(now)
	due := r.sent && !over && !now.Before(r.next)
	if due {
		r.next = now.Add(r.wait)
		r.wait = min(r.wait*2, lastAsk)
	}
	r.mu.Unlock()
	switch {
	case due:
		e.jobs.add(func(ctx context.Context) { e.ask(ctx, r) })
	case over:
		e.closeRequest(ctx, r)
	}
}

// closeRequest forgets a request that is over, once its negotiations are.
func (e *Engine) closeRequest(ctx context.Context, r *request) {
	e.mu.Lock()
	busy := e.open[r.id] > 0
	e.mu.Unlock()
	if busy {
		return
	}
	r.mu.Lock()
	r.done = true
	var b store.Batch
	e.rows.PutRequest(&b, r.row())
	stored := e.put("close a request", &b)
	r.mu.Unlock()
	if err := stored(ctx); err != nil {
		return // the next sweep tries again
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.requests[r.id] == r {
		delete(e.requests, r.id)
		e.count(r, -1)
	}
}

// ask sends a request to providers that do not have it yet, and to all who listen.
func (e *Engine) ask(ctx context.Context, r *request) {
	r.mu.Lock()
	first := len(r.asked) == 0
	r.mu.Unlock()
	if first {
		e.cfg.Peers.Broadcast(ctx, r.rfp, r.move.Raw)
	}
	found, err := e.cfg.Peers.Providers(ctx, r.rfp, e.cfg.Reach)
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
	r.mu.Unlock()
	for _, a := range send {
		e.jobs.add(func(ctx context.Context) { e.sendRequest(ctx, r, a, 0) })
	}
}

// sendRequest sends a request to one provider until it has it, or the deadline passes.
func (e *Engine) sendRequest(ctx context.Context, r *request, to identity.AgentID, tries int) {
	if !r.rfp.Deadline.After(time.Now()) {
		return
	}
	receipt, session, err := e.post(ctx, to, attempt(r.move.Hash, tries), r.move.Raw)
	e.cfg.Observe("sent", deal.Request, err)
	switch code := wire.CodeOf(err); {
	case ctx.Err() != nil:
		return
	case err != nil && permanent(code):
		e.cfg.Logger.Debug("request refused", zap.String("rfp", r.id), zap.String("agent", string(to)), zap.Error(err))
		return
	case err != nil:
		if code != wire.DeadlineExceeded {
			tries++
		}
		time.AfterFunc(retryAfter(tries), func() {
			e.jobs.add(func(ctx context.Context) { e.sendRequest(ctx, r, to, tries) })
		})
		return
	}
	e.cfg.Log.Note(e.receiptEntry(r.id, to, session, receipt))
	r.mu.Lock()
	r.asked[to] = true
	var b store.Batch
	e.rows.PutRequest(&b, r.row())
	stored := e.put("store who has a request", &b)
	r.mu.Unlock()
	if err := stored(ctx); err != nil {
		e.cfg.Logger.Debug("who has a request is not stored", zap.Error(err)) // it would be sent again
	}
	e.events.publish(Event{Event: "reached", RFP: r.id, From: to, At: time.Now()})
	e.takeAll(ctx, to, session, receipt.Moves)
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
	s := RequestState{Move: r.move, Sent: r.sent, State: "open", Asked: len(r.asked), Sellers: r.sellers}
	for id, q := range r.held {
		if reserved[id] {
			s.Reserved += q
		} else {
			s.Awarded += q
		}
	}
	for _, has := range r.asked {
		if has {
			s.Reached++
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
