// Package letters keeps a relay's mailboxes in the node's database: it is the
// [mailbox.Store] of a relay.
//
// # Commits
//
// Changes by many callers at once are gathered to one batch, which the store below
// commits with whatever else there is: one fsync for all.
//
//	Deposit ┐                                    ┌ nil
//	Deposit ┼─▶ waiting ──▶ batch ──▶ COMMIT ──▶ ┼ nil
//	Remove  ┘   (while the batch before          └ 3 letters
//	             is being committed)
//
// # Relays that share a database
//
// On PostgreSQL several relays may have the same mailboxes. Each transaction that
// changes letters of a recipient holds the recipient's row in mailboxes until it
// has committed, and gives cursors from there. So cursors become visible in their
// order, sums are exact, and a quota holds whoever takes the letters. A batch takes
// the rows in the order of recipients, and there is one batch at a time of each
// relay: two relays cannot wait for each other.
//
// The cursors of a new registration start from the time in microseconds, so that
// they are above those of one before it that was forgotten.
package letters

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"openmesh/node/store"
	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox"
	"openmesh/protocols/wire"
)

var _ mailbox.Store = (*Store)(nil)

const (
	maxBatch      = 512     // changes
	maxBatchBytes = 8 << 20 // of bodies, or one
)

// Store is the mailboxes in a database. It is safe for concurrent use, and needs
// no closing but that of the database.
type Store struct {
	db *store.Store

	mu      sync.Mutex
	waiting []*change
	busy    bool // somebody commits
}

// New returns the mailboxes in db. There must be one Store for a db.
func New(db *store.Store) *Store { return &Store{db: db} }

// change is what one caller wants.
type change struct {
	recipient  identity.AgentID // "" for none
	statements []statement
	size       int
	affected   []int64 // rows, by statement
	done       chan error
}

type statement struct {
	sql  string
	args []any
}

func (c *change) add(sql string, args ...any) {
	c.statements = append(c.statements, statement{sql, args})
}

