//go:build unix

package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"openmesh/node/store"
	"openmesh/node/store/letters"
	"openmesh/node/store/postgrestest"
	"openmesh/node/store/storetest"
	"openmesh/protocols/mailbox"
	"openmesh/protocols/mailbox/mailboxtest"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/wire"
)

func TestPostgres(t *testing.T) {
	t.Parallel()
	server := postgrestest.New(t)
	fresh := func(t *testing.T) func() storetest.Store {
		c := store.Config{URL: server.URL, Owner: "agent of " + t.Name()}
		return func() storetest.Store { return open(t, c) }
	}
	t.Run("contract", func(t *testing.T) { storetest.Run(t, fresh) })
	t.Run("crash", func(t *testing.T) { testCrash(t, store.Config{URL: server.URL, Owner: "crash"}) })
	t.Run("documents", func(t *testing.T) { testDocuments(t, store.Config{URL: server.URL, Owner: "documents"}) })
	t.Run("owners", func(t *testing.T) { testOwners(t, store.Config{URL: server.URL}) })
	t.Run("takeover", func(t *testing.T) { testTakeover(t, store.Config{URL: server.URL, Owner: "takeover"}) })
	t.Run("newer schema", func(t *testing.T) {
		testNewer(t, "pgx", server.Database(t, "newer"), store.Config{URL: server.Database(t, "newer"), Owner: "newer"})
	})
	t.Run("explained", func(t *testing.T) { testPostgresErrors(t, server.URL) })
	t.Run("mailboxes", func(t *testing.T) { testMailboxes(t, server) })
	t.Run("language", func(t *testing.T) { testLanguage(t, server) })
	t.Run("idle", func(t *testing.T) { testIdle(t, server) })
	t.Run("chained", func(t *testing.T) { testChained(t, store.Config{URL: server.URL, Owner: "chained"}) })
	t.Run("lost", func(t *testing.T) { testLost(t, server) })
}

// Each test has a database, which as many relays share as it opens stores.
func testMailboxes(t *testing.T, server *postgrestest.Server) {
	var databases, relays atomic.Int32
	t.Run("contract", func(t *testing.T) {
		mailboxtest.Run(t, func(t *testing.T) func(*testing.T) mailbox.Store {
			url := server.Database(t, fmt.Sprint("mailboxes", databases.Add(1)))
			return func(t *testing.T) mailbox.Store {
				s := open(t, store.Config{URL: url, Owner: fmt.Sprint("relay ", relays.Add(1))})
				t.Cleanup(func() { s.Close() })
				return letters.New(s)
			}
		})
	})
}

// Errors say what to do, and no password.
func testPostgresErrors(t *testing.T, good string) {
	u, err := url.Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	with := func(change func(*url.URL)) string {
		c := *u
		change(&c)
		return c.String()
	}
	for name, test := range map[string]struct{ url, hint string }{
		"password": {with(func(u *url.URL) { u.User = url.UserPassword("mesh", "hunter3") }), "the password"},
		"database": {with(func(u *url.URL) { u.Path = "nowhere" }), "Make the database"},
		"down":     {with(func(u *url.URL) { u.Host = "127.0.0.1:" + postgrestest.FreePort(t) }), "Check that PostgreSQL runs"},
		"port":     {"postgres://mesh:hunter3@host:port/db", "percent-encoded"},
		"escape":   {"postgres://mesh:hunter3%zz@host/db", "percent-encoded"},
		"option":   {"postgres://mesh@host/db?password=hunter3&sslmode=hunter3", "percent-encoded"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := store.Open(t.Context(), store.Config{URL: test.url, Owner: "alice"})
			e := (*wire.Error)(nil)
			if !errors.As(err, &e) || !strings.Contains(e.Hint, test.hint) {
				t.Errorf("Open() = %v, want a hint with %q", err, test.hint)
			}
			if strings.Contains(fmt.Sprintf("%v %+v", err, e), "hunter") {
				t.Errorf("the error has the password: %v", err)
			}
		})
	}
}

