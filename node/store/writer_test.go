package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/wire"
)

// faulty is SQLite that loses its connection: broken is asked before and after
// each COMMIT.
type faulty struct {
	sqliteDialect
	broken func(ctx context.Context, committed bool) bool
	limit  time.Duration
}

func (f faulty) patience() time.Duration { return f.limit }

func (f faulty) lost(err error) bool { return errors.Is(err, driver.ErrBadConn) }

func (f faulty) runner(conn *sql.Conn) runner {
	return faultyRunner{f.sqliteDialect.runner(conn), f.broken}
}

type faultyRunner struct {
	runner
	broken func(context.Context, bool) bool
}

func (r faultyRunner) run(ctx context.Context, sts []*statement) error {
	if sts[0].sql != "COMMIT" {
		return r.runner.run(ctx, sts)
	}
	if r.broken(ctx, false) {
		return driver.ErrBadConn
	}
	err := r.runner.run(ctx, sts)
	if err == nil && r.broken(ctx, true) {
		return driver.ErrBadConn
	}
	return err
}

// openWith is Open with a dialect given.
func openWith(t *testing.T, d dialect) *Store {
	t.Helper()
	s, err := start(t.Context(), d, Config{Path: filepath.Join(t.TempDir(), "openmesh.db"), Owner: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func enqueued(n uint64) delivery.Change {
	return delivery.Enqueue{Session: delivery.SessionID{1}, Message: &delivery.Message{Sequence: n, Key: fmt.Sprint(n), Body: make([]byte, 1000)}}
}

func try(s *Store, c delivery.Change) error {
	done := make(chan error, 1)
	s.Commit(c, true, func(err error) { done <- err })
	return <-done
}

func last(t *testing.T, s *Store) uint64 {
	t.Helper()
	_, n, err := s.Outbox(t.Context(), delivery.SessionID{1}, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A connection that is lost around COMMIT: the changes are made once, and a
// message is not taken for a duplicate of itself.
func TestLostConnection(t *testing.T) {
	t.Parallel()
	for name, committed := range map[string]bool{"before COMMIT": false, "after COMMIT": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var faults atomic.Int32
			s := openWith(t, faulty{limit: time.Minute, broken: func(_ context.Context, c bool) bool { return c == committed && faults.Add(-1) >= 0 }})
			for n := uint64(1); n <= 3; n++ {
				faults.Store(2)
				if err := try(s, enqueued(n)); err != nil || last(t, s) != n {
					t.Errorf("message %d: error %v, last %d", n, err, last(t, s))
				}
				faults.Store(1)
				if err := try(s, enqueued(n)); !errors.Is(err, wire.AlreadyExists) {
					t.Errorf("message %d again: error %v", n, err)
				}
			}
		})
	}
}

// A database lost for longer than patience: changes fail, and the store works
// again when it is back.
func TestLostForLong(t *testing.T) {
	t.Parallel()
	var down atomic.Bool
	s := openWith(t, faulty{limit: 100 * time.Millisecond, broken: func(_ context.Context, committed bool) bool { return !committed && down.Load() }})
	down.Store(true)
	if err := try(s, enqueued(1)); err == nil || last(t, s) != 0 {
		t.Errorf("Commit while the database is lost: error %v, last %d", err, last(t, s))
	}
	down.Store(false)
	if err := try(s, enqueued(1)); err != nil || last(t, s) != 1 {
		t.Errorf("Commit after that: error %v, last %d", err, last(t, s))
	}
}

// A COMMIT that came through, and no answer for as long as patience lasts: the
// change has an error, and does not stand in the way of the next.
func TestNoAnswer(t *testing.T) {
	t.Parallel()
	var faults atomic.Int32
	s := openWith(t, faulty{limit: 2 * time.Second, broken: func(ctx context.Context, committed bool) bool {
		if !committed || faults.Add(-1) < 0 {
			return false
		}
		<-ctx.Done()
		return true
	}})
	faults.Store(1)
	if err := try(s, enqueued(1)); err == nil || last(t, s) != 1 {
		t.Errorf("Commit without an answer: error %v, last %d", err, last(t, s))
	}
	if err := try(s, enqueued(2)); err != nil || last(t, s) != 2 {
		t.Errorf("Commit after that: error %v, last %d", err, last(t, s))
	}
}

// The disk is full: the commit fails, what it held is not there, and the next
// one works when there is room again.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	full := make(chan bool, 1)
	s := openWith(t, cramped{full: full})
	if err := try(s, enqueued(1)); err != nil {
		t.Fatal(err)
	}
	full <- true
	large := delivery.Enqueue{Session: delivery.SessionID{1}, Message: &delivery.Message{Sequence: 2, Key: "2", Body: make([]byte, 1<<20)}}
	err := try(s, large)
	if e := (*wire.Error)(nil); !errors.As(err, &e) || e.Code != wire.ResourceExhausted || e.Hint == "" || last(t, s) != 1 {
		t.Errorf("Commit to a full disk: %v, last %d", err, last(t, s))
	}
	if err := try(s, large); err != nil || last(t, s) != 2 {
		t.Errorf("Commit after room was made: %v, last %d", err, last(t, s))
	}
}

// cramped is SQLite that has room for no more pages in the next transaction.
type cramped struct {
	sqliteDialect
	full chan bool
}

func (c cramped) runner(conn *sql.Conn) runner {
	return crampedRunner{c.sqliteDialect.runner(conn), c.full}
}

type crampedRunner struct {
	runner
	full chan bool
}

func (r crampedRunner) run(ctx context.Context, sts []*statement) error {
	select {
	case <-r.full:
		sts = append([]*statement{{sql: "PRAGMA max_page_count=1"}}, sts...)
	default:
	}
	return r.runner.run(ctx, sts)
}

// The mode of the log follows what the batch needs.
func TestSynchronous(t *testing.T) {
	t.Parallel()
	modes := make(chan int, 10)
	s := openWith(t, watched{modes: modes})
	for _, test := range []struct {
		durable bool
		want    int // as PRAGMA synchronous numbers them
	}{{false, 1}, {true, 2}, {false, 1}, {true, 2}, {true, 2}} {
		done := make(chan error, 1)
		s.Commit(delivery.SaveSession{}, test.durable, func(err error) { done <- err })
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if got := <-modes; got != test.want {
			t.Errorf("durable %v: synchronous = %d, want %d", test.durable, got, test.want)
		}
	}
}

// watched reports the mode of each COMMIT.
type watched struct {
	sqliteDialect
	modes chan int
}

func (w watched) runner(conn *sql.Conn) runner {
	return watchedRunner{w.sqliteDialect.runner(conn), conn, w.modes}
}

type watchedRunner struct {
	runner
	conn  *sql.Conn
	modes chan int
}

func (r watchedRunner) run(ctx context.Context, sts []*statement) error {
	if sts[0].sql == "COMMIT" {
		var mode int
		if err := r.conn.QueryRowContext(ctx, "PRAGMA synchronous").Scan(&mode); err != nil {
			return err
		}
		r.modes <- mode
	}
	return r.runner.run(ctx, sts)
}

// losable is a database that this process may outlive.
type losable struct{ watched }

func (losable) patience() time.Duration { return time.Minute }

// What is on a chain is on the disk before it is confirmed, if the database may
// come back without its last commits while this process builds on them.
func TestChainDurable(t *testing.T) {
	t.Parallel()
	modes := make(chan int, 1)
	for name, test := range map[string]struct {
		dialect      dialect
		chain, alone int // PRAGMA synchronous
	}{
		"ends with this process": {watched{modes: modes}, 1, 1},
		"may be outlived":        {losable{watched{modes: modes}}, 2, 1},
	} {
		s := openWith(t, test.dialect)
		for _, tc := range []struct {
			chain *Chain
			want  int
		}{{s.Chain(), test.chain}, {nil, test.alone}} {
			if err := submit(s, tc.chain, false, delivery.SaveSession{}); err != nil {
				t.Fatal(err)
			}
			if got := <-modes; got != tc.want {
				t.Errorf("%s, on a chain %t: synchronous = %d, want %d", name, tc.chain != nil, got, tc.want)
			}
		}
	}
}

// submit gives a change as a batch, and waits.
func submit(s *Store, chain *Chain, durable bool, c delivery.Change) error {
	it := s.translate(c)
	done := make(chan error, 1)
	s.Submit("test", &Batch{item: it}, chain, durable, func(_ []int64, err error) { done <- err })
	return <-done
}

// A database that comes back without what it had confirmed, as a standby that
// lagged behind: the change in hand fails, and every chain that was made before, so
// that nothing builds on what is lost.
func TestSetback(t *testing.T) {
	t.Parallel()
	s := openWith(t, sqliteDialect{})
	old, other := s.Chain(), s.Chain()
	for n := range uint64(5) {
		if err := submit(s, old, true, enqueued(n+1)); err != nil {
			t.Fatal(err)
		}
	}
	goBack(t, s, 2)
	if err := try(s, enqueued(6)); !errors.Is(err, wire.Internal) || last(t, s) != 5 {
		t.Errorf("Commit to an older state: %v, last %d", err, last(t, s))
	}
	for _, c := range []*Chain{old, other} {
		if err := submit(s, c, true, enqueued(7)); !errors.Is(err, ErrBroken) {
			t.Errorf("a chain of before: %v", err)
		}
	}
	if err := submit(s, s.Chain(), true, enqueued(6)); err != nil || last(t, s) != 6 {
		t.Errorf("a chain made after: %v, last %d", err, last(t, s))
	}
	goBack(t, s, 1)
	if err := try(s, enqueued(7)); !errors.Is(err, wire.Internal) {
		t.Errorf("Commit to an older state again: %v", err)
	}
}

// What nobody was promised may be lost: that is no failure.
func TestSetbackOfWhatWasNotDurable(t *testing.T) {
	t.Parallel()
	s := openWith(t, sqliteDialect{})
	chain := s.Chain()
	for n := range uint64(5) {
		if err := submit(s, nil, n == 2, enqueued(n+1)); err != nil {
			t.Fatal(err)
		}
	}
	goBack(t, s, 2)
	if err := submit(s, chain, true, enqueued(6)); err != nil {
		t.Error(err)
	}
}

// goBack has the database be as it was before its last transactions, as far as
// their numbers tell.
func goBack(t *testing.T, s *Store, transactions int) {
	t.Helper()
	if _, err := s.db.ExecContext(t.Context(), "UPDATE owners SET batch = batch - $1", transactions); err != nil {
		t.Fatal(err)
	}
}

// The codes with which PostgreSQL ends a connection are no errors of what was tried.
func TestLostPostgres(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]bool{
		"08006": true, "57P01": true, "57P02": true, "57P03": true, "57P05": true, "25P03": true, "25006": true,
		"23505": false, "53100": false, "57014": false, "25P02": false,
	} {
		if got := (postgresDialect{}).lost(fmt.Errorf("test: %w", &pgconn.PgError{Code: code})); got != want {
			t.Errorf("%s: lost is %t", code, got)
		}
	}
}

// Deleted messages leave pages free, which return to the file system.
func TestTidy(t *testing.T) {
	t.Parallel()
	s := openWith(t, sqliteDialect{})
	free := func() (n int) {
		if err := s.db.QueryRowContext(t.Context(), "PRAGMA freelist_count").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for n := range uint64(10) {
		if err := try(s, delivery.Receive{Session: delivery.SessionID{1}, Message: &delivery.Message{Sequence: n, Body: make([]byte, 4<<20)}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := try(s, delivery.Consume{Session: delivery.SessionID{1}, Cursor: 10}); err != nil {
		t.Fatal(err)
	}
	before := free()
	if before < tidyAbove {
		t.Fatalf("%d pages are free after all was consumed", before)
	}
	for range tidyEvery {
		if err := try(s, delivery.SaveSession{}); err != nil {
			t.Fatal(err)
		}
	}
	if got := free(); got > before-tidyPages+10 {
		t.Errorf("%d pages are free, %d before", got, before)
	}
}
