package inbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/wire"
)

// Limits of what is kept for readers in memory: at most once messages, and gaps.
const (
	maxRing      = 1024
	maxRingBytes = 4 << 20
	maxGaps      = 1024
)

// unread is a message in the store that was not consumed.
type unread struct {
	sequence uint64
	size     int
}

// Batch is what a reader gets.
type Batch struct {
	Messages []delivery.Message

	// Gaps are numbers after the cursor given that no message has: they expired or
	// failed at the sender, or were dropped here. Of numbers from before a restart
	// it is not known whether a handler had them: they are told too.
	Gaps []delivery.Range

	Cursor uint64 // where to read on, and up to where to consume
}

// Read returns messages for the session's inbox with a sequence above cursor,
// and above what was consumed, in order, at most limit. With wait it returns once
// there is something to tell; without, it may be nothing. Errors have the code
// wire.Cancelled or wire.DeadlineExceeded if ctx ends, wire.SessionClosed if there
// is nothing and never will be, or are the store's.
func (b *Inbox) Read(ctx context.Context, cursor uint64, limit int, wait bool) (Batch, error) {
	for {
		b.mu.Lock()
		cursor = max(cursor, b.cursor)
		frontier, ended := b.frontier, b.ended
		var news <-chan struct{}
		if wait && cursor >= frontier {
			news = b.need().next()
		}
		b.mu.Unlock()
		if cursor < frontier {
			batch, err := b.read(ctx, cursor, frontier, max(limit, 1))
			if err != nil || !wait || len(batch.Messages)+len(batch.Gaps) > 0 {
				return batch, err
			}
			cursor = batch.Cursor
			continue
		}
		if ended {
			return Batch{}, wire.Errorf(wire.SessionClosed, "read the inbox: the session ended")
		}
		if !wait {
			return Batch{Cursor: cursor}, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return Batch{}, interrupted(ctx, "read the inbox")
		}
	}
}

func interrupted(ctx context.Context, doing string) error {
	code := wire.Cancelled
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		code = wire.DeadlineExceeded
	}
	return wire.Errorf(code, "%s: %w", doing, ctx.Err())
}

// next returns a channel that is closed when the frontier has moved.
func (w *work) next() <-chan struct{} {
	if w.news == nil {
		w.news = make(chan struct{})
	}
	return w.news
}

// tell wakes readers.
func (w *work) tell() {
	if w.news != nil {
		close(w.news)
		w.news = nil
	}
}

