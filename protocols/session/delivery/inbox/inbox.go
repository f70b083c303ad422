// Package inbox is the receiving end of one direction of a session: it hands each
// message to a handler or to those who read the session's inbox, once, and
// acknowledges what became of it.
//
// It starts no goroutine and no timer: the session calls Due regularly. What is
// known of a sequence number:
//
//	        arrives                  its turn
//	nothing ───┬────▶ held (ordered) ─────────▶ running ──done──▶ storing ──▶ settled
//	   ▲       ├───────────────────────────────▶   │  (exactly once)  ▲           │
//	   │       └────────────────── for the inbox ──┼──────────────────┘           │
//	   ├─ refused, no effect ◀─────────────────────┘                              │
//	   └─ below the floor ◀───────────────────────────────────────────────────────┘
//
// The frontier is the highest number up to which nothing can come any more:
// everything is here, or below the sender's floor. Readers see no farther, so
// what they are told is missing stays so, and in order is what they read.
package inbox

import (
	"slices"
	"sync"
	"time"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/wire"
)

// Config is what an [Inbox] needs.
type Config struct {
	Session delivery.SessionID
	Terms   delivery.Terms

	// Store keeps messages. It may be nil at most once.
	Store delivery.Store

	// Handle hands over a message with a capability, and returns at once; done
	// tells, from any goroutine, what became of it: Delivered, with an answer or
	// without, or Failed. It is heard once. That a message expired meanwhile is for
	// Handle to mind.
	Handle func(m *delivery.Message, done func(delivery.Outcome))

	// SendAck hands an ack to the session's channel; false if there is none now. It
	// must not wait for the peer, and may be called by a goroutine of the store.
	SendAck func(a delivery.Ack) bool
}

// Inbox is the receiving end of one direction of a session. Its methods are safe
// for concurrent use. One that has nothing to do takes less than 200 bytes.
type Inbox struct {
	cfg Config

	mu       sync.Mutex
	floor    uint64 // all below is settled for good
	frontier uint64
	cursor   uint64 // consumed
	former   uint64 // floor at the start: of what is below, only the store knows
	work     *work  // nil: nothing to do
	ended    bool
}

// New returns the inbox of a new session. That of one that goes on after a
// restart of the process needs Restore first.
func New(cfg Config) *Inbox {
	cfg.Terms = cfg.Terms.WithDefaults()
	return &Inbox{cfg: cfg, floor: 1, former: 1}
}

// Agree has the inbox keep to other terms from now on; the promise is as it was.
func (b *Inbox) Agree(t delivery.Terms) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cfg.Terms.Tighten(t)
}

// stage is how far a message has come.
type stage uint8

const (
	held    stage = iota // waits for those before it
	running              // the handler has it
	storing              // on its way into the store: the message or its outcome
	settled
	dropped // not known any more
)

// entry is what is known of a sequence number.
type entry struct {
	message  *delivery.Message // until settled
	sequence uint64
	outcome  *delivery.Outcome // nil: delivered without an answer
	stage    stage
	readable bool // for the session's inbox
	working  bool // the sender knows that it is in hand
	listed   bool // an ack is to be sent
	unstored bool // the outcome could not be stored
	attempt  uint32
	size     int
	taken    time.Time
	kept     []func(error) // of those who keep it until it is safe
}

// work is what an inbox has in hand and remembers. One that rests has none.
type work struct {
	entries    map[uint64]*entry
	lowest     uint64 // no settled entry is below
	stored     uint64 // floor that the store was told
	hand       int    // not settled
	held       int    // of them, that wait for those before them
	handBytes  int
	answers    int // bytes of outcomes remembered
	committing int // commits without their done

	run     []*entry // for the handler
	running bool     // somebody hands them over

	acks     []listed
	refusals []delivery.Failure
	told     []told

	unread      []unread
	unreadBytes int64
	ring        []delivery.Message // at most once, by sequence
	gaps        []delivery.Range
	news        chan struct{} // closed when there is more to read
}

// maxAcks bounds acks that wait for a channel, of numbers that have no entry.
const maxAcks = 2 * delivery.MaxSpan

func (b *Inbox) need() *work {
	if b.work == nil {
		b.work = &work{entries: map[uint64]*entry{}, lowest: b.floor, stored: b.floor}
	}
	return b.work
}

// effects are the changes to commit once the lock is released.
type effects []commit

type commit struct {
	change  delivery.Change
	durable bool
	done    func(error)
}

func (fx effects) run(s delivery.Store) {
	for _, c := range fx {
		s.Commit(c.change, c.durable, c.done)
	}
}

