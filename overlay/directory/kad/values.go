package kad

import (
	"container/list"
	"context"
	"sync"
	"time"

	ds "github.com/ipfs/go-datastore"
)

// maxValueBytes bounds the values that a server stores, keys included.
const maxValueBytes = 64 << 20

// values is the datastore of values: in memory, bounded; the one that has not
// been put for longest goes first. Honest agents put theirs again at half of
// ttl. Safe for concurrent use.
type values struct {
	nothing
	ttl time.Duration

	mu    sync.Mutex
	index map[ds.Key]*list.Element
	order *list.List // of *value, oldest put first
	bytes int
}

type value struct {
	key  ds.Key
	data []byte
	at   time.Time
}

func (v *value) size() int { return len(v.key.String()) + len(v.data) }

func newValues(ttl time.Duration) *values {
	return &values{ttl: ttl, index: make(map[ds.Key]*list.Element), order: list.New()}
}

// Get returns the value under k, or ds.ErrNotFound.
func (s *values) Get(_ context.Context, k ds.Key) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.index[k]
	if !ok || time.Since(e.Value.(*value).at) > s.ttl {
		return nil, ds.ErrNotFound
	}
	return e.Value.(*value).data, nil
}

// Put stores data under k.
func (s *values) Put(_ context.Context, k ds.Key, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(s.index[k])
	v := &value{k, data, time.Now()}
	s.index[k] = s.order.PushBack(v)
	for s.bytes += v.size(); s.bytes > maxValueBytes; {
		s.drop(s.order.Front())
	}
	return nil
}

// Delete removes what is under k.
func (s *values) Delete(_ context.Context, k ds.Key) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(s.index[k])
	return nil
}

// expire drops values that were put longer than ttl ago.
func (s *values) expire(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for e := s.order.Front(); e != nil && now.Sub(e.Value.(*value).at) > s.ttl; e = s.order.Front() {
		s.drop(e)
	}
}

func (s *values) drop(e *list.Element) {
	if e == nil {
		return
	}
	v := s.order.Remove(e).(*value)
	delete(s.index, v.key)
	s.bytes -= v.size()
}
