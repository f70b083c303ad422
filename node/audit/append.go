package audit

import (
	"context"
	"database/sql"
	"fmt"
	"math"

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

// maxAgain bounds the notes that wait for a database that can be written again.
const maxAgain = 8192

// submit gives entries their indexes and a batch with them to the store; l.mu is
// held. The store does not need l.mu to make room. A nil done is of notes, which
// nobody waits for: they are not durable, and kept if that fails.
func (l *Log) submit(doing string, b *store.Batch, entries []Entry, done func([]int64, error)) (first uint64) {
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
	l.db.Submit(doing, store.Join(b, &rows), l.chain, done != nil, func(affected []int64, err error) {
		if done == nil {
			l.land(after, err, entries)
			return
		}
		l.land(after, err, nil)
		done(affected, err)
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
// Notes of a change that failed are kept before anybody can go on.
func (l *Log) land(after tree, err error, notes []Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flying--
	if err != nil {
		l.broken = true
		l.keep(notes)
	} else {
		l.committed = after
	}
	l.landed.Broadcast()
}

// note submits entries that nobody waits for; l.mu is held.
func (l *Log) note(entries []Entry) {
	l.submit("record in the audit log", new(store.Batch), entries, nil)
}

// keep holds entries for when the log can be written again; l.mu is held.
func (l *Log) keep(entries []Entry) {
	if l.ended && len(entries) > 0 {
		l.cfg.Log.Error("entries of the audit log are lost: the database could not be written", zap.Int("entries", len(entries)))
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
// there: the connection may have been lost after COMMIT.
func (l *Log) repeat() {
	var missing []Entry
	for _, e := range l.again {
		if e.Hash == (Hash{}) || e.Index >= l.given.size {
			missing = append(missing, e)
		}
	}
	l.again = nil
	if len(missing) > 0 {
		l.note(missing)
	}
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
