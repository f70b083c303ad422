// Package deliverytest has a [delivery.Store] in memory, for tests that choose
// when changes are committed, which of them fail, and what a crash leaves.
package deliverytest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/wire"
)

// ErrCrashed is what reading a store returns after its crash.
var ErrCrashed = errors.New("the process of this store has crashed")

// Store is a delivery.Store in memory. At first it commits each change before
// Commit returns, and calls done from there: whoever calls Commit must not hold a
// lock that done takes. After Hold, changes wait for Flush or FlushLazy.
type Store struct {
	mu      sync.Mutex
	written tables // survives the end of the process
	durable tables // survives a power failure
	behind  []delivery.Change
	waiting []change
	hold    bool
	crashed bool
	fail    []error // of the next changes
}

type change struct {
	delivery.Change
	durable bool
	done    func(error)
	err     error
}

var _ delivery.Store = (*Store)(nil)

// NewStore returns an empty store.
func NewStore() *Store { return &Store{written: tables{}, durable: tables{}} }

// Hold has changes wait for Flush from now on.
func (s *Store) Hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold = true
}

// FailNext lets the next change given fail with err; called again, the one after
// it.
func (s *Store) FailNext(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = append(s.fail, err)
}

// Commit implements delivery.Store. After a crash it never calls done.
func (s *Store) Commit(c delivery.Change, durable bool, done func(error)) {
	s.mu.Lock()
	if s.crashed {
		s.mu.Unlock()
		return
	}
	w := change{Change: c, durable: durable, done: done}
	if len(s.fail) > 0 {
		w.err, s.fail = s.fail[0], s.fail[1:]
	}
	s.waiting = append(s.waiting, w)
	hold := s.hold
	s.mu.Unlock()
	if !hold {
		s.flush(-1, durable)
	}
}

// Waiting is how many changes wait for Flush.
func (s *Store) Waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting)
}

// Flush commits the first n changes that wait, all if n is negative, as one
// commit that would survive a power failure.
func (s *Store) Flush(n int) { s.flush(n, true) }

// FlushLazy commits the first n changes that wait so that they survive the end of
// the process only; it stops at one that must be durable.
func (s *Store) FlushLazy(n int) { s.flush(n, false) }

func (s *Store) flush(n int, durable bool) {
	s.mu.Lock()
	if n < 0 || n > len(s.waiting) {
		n = len(s.waiting)
	}
	if i := slices.IndexFunc(s.waiting[:n], func(c change) bool { return c.durable }); i >= 0 && !durable {
		n = i
	}
	now := slices.Clone(s.waiting[:n])
	s.waiting = s.waiting[n:]
	for i := range now {
		if c := &now[i]; c.err == nil {
			c.err = s.written.apply(c.Change)
			s.behind = append(s.behind, c.Change)
		}
	}
	if durable {
		for _, c := range s.behind {
			s.durable.apply(c) // fails as it did before
		}
		s.behind = nil
	}
	s.mu.Unlock()
	for _, c := range now {
		if c.done != nil {
			c.done(c.err)
		}
	}
}

// Crash ends the process: it returns the store that the next one opens, and this
// one is dead. Changes that wait are lost.
func (s *Store) Crash() *Store { return s.crash(false) }

// PowerFailure is a Crash that also loses what was not durable.
func (s *Store) PowerFailure() *Store { return s.crash(true) }

func (s *Store) crash(power bool) *Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.crashed, s.waiting = true, nil
	left := s.written
	if power {
		left = s.durable
	}
	return &Store{written: left.clone(), durable: left.clone(), hold: s.hold}
}

// tables are the sessions of a store.
type tables map[delivery.SessionID]*session

type session struct {
	data     []byte
	saved    bool
	outbox   map[uint64]row
	keys     map[string]uint64
	last     uint64
	inbox    map[uint64]delivery.Message
	cursor   uint64
	floor    uint64
	finished map[uint64]delivery.Outcome
}

// row is a message of the outbox; the message is nil once it is settled.
type row struct {
	message *delivery.Message
	key     string
	outcome delivery.Outcome
}

func (t tables) clone() tables {
	c := tables{}
	for id, s := range t {
		n := *s
		n.outbox, n.keys, n.inbox, n.finished = maps.Clone(s.outbox), maps.Clone(s.keys), maps.Clone(s.inbox), maps.Clone(s.finished)
		c[id] = &n
	}
	return c
}

func (t tables) session(id delivery.SessionID) *session {
	s := t[id]
	if s == nil {
		s = &session{outbox: map[uint64]row{}, keys: map[string]uint64{}, inbox: map[uint64]delivery.Message{}, finished: map[uint64]delivery.Outcome{}}
		t[id] = s
	}
	return s
}

