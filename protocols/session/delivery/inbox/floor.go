package inbox

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"openmesh/protocols/session/delivery"
)

// advanceAfter is how far the floor moves before the store is told.
const advanceAfter = 256

// raise takes in the sender's floor.
func (b *Inbox) raise(floor uint64) {
	if floor > b.floor {
		b.floor = floor
		b.advance()
	}
}

// passes reports whether the frontier may pass e. In order that takes an outcome;
// else it is enough that a handler has it, or that readers can.
func (b *Inbox) passes(e *entry) bool {
	if e.readable || b.cfg.Terms.Ordered && e.sequence >= b.floor {
		return e.stage == settled
	}
	return e.stage != held
}

// advance moves the frontier over what is here or will never be, and in order
// gives the next message to the handler. What waits for its turn below the floor
// is dropped: the sender has given it up.
func (b *Inbox) advance() {
	for {
		e := b.work.entries[b.frontier+1]
		if e != nil && e.stage == held && e.sequence < b.floor {
			b.drop(e)
			e = nil
		}
		if e == nil && b.frontier+1 < b.floor {
			b.skip()
			continue
		}
		if e != nil && e.stage == held {
			b.work.held--
			b.start(e)
		}
		if e == nil || !b.passes(e) {
			break
		}
		b.pass(e)
	}
	b.forget()
}

// skip moves the frontier up to the floor, over numbers that never came: those
// are gaps. What is being stored for readers is waited for.
func (b *Inbox) skip() {
	w := b.work
	other := func(n uint64) bool { return n <= b.frontier || n >= b.floor || w.entries[n].stage == held }
	known := slices.DeleteFunc(slices.Collect(maps.Keys(w.entries)), other)
	slices.Sort(known)
	for _, n := range known {
		w.gap(b.frontier+1, n-1)
		b.frontier = n - 1
		if !b.passes(w.entries[n]) {
			return
		}
		b.pass(w.entries[n])
	}
	w.gap(b.frontier+1, b.floor-1)
	b.frontier = b.floor - 1
	w.tell()
}

// pass moves the frontier over e.
func (b *Inbox) pass(e *entry) {
	w := b.work
	b.frontier = e.sequence
	if e.readable && b.cfg.Terms.Durable() && e.sequence > b.cursor {
		w.unread = append(w.unread, unread{e.sequence, e.size})
		w.unreadBytes += int64(e.size)
	}
	w.tell()
}

// forget drops what is settled for good, unless an ack is to tell it: then that
// does. What waits for its turn is below the frontier only if that leapt.
func (b *Inbox) forget() {
	w := b.work
	end := min(b.floor, b.frontier+1)
	forget := func(n uint64) {
		if e := w.entries[n]; e != nil && (e.stage == settled && !e.listed || e.stage == held) {
			b.drop(e)
		}
	}
	if end-w.lowest <= uint64(len(w.entries)) {
		for ; w.lowest < end; w.lowest++ {
			forget(w.lowest)
		}
	} else if end > w.lowest {
		for n := range w.entries {
			if n < end {
				forget(n)
			}
		}
		w.lowest = end
	}
}

// advanceStore tells the store the floor.
func (b *Inbox) advanceStore(fx *effects) {
	if b.work.stored = b.floor; b.cfg.Terms.Durable() {
		*fx = append(*fx, commit{change: delivery.Advance{Session: b.cfg.Session, Floor: b.floor}})
	}
}

// Due does what is due at now: the sender learns which messages take long, acks
// that found no channel are sent, and what could not be stored is tried again.
// It returns when to call it next at the latest, zero if nothing is known to
// come; the session may call it at any time.
func (b *Inbox) Due(now time.Time) (next time.Time) {
	var fx effects
	b.mu.Lock()
	if w := b.work; w != nil && !b.ended {
		next = b.mention(now, &fx)
		if b.floor > w.stored {
			b.advanceStore(&fx)
		}
	}
	b.mu.Unlock()
	fx.run(b.cfg.Store)
	b.act(true)
	b.rest()
	return next
}

// mention lists messages that were in hand for half the ack timeout, so that the
// sender does not transmit them again, and returns when the next will be.
func (b *Inbox) mention(now time.Time, fx *effects) (next time.Time) {
	w := b.work
	if w.hand == 0 {
		return next
	}
	for _, e := range w.entries {
		if e.stage == settled {
			continue
		}
		if e.unstored {
			b.finish(e, fx)
		}
		at := e.taken.Add(b.cfg.Terms.AckTimeout / 2)
		switch {
		case e.working:
		case !now.Before(at):
			w.list(e)
		case next.IsZero() || at.Before(next):
			next = at
		}
	}
	return next
}

// rest drops what an idle inbox does not need.
func (b *Inbox) rest() {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.work
	if w != nil && len(w.entries) == 0 && w.committing == 0 && !w.running && len(w.run) == 0 && len(w.acks) == 0 &&
		len(w.refusals) == 0 && len(w.told) == 0 && len(w.unread) == 0 && len(w.ring) == 0 && len(w.gaps) == 0 && w.news == nil {
		b.work = nil
	}
}

// Resume is called when the session has been resumed, before the first frame
// that follows is taken in. Refusals that were not sent are not worth it: the
// sender transmits all anew.
func (b *Inbox) Resume() {
	b.mu.Lock()
	if w := b.work; w != nil {
		w.refusals = nil
		for _, e := range w.entries {
			e.working, e.attempt = false, 0
		}
	}
	b.mu.Unlock()
	b.act(true)
}

// Restore takes up, after a restart of the process, what a former one stored. It
// is called before any other method. At most once nothing is stored.
func (b *Inbox) Restore(ctx context.Context) error {
	if !b.cfg.Terms.Durable() {
		return nil
	}
	floor, finished, err := b.cfg.Store.Window(ctx, b.cfg.Session)
	if err != nil {
		return fmt.Errorf("restore the inbox of a session: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.floor = max(floor, 1)
	b.former = b.floor
	b.need()
	for n, out := range finished {
		b.remember(&entry{sequence: n}, &out)
	}
	const page = 16
	for after, rows := b.floor-1, page; rows == page; {
		var messages []delivery.Message
		if messages, b.cursor, err = b.cfg.Store.Inbox(ctx, b.cfg.Session, after, page); err != nil {
			return fmt.Errorf("restore the inbox of a session: %w", err)
		}
		for _, m := range messages {
			b.remember(&entry{sequence: m.Sequence, readable: true, size: len(m.Body)}, nil)
			after = m.Sequence
		}
		rows = len(messages)
	}
	b.frontier = max(b.floor-1, b.cursor)
	b.advance()
	return nil
}

// remember takes up a settled message of a former life.
func (b *Inbox) remember(e *entry, out *delivery.Outcome) {
	e.stage = settled
	b.work.outcome(e, out)
	b.work.entries[e.sequence] = e
}

// Owes reports whether there are acks that have found no channel.
func (b *Inbox) Owes() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.work != nil && len(b.work.acks)+len(b.work.refusals) > 0
}

// Busy is how many messages are in hand.
func (b *Inbox) Busy() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.work == nil {
		return 0
	}
	return b.work.hand
}

// Close ends the inbox with the session or the process: nothing is taken in or
// acknowledged any more, and nobody waits for more to read. What handlers have in
// hand is still stored.
func (b *Inbox) Close() {
	b.mu.Lock()
	b.ended = true
	if b.work != nil {
		b.work.tell()
		b.work.releaseAll()
	}
	b.mu.Unlock()
	b.tellKeepers()
}
