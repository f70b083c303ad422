package outbox

import (
	"cmp"
	"hash/maphash"
	"slices"
	"time"

	"openmesh/protocols/session/delivery"
)

// state is how far a message of the outbox has come; the package comment draws
// the moves.
type state uint8

const (
	saving   state = iota // on its way into the store
	waiting               // accepted, not transmitted in this life
	flying                // transmitted, not answered
	inHand                // the peer works on it
	resting               // refused without effect; transmitted again at wake
	due                   // to be transmitted again
	settling              // has its outcome, which is being stored
	gone                  // has its outcome, or was never accepted
)

// pending is a message of the outbox.
type pending struct {
	message  *delivery.Message // nil once there is an outcome
	sequence uint64
	key      string
	hash     uint64 // of what was sent, to tell another message with the same key
	size     int
	state    state
	cold     bool // the body is in the store only
	doubt    bool // an earlier transmission may have had an effect
	told     bool // waiters know the outcome
	past     bool // the floor may pass
	silent   int  // transmissions in a row without an answer
	refusals int
	attempt  uint32
	wake     time.Time // when a transmission has gone unanswered or a rest is over
	outcome  delivery.Outcome
	accepted chan struct{} // closed when Send may return; nil if it may at once
	lost     error         // why it was not accepted; set before accepted is closed
	err      error         // why its outcome is not stored yet
}

// open reports whether p was accepted and has no outcome.
func (p *pending) open() bool { return p.state > saving && p.state < settling }

// inWindow reports whether p was transmitted and has no outcome.
func (p *pending) inWindow() bool { return p.state >= flying && p.state <= due }

// line is messages in order of sequence.
type line []*pending

// search returns where sequence is, or would be.
func (l line) search(sequence uint64) (int, bool) {
	return slices.BinarySearchFunc(l, sequence, func(p *pending, s uint64) int { return cmp.Compare(p.sequence, s) })
}

// work is what an outbox has to do. One that rests has none.
type work struct {
	line  line
	again []*pending // due
	fresh []*pending // waiting, with a body
	byKey map[string]*pending
	seed  maphash.Seed

	asking map[string]chan struct{} // keys that the store is asked for; closed when it was, nil if nobody waits

	high     uint64 // highest sequence accepted
	floor    uint64 // highest one told to the peer
	quit     uint64 // highest one that the peer should not wait for
	announce bool   // the peer should learn the floor

	// The store may have pending messages of a former life above seen, up to
	// restored.
	unseen         bool
	seen, restored uint64
	page           int // how many of them to read at once

	count       int // being accepted, or without an outcome
	bytes       int64
	cold        int // of this life, without a body
	freshBytes  int
	window      int // transmitted, without an outcome
	windowBytes int

	pumping bool      // somebody transmits
	stalled bool      // there is no channel
	next    time.Time // when something is due

	waiters     map[uint64]chan struct{}
	recent      map[uint64]delivery.Outcome
	recentOrder []recent
	recentBytes int
	unstored    []*pending // whose outcome could not be stored
	settled     int
	marks       []time.Time // when every maxMark-th message was settled
}

// need returns what there is to do, with mu held.
func (o *Outbox) need() *work {
	if o.work == nil {
		o.work = &work{high: o.last, floor: o.last + 1, page: firstPage, seed: maphash.MakeSeed()}
	}
	return o.work
}

// recent is an outcome kept for who asks for it only after it is there.
type recent struct {
	sequence uint64
	at       time.Time
	size     int
}

const (
	maxRecent      = 4096
	maxRecentBytes = 4 << 20
	recentFor      = time.Minute
)

func (w *work) find(sequence uint64) *pending {
	if i, ok := w.line.search(sequence); ok {
		return w.line[i]
	}
	return nil
}

// each calls f for the messages from one sequence to another.
func (w *work) each(from, to uint64, f func(*pending)) {
	i, _ := w.line.search(from)
	for ; i < len(w.line) && w.line[i].sequence <= to; i++ {
		f(w.line[i])
	}
}

// lowest is the floor: the lowest sequence whose outcome is not sure. It is never
// above what a crash would leave as the next sequence to give.
func (w *work) lowest() uint64 {
	for len(w.line) > 0 && w.line[0].past {
		w.line[0] = nil
		w.line = w.line[1:]
	}
	f := w.high + 1
	if len(w.line) > 0 {
		f = min(f, w.line[0].sequence)
	} else {
		w.line = nil
	}
	if w.unseen {
		f = min(f, w.seen+1)
	}
	return f
}