// commit makes a change durable, and returns how many rows each of its statements
// affected. If ctx ends earlier, it may or may not be made.
func (s *Store) commit(ctx context.Context, c *change) ([]int64, error) {
	c.done = make(chan error, 1)
	s.mu.Lock()
	s.waiting = append(s.waiting, c)
	lead := !s.busy
	s.busy = true
	s.mu.Unlock()
	if lead {
		go s.drain()
	}
	select {
	case err := <-c.done:
		return c.affected, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// drain commits until nothing waits.
func (s *Store) drain() {
	for {
		s.mu.Lock()
		n, size := 0, 0
		for n < min(len(s.waiting), maxBatch) && (n == 0 || size+s.waiting[n].size <= maxBatchBytes) {
			size += s.waiting[n].size
			n++
		}
		batch := s.waiting[:n:n]
		s.waiting = s.waiting[n:]
		s.busy = n > 0
		s.mu.Unlock()
		if n == 0 {
			return
		}
		s.commitBatch(batch)
	}
}

// lock holds a recipient's row until the end of the transaction, in both
// databases.
const lock = `UPDATE mailboxes SET last = last WHERE recipient = $1`

// commitBatch commits changes in the order of their recipients, and for each
// recipient in the order given.
func (s *Store) commitBatch(batch []*change) {
	slices.SortStableFunc(batch, func(a, b *change) int { return cmp.Compare(a.recipient, b.recipient) })
	var b store.Batch
	locks := make([]bool, len(batch))
	for i, c := range batch {
		if locks[i] = c.recipient != "" && (i == 0 || c.recipient != batch[i-1].recipient); locks[i] {
			b.Add(lock, string(c.recipient))
		}
		for _, st := range c.statements {
			b.Add(st.sql, st.args...)
		}
	}
	// Not the context of one of those who wait: the others have theirs.
	affected, err := s.db.Exec(context.Background(), "change mailboxes", &b)
	for i, c := range batch {
		if err == nil && locks[i] {
			affected = affected[1:]
		}
		if err == nil {
			c.affected, affected = affected[:len(c.statements)], affected[len(c.statements):]
		}
		c.done <- err
	}
}

const (
	register = `INSERT INTO mailboxes (recipient, version, expires, last) SELECT $1, $2, $3, $4
		WHERE (SELECT count(*) FROM mailboxes) < $5 OR EXISTS (SELECT 1 FROM mailboxes WHERE recipient = $1)
		ON CONFLICT (recipient) DO UPDATE SET version = excluded.version, expires = excluded.expires
		WHERE excluded.version >= mailboxes.version`

	forgetLetters = `DELETE FROM letters WHERE recipient = $1`
	forget        = `DELETE FROM mailboxes WHERE recipient = $1`

	// The conditions are those of mailbox.Quota.
	deposit = `INSERT INTO letters (recipient, cursor, digest, id, depositor, expires, until, size, body)
		SELECT m.recipient, m.last + 1, $2, $3, $4, $5, $6, $7, $8 FROM mailboxes m
		WHERE m.recipient = $1 AND m.expires > $9 AND m.letters < $10 AND m.bytes + $7 <= $11
		AND (SELECT count(*) FROM letters l WHERE l.recipient = $1 AND l.depositor = $4) * $12 < $10 - m.letters
		AND (m.letters = 0 OR
			((SELECT coalesce(sum(l.size), 0) FROM letters l WHERE l.recipient = $1 AND l.depositor = $4) + $7) * $12 <= $11 - m.bytes - $7)
		ON CONFLICT DO NOTHING`
	// One that was there has a cursor that was given before.
	countDeposit = `UPDATE mailboxes SET last = last + 1, letters = letters + 1, bytes = bytes + $3
		WHERE recipient = $1 AND last + 1 = (SELECT cursor FROM letters WHERE recipient = $1 AND digest = $2)`

	countRemove = `UPDATE mailboxes SET letters = letters - 1,
		bytes = bytes - (SELECT size FROM letters WHERE recipient = $1 AND cursor = $2)
		WHERE recipient = $1 AND EXISTS (SELECT 1 FROM letters WHERE recipient = $1 AND cursor = $2)`
	remove = `DELETE FROM letters WHERE recipient = $1 AND cursor = $2`

	expireRegistrations = `DELETE FROM mailboxes WHERE expires <= $1 AND letters = 0`
)

// Register implements [mailbox.Store].
func (s *Store) Register(ctx context.Context, recipient identity.AgentID, version uint32, expires time.Time, most int) error {
	c := &change{recipient: recipient}
	c.add(register, string(recipient), int64(version), expires.Unix(), time.Now().UnixMicro(), most)
	affected, err := s.commit(ctx, c)
	if err != nil || affected[0] > 0 {
		return err
	}
	if box, err := s.Box(ctx, recipient); err == nil && box.Version > version {
		return wire.Errorf(wire.KeySuperseded, "register mailbox of %s: it was registered with key version %d, this is %d", recipient, box.Version, version)
	}
	return wire.Errorf(wire.ResourceExhausted, "register mailbox of %s: %d others are registered", recipient, most).
		WithHint("Choose another relay; its operator can raise the limit on registrations.")
}

// Forget implements [mailbox.Store].
func (s *Store) Forget(ctx context.Context, recipient identity.AgentID) error {
	c := &change{recipient: recipient}
	c.add(forgetLetters, string(recipient))
	c.add(forget, string(recipient))
	_, err := s.commit(ctx, c)
	return err
}

// Deposit implements [mailbox.Store].
func (s *Store) Deposit(ctx context.Context, e mailbox.Entry, q mailbox.Quota, now time.Time) error {
	digest, size := e.Digest(), len(e.Body)
	body := e.Body
	if body == nil {
		body = []byte{}
	}
	c := &change{recipient: e.Recipient, size: size}
	c.add(deposit, string(e.Recipient), digest[:], e.ID[:], []byte(e.Depositor), e.Expires.Unix(), e.Until.Unix(), int64(size), body,
		now.Unix(), q.Letters, q.Bytes, q.Share)
	c.add(countDeposit, string(e.Recipient), digest[:], int64(size))
	affected, err := s.commit(ctx, c)
	if err != nil || affected[0] > 0 {
		return err
	}
	return s.refusal(ctx, e.Recipient, digest[:], now)
}

// Remove implements [mailbox.Store].
func (s *Store) Remove(ctx context.Context, recipient identity.AgentID, cursors []uint64) (n int, err error) {
	if len(cursors) == 0 {
		return 0, nil
	}
	c := &change{recipient: recipient}
	for _, cursor := range cursors {
		c.add(countRemove, string(recipient), position(cursor))
		c.add(remove, string(recipient), position(cursor))
	}
	affected, err := s.commit(ctx, c)
	for i := 1; i < len(affected); i += 2 {
		n += int(affected[i])
	}
	return n, err
}

// Expire implements [mailbox.Store].
func (s *Store) Expire(ctx context.Context, now time.Time, most int) (n int, err error) {
	due, err := s.due(ctx, now, most)
	if err != nil {
		return 0, err
	}
	for recipient, cursors := range due {
		removed, err := s.Remove(ctx, recipient, cursors)
		if n += removed; err != nil {
			return n, err
		}
	}
	if len(due) > 0 {
		return n, nil // there may be more
	}
	var c change
	c.add(expireRegistrations, now.Unix())
	_, err = s.commit(ctx, &c)
	return n, err
}
