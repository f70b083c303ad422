package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"embed"
	"errors"
	"io"
	"io/fs"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"openmesh/protocols/wire"
)

// postgresDialect is a PostgreSQL database, 13 or newer. Statements go to the
// server in a pipeline: a transaction is three round trips.
type postgresDialect struct{}

const (
	postgresPatience = 30 * time.Second
	dialTimeout      = 10 * time.Second // unless the URL has connect_timeout
)

//go:embed migrations/postgres/*.sql
var postgresMigrations embed.FS

func (postgresDialect) open(c Config) (*sql.DB, error) {
	config, err := pgx.ParseConfig(c.URL)
	if err != nil { // which might quote the URL
		return nil, wire.Errorf(wire.InvalidArgument, "storage.url cannot be understood").
			WithHint("It looks like postgres://USER:PASSWORD@HOST:5432/DATABASE?sslmode=verify-full; special characters are percent-encoded.")
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = dialTimeout
	}
	return stdlib.OpenDB(*config, stdlib.OptionAfterConnect(syncCommits)), nil
}

// syncCommits sees to it that a commit waits for the disk on a server whose
// default is otherwise.
func syncCommits(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'`)
	return err
}

func (postgresDialect) migrations() (goose.Dialect, fs.FS, []goose.ProviderOption, error) {
	folder, err := fs.Sub(postgresMigrations, "migrations/postgres")
	if err != nil {
		return "", nil, nil, err
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 60)) // of several nodes one migrates; the others try each second
	return goose.DialectPostgres, folder, []goose.ProviderOption{goose.WithSessionLocker(locker)}, err
}

func (postgresDialect) begin(durable bool) []statement {
	if durable {
		return []statement{{sql: "BEGIN"}}
	}
	return []statement{{sql: "BEGIN"}, {sql: "SET LOCAL synchronous_commit = off"}}
}

func (postgresDialect) patience() time.Duration { return postgresPatience }

// lost holds for errors of the network, of a server that is starting, stopping,
// full of connections or no more the primary, or that ended a connection which was idle,
// and for an attempt out of time.
func (postgresDialect) lost(err error) bool {
	if e := (*pgconn.PgError)(nil); errors.As(err, &e) {
		return strings.HasPrefix(e.Code, "08") || slices.Contains([]string{"57P01", "57P02", "57P03", "57P05", "25P03", "53300", "25006", "40001", "40P01"}, e.Code)
	}
	connect, network := (*pgconn.ConnectError)(nil), net.Error(nil)
	return errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, driver.ErrBadConn) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, context.DeadlineExceeded)
}

func (d postgresDialect) explain(err error) (wire.Code, string) {
	e := (*pgconn.PgError)(nil)
	if errors.As(err, &e) {
		switch {
		case strings.HasPrefix(e.Code, "28"):
			return wire.Internal, "Check the user and the password in storage.url."
		case e.Code == "3D000":
			return wire.Internal, "Make the database that storage.url names (CREATE DATABASE)."
		case e.Code == "42501":
			return wire.Internal, "The user in storage.url must be allowed to make tables in the database and to use them."
		case e.Code == "53100":
			return wire.ResourceExhausted, "Make room on the disk of PostgreSQL."
		case strings.HasPrefix(e.Code, "XX"):
			return wire.Internal, "PostgreSQL found its data damaged: see its log."
		}
	}
	if d.lost(err) {
		return wire.Internal, "Check that PostgreSQL runs and can be reached from here, and the host and port in storage.url."
	}
	return wire.Internal, ""
}

func (postgresDialect) runner(conn *sql.Conn) runner { return postgresRunner{conn} }

type postgresRunner struct{ conn *sql.Conn }

// run sends all statements at once; the server executes none after one that
// failed.
func (r postgresRunner) run(ctx context.Context, sts []*statement) error {
	return r.conn.Raw(func(c any) error {
		var batch pgx.Batch
		for _, st := range sts {
			batch.Queue(st.sql, st.args...)
		}
		results := c.(*stdlib.Conn).Conn().SendBatch(ctx, &batch)
		for _, st := range sts {
			tag, err := results.Exec()
			if err != nil {
				return errors.Join(err, results.Close())
			}
			st.affected = tag.RowsAffected()
		}
		return results.Close()
	})
}

func (postgresRunner) tidy(context.Context) {} // autovacuum does

func (postgresRunner) close() error { return nil }