// queue puts an accepted message where the next to transmit are taken from, or
// leaves its body to the store while many are before it.
func (w *work) queue(p *pending, t delivery.Terms) {
	p.state = waiting
	if t.Durable() && (w.unseen || w.cold > 0 || len(w.fresh) >= t.MaxPending || w.freshBytes >= delivery.MaxWindow) {
		m := *p.message
		m.Body = nil
		p.message, p.cold = &m, true
		w.cold++
		return
	}
	w.warm(p)
}

func (w *work) warm(p *pending) {
	w.fresh = append(w.fresh, p)
	w.freshBytes += p.size
}

// pick returns the next message to transmit, if there is one and room for it.
func (w *work) pick(t delivery.Terms) *pending {
	for len(w.again) > 0 {
		p := w.again[0]
		w.again[0], w.again = nil, w.again[1:]
		if p.state == due {
			return p
		}
	}
	w.again = nil
	for len(w.fresh) > 0 {
		p := w.fresh[0]
		if p.state == waiting && (!w.room(t) || p.sequence >= w.lowest()+delivery.MaxSpan) {
			return nil
		}
		w.fresh[0], w.fresh = nil, w.fresh[1:]
		w.freshBytes -= p.size
		if p.state == waiting {
			w.window++
			w.windowBytes += p.size
			return p
		}
	}
	w.fresh = nil
	return nil
}

// room reports whether the window has room for one more.
func (w *work) room(t delivery.Terms) bool {
	return w.window < t.MaxPending && (w.window == 0 || w.windowBytes < delivery.MaxWindow)
}

// repeat has p transmitted again.
func (w *work) repeat(p *pending) {
	p.state = due
	w.again = append(w.again, p)
}

// enter counts p, which is new.
func (w *work) enter(p *pending) {
	w.count++
	w.bytes += int64(p.size)
	if p.key == "" {
		return
	}
	if w.byKey == nil {
		w.byKey = map[string]*pending{}
	}
	w.byKey[p.key] = p
}

func (w *work) unindex(p *pending) {
	if w.byKey[p.key] == p {
		delete(w.byKey, p.key)
	}
}

// soon has Due look at t at the latest.
func (w *work) soon(t time.Time) {
	if w.next.IsZero() || t.Before(w.next) {
		w.next = t
	}
}

// giveUp has the peer learn that p will not come.
func (w *work) giveUp(p *pending) { w.quit = max(w.quit, p.sequence) }

// leave takes p, which gets an outcome, out of all counts.
func (w *work) leave(p *pending) {
	if p.inWindow() {
		w.window--
		w.windowBytes -= p.size
	}
	if p.cold {
		w.cold--
		p.cold = false
	}
	w.count--
	w.bytes -= int64(p.size)
}

// remember keeps an outcome for late waiters and wakes the others.
func (w *work) remember(p *pending) {
	p.told = true
	w.wake(p.sequence)
	if w.recent == nil {
		w.recent = map[uint64]delivery.Outcome{}
	}
	w.recent[p.sequence] = p.outcome
	w.recentOrder = append(w.recentOrder, recent{p.sequence, p.outcome.At, len(p.outcome.Response)})
	w.recentBytes += len(p.outcome.Response)
	for len(w.recentOrder) > maxRecent || w.recentBytes > maxRecentBytes && len(w.recentOrder) > 1 {
		w.forgetRecent()
	}
}

func (w *work) forgetRecent() {
	r := w.recentOrder[0]
	w.recentOrder = w.recentOrder[1:]
	w.recentBytes -= r.size
	delete(w.recent, r.sequence)
}

// wake lets those who wait for sequence look again.
func (w *work) wake(sequence uint64) {
	if ch, ok := w.waiters[sequence]; ok {
		close(ch)
		delete(w.waiters, sequence)
	}
}

// waiter returns a channel that is closed when there is something new about
// sequence.
func (w *work) waiter(sequence uint64) chan struct{} {
	if w.waiters == nil {
		w.waiters = map[uint64]chan struct{}{}
	}
	ch, ok := w.waiters[sequence]
	if !ok {
		ch = make(chan struct{})
		w.waiters[sequence] = ch
	}
	return ch
}

// idle reports whether nothing is left to do or to remember.
func (w *work) idle() bool {
	return len(w.line) == 0 && !w.unseen && len(w.recentOrder) == 0 && len(w.waiters) == 0 &&
		len(w.byKey) == 0 && len(w.asking) == 0 && len(w.unstored) == 0 && !w.pumping && w.floor == w.high+1
}

// fingerprint is what tells two messages with one key apart.
func (w *work) fingerprint(m *delivery.Message) uint64 {
	var h maphash.Hash
	h.SetSeed(w.seed)
	for _, s := range []string{m.Capability, m.Version, m.Schema} {
		h.WriteString(s)
		h.WriteByte(0)
	}
	h.WriteByte(m.Encoding)
	h.Write(m.Body)
	return h.Sum64()
}