// Receive takes in a message as the channel brought it; m and its body are the
// inbox's from then on. With sequence 0 only the floor is told.
func (b *Inbox) Receive(m *delivery.Message, floor uint64, now time.Time) {
	b.Keep(m, floor, now, nil)
}

// Keep is Receive of a message that somebody keeps until it is safe. That tells safe,
// once and from any goroutine: nil, if the message is stored or has its outcome, is
// to be delivered at most once, or is of no use; or why it had no effect, with a code
// that may be tried again, if it should come again.
func (b *Inbox) Keep(m *delivery.Message, floor uint64, now time.Time, safe func(error)) {
	var fx effects
	b.mu.Lock()
	if b.ended || floor > delivery.MaxSequence || m.Sequence > delivery.MaxSequence || m.Sequence != 0 && floor > m.Sequence {
		var err error // what breaks the protocol is of no use
		if b.ended {
			err = wire.Unreachable
		}
		b.mu.Unlock()
		if safe != nil {
			safe(err)
		}
		return
	}
	b.need()
	b.raise(floor)
	if m.Sequence != 0 {
		b.take(m, floor, now, safe, &fx)
	} else {
		b.work.tellKeeper(safe, nil)
	}
	if b.floor >= b.work.stored+advanceAfter {
		b.advanceStore(&fx)
	}
	b.mu.Unlock()
	fx.run(b.cfg.Store)
	b.act(true)
}

// act does what may have become possible: messages go to the handler, acks to
// the sender.
func (b *Inbox) act(ack bool) {
	b.tellKeepers()
	b.hand()
	if ack {
		b.flush()
	}
}

// take finds out what to do with m.
func (b *Inbox) take(m *delivery.Message, floor uint64, now time.Time, safe func(error), fx *effects) {
	w, n := b.work, m.Sequence
	readable := m.Capability == ""
	e := w.entries[n]
	switch {
	case e != nil:
		e.attempt = max(e.attempt, m.Attempt)
		w.list(e)
		b.keep(e, safe)
	case n < b.floor && !b.cfg.Terms.Durable():
		w.refuse(n, m.Attempt, wire.Replayed) // the sender cannot mean it
		w.tellKeeper(safe, nil)
	case n < b.floor, readable && b.cfg.Terms.Durable() && n <= b.cursor:
		w.acknowledge(n)
		w.tellKeeper(safe, nil)
	case n-floor >= delivery.MaxSpan, !b.room(n), readable && b.full(m):
		w.refuse(n, m.Attempt, wire.ResourceExhausted)
		w.tellKeeper(safe, b.mayComeAgain(wire.ResourceExhausted))
	default:
		e = &entry{message: m, sequence: n, readable: readable, attempt: m.Attempt, size: len(m.Body), taken: now}
		w.entries[n] = e
		w.hand++
		w.handBytes += e.size
		b.keep(e, safe)
		b.begin(e, fx)
	}
}

// room reports whether one more message can be in hand. That whose turn it is can
// also if there is no room but all others wait for it: nothing else would make
// some. For answers and acks the sender makes room, by raising the floor and by
// taking them.
func (b *Inbox) room(n uint64) bool {
	w := b.work
	if w.answers >= delivery.MaxWindow || len(w.acks) >= b.cfg.Terms.MaxPending {
		return false
	}
	return w.hand < b.cfg.Terms.MaxPending && w.handBytes < delivery.MaxWindow || n == b.frontier+1 && w.hand == w.held
}

// full reports whether the session's inbox has no room for m. What a former life
// left in it is not counted.
func (b *Inbox) full(m *delivery.Message) bool {
	t, w := b.cfg.Terms, b.work
	return t.Durable() && (len(w.unread) >= t.MaxBacklog || w.unreadBytes+int64(len(m.Body)) > t.MaxBacklogBytes)
}

// begin does the first thing with a message.
func (b *Inbox) begin(e *entry, fx *effects) {
	switch {
	case !e.readable && b.cfg.Terms.Ordered && e.sequence > b.frontier+1:
		e.stage = held
		b.work.held++
	case !e.readable:
		b.start(e)
		b.advance()
	case b.cfg.Terms.Durable():
		e.stage = storing
		b.work.committing++
		*fx = append(*fx, commit{delivery.Receive{Session: b.cfg.Session, Message: e.message}, true, func(err error) { b.received(e, err) }})
	default:
		b.work.keep(e.message)
		b.settle(e, nil)
	}
}

// start gives e to the handler.
func (b *Inbox) start(e *entry) {
	e.stage = running
	b.work.run = append(b.work.run, e)
}

