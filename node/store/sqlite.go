package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"openmesh/protocols/wire"
)

// sqliteDialect is one file in WAL mode (https://sqlite.org/wal.html): those
// who read do not wait for the one who writes, and a commit is one append to
// the log and one fsync.
type sqliteDialect struct{}

// pragmas of every connection. auto_vacuum has an effect on a new file only,
// fullfsync on macOS only, where an fsync alone does not reach the disk.
func pragmas() []string {
	return []string{"auto_vacuum(incremental)", "busy_timeout(10000)", "journal_mode(wal)", "synchronous(full)",
		"fullfsync(1)", "checkpoint_fullfsync(1)", "cache_size(-8192)", "wal_autocheckpoint(8192)", "journal_size_limit(67108864)"}
}

//go:embed migrations/sqlite/*.sql
var sqliteMigrations embed.FS

func (sqliteDialect) open(c Config) (*sql.DB, error) {
	path, err := filepath.Abs(c.Path)
	if err != nil {
		return nil, err
	}
	// Made here for its mode, which SQLite gives to the files beside it as well.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path // file:///C:/…
	}
	u := url.URL{Scheme: "file", Path: path, RawQuery: url.Values{"_pragma": pragmas()}.Encode()}
	return sql.Open("sqlite", u.String())
}

func (sqliteDialect) migrations() (goose.Dialect, fs.FS, []goose.ProviderOption, error) {
	folder, err := fs.Sub(sqliteMigrations, "migrations/sqlite")
	return goose.DialectSQLite3, folder, nil, err
}

// begin takes the lock for writing at once. With synchronous=NORMAL the log is
// not synced on COMMIT; a later FULL one syncs all of it.
func (sqliteDialect) begin(durable bool) []statement {
	mode := "NORMAL"
	if durable {
		mode = "FULL"
	}
	return []statement{{sql: "PRAGMA synchronous=" + mode}, {sql: "BEGIN IMMEDIATE"}}
}

func (sqliteDialect) patience() time.Duration { return 0 }

func (sqliteDialect) lost(error) bool { return false }

func (sqliteDialect) explain(err error) (wire.Code, string) {
	if e := (*fs.PathError)(nil); errors.As(err, &e) {
		return wire.Internal, "Check that the folder is there and that this user may write to it."
	}
	e := (*sqlite.Error)(nil)
	if !errors.As(err, &e) {
		return wire.Internal, ""
	}
	switch e.Code() & 0xff {
	case lib.SQLITE_FULL:
		return wire.ResourceExhausted, "Make room on the disk; nothing needs a restart."
	case lib.SQLITE_NOTADB, lib.SQLITE_CORRUPT:
		return wire.Internal, "The file is damaged, or is no database: put a backup in its place, " +
			"or move it away to start with an empty one, without the messages that are in it."
	case lib.SQLITE_BUSY, lib.SQLITE_LOCKED:
		return wire.Internal, "Another program holds the file: close it."
	case lib.SQLITE_READONLY, lib.SQLITE_CANTOPEN, lib.SQLITE_PERM:
		return wire.Internal, "Check that this user may write to the file and to its folder."
	case lib.SQLITE_IOERR:
		return wire.Internal, "The disk fails to read or write: see the system's log."
	}
	return wire.Internal, ""
}

func (sqliteDialect) runner(conn *sql.Conn) runner {
	return &sqliteRunner{conn: conn, prepared: map[string]*sql.Stmt{}}
}

// sqliteRunner prepares each statement once. Those without arguments it does
// not: some pragmas take effect when they are prepared.
type sqliteRunner struct {
	conn     *sql.Conn
	prepared map[string]*sql.Stmt
	commits  int // since tidy looked
}

func (r *sqliteRunner) run(ctx context.Context, sts []*statement) error {
	for _, st := range sts {
		result, err := r.exec(ctx, st)
		if err != nil {
			return err
		}
		if st.affected, err = result.RowsAffected(); err != nil {
			return err
		}
	}
	return nil
}

func (r *sqliteRunner) exec(ctx context.Context, st *statement) (sql.Result, error) {
	if len(st.args) == 0 {
		return r.conn.ExecContext(ctx, st.sql)
	}
	p := r.prepared[st.sql]
	if p == nil {
		var err error
		if p, err = r.conn.PrepareContext(ctx, st.sql); err != nil {
			return nil, err
		}
		r.prepared[st.sql] = p
	}
	return p.ExecContext(ctx, st.args...)
}

const (
	tidyEvery = 64   // commits
	tidyAbove = 4096 // free pages of 4 KiB: what messages soon fill again stays
	tidyPages = 1024 // given back at a time
)

// tidy gives pages that deleted messages left free back to the file system, a
// few at a time. It may fail: there is a next time.
func (r *sqliteRunner) tidy(ctx context.Context) {
	if r.commits++; r.commits%tidyEvery != 0 {
		return
	}
	var free int
	if err := r.conn.QueryRowContext(ctx, "PRAGMA freelist_count").Scan(&free); err == nil && free > tidyAbove {
		_, _ = r.conn.ExecContext(ctx, fmt.Sprintf("PRAGMA incremental_vacuum(%d)", tidyPages))
	}
}

// close is needed: a connection with open statements would live on, and keep
// its transaction.
func (r *sqliteRunner) close() (err error) {
	for _, p := range r.prepared {
		err = errors.Join(err, p.Close())
	}
	return err
}
