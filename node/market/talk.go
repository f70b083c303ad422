package market

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"go.uber.org/zap"

	"openmesh/node/audit"
	"openmesh/node/store"
	"openmesh/node/store/deals"
	"openmesh/protocols/identity"
	deal "openmesh/protocols/market"
	"openmesh/protocols/wire"
)

// talk is one negotiation with the other side.
type talk struct {
	id      string
	request *request

	mu      sync.Mutex                       // held while a move is made
	n       atomic.Pointer[deal.Negotiation] // changed with mu held
	unsent  []deal.Hash                      // own moves without a receipt, in order
	over    bool                             // nothing is left to do
	refused deal.Hash                        // the last own move that the other side would not have,
	reason  wire.Code                        // and why
	told    bool                             // the decider knows of the contract
	stale   bool                             // what is stored may be something else: read it again

	telling atomic.Bool // the decider is told of the contract, or was
	sending atomic.Bool
	tries   atomic.Int32  // messages with the first of unsent that came to nothing
	fails   atomic.Int32  // attempts to send it, also those for which the message is on its way
	retry   atomic.Int64  // when the next attempt is due, in Unix nanoseconds
	changed chan struct{} // closed when something has; with mu held
}

func newTalk(r *request, n deal.Negotiation) *talk {
	t := &talk{id: n.ID(), request: r, changed: make(chan struct{})}
	t.n.Store(&n)
	return t
}

// now is the negotiation as it stands.
func (t *talk) now() deal.Negotiation { return *t.n.Load() }

// peer is the other side.
func (t *talk) peer() identity.AgentID {
	n := t.now()
	if t.request.sent {
		return n.Seller()
	}
	return n.Buyer()
}

// role is this agent's.
func (t *talk) role() deal.Role {
	if t.request.sent {
		return deal.Buyer
	}
	return deal.Seller
}

// row is a negotiation as it is stored.
func (t *talk) row(n deal.Negotiation, unsent []deal.Hash) (deals.Negotiation, error) {
	encoded, err := n.Encode()
	if err != nil {
		return deals.Negotiation{}, err
	}
	return deals.Negotiation{
		ID: t.id, Request: t.request.id, Contract: contractOf(n), Created: n.Moves()[0].At,
		Done: len(unsent) == 0 && ended(n, time.Now()), Data: appendRest(encoded, unsent, t.told),
	}, nil
}

// toldBit is set beside the number of hashes if the decider knows of the contract.
const toldBit = 1 << 15

// appendRest adds to a stored negotiation the hashes of moves that have no receipt, and
// whether the decider knows of the contract:
//
//	negotiation ‖ hash ‖ … ‖ number of hashes + toldBit if it does, 2 bytes
func appendRest(b []byte, hashes []deal.Hash, told bool) []byte {
	for _, h := range hashes {
		b = append(b, h[:]...)
	}
	number := uint16(len(hashes))
	if told {
		number |= toldBit
	}
	return binary.BigEndian.AppendUint16(b, number)
}

// cutRest takes apart what appendRest made.
func cutRest(b []byte) (negotiation []byte, hashes []deal.Hash, told bool, err error) {
	const size = len(deal.Hash{})
	end := len(b) - 2
	if end < 0 {
		return nil, nil, false, wire.Errorf(wire.Malformed, "a row of %d bytes", len(b))
	}
	number := binary.BigEndian.Uint16(b[end:])
	begin := end - size*int(number&^toldBit)
	if begin < 0 {
		return nil, nil, false, wire.Errorf(wire.Malformed, "a row of %d bytes that ends within its hashes", len(b))
	}
	for at := begin; at < end; at += size {
		hashes = append(hashes, deal.Hash(b[at:at+size]))
	}
	return b[:begin], hashes, number&toldBit != 0, nil
}

func readTalk(r *request, row deals.Negotiation) (*talk, error) {
	var n deal.Negotiation
	encoded, unsent, told, err := cutRest(row.Data)
	if err == nil {
		n, err = deal.DecodeNegotiation(encoded)
	}
	if err != nil {
		return nil, fmt.Errorf("stored negotiation %s: %w", row.ID, err)
	}
	t := newTalk(r, n)
	t.unsent, t.told = unsent, told
	t.telling.Store(told)
	return t, nil
}

// contractOf is the id of a negotiation's contract; empty: there is none.
func contractOf(n deal.Negotiation) string {
	if a := n.Agreement(); a != nil && a.Conclude != nil {
		return a.ID
	}
	return ""
}

// ended reports whether nothing can follow in a negotiation, or nothing but the
// settlement of a contract that has run out: for that it is read again.
func ended(n deal.Negotiation, now time.Time) bool {
	a := n.Agreement()
	return n.State(now).Done() || a != nil && a.Conclude != nil && !now.Before(a.Contract.ValidUntil)
}

