// Package deals keeps an agent's negotiations in the node's database: requests for
// proposals, what was negotiated under them, and what was used of contracts. What
// the rows hold is for package market to know; here they are bytes.
//
// Writing is adding to a batch, which the audit log commits together with the
// entries that record the same.
package deals

import (
	"context"
	"database/sql"
	"time"

	"openmesh/node/store"
	"openmesh/protocols/wire"
)

// Store is the tables of one agent. It is safe for concurrent use, and needs no
// closing but that of the database.
type Store struct{ db *store.Store }

// New returns the tables in db of the agent that db was opened for.
func New(db *store.Store) *Store { return &Store{db} }

// Request is the row of a request for proposals.
type Request struct {
	ID      string
	Sent    bool // by this agent
	Created time.Time
	Done    bool
	Data    []byte
}

// Negotiation is the row of a negotiation.
type Negotiation struct {
	ID       string
	Request  string
	Contract string // empty: none
	Created  time.Time
	Done     bool
	Data     []byte
}

const (
	putRequest = `INSERT INTO market_requests (owner, id, sent, created, done, data) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (owner, id) DO UPDATE SET done = excluded.done, data = excluded.data`
	putNegotiation = `INSERT INTO market_negotiations (owner, id, request, contract, created, done, data) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (owner, id) DO UPDATE SET contract = excluded.contract, done = excluded.done, data = excluded.data`
	putUse    = `INSERT INTO market_uses (owner, contract, key) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`
	deleteUse = `DELETE FROM market_uses WHERE owner = $1 AND contract = $2 AND key = $3`

	requestColumns     = `SELECT id, sent, created, done, data FROM market_requests WHERE owner = $1`
	negotiationColumns = `SELECT id, request, contract, created, done, data FROM market_negotiations WHERE owner = $1`
)

// PutRequest adds to b that a row is stored, in place of the one with its id.
func (s *Store) PutRequest(b *store.Batch, r Request) {
	b.Add(putRequest, s.db.Owner(), r.ID, bit(r.Sent), r.Created.UnixMilli(), bit(r.Done), r.Data)
}

// PutNegotiation adds to b that a row is stored, in place of the one with its id.
func (s *Store) PutNegotiation(b *store.Batch, n Negotiation) {
	b.Add(putNegotiation, s.db.Owner(), n.ID, n.Request, n.Contract, n.Created.UnixMilli(), bit(n.Done), n.Data)
}

// PutUse adds to b that one unit of a contract is used.
func (s *Store) PutUse(b *store.Batch, contract, key string) {
	b.Add(putUse, s.db.Owner(), contract, []byte(key))
}

// DeleteUse adds to b that a unit was not used after all.
func (s *Store) DeleteUse(b *store.Batch, contract, key string) {
	b.Add(deleteUse, s.db.Owner(), contract, []byte(key))
}

// Open calls f with all requests that are not done.
func (s *Store) Open(ctx context.Context, f func(Request) error) error {
	return s.requests(ctx, f, requestColumns+` AND done = 0`, s.db.Owner())
}

// OpenNegotiations calls f with all negotiations that are not done.
func (s *Store) OpenNegotiations(ctx context.Context, f func(Negotiation) error) error {
	return s.negotiations(ctx, f, negotiationColumns+` AND done = 0`, s.db.Owner())
}

// Direction says which requests are meant.
type Direction uint8

// The directions.
const (
	Both Direction = iota
	Sent
	Received
)

// Has reports whether a request that was sent by this agent, or not, is meant.
func (d Direction) Has(sent bool) bool { return d == Both || sent == (d == Sent) }

// Requests calls f with requests that are done, newest first.
func (s *Store) Requests(ctx context.Context, d Direction, limit int, f func(Request) error) error {
	return s.requests(ctx, f, requestColumns+` AND done = 1 AND sent IN ($2, $3) ORDER BY created DESC LIMIT $4`,
		s.db.Owner(), bit(!d.Has(false)), bit(d.Has(true)), limit)
}

