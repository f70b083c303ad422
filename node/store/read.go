package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"

	"openmesh/node/store/record"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/wire"
)

// The statements that read. They see what is committed.
const (
	selectSessions = `SELECT session, data FROM sessions WHERE owner = $1`

	selectOutbox = `SELECT sequence, key, message, body FROM outbox
		WHERE owner = $1 AND session = $2 AND sequence > $3 AND outcome IS NULL ORDER BY sequence LIMIT $4`
	selectLast = `SELECT coalesce(max(n), 0) FROM (
			SELECT last AS n FROM counters WHERE owner = $1 AND session = $2
			UNION ALL SELECT max(sequence) FROM outbox WHERE owner = $1 AND session = $2) AS given`
	selectOutcome = `SELECT sequence, outcome FROM outbox WHERE owner = $1 AND session = $2 AND key = $3`

	selectInbox = `SELECT sequence, key, message, body FROM inbox
		WHERE owner = $1 AND session = $2 AND sequence > $3 ORDER BY sequence LIMIT $4`
	selectCursor = `SELECT coalesce(max(cursor), 0) FROM counters WHERE owner = $1 AND session = $2`

	selectFloor    = `SELECT coalesce(max(floor), 0) FROM counters WHERE owner = $1 AND session = $2`
	selectFinished = `SELECT sequence, outcome FROM finished WHERE owner = $1 AND session = $2 AND sequence >= $3`

	selectDocument  = `SELECT value FROM documents WHERE owner = $1 AND bucket = $2 AND key = $3`
	selectDocuments = `SELECT key, value FROM documents WHERE owner = $1 AND bucket = $2`
)

// Sessions implements [delivery.Store].
func (s *Store) Sessions(ctx context.Context) (map[delivery.SessionID][]byte, error) {
	sessions := map[delivery.SessionID][]byte{}
	err := s.each(ctx, func(rows *sql.Rows) error {
		var id, data []byte
		if err := rows.Scan(&id, &data); err != nil {
			return err
		}
		if len(id) != len(delivery.SessionID{}) {
			return fmt.Errorf("session id of %d bytes", len(id))
		}
		sessions[delivery.SessionID(id)] = data
		return nil
	}, selectSessions, s.owner)
	if err != nil {
		return nil, failure(s.dialect, "read the sessions", err)
	}
	return sessions, nil
}

// Outbox implements [delivery.Store].
func (s *Store) Outbox(ctx context.Context, id delivery.SessionID, after uint64, limit int) ([]delivery.Message, uint64, error) {
	pending, err := s.messages(ctx, selectOutbox, id, after, limit)
	var last int64
	if err == nil {
		err = s.db.QueryRowContext(ctx, selectLast, s.owner, id[:]).Scan(&last)
	}
	if err != nil {
		return nil, 0, failure(s.dialect, "read the outbox", err)
	}
	return pending, uint64(last), nil
}

// Outcome implements [delivery.Store].
func (s *Store) Outcome(ctx context.Context, id delivery.SessionID, key string) (uint64, delivery.Outcome, error) {
	var sequence int64
	var fields []byte
	var o delivery.Outcome
	err := s.db.QueryRowContext(ctx, selectOutcome, s.owner, id[:], []byte(key)).Scan(&sequence, &fields)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, o, wire.Errorf(wire.NotFound, "read an outcome: the session has no message with this key")
	}
	if err == nil {
		err = record.ParseOutcome(fields, &o)
	}
	if err != nil {
		return 0, delivery.Outcome{}, failure(s.dialect, "read an outcome", err)
	}
	return uint64(sequence), o, nil
}

// Inbox implements [delivery.Store].
func (s *Store) Inbox(ctx context.Context, id delivery.SessionID, after uint64, limit int) ([]delivery.Message, uint64, error) {
	messages, err := s.messages(ctx, selectInbox, id, after, limit)
	var cursor int64
	if err == nil {
		err = s.db.QueryRowContext(ctx, selectCursor, s.owner, id[:]).Scan(&cursor)
	}
	if err != nil {
		return nil, 0, failure(s.dialect, "read the inbox", err)
	}
	return messages, uint64(cursor), nil
}

// Window implements [delivery.Store].
func (s *Store) Window(ctx context.Context, id delivery.SessionID) (uint64, map[uint64]delivery.Outcome, error) {
	finished := map[uint64]delivery.Outcome{}
	var floor int64
	err := s.db.QueryRowContext(ctx, selectFloor, s.owner, id[:]).Scan(&floor)
	if err == nil {
		err = s.each(ctx, func(rows *sql.Rows) error {
			var sequence int64
			var fields []byte
			var o delivery.Outcome
			if err := rows.Scan(&sequence, &fields); err != nil {
				return err
			}
			if err := record.ParseOutcome(fields, &o); err != nil {
				return err
			}
			finished[uint64(sequence)] = o
			return nil
		}, selectFinished, s.owner, id[:], floor)
	}
	if err != nil {
		return 0, nil, failure(s.dialect, "read the idempotency window", err)
	}
	return uint64(floor), finished, nil
}

// Get returns a document; the error has the code [wire.NotFound] if there is
// none.
func (s *Store) Get(ctx context.Context, bucket, key string) ([]byte, error) {
	var value []byte
	err := s.db.QueryRowContext(ctx, selectDocument, s.owner, []byte(bucket), []byte(key)).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, wire.Errorf(wire.NotFound, "there is no document %s/%s", bucket, key)
	}
	if err != nil {
		return nil, failure(s.dialect, fmt.Sprintf("read document %s/%s", bucket, key), err)
	}
	return value, nil
}

// List returns the documents of a bucket by their keys.
func (s *Store) List(ctx context.Context, bucket string) (map[string][]byte, error) {
	documents := map[string][]byte{}
	err := s.each(ctx, func(rows *sql.Rows) error {
		var key, value []byte
		if err := rows.Scan(&key, &value); err != nil {
			return err
		}
		documents[string(key)] = value
		return nil
	}, selectDocuments, s.owner, []byte(bucket))
	if err != nil {
		return nil, failure(s.dialect, "read documents "+bucket, err)
	}
	return documents, nil
}

// messages reads messages with a sequence above after.
func (s *Store) messages(ctx context.Context, query string, id delivery.SessionID, after uint64, limit int) ([]delivery.Message, error) {
	var messages []delivery.Message
	err := s.each(ctx, func(rows *sql.Rows) error {
		var sequence int64
		var key, fields []byte
		var m delivery.Message
		if err := rows.Scan(&sequence, &key, &fields, &m.Body); err != nil {
			return err
		}
		m.Sequence, m.Key = uint64(sequence), string(key)
		if err := record.ParseMessage(fields, &m); err != nil {
			return fmt.Errorf("message %d: %w", sequence, err)
		}
		messages = append(messages, m)
		return nil
	}, query, s.owner, id[:], int64(min(after, math.MaxInt64)), max(limit, 0))
	return messages, err
}

// Query calls f with every row of a query, which sees what is committed. Errors
// are those of f and of the database, as Open's.
func (s *Store) Query(ctx context.Context, doing string, f func(*sql.Rows) error, query string, args ...any) error {
	if err := s.each(ctx, f, query, args...); err != nil {
		return failure(s.dialect, doing, err)
	}
	return nil
}

// each calls f with every row of a query.
func (s *Store) each(ctx context.Context, f func(*sql.Rows) error, query string, args ...any) error {
	rows, err := s.db.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}
