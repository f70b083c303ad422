package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Batch is statements that make one change, for the packages below this one,
// which have tables of their own. None may fail but by the fault of the database:
// that would take with it what others commit at the same time.
type Batch struct{ item item }

// Add adds a statement, whose placeholders are $1, $2, …
func (b *Batch) Add(sql string, args ...any) {
	b.item.add(sql, args...)
	for _, a := range args {
		if v, ok := a.([]byte); ok {
			b.item.bytes += len(v)
		}
	}
}

// Len is how many statements have been added.
func (b *Batch) Len() int { return len(b.item.statements) }

// Join returns the statements of several batches as one, in order. The batches
// themselves are left as they are.
func Join(batches ...*Batch) *Batch {
	var all Batch
	for _, b := range batches {
		all.item.statements = slices.Concat(all.item.statements, b.item.statements)
		all.item.bytes += b.item.bytes
	}
	return &all
}

// Owner is the row id of the node, as an argument of statements on tables whose
// rows carry their owner.
func (s *Store) Owner() any { return s.owner }

// Exec commits a batch, in order and durably, and returns how many rows each of
// its statements affected. If ctx ends earlier, it may or may not be committed.
// Like Commit it may wait for room. A batch is used once.
func (s *Store) Exec(ctx context.Context, doing string, b *Batch) ([]int64, error) {
	type result struct {
		affected []int64
		err      error
	}
	done := make(chan result, 1)
	s.Submit(doing, b, nil, true, func(affected []int64, err error) { done <- result{affected, err} })
	select {
	case r := <-done:
		return r.affected, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w", doing, ctx.Err())
	}
}

// Submit gives a batch to be committed, in the order of calls, and returns
// without waiting for the disk; like Commit it may wait for room. Done is told
// how many rows each statement affected, or the error, and is bound as a done
// func of Commit is: those of several calls are called in order, save after the
// store was closed. A chain, if not nil, binds the batch to those before it.
func (s *Store) Submit(doing string, b *Batch, chain *Chain, durable bool, done func(affected []int64, err error)) {
	it, statements := b.item, b.item.statements
	if it.bytes > maxChange {
		it.err, it.statements, it.bytes = tooLarge(doing, it.bytes), nil, 0
	}
	it.durable, it.chain = durable, chain
	it.done = func(err error) {
		if err != nil {
			done(nil, fmt.Errorf("%s: %w", doing, err))
			return
		}
		affected := make([]int64, len(statements))
		for i := range statements {
			affected[i] = statements[i].affected
		}
		done(affected, nil)
	}
	if !s.queue.put(it) {
		go it.done(ErrClosed)
	}
}

// ErrBroken is the error of a change whose chain was broken by one before it. It
// was not tried.
var ErrBroken = errors.New("a change before this one failed")

// Chain binds changes that presuppose each other, such as entries of a log with
// their numbers: once one has failed, all that follow it in the chain fail with
// [ErrBroken]. Its maker learns of the failure, looks what is in the database,
// and goes on with a new chain.
//
// PostgreSQL may crash, and come back, while this process lives on. What is on a
// chain always waits for its disk, for what follows builds on it. If it comes back
// without changes that it confirmed all the same, as a standby that lagged behind
// does, all chains that were made before this was found out are broken.
type Chain struct {
	setbacks int64 // that had been found when it was made
	broken   bool  // the writer's
}

// Chain returns a chain without changes. They may presuppose what is read from the
// database after this call, and each other.
func (s *Store) Chain() *Chain { return &Chain{setbacks: s.setbacks.Load()} }

func (c *Chain) fail() {
	if c != nil {
		c.broken = true
	}
}

// follow gives up an item whose chain is broken, before it is tried. Setbacks is how
// many have been found.
func (it *item) follow(setbacks int64) {
	if it.chain == nil {
		return
	}
	if it.err != nil { // it could not be stored at all
		it.chain.fail()
	} else if it.chain.broken || it.chain.setbacks != setbacks {
		it.err, it.statements = ErrBroken, nil
	}
}
