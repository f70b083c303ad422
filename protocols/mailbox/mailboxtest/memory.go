package mailboxtest

import (
	"context"
	"crypto/sha256"
	"maps"
	"slices"
	"sync"
	"time"

	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox"
	"openmesh/protocols/wire"
)

// Memory is a [mailbox.Store] without a disk.
type Memory struct {
	mu    sync.Mutex
	boxes map[identity.AgentID]*box
}

type box struct {
	mailbox.Box
	last    uint64
	letters map[uint64]mailbox.Entry
}

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{boxes: make(map[identity.AgentID]*box)} }

// Register implements [mailbox.Store].
func (m *Memory) Register(_ context.Context, recipient identity.AgentID, version uint32, expires time.Time, most int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.boxes[recipient]
	switch {
	case b == nil && len(m.boxes) >= most:
		return wire.ResourceExhausted
	case b == nil:
		b = &box{letters: make(map[uint64]mailbox.Entry)}
		m.boxes[recipient] = b
	case b.Version > version:
		return wire.KeySuperseded
	}
	b.Version, b.Expires = version, expires
	return nil
}

// Forget implements [mailbox.Store].
func (m *Memory) Forget(_ context.Context, recipient identity.AgentID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.boxes, recipient)
	return nil
}

// Box implements [mailbox.Store].
func (m *Memory) Box(_ context.Context, recipient identity.AgentID) (mailbox.Box, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.boxes[recipient]; b != nil {
		return b.Box, nil
	}
	return mailbox.Box{}, wire.NotFound
}

// Deposit implements [mailbox.Store].
func (m *Memory) Deposit(_ context.Context, e mailbox.Entry, q mailbox.Quota, now time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.boxes[e.Recipient]
	if b == nil || !now.Before(b.Expires) {
		return wire.NotFound
	}
	size, theirs, theirBytes := int64(len(e.Body)), 0, int64(0)
	for _, other := range b.letters {
		if other.Digest() == e.Digest() {
			return nil
		}
		if other.Depositor == e.Depositor {
			theirs, theirBytes = theirs+1, theirBytes+int64(len(other.Body))
		}
	}
	free, freeBytes := q.Letters-b.Letters, q.Bytes-b.Bytes-size
	if free <= 0 || freeBytes < 0 || theirs*q.Share >= free || b.Letters > 0 && (theirBytes+size)*int64(q.Share) > freeBytes {
		return wire.ResourceExhausted
	}
	b.last++
	e.Cursor = b.last
	b.letters[e.Cursor] = e
	b.Letters, b.Bytes = b.Letters+1, b.Bytes+size
	return nil
}

// Read implements [mailbox.Store].
func (m *Memory) Read(_ context.Context, recipient identity.AgentID, after uint64, limit int, bytes int64, now time.Time) ([]mailbox.Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.boxes[recipient]
	if b == nil {
		return nil, nil
	}
	var found []mailbox.Entry
	for _, cursor := range slices.Sorted(maps.Keys(b.letters)) {
		e := b.letters[cursor]
		if cursor <= after || !now.Before(e.Until) {
			continue
		}
		bytes -= int64(len(e.Body))
		if len(found) >= limit || len(found) > 0 && bytes < 0 {
			break
		}
		found = append(found, e)
	}
	return found, nil
}

// Remove implements [mailbox.Store].
func (m *Memory) Remove(_ context.Context, recipient identity.AgentID, cursors []uint64) (n int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.boxes[recipient]; b != nil {
		for _, cursor := range cursors {
			n += b.remove(cursor)
		}
	}
	return n, nil
}

func (b *box) remove(cursor uint64) int {
	e, ok := b.letters[cursor]
	if !ok {
		return 0
	}
	delete(b.letters, cursor)
	b.Letters, b.Bytes = b.Letters-1, b.Bytes-int64(len(e.Body))
	return 1
}

// Expire implements [mailbox.Store].
func (m *Memory) Expire(_ context.Context, now time.Time, most int) (n int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for agent, b := range m.boxes {
		for cursor, e := range b.letters {
			if !now.Before(e.Until) && n < most {
				n += b.remove(cursor)
			}
		}
		if !now.Before(b.Expires) && b.Letters == 0 {
			delete(m.boxes, agent)
		}
	}
	return n, nil
}

// Last implements [mailbox.Store].
func (m *Memory) Last(_ context.Context, recipients []identity.AgentID) (map[identity.AgentID]uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	last := make(map[identity.AgentID]uint64)
	for _, r := range recipients {
		if b := m.boxes[r]; b != nil {
			last[r] = b.last
		}
	}
	return last, nil
}

// Usage implements [mailbox.Store].
func (m *Memory) Usage(context.Context) (u mailbox.Usage, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range m.boxes {
		u.Recipients++
		u.Letters += b.Letters
		u.Bytes += b.Bytes
	}
	return u, nil
}

// Letters returns the digests of a recipient's letters.
func (m *Memory) Letters(recipient identity.AgentID) [][sha256.Size]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all [][sha256.Size]byte
	if b := m.boxes[recipient]; b != nil {
		for _, cursor := range slices.Sorted(maps.Keys(b.letters)) {
			e := b.letters[cursor]
			all = append(all, e.Digest())
		}
	}
	return all
}
