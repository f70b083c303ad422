// Package outbox is the sending end of one direction of a session: it accepts
// messages, transmits them until they have an outcome, and tells that outcome.
//
// It starts no goroutine and no timer: the session calls Due regularly. A
// message on its way (delivered, failed and expired may come in any state after
// saving, and lead to settling):
//
//	saving ──stored──▶ waiting ──transmitted──▶ flying ──working──▶ inHand
//	   │                                        │  ▲ │                │
//	   │            no answer in time, resumed  ▼  │ │ refused,       │
//	   │                                       due─┘ │ no effect      │
//	   ▼                                        ▲    ▼                │
//	  gone (not accepted)                       └─ resting ◀──────────┘
//
//	settling ──outcome stored──▶ gone
//
// The floor never passes a message that could come back to life after a crash
// with another outcome: one that failed or expired has that on disk before; one
// that was delivered may be delivered again, as far as the receiver, which has
// forgotten it, will say.
package outbox

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/wire"
)

// Config is what an [Outbox] needs.
type Config struct {
	Session delivery.SessionID
	Terms   delivery.Terms

	// Store keeps messages. It may be nil at most once.
	Store delivery.Store

	// Transmit hands a message to the session's channel, with the floor to go with
	// it ([delivery.AppendMessage]); false if there is none now. It must not wait
	// for the peer: it is called by whoever reads what the peer sends. It must not
	// keep or change m. No lock is held, and one call is made at a time.
	Transmit func(m *delivery.Message, floor uint64) bool

	// Observe, if set, learns every outcome, with the message without its body. It
	// may be called by a goroutine of the store, which it must not hold up.
	Observe func(m *delivery.Message, o delivery.Outcome)

	// Random gives the jitter of retries, in [0, 1); nil: none.
	Random func() float64
}

// Outbox is the sending end of one direction of a session. Its methods are safe
// for concurrent use. One that has nothing to do takes about 200 bytes.
type Outbox struct {
	cfg Config

	order sync.Mutex // held while a message gets its number and goes to the store

	mu          sync.Mutex
	last        uint64 // sequence given
	work        *work  // nil: nothing to do
	lastSettled int64  // Unix time
	pruneAt     int64  // Unix time; 0: nothing to prune
	ended       wire.Code
	failed      bool // ended for good
}

// New returns the outbox of a new session. That of one that goes on after a
// restart of the process needs Restore first.
func New(cfg Config) *Outbox {
	cfg.Terms = cfg.Terms.WithDefaults()
	return &Outbox{cfg: cfg}
}

// Agree has the outbox keep to other terms from now on; the promise is as it was. A
// message that was accepted and is too large for them fails with wire.TooLarge when
// its turn comes.
func (o *Outbox) Agree(t delivery.Terms) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.cfg.Terms.Tighten(t)
}

// Send accepts m, which is the outbox's from then on, and returns its sequence.
// When it returns without error the promise holds: but for at most once, m is on
// disk. Send sets m.Sequence and m.Accepted, m.Key if it has none, and m.Expires
// unless that is sooner than the session's TTL.
//
// A message whose key was sent before is not sent again: Send returns the
// sequence of the first. If it is known to be another message, that is
// wire.InvalidArgument. Other errors: wire.ResourceExhausted if too much is
// pending, wire.SessionClosed, wire.TooLarge, and what the store says. If ctx
// ends first, m may have been accepted: the same key tells.
func (o *Outbox) Send(ctx context.Context, m *delivery.Message, now time.Time) (uint64, error) {
	if err := m.Check(); err != nil {
		return 0, err
	}
	p, err := o.accept(m, now, false)
	if p == nil && err == nil {
		var sequence uint64
		if p, sequence, err = o.ask(ctx, m, now); sequence != 0 {
			return sequence, nil
		}
	}
	if err != nil {
		return 0, err
	}
	if p.accepted != nil {
		if err := waitFor(ctx, p.accepted, "accept", p.sequence); err != nil {
			return p.sequence, err
		}
	}
	if errors.Is(p.lost, wire.AlreadyExists) {
		sequence, _, err := o.Lookup(ctx, p.key)
		return sequence, err
	}
	if p.lost != nil {
		return 0, p.lost
	}
	o.pump(now)
	return p.sequence, nil
}