// checkID refuses what is no id or too short a prefix of one.
func checkID(what, id string) error {
	const shortest, longest = 6, 32
	if len(id) < shortest || len(id) > longest || strings.Trim(id, "0123456789abcdef") != "" {
		return wire.Errorf(wire.InvalidArgument, "%.40q is no id of a %s", id, what).
			WithHint("ids are %d hexadecimal digits; a unique prefix of at least %d will do", longest, shortest)
	}
	return nil
}

// load brings back what is open.
func (e *Engine) load(ctx context.Context) error {
	var requests []deals.Request
	if err := e.rows.Open(ctx, func(r deals.Request) error { requests = append(requests, r); return nil }); err != nil {
		return err
	}
	for _, row := range requests {
		r, err := e.readRequest(ctx, row)
		if err != nil {
			return err
		}
		e.mu.Lock()
		e.add(r)
		e.mu.Unlock()
	}
	var rows []deals.Negotiation
	if err := e.rows.OpenNegotiations(ctx, func(n deals.Negotiation) error { rows = append(rows, n); return nil }); err != nil {
		return err
	}
	for _, row := range rows {
		r, err := e.request(ctx, row.Request)
		if err != nil {
			return err
		}
		t, err := readTalk(r, row)
		if err != nil {
			return err
		}
		e.mu.Lock()
		e.keep(t)
		e.mu.Unlock()
	}
	e.resume()
	return nil
}

// resume goes on with what was under way.
func (e *Engine) resume() {
	e.mu.Lock()
	defer e.mu.Unlock()
	talked := make(map[*request]bool)
	for _, t := range e.talks {
		talked[t.request] = true
		e.kick(t)
		e.decide(t)
	}
	for _, r := range e.requests {
		if r.isCancelled() { // and not all were told, perhaps
			e.jobs.add(func(ctx context.Context) { e.cancelAll(ctx, r) })
		}
		e.askAgain(r)
		if !r.sent && !talked[r] && r.sellers == 0 {
			e.decideRequest(r)
		}
	}
}

