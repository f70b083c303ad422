package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io/fs"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/pressly/goose/v3"
	"go.uber.org/zap"

	"openmesh/protocols/wire"
)

// dialect is what differs between the databases.
type dialect interface {
	// open sets up the database, without connecting to it.
	open(Config) (*sql.DB, error)
	// migrations are the tables' versions, and how goose goes about them.
	migrations() (goose.Dialect, fs.FS, []goose.ProviderOption, error)
	// begin starts a transaction whose COMMIT waits for the disk if durable.
	begin(durable bool) []statement
	// runner executes statements on the writer's connection.
	runner(*sql.Conn) runner
	// patience is how long a lost database is tried again; 0: it cannot be lost.
	patience() time.Duration
	// lost reports whether err is of a lost connection.
	lost(err error) bool
	// explain returns the code for an error of the database, and what to do.
	explain(err error) (wire.Code, string)
}

// runner executes statements in order on one connection and notes how many rows
// each affected.
type runner interface {
	run(ctx context.Context, sts []*statement) error
	// tidy is called after a transaction.
	tidy(ctx context.Context)
	// close gives up what run prepared, before the connection is closed.
	close() error
}

// The statements of transactions. The numbers of those of one writer count up
// from one chosen at random: what lies between is its own, and else another
// process has claimed the owner since. One below the last that was committed
// durably is of a database that has lost what it confirmed.
const (
	addOwner  = `INSERT INTO owners (agent, batch) VALUES ($1, 0) ON CONFLICT DO NOTHING`
	takeOwner = `UPDATE owners SET batch = $2 WHERE agent = $1`
	findOwner = `SELECT id FROM owners WHERE agent = $1`

	numberBatch = `UPDATE owners SET batch = $2 WHERE id = $1 AND batch BETWEEN $3 AND $4`
	findBatch   = `SELECT batch FROM owners WHERE id = $1`
)

// claim makes this process the one that writes for an agent.
func claim(ctx context.Context, db *sql.DB, agent string) (owner, batch int64, err error) {
	if _, err = db.ExecContext(ctx, addOwner, agent); err != nil {
		return 0, 0, err
	}
	batch = 1 + rand.Int64N(1<<62)
	if _, err = db.ExecContext(ctx, takeOwner, agent, batch); err != nil {
		return 0, 0, err
	}
	err = db.QueryRowContext(ctx, findOwner, agent).Scan(&owner)
	return owner, batch, err
}

const (
	maxGather    = time.Millisecond
	brief        = 3 * time.Second // for a database that has been lost for long
	firstRetry   = 50 * time.Millisecond
	longestRetry = 2 * time.Second
)

// writer commits what is in a queue. It belongs to one goroutine.
type writer struct {
	db      *sql.DB
	dialect dialect
	owner   any
	log     *zap.Logger

	conn   *sql.Conn // nil: to be made
	runner runner    // on conn

	first, last int64         // numbers of transactions: claimed at Open; last used
	safe        int64         // of the last one known to be on the disk
	setbacks    *atomic.Int64 // how often the database was found behind safe
	lost        bool          // the last attempt found no database
	forlorn     bool          // nor was there one for as long as patience lasts
}

// run commits until the queue is closed and empty.
func (w *writer) run(q *queue) {
	defer q.end()
	want, gather := 0, time.Duration(0)
	for {
		items := q.take(want, gather)
		if items == nil {
			return
		}
		start := time.Now()
		batches(items, func(batch []item, durable bool) {
			w.commit(batch, durable)
			q.finish(batch)
		})
		want, gather = len(items), min(time.Since(start)/8, maxGather)
	}
}

// commit makes one transaction of a batch and sets the errors of its items.
func (w *writer) commit(batch []item, durable bool) {
	for i := range batch {
		batch[i].follow(w.setbacks.Load())
	}
	if w.dialect.patience() > 0 { // a database that is lost may come back without its last commits
		durable = durable || slices.ContainsFunc(batch, func(it item) bool { return it.chain != nil })
	}
	w.last++
	err := w.persist(batch, durable)
	if err == nil {
		if durable {
			w.safe = w.last
		}
		return
	}
	err = failure(w.dialect, "commit to the database", err)
	for i := range batch {
		if len(batch[i].statements) > 0 {
			batch[i].err = err
			batch[i].chain.fail()
		}
	}
}