// ask accepts m unless the store knows a message with its key: then it returns the
// sequence of that. Meanwhile nobody else may use the key: his message could be
// accepted, and get its outcome, after the store has said that there is none.
func (o *Outbox) ask(ctx context.Context, m *delivery.Message, now time.Time) (p *pending, former uint64, err error) {
	if err := o.reserve(ctx, m.Key); err != nil {
		return nil, 0, err
	}
	defer o.release(m.Key)
	if p, err = o.accept(m, now, false); p != nil || err != nil {
		return p, 0, err // who had the key before has sent it
	}
	former, _, err = o.cfg.Store.Outcome(ctx, o.cfg.Session, m.Key)
	if wire.CodeOf(err) == wire.NotFound {
		p, err = o.accept(m, now, true)
	}
	if err != nil {
		return nil, 0, err
	}
	return p, former, nil
}

// reserve waits until nobody else asks the store for key.
func (o *Outbox) reserve(ctx context.Context, key string) error {
	for {
		o.mu.Lock()
		w := o.need()
		free, taken := w.asking[key]
		switch {
		case !taken:
			if w.asking == nil {
				w.asking = map[string]chan struct{}{}
			}
			w.asking[key] = nil
		case free == nil:
			free = make(chan struct{})
			w.asking[key] = free
		}
		o.mu.Unlock()
		if !taken {
			return nil
		}
		if err := waitFor(ctx, free, "ask for the key of", 0); err != nil {
			return err
		}
	}
}

// release ends that.
func (o *Outbox) release(key string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if free := o.work.asking[key]; free != nil {
		close(free)
	}
	delete(o.work.asking, key)
}

// waitFor waits until ch is closed or ctx ends.
func waitFor(ctx context.Context, ch <-chan struct{}, doing string, sequence uint64) error {
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		code := wire.Cancelled
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			code = wire.DeadlineExceeded
		}
		return wire.Errorf(code, "%s message %d: %w", doing, sequence, ctx.Err())
	}
}

// accept admits m and, if it is new, gives it to the store. Numbers come there in
// order: else a crash could keep one and lose one before it, which nobody would
// get any more, and the receiver would miss.
func (o *Outbox) accept(m *delivery.Message, now time.Time, asked bool) (*pending, error) {
	o.order.Lock()
	defer o.order.Unlock()
	p, isNew, err := o.admit(m, now, asked)
	if isNew && o.cfg.Terms.Durable() {
		o.cfg.Store.Commit(delivery.Enqueue{Session: o.cfg.Session, Message: m}, true, func(err error) { o.enqueued(p, err) })
	}
	return p, err
}