// talk returns the negotiation with a seller under a request of this agent, or with
// this agent as the seller, which begins with it.
func (e *Engine) talk(ctx context.Context, r *request, seller identity.AgentID) (*talk, error) {
	n, err := deal.NewNegotiation(r.move, seller)
	if err != nil {
		return nil, err
	}
	if t, err := e.find(ctx, n.ID()); wire.CodeOf(err) != wire.NotFound {
		return t, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.negotiations[n.ID()].Value(); t != nil {
		return t, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sellers >= maxSellers {
		return nil, wire.Errorf(wire.ResourceExhausted, "request %s is negotiated with %d sellers", r.id, r.sellers)
	}
	r.sellers++
	t := newTalk(r, n)
	e.keep(t)
	return t, nil
}

// commit makes a move of either side true: stored with its audit entries and with b,
// which has the checkpoints that own moves carry, then known here. t.mu is held. Own
// moves among those made are sent.
func (e *Engine) commit(ctx context.Context, t *talk, next deal.Negotiation, session string, b *store.Batch, made ...*deal.Signed) error {
	unsent := slices.Clone(t.unsent)
	unsent = slices.DeleteFunc(unsent, func(h deal.Hash) bool { return next.Find(h) == nil })
	var entries []audit.Entry
	for _, m := range made {
		entry := audit.Entry{
			At: next.AppliedAt(m.Hash), Kind: "market." + m.Kind.String(), Direction: "sent", Agent: t.peer(), Session: session, Ref: t.id,
			Payload: m.Raw, Note: next.StateAfter(m.Hash).String(),
		}
		if m.Author != e.cfg.Agent {
			entry.Direction = "received"
		} else if session == "" { // not an answer, which goes with the receipt
			unsent = append(unsent, m.Hash)
		}
		entries = append(entries, entry)
	}
	row, err := t.row(next, unsent)
	if err != nil {
		return err
	}
	e.rows.PutNegotiation(b, row)
	if _, _, err := e.cfg.Log.Commit(context.WithoutCancel(ctx), "store a move", b, entries...); err != nil {
		e.forget(t)
		return err
	}
	t.unsent, t.over = unsent, false
	t.n.Store(&next)
	t.request.count(t.id, next)
	e.mu.Lock()
	e.keep(t)
	delete(e.dirty, t)
	e.mu.Unlock()
	t.wake()
	return nil
}

// keep has a negotiation and its request in memory; e.mu is held.
func (e *Engine) keep(t *talk) {
	e.add(t.request)
	if e.talks[t.id] == nil {
		e.talks[t.id] = t
		e.negotiations[t.id] = weak.Make(t)
		e.open[t.request.id]++
	}
}

// drop is the opposite of keep.
func (e *Engine) drop(t *talk) {
	if e.talks[t.id] == t {
		delete(e.talks, t.id)
		if e.open[t.request.id]--; e.open[t.request.id] == 0 {
			delete(e.open, t.request.id)
		}
	}
	delete(e.dirty, t)
}

// forget has a negotiation read again: it is not known whether a change of it was
// stored. t.mu is held.
func (e *Engine) forget(t *talk) {
	t.stale = true
	e.mu.Lock()
	defer e.mu.Unlock()
	e.drop(t)
	if e.negotiations[t.id].Value() == t {
		delete(e.negotiations, t.id)
	}
}

// abandon forgets a negotiation in which nothing was said after all; t.mu is held.
func (e *Engine) abandon(t *talk) {
	if t.stale || len(t.now().Moves()) > 0 {
		return
	}
	e.forget(t)
	t.request.mu.Lock()
	defer t.request.mu.Unlock()
	t.request.sellers--
}

// usable refuses to work on a negotiation that was forgotten; t.mu is held.
func (t *talk) usable() error {
	if t.stale {
		return wire.Errorf(wire.HandlerUnavailable, "negotiation %s could not be stored", t.id).WithHint("try again")
	}
	return nil
}

// wake tells who waits for an answer that something has changed; t.mu is held.
func (t *talk) wake() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// mindTalk sends what is due, and closes a negotiation that is over.
func (e *Engine) mindTalk(ctx context.Context, t *talk, now time.Time) {
	n := t.now()
	t.mu.Lock()
	pending, over := len(t.unsent), t.over
	if pending > 0 && now.After(lastUse(n, now)) {
		e.cfg.Logger.Warn("moves never answered", zap.String("negotiation", t.id), zap.Int("moves", pending))
		t.unsent, pending = nil, 0
	}
	done := !over && pending == 0 && ended(n, now)
	t.over = over || done
	t.mu.Unlock()
	switch {
	case done:
		e.closeTalk(ctx, t, n, now)
	case pending > 0 && now.UnixNano() >= t.retry.Load():
		e.kick(t)
	}
}

// lastUse is until when the other side has use for moves that it has not answered.
func lastUse(n deal.Negotiation, now time.Time) time.Time {
	const settling = 30 * 24 * time.Hour
	head := n.Head()
	switch s := n.State(now); {
	case !s.Done():
		return now
	case s == deal.Fulfilled || s == deal.Failed:
		return n.AppliedAt(head).Add(settling)
	case n.Table() != nil:
		return n.Table().Offer().ValidUntil.Add(time.Hour) // its clock says too that this is over
	}
	return n.RFP().Request().Deadline.Add(time.Hour)
}

var errChanged = errors.New("it has changed")

// put has rows stored. Who calls it with the lock held under which they were made has
// the last of them stored last. stored waits for the disk: that needs no lock.
func (e *Engine) put(doing string, b *store.Batch) (stored func(context.Context) error) {
	done := make(chan error, 1)
	e.cfg.DB.Submit(doing, b, nil, true, func(_ []int64, err error) { done <- err })
	return func(ctx context.Context) error {
		select {
		case err := <-done:
			return err
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", doing, ctx.Err())
		}
	}
}

// closeTalk forgets a negotiation that is over; it is stored.
func (e *Engine) closeTalk(ctx context.Context, t *talk, n deal.Negotiation, now time.Time) {
	t.mu.Lock()
	stored := func(context.Context) error { return nil }
	var err error
	switch {
	case t.stale || t.now().Head() != n.Head() || len(t.unsent) > 0:
		err = errChanged
	case len(n.Moves()) > 0:
		var row deals.Negotiation
		if row, err = t.row(n, nil); err == nil {
			var b store.Batch
			e.rows.PutNegotiation(&b, row)
			stored = e.put("close a negotiation", &b)
		}
	}
	t.mu.Unlock()
	if err == nil {
		err = stored(ctx)
	}
	if err != nil {
		t.mu.Lock()
		t.over = false // the next sweep tries again
		t.mu.Unlock()
		return
	}
	t.mu.Lock()
	e.mu.Lock()
	if t.over { // else a move came meanwhile
		e.drop(t)
	}
	e.mu.Unlock()
	t.mu.Unlock()
	if n.State(now) == deal.Expired && n.State(time.Time{}) != deal.Expired {
		e.events.publish(Event{Event: "expired", RFP: t.request.id, Negotiation: &n, From: e.cfg.Agent, At: now})
	}
}

// soil notes that a negotiation has changed in memory alone; t.mu is held.
func (e *Engine) soil(t *talk) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dirty[t] = struct{}{}
}

// flush stores what changed in memory alone.
func (e *Engine) flush(ctx context.Context) error {
	e.mu.Lock()
	var dirty []*talk
	for t := range e.dirty {
		dirty = append(dirty, t)
	}
	clear(e.dirty)
	e.mu.Unlock()
	if len(dirty) == 0 {
		return nil
	}
	var waits []func(context.Context) error
	for _, t := range dirty {
		t.mu.Lock()
		if t.stale {
			t.mu.Unlock()
			continue
		}
		row, err := t.row(t.now(), t.unsent)
		if err == nil {
			var b store.Batch
			e.rows.PutNegotiation(&b, row)
			waits = append(waits, e.put("store receipts", &b))
		}
		t.mu.Unlock()
		if err != nil {
			return err
		}
	}
	var errs []error
	for _, stored := range waits {
		errs = append(errs, stored(ctx))
	}
	return errors.Join(errs...)
}
