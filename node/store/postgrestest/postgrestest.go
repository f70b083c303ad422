//go:build unix

// Package postgrestest gives tests a PostgreSQL server.
package postgrestest

import (
	"bytes"
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
	"syscall"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver, for SQL
)

// Env is the variable that says which server the tests run against: the URL of one;
// "require": one of their own; empty: one of their own, if PostgreSQL is installed.
const Env = "OPENMESH_TEST_POSTGRES"

// Server is a PostgreSQL server.
type Server struct {
	URL string
	Ctl func(args ...string) // runs pg_ctl; nil: the server is not of this test
}

// New finds a server or starts one, which ends with the test.
func New(t *testing.T) *Server {
	t.Helper()
	mode := os.Getenv(Env)
	if mode != "" && mode != "require" {
		return &Server{URL: mode}
	}
	for _, program := range []string{"postgres", "initdb", "pg_ctl"} {
		if _, err := exec.LookPath(program); err != nil && mode == "require" {
			t.Fatal(err)
		} else if err != nil {
			t.Skipf("no PostgreSQL: %v; %s can name a server", err, Env)
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
	port := FreePort(t)
	options := fmt.Sprintf("-p %s -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c max_connections=400", port)
	ctl := func(args ...string) {
		t.Helper()
		run("pg_ctl", append([]string{"-w", "-s", "-D", data, "-l", filepath.Join(dir, "log"), "-o", options}, args...)...)
	}
	ctl("start")
	t.Cleanup(func() { ctl("stop", "-m", "immediate") })
	return &Server{URL: "postgres://mesh:" + password + "@127.0.0.1:" + port + "/postgres", Ctl: ctl}
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

// FreePort is a TCP port of this machine that nobody listens on.
func FreePort(t *testing.T) string {
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

// Database makes a database if there is none, and returns its URL.
func (s *Server) Database(t *testing.T, name string) string {
	t.Helper()
	db := s.SQL(t)
	if _, err := db.Exec("CREATE DATABASE " + name); err != nil && !strings.Contains(err.Error(), "already exists") {
		t.Fatal(err)
	}
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = name
	return u.String()
}

// SQL is a connection to the server, which ends with the test.
func (s *Server) SQL(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", s.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}