// admit gives m its place, or finds that of the first with its key. It returns no
// place if only the store can tell whether there was one, unless that was asked.
// The store would refuse a second one too, but it would have a number by then,
// which the receiver would miss.
func (o *Outbox) admit(m *delivery.Message, now time.Time, asked bool) (p *pending, isNew bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := o.need()
	first := w.byKey[m.Key]
	if first == nil && !asked && m.Key != "" && o.last != 0 && o.cfg.Terms.Durable() {
		return nil, false, nil
	}
	expires := now.Add(o.cfg.Terms.TTL)
	if m.Expires.IsZero() || m.Expires.After(expires) {
		m.Expires = expires
	}
	if !now.Before(m.Expires) {
		return nil, false, wire.Errorf(wire.DeadlineExceeded, "send a message: it expired at %s", m.Expires.Format(time.RFC3339))
	}
	if o.ended != 0 {
		return nil, false, o.closed()
	}
	hash := w.fingerprint(m)
	if first != nil {
		if first.hash != hash {
			return nil, false, wire.Errorf(wire.InvalidArgument, "send a message: message %d has the same key %q and says something else", first.sequence, m.Key).
				WithHint("use a key once; send the same message to try again")
		}
		return first, false, nil
	}
	if t := o.cfg.Terms; w.count >= t.MaxBacklog || w.bytes+int64(len(m.Body)) > t.MaxBacklogBytes {
		return nil, false, wire.Errorf(wire.ResourceExhausted, "send a message: %d messages, %d bytes wait in this session for delivery; the limits are %d and %d",
			w.count, w.bytes, t.MaxBacklog, t.MaxBacklogBytes).WithHint("try again when the peer has taken some")
	}
	return o.add(m, hash, now), true, nil
}

// add makes m the session's next message.
func (o *Outbox) add(m *delivery.Message, hash uint64, now time.Time) *pending {
	w := o.work
	o.last++
	if m.Key == "" && o.cfg.Terms.Durable() {
		m.Key = rand.Text()
	}
	m.Sequence, m.Accepted, m.Redelivered, m.Attempt = o.last, now, false, 1
	p := &pending{message: m, sequence: o.last, key: m.Key, hash: hash, size: len(m.Body)}
	w.line = append(w.line, p)
	w.enter(p)
	if o.cfg.Terms.Durable() {
		p.accepted = make(chan struct{})
		return p
	}
	w.high = o.last
	p.wake = now.Add(o.cfg.Terms.AckTimeout)
	w.soon(p.wake)
	w.soon(m.Expires)
	w.queue(p, o.cfg.Terms)
	return p
}

// enqueued is called when the store has p, or has not.
func (o *Outbox) enqueued(p *pending, err error) {
	var fx effects
	o.mu.Lock()
	w := o.work
	if err != nil {
		p.lost = fmt.Errorf("accept message %d: %w", p.sequence, err)
		w.leave(p)
		p.state, p.past = gone, true
		w.unindex(p)
		w.giveUp(p)
		w.wake(p.sequence)
	} else {
		w.high = max(w.high, p.sequence)
		w.soon(p.message.Expires)
		w.queue(p, o.cfg.Terms)
		if o.failed {
			o.settle(p, delivery.Outcome{Status: delivery.Failed, Code: o.ended}, p.message.Accepted, &fx)
		}
	}
	close(p.accepted)
	o.mu.Unlock()
	fx.run(&o.cfg)
}

// Wait returns the outcome of a message once it is final. Only that it is
// delivered may be told before it is on disk: after a power failure it is
// delivered again, or expires if the receiver cannot be asked in time. Outcomes
// of a minute ago or more, or of a former process, are only found by their key:
// wire.NotFound. One that cannot be stored is the store's error; it is tried
// again.
func (o *Outbox) Wait(ctx context.Context, sequence uint64) (delivery.Outcome, error) {
	for {
		o.mu.Lock()
		out, more, err := o.look(sequence)
		o.mu.Unlock()
		if more == nil {
			return out, err
		}
		if err := waitFor(ctx, more, "wait for", sequence); err != nil {
			return delivery.Outcome{}, err
		}
	}
}

// look returns the outcome of a message, or where to wait for news of it.
func (o *Outbox) look(sequence uint64) (out delivery.Outcome, more <-chan struct{}, err error) {
	w := o.work
	if w == nil {
		return out, nil, unknown(sequence)
	}
	if out, ok := w.recent[sequence]; ok {
		return out, nil, nil
	}
	p := w.find(sequence)
	switch {
	case p == nil && !(w.unseen && sequence > w.seen && sequence <= w.restored), p != nil && p.lost != nil:
		return out, nil, unknown(sequence)
	case p != nil && p.told:
		return p.outcome, nil, nil
	case p != nil && p.err != nil:
		return out, nil, p.err
	case o.ended != 0 && !o.failed:
		return out, nil, o.closed()
	}
	return out, w.waiter(sequence), nil
}