// Negotiations calls f with negotiations that are done, newest first.
func (s *Store) Negotiations(ctx context.Context, limit int, f func(Negotiation) error) error {
	return s.negotiations(ctx, f, negotiationColumns+` AND done = 1 ORDER BY created DESC LIMIT $2`, s.db.Owner(), limit)
}

// Contracts calls f with negotiations that are done and had a contract, newest first.
func (s *Store) Contracts(ctx context.Context, limit int, f func(Negotiation) error) error {
	return s.negotiations(ctx, f, negotiationColumns+` AND done = 1 AND contract > '' ORDER BY created DESC LIMIT $2`, s.db.Owner(), limit)
}

// Under calls f with the negotiations of a request.
func (s *Store) Under(ctx context.Context, request string, f func(Negotiation) error) error {
	return s.negotiations(ctx, f, negotiationColumns+` AND request = $2 ORDER BY created`, s.db.Owner(), request)
}

// Request returns the request whose id begins with prefix. Errors: wire.NotFound, and
// wire.InvalidArgument if there are several.
func (s *Store) Request(ctx context.Context, prefix string) (r Request, err error) {
	found := 0
	err = s.requests(ctx, func(next Request) error { r = next; found++; return nil },
		requestColumns+` AND id >= $2 AND id < $3 LIMIT 2`, s.db.Owner(), prefix, prefix+"g")
	return r, one(err, found, "request", prefix)
}

// Negotiation returns the negotiation whose id begins with prefix; errors are those of
// Request.
func (s *Store) Negotiation(ctx context.Context, prefix string) (Negotiation, error) {
	return s.negotiation(ctx, "negotiation", `id`, prefix)
}

// Contract returns the negotiation whose contract's id begins with prefix; errors are
// those of Request.
func (s *Store) Contract(ctx context.Context, prefix string) (Negotiation, error) {
	return s.negotiation(ctx, "contract", `contract`, prefix)
}

func (s *Store) negotiation(ctx context.Context, what, column, prefix string) (n Negotiation, err error) {
	found := 0
	err = s.negotiations(ctx, func(next Negotiation) error { n = next; found++; return nil },
		negotiationColumns+` AND `+column+` >= $2 AND `+column+` < $3 LIMIT 2`, s.db.Owner(), prefix, prefix+"g")
	return n, one(err, found, what, prefix)
}

func one(err error, found int, what, prefix string) error {
	switch {
	case err != nil:
		return err
	case found == 0:
		return wire.Errorf(wire.NotFound, "there is no %s %.40s", what, prefix)
	case found > 1:
		return wire.Errorf(wire.InvalidArgument, "more than one %s begins with %.40s", what, prefix).WithHint("give more digits")
	}
	return nil
}

// Uses returns the keys of the calls made under a contract.
func (s *Store) Uses(ctx context.Context, contract string) (keys map[string]bool, err error) {
	keys = make(map[string]bool)
	err = s.db.Query(ctx, "read uses of contract "+contract, func(rows *sql.Rows) error {
		var key []byte
		if err := rows.Scan(&key); err != nil {
			return err
		}
		keys[string(key)] = true
		return nil
	}, `SELECT key FROM market_uses WHERE owner = $1 AND contract = $2`, s.db.Owner(), contract)
	return keys, err
}

func (s *Store) requests(ctx context.Context, f func(Request) error, query string, args ...any) error {
	return s.db.Query(ctx, "read requests for proposals", func(rows *sql.Rows) error {
		var r Request
		var sent, done, created int64
		if err := rows.Scan(&r.ID, &sent, &created, &done, &r.Data); err != nil {
			return err
		}
		r.Sent, r.Done, r.Created = sent != 0, done != 0, time.UnixMilli(created).UTC()
		return f(r)
	}, query, args...)
}

func (s *Store) negotiations(ctx context.Context, f func(Negotiation) error, query string, args ...any) error {
	return s.db.Query(ctx, "read negotiations", func(rows *sql.Rows) error {
		var n Negotiation
		var done, created int64
		if err := rows.Scan(&n.ID, &n.Request, &n.Contract, &created, &done, &n.Data); err != nil {
			return err
		}
		n.Done, n.Created = done != 0, time.UnixMilli(created).UTC()
		return f(n)
	}, query, args...)
}

func bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
