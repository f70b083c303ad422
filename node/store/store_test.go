package store_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"openmesh/node/store"
	"openmesh/node/store/storetest"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/wire"
)

func sqliteConfig(t *testing.T) store.Config {
	return store.Config{Path: filepath.Join(t.TempDir(), "openmesh.db"), Owner: "alice"}
}

func TestSQLite(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) func() storetest.Store {
		c := store.Config{Path: filepath.Join(t.TempDir(), "open mesh?#%.db"), Owner: "alice"}
		return func() storetest.Store { return open(t, c) }
	})
}

func TestDocuments(t *testing.T) {
	t.Parallel()
	testDocuments(t, sqliteConfig(t))
}

func TestOwners(t *testing.T) {
	t.Parallel()
	testOwners(t, sqliteConfig(t))
}

func TestTakeover(t *testing.T) {
	t.Parallel()
	testTakeover(t, sqliteConfig(t))
}

func TestNewerSchema(t *testing.T) {
	t.Parallel()
	c := sqliteConfig(t)
	testNewer(t, "sqlite", c.Path, c)
}

func open(t *testing.T, c store.Config) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func closed(t *testing.T, s *store.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func enqueue(n uint64) delivery.Enqueue {
	return delivery.Enqueue{Session: delivery.SessionID{1}, Message: &delivery.Message{Sequence: n, Key: fmt.Sprint(n)}}
}

func try(s *store.Store, c delivery.Change) error {
	done := make(chan error, 1)
	s.Commit(c, true, func(err error) { done <- err })
	return <-done
}

func testDocuments(t *testing.T, c store.Config) {
	s := open(t, c)
	ctx := t.Context()
	put := func(bucket, key, value string) {
		t.Helper()
		if err := s.Put(ctx, bucket, key, []byte(value)); err != nil {
			t.Error(err)
		}
	}
	put("a", "one", "1")
	put("a", "two\x00\xff", "2")
	put("a", "one", "one")
	put("b", "one", "")
	if err := errors.Join(s.Delete(ctx, "a", "none"), s.Delete(ctx, "b", "two")); err != nil {
		t.Error(err)
	}
	closed(t, s)
	s = open(t, c)
	want := map[string]map[string]string{"a": {"one": "one", "two\x00\xff": "2"}, "b": {"one": ""}, "c": {}}
	for bucket, documents := range want {
		got, err := s.List(ctx, bucket)
		if err != nil || len(got) != len(documents) {
			t.Errorf("List(%q) = %q, %v; want %q", bucket, got, err, documents)
		}
		for key, value := range documents {
			one, err := s.Get(ctx, bucket, key)
			if string(one) != value || string(got[key]) != value || err != nil {
				t.Errorf("Get(%q, %q) = %q, %v, in List %q; want %q", bucket, key, one, err, got[key], value)
			}
		}
	}
	if err := s.Delete(ctx, "a", "one"); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(ctx, "a", "one"); !errors.Is(err, wire.NotFound) {
		t.Errorf("Get of a deleted document: %v", err)
	}
	if err := s.Put(ctx, "a", "large", make([]byte, 65<<20)); !errors.Is(err, wire.TooLarge) {
		t.Errorf("Put of 65 MiB: %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Put(cancelled, "a", "k", nil); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("Put with a cancelled context: %v", err)
	}
	closed(t, s)
	if err := s.Put(ctx, "a", "k", nil); !errors.Is(err, store.ErrClosed) {
		t.Errorf("Put after Close: %v", err)
	}
}

// Two nodes in one database do not see each other.
func testOwners(t *testing.T, c store.Config) {
	var nodes [2]*store.Store
	for i := range nodes {
		c.Owner = fmt.Sprint("owner ", i)
		s := open(t, c)
		defer s.Close()
		nodes[i] = s
	}
	session := delivery.SessionID{1}
	for i, s := range nodes {
		for _, c := range []delivery.Change{
			delivery.SaveSession{Session: session, Data: []byte{byte(i)}}, enqueue(uint64(i + 1)), enqueue(9),
			delivery.Receive{Session: session, Message: &delivery.Message{Sequence: uint64(i + 1)}},
			delivery.Finish{Session: session, Sequence: uint64(i + 1)},
		} {
			if err := try(s, c); err != nil {
				t.Error(err)
			}
		}
		if err := s.Put(t.Context(), "bucket", "key", []byte{byte(i)}); err != nil {
			t.Error(err)
		}
	}
	if err := try(nodes[0], delivery.ForgetSession{Session: session}); err != nil {
		t.Error(err)
	}
	if err := nodes[0].Delete(t.Context(), "bucket", "key"); err != nil {
		t.Error(err)
	}
	for i, s := range nodes {
		sessions, err1 := s.Sessions(t.Context())
		outbox, last, err2 := s.Outbox(t.Context(), session, 0, 10)
		inbox, _, err3 := s.Inbox(t.Context(), session, 0, 10)
		_, window, err4 := s.Window(t.Context(), session)
		documents, err5 := s.List(t.Context(), "bucket")
		got := []int{len(sessions), len(outbox), int(last), len(inbox), len(window), len(documents)}
		want := [][]int{{0, 0, 0, 0, 0, 0}, {1, 2, 9, 1, 1, 1}}[i]
		if err := errors.Join(err1, err2, err3, err4, err5); err != nil || !cmp.Equal(got, want) {
			t.Errorf("node %d has %v, want %v; error %v", i, got, want, err)
		}
	}
}

// The process that opens last writes; the one before learns that it may not.
func testTakeover(t *testing.T, c store.Config) {
	first := open(t, c)
	defer first.Close()
	if err := try(first, enqueue(1)); err != nil {
		t.Fatal(err)
	}
	second := open(t, c)
	defer second.Close()
	if err := try(second, enqueue(2)); err != nil {
		t.Error(err)
	}
	if err := try(first, enqueue(3)); !errors.Is(err, wire.Denied) {
		t.Errorf("Commit of the first: %v", err)
	}
	if err := try(second, enqueue(3)); err != nil {
		t.Error(err)
	}
}

// driver and source open the database of c without the store.
func testNewer(t *testing.T, driver, source string, c store.Config) {
	closed(t, open(t, c))
	db, err := sql.Open(driver, source)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("INSERT INTO goose_db_version (version_id, is_applied) VALUES (1000, TRUE)"); err != nil {
		t.Fatal(err)
	}
	_, err = store.Open(t.Context(), c)
	e := (*wire.Error)(nil)
	if !errors.As(err, &e) || e.Code != wire.Unsupported || !strings.Contains(e.Hint, "newer openmesh") {
		t.Errorf("Open() = %v", err)
	}
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	file := func(t *testing.T, content []byte) string {
		path := filepath.Join(t.TempDir(), "openmesh.db")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, test := range map[string]struct {
		path func(t *testing.T) string
		hint string
	}{
		"no folder":   {func(t *testing.T) string { return filepath.Join(t.TempDir(), "none", "openmesh.db") }, "the folder is there"},
		"a folder":    {func(t *testing.T) string { return t.TempDir() }, "the folder is there"},
		"not one":     {func(t *testing.T) string { return file(t, bytes.Repeat([]byte("text"), 4096)) }, "backup"},
		"cut short":   {func(t *testing.T) string { return file(t, cut(t)) }, "backup"},
		"overwritten": {func(t *testing.T) string { return file(t, overwritten(t)) }, "backup"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := store.Open(t.Context(), store.Config{Path: test.path(t), Owner: "alice"})
			e := (*wire.Error)(nil)
			if !errors.As(err, &e) || !strings.Contains(e.Hint, test.hint) {
				t.Errorf("Open() = %v, want a hint with %q", err, test.hint)
			}
		})
	}
	if _, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "openmesh.db")}); !errors.Is(err, wire.InvalidArgument) {
		t.Errorf("Open() without an owner: %v", err)
	}
}

// good is the content of a database.
func good(t *testing.T) []byte {
	c := sqliteConfig(t)
	s := open(t, c)
	if err := try(s, enqueue(1)); err != nil {
		t.Fatal(err)
	}
	closed(t, s)
	b, err := os.ReadFile(c.Path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func cut(t *testing.T) []byte { return good(t)[:8192] }

func overwritten(t *testing.T) []byte {
	b := good(t)
	for i := 100; i < len(b); i++ {
		b[i] = 0xa5
	}
	return b
}

// What the messages say is for the owner of the file only.
func TestMode(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("files have no mode here")
	}
	c := sqliteConfig(t)
	s := open(t, c)
	defer s.Close()
	if err := try(s, enqueue(1)); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(c.Path + "*")
	if len(files) < 2 || err != nil {
		t.Fatalf("files %q, error %v", files, err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, info.Mode(), err)
		}
	}
}
