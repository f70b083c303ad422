// Package audit is the log of what an agent sent, received and decided: entries
// that are only ever added, each with the signed original, in the node's database.
//
// # Tree
//
// Entries are the leaves of a Merkle tree as in RFC 6962:
//
//	            root (size 5) ── signed: a checkpoint
//	       ┌───────┴───────┐
//	   ┌───┴───┐           │
//	 ┌─┴─┐   ┌─┴─┐         │
//	 0   1   2   3         4      leaf = SHA-256(0 ‖ entry)
//	 │   │   │   │         │      entry binds index, time, kind, …, SHA-256(payload)
//	payloads: the signed originals; retention removes old ones, not the leaves
//
// Whoever holds a checkpoint (a signed note as in https://c2sp.org/tlog-checkpoint)
// can tell whether the log, later, still has what it had then. Agents swap them in
// what they sign with each other, so that neither can rewrite its history alone.
//
// # Appending
//
// [Log.Commit] writes an effect and its entries in one transaction. Indexes are
// given under a lock, in the order in which the store is given the changes; nobody
// holds it while waiting for the disk, so that many commits share an fsync. The
// changes of one log are a [store.Chain]: if one fails, those queued behind it fail
// too instead of leaving a gap. Then the log reads from the database how far it came,
// and goes on from there.
package audit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"go.uber.org/zap"

	"openmesh/node/store"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// Config is what a [Log] needs.
type Config struct {
	DB    *store.Store
	Agent identity.AgentID

	// Signer gives the host key and certificate to sign checkpoints with.
	Signer func() (crypto.PrivKey, *identity.Certificate)

	// Related names further ids that an entry belongs with, such as the request of
	// a negotiation: what is read or exported of one id includes them. Nil: none.
	Related func(*Entry) []string

	Retention time.Duration // payloads older than this are removed; default 365 days
	Log       *zap.Logger   // nil: none
}

// Log is an agent's audit log. It is safe for concurrent use.
type Log struct {
	cfg Config
	db  *store.Store

	mu        sync.Mutex
	given     tree         // with all entries that have an index
	committed tree         // with those that are in the database
	chain     *store.Chain // of changes given to the store
	broken    bool         // one of them failed
	flying    int          // changes whose outcome is not known
	landed    sync.Cond    // flying fell, or pending
	again     []Entry      // notes of changes that failed, and what came while they did
	pending   int          // bytes of notes that are not in the database, those included
	ended     bool         // nobody tries again by itself
}

// Open reads how far the log of an agent has come.
//
// A log that was tampered with opens all the same, for it has to go on recording;
// [Log.Verify] tells what is wrong.
func Open(ctx context.Context, c Config) (*Log, error) {
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if c.Retention <= 0 {
		c.Retention = 365 * 24 * time.Hour
	}
	l := &Log{cfg: c, db: c.DB}
	l.landed.L = &l.mu
	if err := l.load(ctx); err != nil {
		return nil, fmt.Errorf("open the audit log: %w", err)
	}
	return l, nil
}

// Agent is whose log it is.
func (l *Log) Agent() identity.AgentID { return l.cfg.Agent }

// Size is how many entries are in the database.
func (l *Log) Size() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.committed.size
}

// retries is how often Commit tries again when a change of somebody else failed.
const retries = 4

// Commit makes one durable transaction of the statements of b, which may be nil,
// and entries, in order. It returns the index of the first entry and how many rows
// each statement of b affected. If ctx ends earlier, or the connection to the
// database is lost, it may or may not be committed; else an error means that
// nothing was. Doing says in errors what was being done.
//
// Errors: [wire.InvalidArgument] and [wire.TooLarge] for entries that cannot be
// recorded, and those of the store.
func (l *Log) Commit(ctx context.Context, doing string, b *store.Batch, entries ...Entry) (first uint64, affected []int64, err error) {
	if b == nil {
		b = new(store.Batch)
	}
	sealed := append([]Entry(nil), entries...)
	now := time.Now()
	for i := range sealed {
		if err := sealed[i].check(); err != nil {
			return 0, nil, fmt.Errorf("%s: %w", doing, err)
		}
		sealed[i].seal(now)
	}
	for range retries {
		first, affected, err = l.try(ctx, doing, b, sealed)
		if !errors.Is(err, store.ErrBroken) {
			break
		}
	}
	if err != nil {
		return 0, nil, err
	}
	return first, affected[:b.Len()], nil
}

// try commits once.
func (l *Log) try(ctx context.Context, doing string, b *store.Batch, entries []Entry) (first uint64, affected []int64, err error) {
	type result struct {
		affected []int64
		err      error
	}
	l.mu.Lock()
	if err := l.mend(ctx); err != nil {
		l.mu.Unlock()
		return 0, nil, fmt.Errorf("%s: %w", doing, err)
	}
	done := make(chan result, 1)
	first = l.submit(doing, b, entries, true, func(affected []int64, err error) { done <- result{affected, err} })
	l.mu.Unlock()
	select {
	case r := <-done:
		return first, r.affected, r.err
	case <-ctx.Done():
		return 0, nil, fmt.Errorf("%s: %w", doing, ctx.Err())
	}
}

// Note records entries that nobody was promised. They are in the database within
// 50 ms and survive the end of the process from then on; the next Commit makes them
// survive a power failure. It does not wait for the disk, save while the store's
// queue is full, or while 64 MiB of notes wait for a database that cannot be written
// (the disk is full). A payload that is too large is kept as its
// hash.
func (l *Log) Note(entries ...Entry) {
	sealed := append([]Entry(nil), entries...)
	now := time.Now()
	for i := range sealed {
		e := &sealed[i]
		e.Omit = e.Omit || len(e.Payload) > MaxPayload
		e.seal(now)
		if err := e.check(); err != nil {
			l.cfg.Log.Error("not recorded in the audit log", zap.Error(err))
			return
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.pending >= maxPending && !l.ended {
		l.landed.Wait()
	}
	l.pending += weight(sealed)
	if l.broken {
		l.keep(sealed)
		return
	}
	l.note(sealed)
}

// invalidIndex is the error of an index that the log does not have.
func (l *Log) invalidIndex(index uint64) error {
	return wire.Errorf(wire.NotFound, "the audit log has no entry %d", index).
		WithHint("It has %d entries, from 0.", l.Size())
}