// read returns what is between cursor and frontier.
func (b *Inbox) read(ctx context.Context, cursor, frontier uint64, limit int) (Batch, error) {
	batch := Batch{Cursor: frontier}
	var consumed uint64
	var err error
	if b.cfg.Terms.Durable() {
		batch.Messages, consumed, err = b.cfg.Store.Inbox(ctx, b.cfg.Session, cursor, limit)
	} else {
		batch.Messages = b.buffered(cursor, limit)
	}
	if err != nil {
		return Batch{}, err
	}
	full := len(batch.Messages) == limit
	for i, m := range batch.Messages {
		if m.Sequence > frontier {
			batch.Messages, full = batch.Messages[:i], false
			break
		}
	}
	if full {
		batch.Cursor = batch.Messages[limit-1].Sequence
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	batch.Gaps = b.missing(max(cursor, consumed), batch) // what others have consumed meanwhile is not missing
	return batch, nil
}

// missing returns the gaps between cursor and the end of batch.
func (b *Inbox) missing(cursor uint64, batch Batch) (gaps []delivery.Range) {
	add := func(from, to uint64) {
		if n := len(gaps); from <= to && n > 0 && from <= gaps[n-1].To+1 {
			gaps[n-1].To = max(gaps[n-1].To, to)
		} else if from <= to {
			gaps = append(gaps, delivery.Range{From: from, To: to})
		}
	}
	from, former := cursor+1, min(batch.Cursor, b.former-1)
	for _, m := range batch.Messages {
		add(from, min(m.Sequence-1, former))
		from = max(from, m.Sequence+1)
	}
	add(from, former)
	for _, g := range b.need().gaps {
		add(max(g.From, cursor+1), min(g.To, batch.Cursor))
	}
	return gaps
}

// gap notes that numbers will never come.
func (w *work) gap(from, to uint64) {
	if from > to {
		return
	}
	i := sort.Search(len(w.gaps), func(i int) bool { return w.gaps[i].To+1 >= from })
	if i < len(w.gaps) && w.gaps[i].From <= to+1 {
		w.gaps[i] = delivery.Range{From: min(from, w.gaps[i].From), To: max(to, w.gaps[i].To)}
		if i+1 < len(w.gaps) && w.gaps[i+1].From == w.gaps[i].To+1 {
			w.gaps[i].To = w.gaps[i+1].To
			w.gaps = slices.Delete(w.gaps, i+1, i+2)
		}
		return
	}
	w.gaps = slices.Insert(w.gaps, i, delivery.Range{From: from, To: to})
	if len(w.gaps) > maxGaps {
		w.gaps = w.gaps[1:]
	}
}

// keep puts a message into the ring, in order, and drops the oldest if there are
// too many.
func (w *work) keep(m *delivery.Message) {
	i := len(w.ring)
	for i > 0 && w.ring[i-1].Sequence > m.Sequence {
		i--
	}
	w.ring = slices.Insert(w.ring, i, *m)
	w.unreadBytes += int64(len(m.Body))
	for len(w.ring) > maxRing || w.unreadBytes > maxRingBytes && len(w.ring) > 1 {
		w.gap(w.ring[0].Sequence, w.ring[0].Sequence)
		w.shift()
	}
}

func (w *work) shift() {
	w.unreadBytes -= int64(len(w.ring[0].Body))
	w.ring[0] = delivery.Message{}
	w.ring = w.ring[1:]
}

// buffered returns messages of the ring after cursor.
func (b *Inbox) buffered(cursor uint64, limit int) []delivery.Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	ring := b.need().ring
	i := sort.Search(len(ring), func(i int) bool { return ring[i].Sequence > cursor })
	return slices.Clone(ring[i:min(len(ring), i+limit)])
}

// Consume removes messages up to and including cursor, durably. A cursor that
// Read did not give is wire.InvalidArgument. If ctx ends first, they may have been
// removed.
func (b *Inbox) Consume(ctx context.Context, cursor uint64) error {
	b.mu.Lock()
	frontier := b.frontier
	b.mu.Unlock()
	if cursor > frontier {
		return wire.Errorf(wire.InvalidArgument, "consume up to message %d: it is not known yet what comes after %d", cursor, frontier).
			WithHint("consume up to the cursor that the last read returned")
	}
	if b.cfg.Terms.Durable() {
		done := make(chan error, 1)
		b.cfg.Store.Commit(delivery.Consume{Session: b.cfg.Session, Cursor: cursor}, true, func(err error) {
			if err == nil {
				b.consumed(cursor) // also if nobody waits any more
			}
			done <- err
		})
		select {
		case err := <-done:
			if err != nil {
				return fmt.Errorf("consume up to message %d: %w", cursor, err)
			}
		case <-ctx.Done():
			return interrupted(ctx, fmt.Sprintf("consume up to message %d", cursor))
		}
		return nil
	}
	b.consumed(cursor)
	return nil
}

// consumed forgets what was kept for readers up to cursor.
func (b *Inbox) consumed(cursor uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cursor = max(b.cursor, cursor)
	w := b.need()
	for len(w.unread) > 0 && w.unread[0].sequence <= cursor {
		w.unreadBytes -= int64(w.unread[0].size)
		w.unread = w.unread[1:]
	}
	for len(w.ring) > 0 && w.ring[0].Sequence <= cursor {
		w.shift()
	}
	for len(w.gaps) > 0 && w.gaps[0].To <= cursor {
		w.gaps = w.gaps[1:]
	}
}
