package outbox

import (
	"context"
	"fmt"
	"slices"
	"time"

	"openmesh/protocols/session/delivery"
)

// How many messages are read from the store at once: few while their size is not
// known.
const (
	firstPage = 8
	maxPage   = 256
)

// Restore takes up, after a restart of the process, what a former one left
// pending in the store. It is called before any other method. Only the first
// messages are read; the others when their turn comes. As nothing is known of
// their transmissions they go as redelivered.
//
// At most once nothing is stored. So that no number is given twice, the sequence
// goes on from the microseconds since 1970: the receiver sees the leap as a gap.
func (o *Outbox) Restore(ctx context.Context, now time.Time) error {
	if !o.cfg.Terms.Durable() {
		o.last = uint64(now.UnixMicro())
		return nil
	}
	rows, last, err := o.cfg.Store.Outbox(ctx, o.cfg.Session, 0, firstPage)
	if err != nil {
		return fmt.Errorf("restore the outbox of a session: %w", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last = last
	o.lastSettled, o.pruneAt = now.Unix(), now.Unix()
	if len(rows) > 0 {
		w := o.need()
		w.floor, w.restored, w.unseen = 0, last, true
		w.quit = last // any of them may have been given up
		o.attach(rows, len(rows) == firstPage)
	}
	return nil
}

// Recall reads what a former life left pending, up to a sequence: an ack that came
// by mail may be of messages whose turn has not come in this life.
func (o *Outbox) Recall(ctx context.Context, sequence uint64) error {
	for {
		o.mu.Lock()
		w := o.work
		known := w == nil || !w.unseen || w.seen >= sequence
		o.mu.Unlock()
		if known {
			return nil
		}
		if err := o.readPage(ctx); err != nil {
			return err
		}
	}
}

// load reads messages from the store that are the next to transmit, if there is
// room for them, and reports whether there are any. It gives up mu meanwhile.
func (o *Outbox) load() bool {
	w := o.work
	if len(w.fresh) > 0 || !w.unseen && w.cold == 0 || !w.room(o.cfg.Terms) {
		return false
	}
	former := w.unseen
	o.mu.Unlock()
	err := o.readPage(context.Background())
	o.mu.Lock()
	if err != nil {
		w.stalled = true // until Due or Resume
	}
	return err == nil && (len(w.fresh) > 0 || former && !w.unseen)
}

// readPage reads the next messages whose bodies are in the store only.
func (o *Outbox) readPage(ctx context.Context) error {
	o.mu.Lock()
	if o.work == nil { // all was settled meanwhile
		o.mu.Unlock()
		return nil
	}
	after, limit := o.work.nextPage()
	o.mu.Unlock()
	rows, _, err := o.cfg.Store.Outbox(ctx, o.cfg.Session, after, limit)
	if err != nil {
		return fmt.Errorf("read pending messages: %w", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.work != nil {
		o.attach(rows, len(rows) == limit)
	}
	return nil
}

// nextPage says what to read. Of messages of a former life it is not known how
// large they are.
func (w *work) nextPage() (after uint64, limit int) {
	if w.unseen {
		return w.seen, w.page
	}
	for bytes, i := 0, 0; i < len(w.line) && limit < maxPage && bytes < delivery.MaxWindow; i++ {
		p := w.line[i]
		if p.cold && limit == 0 {
			after = p.sequence - 1
		}
		if p.cold || limit > 0 && p.open() {
			bytes += p.size
			limit++
		}
	}
	return after, max(limit, 1)
}

// attach takes up messages read from the store, in order. Those of this life are
// known; one that is not was settled meanwhile.
func (o *Outbox) attach(rows []delivery.Message, more bool) {
	w, bytes := o.work, 0
	for i := range rows {
		m := &rows[i]
		bytes += len(m.Body)
		if w.unseen && m.Sequence <= w.restored {
			o.adopt(m)
		} else if p := w.find(m.Sequence); p != nil && p.cold {
			p.message, p.cold = m, false
			m.Attempt = 1
			w.cold--
			w.warm(p)
		}
	}
	if w.unseen {
		w.unseen = more && rows[len(rows)-1].Sequence < w.restored
		w.news()
	}
	if bytes < delivery.MaxWindow/16 {
		w.page = min(2*w.page, maxPage/8)
	} else if bytes > delivery.MaxWindow/4 {
		w.page = max(w.page/2, 1)
	}
}

// adopt takes up a message of a former life.
func (o *Outbox) adopt(m *delivery.Message) {
	w := o.work
	if m.Sequence <= w.seen {
		return // read twice
	}
	w.seen = m.Sequence
	i, _ := w.line.search(m.Sequence)
	p := &pending{message: m, sequence: m.Sequence, key: m.Key, hash: w.fingerprint(m), size: len(m.Body), state: waiting, doubt: true}
	w.line = slices.Insert(w.line, i, p)
	w.enter(p)
	w.soon(m.Expires)
	w.warm(p)
}

// news lets those look again who wait for a message of a former life.
func (w *work) news() {
	for sequence := range w.waiters {
		if (sequence <= w.seen || !w.unseen) && w.find(sequence) == nil {
			w.wake(sequence)
		}
	}
}
