package audit

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"iter"
	"math"
	"slices"

	"go.uber.org/zap"

	"openmesh/node/store"
	"openmesh/protocols/wire"
)

const (
	insertEntry = `INSERT INTO audit_entries (owner, idx, at, kind, direction, agent, session, ref, note, digest, size, hashes, payload)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)`

	selectLast   = `SELECT coalesce(max(idx), -1) FROM audit_entries WHERE owner = $1`
	selectHashes = `SELECT hashes FROM audit_entries WHERE owner = $1 AND idx = $2`
)

const (
	// maxPending bounds the notes that are not in the database yet, in bytes: beyond it
	// nobody may note more.
	maxPending = 64 << 20

	// Notes go to the store in pieces of at most so many and so many bytes, or of one:
	// it refuses a change that is too large.
	pieceEntries = 512
	pieceBytes   = 4 << 20
)

// submit gives entries their indexes and a batch with them to the store; l.mu is
// held. The store does not need l.mu to make room. Done is told what became of it,
// while l.mu is held.
func (l *Log) submit(doing string, b *store.Batch, entries []Entry, durable bool, done func([]int64, error)) (first uint64) {
	first = l.given.size
	var rows store.Batch
	for i := range entries {
		e := &entries[i]
		e.Index = l.given.size
		e.Hash = e.leaf()
		var hashes []Hash
		l.given, hashes = l.given.add(e.Hash)
		rows.Add(insertEntry, row(l.db.Owner(), e, hashes)...)
	}
	after := l.given
	l.flying++
	l.db.Submit(doing, store.Join(b, &rows), l.chain, durable, func(affected []int64, err error) {
		l.land(after, err, func() { done(affected, err) })
	})
	return first
}

// row is an entry as arguments of insertEntry.
func row(owner any, e *Entry, hashes []Hash) []any {
	flat := make([]byte, 0, len(hashes)*len(Hash{}))
	for _, h := range hashes {
		flat = append(flat, h[:]...)
	}
	var payload any
	if len(e.Payload) > 0 {
		payload = e.Payload
	}
	return []any{owner, int64(e.Index), e.At.UnixNano(), e.Kind, e.Direction, string(e.Agent), e.Session, e.Ref, e.Note,
		e.Digest[:], int64(e.Size), flat, payload}
}

// land hears what became of a change. The store tells it of all, in their order.
// Done may keep its notes before anybody can go on.
func (l *Log) land(after tree, err error, done func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flying--
	if err != nil {
		l.broken = true
	} else {
		l.committed = after
	}
	done()
	l.landed.Broadcast()
}

// note submits entries that nobody waits for; l.mu is held. They are not durable, and
// kept if that fails.
func (l *Log) note(entries []Entry) {
	for p := range pieces(entries) {
		l.submit("record in the audit log", new(store.Batch), p, false, func(_ []int64, err error) {
			if err != nil {
				l.keep(p)
				return
			}
			l.pending -= weight(p)
		})
	}
}

// pieces cuts entries into what one change takes.
func pieces(entries []Entry) iter.Seq[[]Entry] {
	return func(yield func([]Entry) bool) {
		for len(entries) > 0 {
			n, bytes := 1, weight(entries[:1])
			for ; n < min(len(entries), pieceEntries); n++ {
				if bytes += weight(entries[n : n+1]); bytes > pieceBytes {
					break
				}
			}
			if !yield(entries[:n:n]) {
				return
			}
			entries = entries[n:]
		}
	}
}

// weight is about what entries take in memory, in bytes.
func weight(entries []Entry) (n int) {
	for i := range entries {
		e := &entries[i]
		n += 512 + len(e.Payload) + len(e.Note)
	}
	return n
}

// keep holds entries for when the log can be written again; l.mu is held.
func (l *Log) keep(entries []Entry) {
	if l.ended {
		l.cfg.Log.Error("entries of the audit log are lost: the database could not be written", zap.Int("entries", len(entries)))
		l.pending -= weight(entries)
		return
	}
	l.again = append(l.again, entries...)
}

// mend goes on after a failure: it waits for the outcome of all that was given to
// the store, and reads how far the log has come. l.mu is held.
func (l *Log) mend(ctx context.Context) error {
	for l.broken {
		if l.flying > 0 {
			l.landed.Wait()
			continue
		}
		if err := l.load(ctx); err != nil {
			return fmt.Errorf("go on with the audit log: %w", err)
		}
		l.repeat()
	}
	return nil
}

// repeat records notes again whose change failed, save those that turn out to be
// there: the connection may have been lost after COMMIT. Those that had an index come
// first, for the others were noted after them.
func (l *Log) repeat() {
	place := func(e Entry) uint64 {
		if e.Hash == (Hash{}) {
			return maxIndex
		}
		return e.Index
	}
	l.pending -= weight(l.again)
	missing := slices.DeleteFunc(l.again, func(e Entry) bool { return place(e) < l.given.size })
	slices.SortStableFunc(missing, func(a, b Entry) int { return cmp.Compare(place(a), place(b)) })
	l.again = nil
	l.pending += weight(missing)
	l.note(missing)
	l.landed.Broadcast()
}

// load reads the right edge of the tree from the database; l.mu is held, or nobody
// else has the log.
func (l *Log) load(ctx context.Context) error {
	chain, last := l.db.Chain(), int64(-1)
	err := l.db.Query(ctx, "read the audit log", func(rows *sql.Rows) error { return rows.Scan(&last) }, selectLast, l.db.Owner())
	if err != nil {
		return err
	}
	if last == math.MaxInt64 {
		return wire.Errorf(wire.Internal, "the audit log is full")
	}
	t := tree{size: uint64(last + 1)}
	if t.size < l.committed.size {
		l.cfg.Log.Error("the database has lost entries of the audit log", zap.Uint64("from", t.size), zap.Uint64("to", l.committed.size))
	}
	for _, s := range cover(0, t.size) {
		h, err := l.hashOf(ctx, s)
		if err != nil {
			return err
		}
		t.edge = append(t.edge, h)
	}
	l.given, l.committed, l.chain, l.broken = t, t, chain, false
	return nil
}

// hashOf is the hash of a perfect subtree, as it was stored with the entry that
// completed it; zero if somebody removed it, which is for Verify to tell.
func (l *Log) hashOf(ctx context.Context, s subtree) (h Hash, err error) {
	found := false
	err = l.db.Query(ctx, "read the audit log", func(rows *sql.Rows) error {
		var flat []byte
		if err := rows.Scan(&flat); err != nil {
			return err
		}
		if at := s.level * len(h); len(flat) >= at+len(h) {
			h, found = Hash(flat[at:at+len(h)]), true
		}
		return nil
	}, selectHashes, l.db.Owner(), int64(s.last()))
	if err == nil && !found {
		l.cfg.Log.Error("the audit log was tampered with: a hash is missing", zap.Uint64("entry", s.last()))
	}
	return h, err
}