func (t tables) apply(c delivery.Change) error {
	switch c := c.(type) {
	case delivery.SaveSession:
		s := t.session(c.Session)
		s.data, s.saved = c.Data, true
	case delivery.ForgetSession:
		delete(t, c.Session)
	case delivery.Enqueue:
		return t.session(c.Session).enqueue(c.Message)
	case delivery.Settle:
		s := t.session(c.Session)
		if r, ok := s.outbox[c.Sequence]; ok && r.message != nil {
			s.outbox[c.Sequence] = row{key: r.key, outcome: c.Outcome}
		}
	case delivery.PruneOutbox:
		t.session(c.Session).prune(c.Before)
	case delivery.Receive:
		s := t.session(c.Session)
		if _, ok := s.inbox[c.Message.Sequence]; !ok {
			s.inbox[c.Message.Sequence] = *c.Message
		}
	case delivery.Consume:
		s := t.session(c.Session)
		maps.DeleteFunc(s.inbox, func(n uint64, _ delivery.Message) bool { return n <= c.Cursor })
		s.cursor = max(s.cursor, c.Cursor)
	case delivery.Finish:
		s := t.session(c.Session)
		if _, ok := s.finished[c.Sequence]; !ok {
			s.finished[c.Sequence] = c.Outcome
		}
	case delivery.Advance:
		s := t.session(c.Session)
		s.floor = max(s.floor, c.Floor)
		maps.DeleteFunc(s.finished, func(n uint64, _ delivery.Outcome) bool { return n < s.floor })
	}
	return nil
}

func (s *session) enqueue(m *delivery.Message) error {
	if _, ok := s.keys[m.Key]; ok {
		return fmt.Errorf("enqueue message %d: %w", m.Sequence, wire.AlreadyExists)
	}
	s.outbox[m.Sequence] = row{message: m, key: m.Key}
	s.keys[m.Key] = m.Sequence
	s.last = max(s.last, m.Sequence)
	return nil
}

func (s *session) prune(before time.Time) {
	for n, r := range s.outbox {
		if r.message == nil && r.outcome.At.Before(before) {
			delete(s.outbox, n)
			delete(s.keys, r.key)
		}
	}
}

// read calls f with what the store has of a session.
func (s *Store) read(id delivery.SessionID, f func(*session)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.crashed {
		return ErrCrashed
	}
	if of := s.written[id]; of != nil {
		f(of)
	}
	return nil
}

// Sessions implements delivery.Store.
func (s *Store) Sessions(context.Context) (map[delivery.SessionID][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.crashed {
		return nil, ErrCrashed
	}
	all := map[delivery.SessionID][]byte{}
	for id, of := range s.written {
		if of.saved {
			all[id] = slices.Clone(of.data)
		}
	}
	return all, nil
}

// Outbox implements delivery.Store.
func (s *Store) Outbox(_ context.Context, id delivery.SessionID, after uint64, limit int) (pending []delivery.Message, last uint64, err error) {
	err = s.read(id, func(of *session) {
		last = of.last
		for n, r := range of.outbox {
			if n > after && r.message != nil {
				pending = append(pending, *r.message)
			}
		}
	})
	return first(pending, limit), last, err
}

func first(ms []delivery.Message, limit int) []delivery.Message {
	slices.SortFunc(ms, func(a, b delivery.Message) int { return cmp.Compare(a.Sequence, b.Sequence) })
	return ms[:min(limit, len(ms))]
}

// Outcome implements delivery.Store.
func (s *Store) Outcome(_ context.Context, id delivery.SessionID, key string) (sequence uint64, out delivery.Outcome, err error) {
	found := false
	err = s.read(id, func(of *session) {
		if sequence, found = of.keys[key]; found {
			out = of.outbox[sequence].outcome
		}
	})
	if err == nil && !found {
		err = wire.Errorf(wire.NotFound, "no message with key %q", key)
	}
	return sequence, out, err
}

// Inbox implements delivery.Store.
func (s *Store) Inbox(_ context.Context, id delivery.SessionID, after uint64, limit int) (messages []delivery.Message, cursor uint64, err error) {
	err = s.read(id, func(of *session) {
		cursor = of.cursor
		for n, m := range of.inbox {
			if n > after {
				messages = append(messages, m)
			}
		}
	})
	return first(messages, limit), cursor, err
}

// Window implements delivery.Store.
func (s *Store) Window(_ context.Context, id delivery.SessionID) (floor uint64, finished map[uint64]delivery.Outcome, err error) {
	finished = map[uint64]delivery.Outcome{}
	err = s.read(id, func(of *session) {
		floor = of.floor
		for n, out := range of.finished {
			if n >= floor {
				finished[n] = out
			}
		}
	})
	return floor, finished, err
}
