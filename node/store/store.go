// Package store is the node's database: what must outlive its process. It is
// the [delivery.Store] of persistent sessions, and keeps documents, small
// values under a bucket and a key, for the other parts of the node. Package
// letters below it keeps a relay's mailboxes.
//
// The database is SQLite, one file under the home, or PostgreSQL, where several
// nodes may share one database: every row carries the node that owns it, save
// those of mailboxes, which relays of one database have in common.
//
// # Group commit
//
// An fsync costs the same for one change as for a thousand, so one goroutine
// writes for all:
//
//	Commit ──▶ queue ──▶ writer: BEGIN, all changes, COMMIT ──▶ notifier: done, done, …
//	           64 MiB            at most 1,024 or 8 MiB
//
// What gathers while a transaction is under way is the next one. Changes that
// need not be durable wait up to 50 ms for one that must be; failing that they
// are committed without an fsync (SQLite: synchronous=NORMAL; PostgreSQL:
// synchronous_commit=off), which survives the end of the process, and any later
// durable commit makes them durable as well. With PostgreSQL, what is on a [Chain]
// waits for the disk in any case. All is committed in the order given.
//
// # Failures
//
// A transaction that fails gives its error to all of its changes and leaves
// nothing behind; the next is tried afresh. A lost connection to PostgreSQL is
// made anew for up to 30 s. If it was lost during COMMIT, the number of the
// transaction, which is written within it, tells whether it came through. It also
// tells if a database comes back without changes that it had confirmed (a standby
// that lagged behind): then the transaction in hand fails, and all chains do.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/wire"
)

const (
	maxQueue  = 64 << 20 // bytes waiting to be committed, beyond which Commit waits
	maxChange = 64 << 20 // bytes of one change
	maxKey    = 256      // bytes of an idempotency key
	readers   = 4        // connections to read with
)

// ErrClosed is the error of a change that was given after Close.
var ErrClosed = errors.New("the store is closed")

var _ delivery.Store = (*Store)(nil)

// Config says which database to open.
type Config struct {
	URL   string      // of a PostgreSQL database (postgres://…); empty: SQLite
	Path  string      // of the SQLite file, which is made if there is none
	Owner string      // the node's agent id; sees its own rows only
	Log   *zap.Logger // of lost and regained connections; nil: none
}

// Store is an open database. It is safe for concurrent use.
type Store struct {
	db      *sql.DB
	dialect dialect
	owner   any // row id of the owner, as an argument of statements
	queue   *queue
	loops   sync.WaitGroup
	close   func() error

	setbacks atomic.Int64 // how often the database was found without what it had confirmed
}

// Open opens the database, and makes or upgrades its tables. A second process
// that opens it for the same owner takes it over: what the first one commits
// from then on fails.
//
// Errors are [wire.Error]s with a hint; they name no password. The code is
// [wire.Unsupported] for a database written by a newer version of this program.
//
// The store lives until Close, not until ctx ends: it has to outlast the parts
// of the node that write their last words to it.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.Owner == "" {
		return nil, wire.Errorf(wire.InvalidArgument, "open the database: no owner is given")
	}
	d := dialect(sqliteDialect{})
	if c.URL != "" {
		d = postgresDialect{}
	}
	return start(ctx, d, c)
}

func start(ctx context.Context, d dialect, c Config) (*Store, error) {
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	db, err := d.open(c)
	if err != nil {
		return nil, failure(d, "open the database", err)
	}
	db.SetMaxOpenConns(readers + 1) // and the writer's
	db.SetMaxIdleConns(readers + 1)
	owner, batch, err := prepare(ctx, db, d, c.Owner)
	if err != nil {
		return nil, errors.Join(failure(d, "open the database", err), db.Close())
	}
	s := &Store{db: db, dialect: d, owner: owner, queue: newQueue(maxQueue)}
	w := &writer{db: db, dialect: d, owner: owner, first: batch, last: batch, safe: batch, setbacks: &s.setbacks, log: c.Log}
	s.loops.Go(func() { w.run(s.queue) })
	s.loops.Go(s.queue.notify)
	s.close = sync.OnceValue(func() error {
		s.queue.close()
		s.loops.Wait()
		return errors.Join(w.disconnect(), db.Close())
	})
	return s, nil
}

// prepare brings the tables up to date and takes over what belongs to owner.
func prepare(ctx context.Context, db *sql.DB, d dialect, owner string) (id, batch int64, err error) {
	if err := db.PingContext(ctx); err != nil {
		return 0, 0, err
	}
	if err := migrate(ctx, db, d); err != nil {
		return 0, 0, err
	}
	return claim(ctx, db, owner)
}

// Close commits what was given, calls its done funcs, and closes the database.
// It must not be called by a done func. With PostgreSQL out of reach it takes
// up to 30 s.
func (s *Store) Close() error { return s.close() }

// Commit implements [delivery.Store]. It returns at once, save while 64 MiB are
// waiting to be committed: then it waits for room. That does not depend on any
// done func, so a done func may call Commit, and whoever calls Commit may hold
// a lock that a done func takes.
//
// What changes nothing is no error: to settle a message that has its outcome
// or is not there, to finish a sequence twice (the first answer stays), to lower
// a cursor or floor. A key longer than 256 bytes, a sequence of 2⁶³ or more and
// a change over 64 MiB are [wire.InvalidArgument] or [wire.TooLarge].
func (s *Store) Commit(c delivery.Change, durable bool, done func(error)) {
	it := s.translate(c)
	it.durable, it.done = durable, done
	if !s.queue.put(it) && done != nil {
		go done(ErrClosed)
	}
}

// Put stores a document in place of the one of that name. When it returns
// without error the document would survive a power failure; if ctx ends
// earlier, it may or may not be stored. Like Commit it may wait for room.
func (s *Store) Put(ctx context.Context, bucket, key string, value []byte) error {
	var b Batch
	b.Add(putDocument, s.owner, []byte(bucket), []byte(key), value)
	_, err := s.Exec(ctx, fmt.Sprintf("store document %s/%s", bucket, key), &b)
	return err
}

// Delete removes a document, as Put stores one. If there is none, that is no
// error.
func (s *Store) Delete(ctx context.Context, bucket, key string) error {
	var b Batch
	b.Add(deleteDocument, s.owner, []byte(bucket), []byte(key))
	_, err := s.Exec(ctx, fmt.Sprintf("delete document %s/%s", bucket, key), &b)
	return err
}

// failure is the error for what a database could not do.
func failure(d dialect, doing string, err error) error {
	if e := (*wire.Error)(nil); errors.As(err, &e) {
		return fmt.Errorf("%s: %w", doing, err)
	}
	code, hint := d.explain(err)
	switch {
	case errors.Is(err, context.Canceled):
		code, hint = wire.Cancelled, ""
	case errors.Is(err, context.DeadlineExceeded):
		code = wire.DeadlineExceeded
	}
	return wire.Errorf(code, "%s: %w", doing, err).WithHint("%s", hint)
}
