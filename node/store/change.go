package store

import (
	"fmt"
	"math"
	"time"

	"openmesh/node/store/record"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/wire"
)

// statement is one SQL statement of a transaction.
type statement struct {
	sql      string // placeholders are $1, $2, …, which both databases take
	args     []any
	affected int64 // rows; set when it was executed
}

// The statements that write. None can fail but by the fault of the database:
// within a transaction of PostgreSQL an error would take the others with it.
const (
	saveSession = `INSERT INTO sessions (owner, session, data) VALUES ($1, $2, $3)
		ON CONFLICT (owner, session) DO UPDATE SET data = excluded.data`

	enqueue = `INSERT INTO outbox (owner, session, sequence, key, message, body) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT DO NOTHING`
	settle = `UPDATE outbox SET settled = $4, outcome = $5, message = NULL, body = NULL
		WHERE owner = $1 AND session = $2 AND sequence = $3 AND outcome IS NULL`
	keepLast = `INSERT INTO counters (owner, session, last)
		SELECT owner, session, max(sequence) FROM outbox WHERE owner = $1 AND session = $2 GROUP BY owner, session
		ON CONFLICT (owner, session) DO UPDATE SET last = excluded.last WHERE excluded.last > counters.last`
	pruneOutbox = `DELETE FROM outbox WHERE owner = $1 AND session = $2 AND settled < $3`

	receive = `INSERT INTO inbox (owner, session, sequence, key, message, body) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT DO NOTHING`
	keepCursor = `INSERT INTO counters (owner, session, cursor) VALUES ($1, $2, $3)
		ON CONFLICT (owner, session) DO UPDATE SET cursor = excluded.cursor WHERE excluded.cursor > counters.cursor`
	consume = `DELETE FROM inbox WHERE owner = $1 AND session = $2 AND sequence <= $3`

	finish = `INSERT INTO finished (owner, session, sequence, outcome) VALUES ($1, $2, $3, $4)
		ON CONFLICT DO NOTHING`
	keepFloor = `INSERT INTO counters (owner, session, floor) VALUES ($1, $2, $3)
		ON CONFLICT (owner, session) DO UPDATE SET floor = excluded.floor WHERE excluded.floor > counters.floor`
	advance = `DELETE FROM finished WHERE owner = $1 AND session = $2 AND sequence < $3`

	putDocument = `INSERT INTO documents (owner, bucket, key, value) VALUES ($1, $2, $3, $4)
		ON CONFLICT (owner, bucket, key) DO UPDATE SET value = excluded.value`
	deleteDocument = `DELETE FROM documents WHERE owner = $1 AND bucket = $2 AND key = $3`
)

// sessionTables returns the tables that have rows of a session.
func sessionTables() []string { return []string{"sessions", "counters", "outbox", "inbox", "finished"} }

// translate turns a change into what the writer executes. One that cannot be
// stored becomes an item without statements that has its error already: it goes
// through the queue like the others, so that the done funcs keep their order.
func (s *Store) translate(c delivery.Change) item {
	var it item
	switch c := c.(type) {
	case delivery.SaveSession:
		it.add(saveSession, s.owner, c.Session[:], c.Data)
		it.bytes = len(c.Data)
	case delivery.ForgetSession:
		for _, table := range sessionTables() {
			it.add("DELETE FROM "+table+" WHERE owner = $1 AND session = $2", s.owner, c.Session[:])
		}
	case delivery.Enqueue:
		it = s.insert(enqueue, c.Session, c.Message)
		it.unique = true
	case delivery.Settle:
		it.sequence(c.Sequence)
		outcome := record.Outcome(&c.Outcome)
		it.add(settle, s.owner, c.Session[:], int64(c.Sequence), nanoseconds(c.Outcome.At), outcome)
		it.bytes = len(outcome)
	case delivery.PruneOutbox:
		it.add(keepLast, s.owner, c.Session[:])
		it.add(pruneOutbox, s.owner, c.Session[:], nanoseconds(c.Before))
	case delivery.Receive:
		it = s.insert(receive, c.Session, c.Message)
	case delivery.Consume:
		it.sequence(c.Cursor)
		it.add(keepCursor, s.owner, c.Session[:], int64(c.Cursor))
		it.add(consume, s.owner, c.Session[:], int64(c.Cursor))
	case delivery.Finish:
		it.sequence(c.Sequence)
		outcome := record.Outcome(&c.Outcome)
		it.add(finish, s.owner, c.Session[:], int64(c.Sequence), outcome)
		it.bytes = len(outcome)
	case delivery.Advance:
		it.sequence(c.Floor)
		it.add(keepFloor, s.owner, c.Session[:], int64(c.Floor))
		it.add(advance, s.owner, c.Session[:], int64(c.Floor))
	default:
		it.err = wire.Errorf(wire.InvalidArgument, "store a change of unknown kind %T", c)
	}
	if it.bytes > maxChange && it.err == nil {
		it.err = tooLarge(fmt.Sprintf("store %T", c), it.bytes)
	}
	if it.err != nil {
		it.statements, it.bytes = nil, 0
	}
	return it
}

// insert is a message into the outbox or the inbox.
func (s *Store) insert(query string, session delivery.SessionID, m *delivery.Message) item {
	var it item
	if m == nil || len(m.Key) > maxKey {
		it.err = wire.Errorf(wire.InvalidArgument, "store a message: it is missing, or its key is longer than %d bytes", maxKey)
		return it
	}
	it.sequence(m.Sequence)
	fields := record.Message(m)
	it.add(query, s.owner, session[:], int64(m.Sequence), []byte(m.Key), fields, m.Body)
	it.bytes = len(m.Body) + len(m.Key) + len(fields)
	return it
}

func (it *item) add(sql string, args ...any) {
	it.statements = append(it.statements, statement{sql: sql, args: args})
}

// sequence checks that a sequence fits a BIGINT.
func (it *item) sequence(n uint64) {
	if n > math.MaxInt64 {
		it.err = wire.Errorf(wire.InvalidArgument, "store sequence %d: it is 2^63 or more", n)
	}
}

func tooLarge(doing string, size int) error {
	return wire.Errorf(wire.TooLarge, "%s: %d bytes are more than the store's limit of %d", doing, size, maxChange)
}

// nanoseconds is t as nanoseconds since 1970; what is out of range (before 1678
// or after 2261) is at its end, so that the order of times is kept.
func nanoseconds(t time.Time) int64 {
	const nano = int64(time.Second)
	switch s := t.Unix(); {
	case s <= math.MinInt64/nano:
		return math.MinInt64
	case s >= math.MaxInt64/nano:
		return math.MaxInt64
	}
	return t.UnixNano()
}
