//go:build unix

package store_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"openmesh/node/store"
	"openmesh/node/store/letters"
	"openmesh/node/store/storetest"
	"openmesh/protocols/mailbox"
	"openmesh/protocols/mailbox/mailboxtest"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/wire"
)

// postgres is the variable that says which server the tests run against: the
// URL of one; "require": one of their own; empty: one of their own, if
// PostgreSQL is installed.
const postgres = "OPENMESH_TEST_POSTGRES"

func TestPostgres(t *testing.T) {
	t.Parallel()
	server := newServer(t)
	fresh := func(t *testing.T) func() storetest.Store {
		c := store.Config{URL: server.url, Owner: "agent of " + t.Name()}
		return func() storetest.Store { return open(t, c) }
	}
	t.Run("contract", func(t *testing.T) { storetest.Run(t, fresh) })
	t.Run("crash", func(t *testing.T) { testCrash(t, store.Config{URL: server.url, Owner: "crash"}) })
	t.Run("documents", func(t *testing.T) { testDocuments(t, store.Config{URL: server.url, Owner: "documents"}) })
	t.Run("owners", func(t *testing.T) { testOwners(t, store.Config{URL: server.url}) })
	t.Run("takeover", func(t *testing.T) { testTakeover(t, store.Config{URL: server.url, Owner: "takeover"}) })
	t.Run("newer schema", func(t *testing.T) {
		testNewer(t, "pgx", server.database(t, "newer"), store.Config{URL: server.database(t, "newer"), Owner: "newer"})
	})
	t.Run("explained", func(t *testing.T) { testPostgresErrors(t, server.url) })
	t.Run("mailboxes", func(t *testing.T) { testMailboxes(t, server) })
	t.Run("lost", func(t *testing.T) { testLost(t, server) })
}

// server is a PostgreSQL server.
type server struct {
	url string
	ctl func(args ...string) // nil: not of this test
}

// Each test has a database, which as many relays share as it opens stores.
func testMailboxes(t *testing.T, server server) {
	var databases, relays atomic.Int32
	t.Run("contract", func(t *testing.T) {
		mailboxtest.Run(t, func(t *testing.T) func(*testing.T) mailbox.Store {
			url := server.database(t, fmt.Sprint("mailboxes", databases.Add(1)))
			return func(t *testing.T) mailbox.Store {
				s := open(t, store.Config{URL: url, Owner: fmt.Sprint("relay ", relays.Add(1))})
				t.Cleanup(func() { s.Close() })
				return letters.New(s)
			}
		})
	})
}

// newServer finds a server or starts one, which ends with the test.
func newServer(t *testing.T) server {
	t.Helper()
	mode := os.Getenv(postgres)
	if mode != "" && mode != "require" {
		return server{url: mode}
	}
	for _, program := range []string{"postgres", "initdb", "pg_ctl"} {
		if _, err := exec.LookPath(program); err != nil && mode == "require" {
			t.Fatal(err)
		} else if err != nil {
			t.Skipf("no PostgreSQL: %v; %s can name a server", err, postgres)
		}
	}
	dir, err := os.MkdirTemp("", "postgres") // t.TempDir is closed to the server's user
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	as := serverUser(t, dir)
	const password = "hunter2"
	secret, data := filepath.Join(dir, "secret"), filepath.Join(dir, "data")
	if err := os.WriteFile(secret, []byte(password), 0o644); err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.SysProcAttr = dir, as
		var out bytes.Buffer
		cmd.Stdout = &out
		if strings.HasSuffix(name, "ctl") {
			cmd.Stdout = nil // the server would keep it open
		}
		if err := cmd.Run(); err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, &out)
		}
	}
	run("initdb", "-D", data, "-U", "mesh", "--auth=scram-sha-256", "--pwfile="+secret, "--no-sync")
	port := freePort(t)
	options := fmt.Sprintf("-p %s -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c max_connections=400", port)
	ctl := func(args ...string) {
		t.Helper()
		run("pg_ctl", append([]string{"-w", "-s", "-D", data, "-l", filepath.Join(dir, "log"), "-o", options}, args...)...)
	}
	ctl("start")
	t.Cleanup(func() { ctl("stop", "-m", "immediate") })
	return server{url: "postgres://mesh:" + password + "@127.0.0.1:" + port + "/postgres", ctl: ctl}
}

// serverUser returns how to run the server, which refuses to run as root; the
// folder becomes its user's.
func serverUser(t *testing.T, dir string) *syscall.SysProcAttr {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		u, err = user.Lookup("nobody")
	}
	if err != nil {
		t.Fatal(err)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2, os.Chown(dir, uid, gid)); err != nil {
		t.Fatal(err)
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// database makes a database if there is none, and returns its URL.
func (s server) database(t *testing.T, name string) string {
	t.Helper()
	db := s.sql(t)
	if _, err := db.Exec("CREATE DATABASE " + name); err != nil && !strings.Contains(err.Error(), "already exists") {
		t.Fatal(err)
	}
	u, err := url.Parse(s.url)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = name
	return u.String()
}

func (s server) sql(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", s.url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
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
		"down":     {with(func(u *url.URL) { u.Host = "127.0.0.1:" + freePort(t) }), "Check that PostgreSQL runs"},
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

// A server that drops connections or restarts costs nothing but time.
func testLost(t *testing.T, server server) {
	s := open(t, store.Config{URL: server.url, Owner: "lost"})
	commit := func(n uint64) chan error {
		done := make(chan error, 1)
		s.Commit(enqueue(n), true, func(err error) { done <- err })
		return done
	}
	if err := <-commit(1); err != nil {
		t.Fatal(err)
	}
	if _, err := server.sql(t).Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"); err != nil {
		t.Fatal(err)
	}
	if err := <-commit(2); err != nil {
		t.Errorf("Commit after the connection was dropped: %v", err)
	}
	want := uint64(2)
	if server.ctl != nil {
		server.ctl("stop", "-m", "immediate")
		three := commit(3)
		select {
		case err := <-three:
			t.Fatalf("committed without a server; error %v", err)
		default:
		}
		server.ctl("start")
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