// persist tries until the batch is committed, or the database has been lost for
// too long.
func (w *writer) persist(batch []item, durable bool) error {
	patience := w.dialect.patience()
	if patience == 0 {
		return w.attempt(context.Background(), batch, durable)
	}
	if w.forlorn {
		patience = brief
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = firstRetry, longestRetry
	for {
		err := w.attempt(ctx, batch, durable)
		w.note(err)
		if !w.lost {
			return err
		}
		select {
		case <-time.After(wait.NextBackOff()):
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			w.forlorn = true
			return err
		}
	}
}

// note keeps track of whether there is a database, and says so when it changes.
func (w *writer) note(err error) {
	was := w.lost
	w.lost = err != nil && w.dialect.lost(err)
	switch {
	case w.lost && !was:
		w.log.Warn("the database is lost; trying again", zap.Error(err))
	case was && !w.lost:
		w.forlorn = false
		w.log.Info("the database is back")
	}
}

// attempt makes one transaction of a batch. After an error the connection is
// given up, which rolls back whatever state it was in.
func (w *writer) attempt(ctx context.Context, batch []item, durable bool) error {
	err := w.connect(ctx)
	if err == nil {
		err = w.transact(ctx, batch, durable)
	}
	if err != nil {
		return errors.Join(err, w.disconnect())
	}
	w.runner.tidy(ctx)
	return nil
}

func (w *writer) connect(ctx context.Context) (err error) {
	if w.conn == nil {
		if w.conn, err = w.db.Conn(ctx); err == nil {
			w.runner = w.dialect.runner(w.conn)
		}
	}
	return err
}

// disconnect closes the connection instead of returning it to the pool.
func (w *writer) disconnect() error {
	if w.conn == nil {
		return nil
	}
	err := w.runner.close()
	bad := w.conn.Raw(func(any) error { return driver.ErrBadConn }) // which makes it close for good
	for _, e := range []error{bad, w.conn.Close()} {
		if !errors.Is(e, driver.ErrBadConn) && !errors.Is(e, sql.ErrConnDone) {
			err = errors.Join(err, e)
		}
	}
	w.conn, w.runner = nil, nil
	return err
}

func (w *writer) transact(ctx context.Context, batch []item, durable bool) error {
	number := statement{sql: numberBatch, args: []any{w.owner, w.last, w.safe, w.last - 1}}
	var sts []*statement
	for _, st := range w.dialect.begin(durable) {
		sts = append(sts, &st)
	}
	if err := w.runner.run(ctx, append(sts, &number)); err != nil {
		return err
	}
	if number.affected == 0 {
		return w.recover(ctx)
	}
	sts = make([]*statement, 0, len(batch)+1)
	for _, it := range batch {
		for i := range it.statements {
			sts = append(sts, &it.statements[i])
		}
	}
	if err := w.runner.run(ctx, sts); err != nil {
		return err
	}
	for i := range batch {
		batch[i].judge()
	}
	return w.runner.run(ctx, []*statement{{sql: "COMMIT"}})
}

// recover is for a transaction that may not have its number: it came through in
// an earlier attempt, or the database went back to an older state, or this process
// may not write any more.
func (w *writer) recover(ctx context.Context) error {
	var found int64
	if err := w.conn.QueryRowContext(ctx, findBatch, w.owner).Scan(&found); err != nil {
		return err
	}
	switch {
	case found == w.last:
		return w.runner.run(ctx, []*statement{{sql: "ROLLBACK"}})
	case w.first <= found && found < w.safe:
		return w.setback(found)
	}
	return wire.Errorf(wire.Denied, "another process has opened this database for the same agent").
		WithHint("Only one node may run with an identity: stop one of the two, and start this one again.")
}

// setback goes on from the older state that the database is in. What the batch in
// hand presupposes may be lost, and so it fails; so do all chains of before.
func (w *writer) setback(found int64) error {
	w.log.Error("the database went back to an older state: changes that it had confirmed are lost", zap.Int64("transactions", w.safe-found))
	w.safe = found
	w.setbacks.Add(1)
	return wire.Errorf(wire.Internal, "the database went back to an older state: it has lost changes that it had confirmed").
		WithHint("A standby that takes over for PostgreSQL must have all commits (synchronous_standby_names), and a backup is put back while the node is stopped.")
}

// judge sets the error of an item that had to add a row and did not.
func (it *item) judge() {
	if it.unique && len(it.statements) > 0 {
		it.err = nil
		if it.statements[0].affected == 0 {
			it.err = wire.Errorf(wire.AlreadyExists, "store a message: the session has one with this key or sequence")
		}
	}
}