func unknown(sequence uint64) error {
	return wire.Errorf(wire.NotFound, "message %d is not pending, nor was it settled just now", sequence).
		WithHint("ask for its outcome by its key")
}

// Lookup returns the sequence and outcome of the message with key; the status is
// Pending if it has none yet. Without such a message the error is wire.NotFound,
// as it is at most once for one that is settled.
func (o *Outbox) Lookup(ctx context.Context, key string) (uint64, delivery.Outcome, error) {
	o.mu.Lock()
	if w := o.work; w != nil && w.byKey[key] != nil {
		defer o.mu.Unlock()
		p := w.byKey[key]
		if p.told {
			return p.sequence, p.outcome, nil
		}
		return p.sequence, delivery.Outcome{}, nil
	}
	o.mu.Unlock()
	if !o.cfg.Terms.Durable() {
		return 0, delivery.Outcome{}, wire.Errorf(wire.NotFound, "no message with key %q is pending", key)
	}
	return o.cfg.Store.Outcome(ctx, o.cfg.Session, key)
}

// Pending is how many messages were accepted and have no outcome; of those of a
// former life only the ones read so far.
func (o *Outbox) Pending() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.work == nil {
		return 0
	}
	return o.work.count
}

// Close ends the outbox with the process: no message is taken or transmitted any
// more. Messages at most once fail with code; the others stay pending in the
// store, and who waits for one gets wire.SessionClosed.
func (o *Outbox) Close(code wire.Code, now time.Time) {
	var fx effects
	o.mu.Lock()
	o.end(code)
	if w := o.work; w != nil {
		for _, p := range w.line {
			if !o.cfg.Terms.Durable() && p.open() {
				o.settle(p, delivery.Outcome{Status: delivery.Failed, Code: o.ended}, now, &fx)
			}
		}
		for sequence := range w.waiters {
			w.wake(sequence)
		}
	}
	o.mu.Unlock()
	fx.run(&o.cfg)
}

// end is the first end's code from then on.
func (o *Outbox) end(code wire.Code) {
	if code == 0 {
		code = wire.SessionClosed
	}
	if o.ended == 0 {
		o.ended = code
	}
}

func (o *Outbox) closed() error {
	return wire.Errorf(wire.SessionClosed, "the session ended: %s", o.ended)
}

// Fail ends the outbox for good: every pending message becomes Failed with code,
// or that of an earlier Close. It returns when all of that is on disk.
func (o *Outbox) Fail(ctx context.Context, code wire.Code, now time.Time) error {
	for {
		var fx effects
		o.mu.Lock()
		o.end(code)
		o.failed = true
		left := o.failOpen(now, &fx)
		unseen := o.work != nil && o.work.unseen
		o.mu.Unlock()
		fx.run(&o.cfg)
		var err error
		switch {
		case unseen:
			err = o.readPage(ctx)
		case left == 0:
			return nil
		default:
			_, err = o.Wait(ctx, left)
		}
		if err != nil && wire.CodeOf(err) != wire.NotFound {
			return fmt.Errorf("fail the messages of a session: %w", err)
		}
	}
}

// failOpen fails what is open, and returns the first message whose end is not on
// disk; 0 if there is none.
func (o *Outbox) failOpen(now time.Time, fx *effects) uint64 {
	w := o.work
	if w == nil {
		return 0
	}
	for _, p := range w.line {
		if p.open() {
			o.settle(p, delivery.Outcome{Status: delivery.Failed, Code: o.ended}, now, fx)
		}
	}
	o.saveAgain(fx)
	for _, p := range w.line {
		if !p.told && !p.past {
			return p.sequence
		}
	}
	return 0
}