// hand hands messages over. One goroutine at a time does so, for all, without
// the lock.
func (b *Inbox) hand() {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.work
	if w == nil || w.running {
		return
	}
	w.running = true
	for len(w.run) > 0 && !b.ended {
		e := w.run[0]
		w.run[0], w.run = nil, w.run[1:]
		m := e.message
		b.mu.Unlock()
		b.cfg.Handle(m, func(out delivery.Outcome) { b.handled(e, out) })
		b.mu.Lock()
	}
	w.running, w.run = false, nil
}

// handled is called when the handler is done with e.
func (b *Inbox) handled(e *entry, out delivery.Outcome) {
	var fx effects
	b.mu.Lock()
	if e.stage != running {
		b.mu.Unlock()
		return // heard already
	}
	out = clean(out)
	switch {
	case out.Status == delivery.Failed && out.Code.Retry() && b.cfg.Terms.Durable() && e.sequence >= b.floor:
		b.work.release(e, out.Code)
		b.drop(e)
		b.work.refuse(e.sequence, e.attempt, out.Code, out.Pointers...)
	case b.cfg.Terms.QoS == delivery.ExactlyOnce && e.sequence >= b.floor: // else the sender has given up
		e.stage, e.outcome = storing, &out
		b.finish(e, &fx)
	default:
		b.settle(e, &out)
	}
	b.mu.Unlock()
	fx.run(b.cfg.Store)
	b.act(len(fx) == 0)
}

// clean makes an outcome what may be told.
func clean(out delivery.Outcome) delivery.Outcome {
	switch out.Status {
	case delivery.Delivered:
		return delivery.Outcome{Status: out.Status, Encoding: out.Encoding, Response: out.Response}
	case delivery.Failed:
		if !out.Code.Known() {
			out.Code = wire.Internal
		}
		long := func(s string) bool { return len(s) > delivery.MaxPointer }
		ps := slices.DeleteFunc(slices.Clone(out.Pointers), long)
		return delivery.Outcome{Status: out.Status, Code: out.Code, Pointers: ps[:min(len(ps), delivery.MaxPointers)]}
	}
	return delivery.Outcome{Status: delivery.Failed, Code: wire.Internal}
}

// finish stores the outcome of e.
func (b *Inbox) finish(e *entry, fx *effects) {
	e.unstored = false
	b.work.committing++
	c := delivery.Finish{Session: b.cfg.Session, Sequence: e.sequence, Outcome: *e.outcome}
	*fx = append(*fx, commit{c, true, func(err error) { b.finished(e, err) }})
}

// finished is called when the outcome of e is stored. If it could not be, nothing
// is told, and Due tries again: the handler has done its work.
func (b *Inbox) finished(e *entry, err error) {
	b.mu.Lock()
	if err != nil {
		e.unstored = true
	} else {
		b.settle(e, e.outcome)
	}
	b.committed()
}

// received is called when e, which is for the inbox, is stored. If it could not
// be, that had no effect, and the sender may try again.
func (b *Inbox) received(e *entry, err error) {
	b.mu.Lock()
	if err != nil {
		b.work.release(e, wire.ResourceExhausted)
		b.drop(e)
		b.work.refuse(e.sequence, e.attempt, wire.ResourceExhausted)
	} else {
		b.settle(e, nil)
	}
	b.committed()
}

// committed ends what a commit's done does, with mu held. Acks are sent when
// nothing more is on its way to the store, or with the next Receive: what one
// commit finished goes into one ack.
func (b *Inbox) committed() {
	w := b.work
	w.committing--
	ack := w.committing == 0 || len(w.acks) >= 64
	b.mu.Unlock()
	b.act(ack)
}

// settle gives e its outcome.
func (b *Inbox) settle(e *entry, out *delivery.Outcome) {
	w := b.work
	e.stage, e.message = settled, nil
	w.hand--
	w.handBytes -= e.size
	w.outcome(e, out)
	w.list(e)
	w.release(e, nil)
	b.advance()
}

// outcome keeps the outcome of e, if it says more than that it is delivered.
func (w *work) outcome(e *entry, out *delivery.Outcome) {
	e.outcome = nil
	if out != nil && (out.Status != delivery.Delivered || len(out.Response) > 0 || out.Encoding != 0) {
		e.outcome = out
		w.answers += len(out.Response)
	}
}

// drop forgets e.
func (b *Inbox) drop(e *entry) {
	w := b.work
	if e.stage == held {
		w.held--
	}
	if e.stage != settled {
		w.hand--
		w.handBytes -= e.size
	} else if e.outcome != nil {
		w.answers -= len(e.outcome.Response)
	}
	e.stage = dropped
	delete(w.entries, e.sequence)
	w.release(e, nil)
}
