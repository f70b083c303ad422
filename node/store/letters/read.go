package letters

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox"
	"openmesh/protocols/wire"
)

const (
	selectBox = `SELECT version, expires, letters, bytes FROM mailboxes WHERE recipient = $1`

	selectRefusal = `SELECT m.expires, (SELECT count(*) FROM letters l WHERE l.recipient = $1 AND l.digest = $2)
		FROM mailboxes m WHERE m.recipient = $1`

	// Bodies are read only when it is known how many fit.
	selectSizes = `SELECT cursor, size FROM letters WHERE recipient = $1 AND cursor > $2 AND until > $3 ORDER BY cursor LIMIT $4`
	selectRange = `SELECT cursor, id, depositor, expires, until, body FROM letters
		WHERE recipient = $1 AND cursor > $2 AND cursor <= $3 AND until > $4 ORDER BY cursor`

	selectDue = `SELECT recipient, cursor FROM letters WHERE until <= $1 ORDER BY until LIMIT $2`

	selectUsage = `SELECT count(*), CAST(coalesce(sum(letters), 0) AS BIGINT), CAST(coalesce(sum(bytes), 0) AS BIGINT) FROM mailboxes`
)

// position is a cursor as the database has it: all that were given fit.
func position(cursor uint64) int64 { return int64(min(cursor, math.MaxInt64)) }

// Box implements [mailbox.Store].
func (s *Store) Box(ctx context.Context, recipient identity.AgentID) (mailbox.Box, error) {
	var box mailbox.Box
	found := false
	err := s.db.Query(ctx, "read mailbox", func(rows *sql.Rows) error {
		var expires int64
		found = true
		err := rows.Scan(&box.Version, &expires, &box.Letters, &box.Bytes)
		box.Expires = time.Unix(expires, 0).UTC()
		return err
	}, selectBox, string(recipient))
	if err == nil && !found {
		err = notRegistered(recipient)
	}
	return box, err
}

func notRegistered(recipient identity.AgentID) error {
	return wire.Errorf(wire.NotFound, "%s has no mailbox here", recipient)
}

// refusal says why a letter was not added: nil if it was there already.
func (s *Store) refusal(ctx context.Context, recipient identity.AgentID, digest []byte, now time.Time) error {
	var expires, same int64
	err := s.db.Query(ctx, "read mailbox", func(rows *sql.Rows) error { return rows.Scan(&expires, &same) }, selectRefusal, string(recipient), digest)
	switch {
	case err != nil || same > 0:
		return err
	case expires <= now.Unix():
		return notRegistered(recipient)
	}
	return wire.Errorf(wire.ResourceExhausted, "the mailbox of %s is full, or the depositor's share of it", recipient).
		WithHint("Try another of its relays, or again when it has collected its letters.")
}

// Read implements [mailbox.Store].
func (s *Store) Read(ctx context.Context, recipient identity.AgentID, after uint64, limit int, bytes int64, now time.Time) ([]mailbox.Entry, error) {
	last, full := position(after), false
	err := s.db.Query(ctx, "read letters", func(rows *sql.Rows) error {
		var cursor, size int64
		if err := rows.Scan(&cursor, &size); err != nil {
			return err
		}
		bytes -= size
		if full = full || bytes < 0 && last > position(after); !full {
			last = cursor
		}
		return nil
	}, selectSizes, string(recipient), position(after), now.Unix(), limit)
	if err != nil || last == position(after) {
		return nil, err
	}
	var found []mailbox.Entry
	err = s.db.Query(ctx, "read letters", func(rows *sql.Rows) error {
		e, err := scanEntry(rows)
		e.Recipient = recipient
		found = append(found, e)
		return err
	}, selectRange, string(recipient), position(after), last, now.Unix())
	return found, err
}

func scanEntry(rows *sql.Rows) (e mailbox.Entry, err error) {
	var id, depositor []byte
	var cursor, expires, until int64
	if err := rows.Scan(&cursor, &id, &depositor, &expires, &until, &e.Body); err != nil {
		return e, err
	}
	if len(id) != len(e.ID) {
		return e, fmt.Errorf("letter id of %d bytes", len(id))
	}
	e.Cursor, e.ID, e.Depositor = uint64(cursor), mailbox.ID(id), peer.ID(depositor)
	e.Expires, e.Until = time.Unix(expires, 0).UTC(), time.Unix(until, 0).UTC()
	return e, nil
}

// due returns the cursors of letters to be dropped.
func (s *Store) due(ctx context.Context, now time.Time, most int) (map[identity.AgentID][]uint64, error) {
	due := make(map[identity.AgentID][]uint64)
	err := s.db.Query(ctx, "read expired letters", func(rows *sql.Rows) error {
		var recipient string
		var cursor int64
		err := rows.Scan(&recipient, &cursor)
		due[identity.AgentID(recipient)] = append(due[identity.AgentID(recipient)], uint64(cursor))
		return err
	}, selectDue, now.Unix(), most)
	return due, err
}

// inOneQuery is how many recipients Last asks about at a time.
const inOneQuery = 500

// Last implements [mailbox.Store].
func (s *Store) Last(ctx context.Context, recipients []identity.AgentID) (map[identity.AgentID]uint64, error) {
	last := make(map[identity.AgentID]uint64)
	for some := range slices.Chunk(recipients, inOneQuery) {
		var query strings.Builder
		query.WriteString("SELECT recipient, last FROM mailboxes WHERE recipient IN (")
		args := make([]any, len(some))
		for i, r := range some {
			args[i] = string(r)
			fmt.Fprintf(&query, "$%d,", i+1)
		}
		err := s.db.Query(ctx, "read mailboxes", func(rows *sql.Rows) error {
			var recipient string
			var cursor int64
			err := rows.Scan(&recipient, &cursor)
			last[identity.AgentID(recipient)] = uint64(cursor)
			return err
		}, strings.TrimSuffix(query.String(), ",")+")", args...)
		if err != nil {
			return nil, err
		}
	}
	return last, nil
}

// Usage implements [mailbox.Store].
func (s *Store) Usage(ctx context.Context) (u mailbox.Usage, err error) {
	err = s.db.Query(ctx, "read mailboxes", func(rows *sql.Rows) error { return rows.Scan(&u.Recipients, &u.Letters, &u.Bytes) }, selectUsage)
	return u, err
}
