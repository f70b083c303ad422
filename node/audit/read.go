package audit

import (
	"context"
	"database/sql"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// Filter says which entries to list. The zero value is the first 100.
type Filter struct {
	From  uint64   // from this index on
	Limit int      // at most so many; default 100, at most 1000
	Of    []string // of the sessions, negotiations, requests and contracts with these ids
	Kind  string   // of this kind; market is market.propose as well
	Last  bool     // the newest instead of the oldest
}

const (
	defaultLimit = 100
	maxLimit     = 1000
	page         = 1024    // rows of a query that reads many
	pageBytes    = 4 << 20 // of their payloads, or one that is larger

	fields = `idx, at, kind, direction, agent, session, ref, note, digest, size, hashes, CASE WHEN payload IS NULL THEN 1 ELSE 0 END`

	selectEntry  = `SELECT ` + fields + `, payload FROM audit_entries WHERE owner = $1 AND idx = $2`
	selectRange  = `SELECT ` + fields + `, payload FROM audit_entries WHERE owner = $1 AND idx >= $2 AND idx < $3 ORDER BY idx LIMIT $4`
	selectSize   = `SELECT idx, coalesce(length(payload), 0) FROM audit_entries WHERE owner = $1 AND idx >= $2 AND idx < $3 ORDER BY idx LIMIT $4`
	selectOf     = `SELECT idx FROM audit_entries WHERE owner = $1 AND session = $2 UNION SELECT idx FROM audit_entries WHERE owner = $1 AND ref = $2`
	selectPrefix = `SELECT DISTINCT session FROM audit_entries WHERE owner = $1 AND session >= $2 AND session < $3
		UNION SELECT DISTINCT ref FROM audit_entries WHERE owner = $1 AND ref >= $2 AND ref < $3 ORDER BY 1 LIMIT 2`
)

// List returns entries without their payloads, in order.
func (l *Log) List(ctx context.Context, f Filter) ([]Entry, error) {
	query, args := f.query(l.db.Owner())
	var found []Entry
	err := l.db.Query(ctx, "list the audit log", func(rows *sql.Rows) error {
		r, err := scan(rows, false)
		found = append(found, r.Entry)
		return err
	}, query, args...)
	if f.Last {
		slices.Reverse(found)
	}
	return found, err
}

func (f Filter) query(owner any) (string, []any) {
	args := []any{owner, position(f.From)}
	var q strings.Builder
	arg := func(v any) string { args = append(args, v); return fmt.Sprintf("$%d", len(args)) }
	q.WriteString(`SELECT ` + fields + ` FROM audit_entries WHERE owner = $1 AND idx >= $2`)
	if len(f.Of) > 0 {
		var places []string
		for _, id := range f.Of {
			places = append(places, arg(id))
		}
		in := strings.Join(places, ", ")
		fmt.Fprintf(&q, ` AND (session IN (%s) OR ref IN (%s))`, in, in)
	}
	if f.Kind != "" {
		fmt.Fprintf(&q, ` AND (kind = %s OR kind >= %s AND kind < %s)`, arg(f.Kind), arg(f.Kind+"."), arg(f.Kind+"/"))
	}
	q.WriteString(` ORDER BY idx`)
	if f.Last {
		q.WriteString(` DESC`)
	}
	limit := f.Limit
	if limit <= 0 {
		limit = defaultLimit
	}
	q.WriteString(` LIMIT ` + arg(min(limit, maxLimit)))
	return q.String(), args
}

// Get returns an entry with its payload; [wire.NotFound] if there is none.
func (l *Log) Get(ctx context.Context, index uint64) (Entry, error) {
	var found *stored
	err := l.db.Query(ctx, "read the audit log", func(rows *sql.Rows) error {
		r, err := scan(rows, true)
		found = &r
		return err
	}, selectEntry, l.db.Owner(), position(index))
	if err != nil {
		return Entry{}, err
	}
	if found == nil {
		return Entry{}, l.invalidIndex(index)
	}
	return found.Entry, nil
}

// Resolve returns the one id of a session, negotiation, request or contract that
// begins with a prefix. Errors: [wire.NotFound] and, if there are several,
// [wire.InvalidArgument].
func (l *Log) Resolve(ctx context.Context, prefix string) (id string, err error) {
	if prefix == "" || prefix != clean(prefix, maxName) {
		return "", wire.Errorf(wire.InvalidArgument, "look up in the audit log: %.40q is no id", prefix)
	}
	var ids []string
	err = l.db.Query(ctx, "read the audit log", func(rows *sql.Rows) error {
		var id string
		err := rows.Scan(&id)
		ids = append(ids, id)
		return err
	}, selectPrefix, l.db.Owner(), prefix, prefix+"\U0010FFFF")
	switch {
	case err != nil:
		return "", err
	case slices.Contains(ids, prefix):
		return prefix, nil
	case len(ids) == 0:
		return "", wire.Errorf(wire.NotFound, "the audit log has nothing of %s", prefix).
			WithHint("Ids of sessions, negotiations and contracts are listed by `openmesh audit list`.")
	case len(ids) > 1:
		return "", wire.Errorf(wire.InvalidArgument, "several ids in the audit log begin with %s", prefix).WithHint("Give more of it.")
	}
	return ids[0], nil
}

// Of returns the entries of some ids with their payloads, in order, and those of ids
// related to them. The error is [wire.TooLarge] if these are too many.
func (l *Log) Of(ctx context.Context, ids ...string) ([]Entry, error) {
	read := make(map[uint64]Entry)
	indexes, err := l.indexesOf(ctx, ids, read)
	if err != nil {
		return nil, err
	}
	entries := make([]Entry, 0, len(indexes))
	for _, i := range indexes {
		e, ok := read[i]
		if !ok {
			if e, err = l.Get(ctx, i); err != nil {
				return nil, err
			}
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// maxRelated bounds the ids that others bring in.
const maxRelated = 4096

// indexesOf returns the indexes of the entries of some ids and of ids related to
// them, in order. Entries that it has to read it puts into read, if that is not nil.
func (l *Log) indexesOf(ctx context.Context, ids []string, read map[uint64]Entry) ([]uint64, error) {
	found, seen := make(map[uint64]bool), make(map[string]bool)
	bound := len(ids) + maxRelated
	for len(ids) > 0 {
		id := ids[0]
		ids = ids[1:]
		if id == "" || seen[id] {
			continue
		}
		if seen[id] = true; len(seen) > bound {
			return nil, wire.Errorf(wire.TooLarge, "read the audit log: what is asked for belongs with more than %d others", maxRelated).
				WithHint("Ask for one negotiation or contract.")
		}
		fresh, err := l.indexes(ctx, id)
		if err != nil {
			return nil, err
		}
		fresh = slices.DeleteFunc(fresh, func(i uint64) bool { return found[i] })
		more, err := l.related(ctx, fresh, read)
		if err != nil {
			return nil, err
		}
		ids = append(ids[:len(ids):len(ids)], more...)
		for _, i := range fresh {
			found[i] = true
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// indexes returns the indexes of the entries of one id.
func (l *Log) indexes(ctx context.Context, id string) (found []uint64, err error) {
	err = l.db.Query(ctx, "read the audit log", func(rows *sql.Rows) error {
		var idx int64
		err := rows.Scan(&idx)
		found = append(found, uint64(idx))
		return err
	}, selectOf, l.db.Owner(), id)
	return found, err
}

// related returns the ids that entries belong with.
func (l *Log) related(ctx context.Context, indexes []uint64, read map[uint64]Entry) (ids []string, err error) {
	if l.cfg.Related == nil {
		return nil, nil
	}
	for _, i := range indexes {
		e, err := l.Get(ctx, i)
		if err != nil {
			return nil, err
		}
		if read != nil {
			read[i] = e
		}
		ids = append(ids, l.cfg.Related(&e)...)
	}
	return ids, nil
}

// stored is an entry as it is in the database, with the tree's hashes that it
// completes.
type stored struct {
	Entry
	hashes []Hash
}

// scan reads a row of fields. What does not fit is a fault that verify finds: a
// wrong digest or hash is zero then.
func scan(rows *sql.Rows, payload bool) (s stored, err error) {
	var index, at, size, gone int64
	var agent string
	var digest, flat []byte
	into := []any{&index, &at, &s.Kind, &s.Direction, &agent, &s.Session, &s.Ref, &s.Note, &digest, &size, &flat, &gone}
	if payload {
		into = append(into, &s.Payload)
	}
	if err := rows.Scan(into...); err != nil {
		return s, err
	}
	s.Index, s.At, s.Agent, s.Size = uint64(index), time.Unix(0, at).UTC(), identity.AgentID(agent), int(size)
	s.Omit = gone != 0 && size > 0
	if len(digest) == len(s.Digest) {
		s.Digest = [len(s.Digest)]byte(digest)
	}
	s.hashes = make([]Hash, len(flat)/len(Hash{}))
	for i := range s.hashes {
		s.hashes[i] = Hash(flat[i*len(Hash{}):])
	}
	if len(s.hashes) > 0 {
		s.Hash = s.hashes[0]
	}
	return s, nil
}

// each calls f with every entry from one index up to another, without gaps of its
// own making: what was removed from the database is missing. It reads in pages, and f
// has all the time it wants: nothing holds on to a connection, or to an old state of
// the database, meanwhile.
func (l *Log) each(ctx context.Context, from, to uint64, f func(*stored) error) error {
	for {
		end, err := l.pageEnd(ctx, from, to)
		if err != nil || end == from {
			return err
		}
		entries := make([]stored, 0, page)
		err = l.db.Query(ctx, "read the audit log", func(rows *sql.Rows) error {
			s, err := scan(rows, true)
			entries = append(entries, s)
			return err
		}, selectRange, l.db.Owner(), position(from), position(end), page)
		if err != nil {
			return err
		}
		for i := range entries {
			if err := f(&entries[i]); err != nil {
				return err
			}
		}
		from = end
	}
}

// pageEnd is the index after the last entry of the page that begins at from; from if
// there is no more. It reads no payloads.
func (l *Log) pageEnd(ctx context.Context, from, to uint64) (end uint64, err error) {
	end = from
	bytes := int64(0)
	err = l.db.Query(ctx, "read the audit log", func(rows *sql.Rows) error {
		var idx, size int64
		err := rows.Scan(&idx, &size)
		if bytes += size; bytes <= pageBytes || end == from {
			end = uint64(idx) + 1
		}
		return err
	}, selectSize, l.db.Owner(), position(from), position(to), page)
	return end, err
}

// position is an index as the database has it: all that were given fit.
func position(index uint64) int64 { return int64(min(index, math.MaxInt64)) }