// Ids are found by their first digits whatever the language of the database: in Danish,
// aa comes after z.
func testLanguage(t *testing.T, server *postgrestest.Server) {
	const name = "danish"
	_, err := server.SQL(t).Exec("CREATE DATABASE " + name + " TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'da'")
	if err != nil && !strings.Contains(err.Error(), "already exists") {
		t.Skipf("no database in Danish: %v", err)
	}
	s := open(t, store.Config{URL: server.Database(t, name), Owner: "alice"})
	defer s.Close()
	var b store.Batch
	b.Add(`INSERT INTO market_requests (owner, id, sent, created, done, data) VALUES ($1, 'aa00', 0, 0, 0, '') ON CONFLICT DO NOTHING`, s.Owner())
	b.Add(`INSERT INTO market_negotiations (owner, id, request, contract, created, done, data) VALUES ($1, 'aa00', 'aa00', 'aa00', 0, 0, '') ON CONFLICT DO NOTHING`, s.Owner())
	if _, err := s.Exec(t.Context(), "test", &b); err != nil {
		t.Fatal(err)
	}
	for _, column := range []string{"market_requests.id", "market_negotiations.id", "market_negotiations.contract"} {
		found := 0
		table, _, _ := strings.Cut(column, ".")
		err := s.Query(t.Context(), "test", func(rows *sql.Rows) error { return rows.Scan(&found) },
			"SELECT count(*) FROM "+table+" WHERE owner = $1 AND "+column+" >= $2 AND "+column+" < $3", s.Owner(), "a", "ag")
		if found != 1 || err != nil {
			t.Errorf("%s beginning with a: %d found, %v", column, found, err)
		}
	}
}

// A server that ends connections which are idle costs nothing but time.
func testIdle(t *testing.T, server *postgrestest.Server) {
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("application_name", "idle")
	q.Set("idle_session_timeout", "100")
	u.RawQuery = q.Encode()
	s, err := store.Open(t.Context(), store.Config{URL: u.String(), Owner: "idle"})
	if err != nil {
		t.Skipf("no PostgreSQL that ends idle connections, which 14 does: %v", err)
	}
	defer s.Close()
	db := server.SQL(t)
	for n := range uint64(3) {
		if err := try(s, enqueue(n+1)); err != nil {
			t.Errorf("Commit after the connection was idle: %v", err)
		}
		for there := 1; there > 0; {
			if err := db.QueryRow("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'idle'").Scan(&there); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// What is on a chain waits for the disk of the server, durable or not.
func testChained(t *testing.T, c store.Config) {
	s := open(t, c)
	defer s.Close()
	for key, test := range map[string]struct {
		chain *store.Chain
		want  string
	}{"chained": {s.Chain(), "on"}, "alone": {nil, "off"}} {
		var b store.Batch
		b.Add(`INSERT INTO documents (owner, bucket, key, value) VALUES ($1, $2, $3, convert_to(current_setting('synchronous_commit'), 'UTF8'))`,
			s.Owner(), []byte("modes"), []byte(key))
		done := make(chan error, 1)
		s.Submit("test", &b, test.chain, false, func(_ []int64, err error) { done <- err })
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if mode, err := s.Get(t.Context(), "modes", key); string(mode) != test.want || err != nil {
			t.Errorf("%s: synchronous_commit is %q, %v; want %q", key, mode, err, test.want)
		}
	}
}

// A server that drops connections or restarts costs nothing but time.
func testLost(t *testing.T, server *postgrestest.Server) {
	s := open(t, store.Config{URL: server.URL, Owner: "lost"})
	commit := func(n uint64) chan error {
		done := make(chan error, 1)
		s.Commit(enqueue(n), true, func(err error) { done <- err })
		return done
	}
	if err := <-commit(1); err != nil {
		t.Fatal(err)
	}
	if _, err := server.SQL(t).Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"); err != nil {
		t.Fatal(err)
	}
	if err := <-commit(2); err != nil {
		t.Errorf("Commit after the connection was dropped: %v", err)
	}
	want := uint64(2)
	if server.Ctl != nil {
		server.Ctl("stop", "-m", "immediate")
		three := commit(3)
		select {
		case err := <-three:
			t.Fatalf("committed without a server; error %v", err)
		default:
		}
		server.Ctl("start")
		if err := <-three; err != nil {
			t.Errorf("Commit across a restart of the server: %v", err)
		}
		want = 3
	}
	pending, last, err := s.Outbox(context.Background(), delivery.SessionID{1}, 0, 10)
	if len(pending) != int(want) || last != want || err != nil {
		t.Errorf("Outbox() has %d, last %d, error %v; want %d", len(pending), last, err, want)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
