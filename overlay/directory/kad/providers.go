package kad

import (
	"context"
	"encoding/binary"
	"strings"
	"sync"
	"time"

	ds "github.com/ipfs/go-datastore"
	dsq "github.com/ipfs/go-datastore/query"
	"github.com/libp2p/go-libp2p-kad-dht/records"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-base32"
	"github.com/multiformats/go-multihash"

	"openmesh/protocols/descriptor"
)

// The bounds of what a server stores for others.
const (
	maxPerProvider = descriptor.MaxKeys
	maxPerKey      = 4096
	maxProviders   = 1 << 17
)

// providers is the table of provider records. Safe for concurrent use.
type providers struct {
	ttl time.Duration

	mu     sync.Mutex
	byKey  map[string]map[peer.ID]time.Time // when announced, by multihash
	byPeer map[peer.ID]map[string]struct{}  // the same, the other way round
	total  int
}

func newProviders(ttl time.Duration) *providers {
	return &providers{ttl: ttl, byKey: make(map[string]map[peer.ID]time.Time), byPeer: make(map[peer.ID]map[string]struct{})}
}

// add records that p provides key. It refuses what would break a bound: whoever
// has much makes room for who has little, never the other way round.
func (s *providers) add(p peer.ID, key string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.byKey[key][p]; !known {
		if !s.room(p, key) {
			return false
		}
		s.total++
	}
	insert(s.byKey, key, p, now)
	insert(s.byPeer, p, key, struct{}{})
	return true
}

func (s *providers) room(p peer.ID, key string) bool {
	if len(s.byPeer[p]) >= maxPerProvider {
		return false
	}
	if len(s.byKey[key]) >= maxPerKey {
		s.drop(oldest(s.byKey[key]), key)
	}
	if s.total < maxProviders {
		return true
	}
	rich := s.richest()
	if len(s.byPeer[rich]) <= len(s.byPeer[p]) {
		return false
	}
	for k := range s.byPeer[rich] {
		s.drop(rich, k)
		return true
	}
	return false
}

// richest returns the peer with the most records.
func (s *providers) richest() (p peer.ID) {
	n := 0
	for q, keys := range s.byPeer {
		if len(keys) > n {
			p, n = q, len(keys)
		}
	}
	return p
}

// remove forgets that p provides keys and returns how many of them it did.
func (s *providers) remove(p peer.ID, keys []multihash.Multihash) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range keys {
		if s.drop(p, string(k)) {
			n++
		}
	}
	return n
}

func (s *providers) drop(p peer.ID, key string) bool {
	if _, ok := s.byKey[key][p]; !ok {
		return false
	}
	erase(s.byKey, key, p)
	erase(s.byPeer, p, key)
	s.total--
	return true
}

// expire drops records older than ttl.
func (s *providers) expire(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, ps := range s.byKey {
		for p, at := range ps {
			if now.Sub(at) > s.ttl {
				s.drop(p, key)
			}
		}
	}
}

// entries returns the records of key as the DHT's provider manager stores
// them: name "/providers/<key>/<peer>" in base32, value a varint of Unix
// nanoseconds.
func (s *providers) entries(prefix string, now time.Time) []dsq.Entry {
	key, err := base32.RawStdEncoding.DecodeString(strings.TrimPrefix(prefix, records.ProvidersKeyPrefix))
	if err != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []dsq.Entry
	for p, at := range s.byKey[string(key)] {
		if now.Sub(at) <= s.ttl {
			name := prefix + "/" + base32.RawStdEncoding.EncodeToString([]byte(p))
			out = append(out, dsq.Entry{Key: name, Value: binary.AppendVarint(nil, at.UnixNano())})
		}
	}
	return out
}

func (s *providers) datastore() ds.Batching { return &providerStore{nothing{}, s} }

// providerStore shows the table to the DHT's provider manager, which only ever
// queries it. What the manager writes is dropped: it came by [Table.inspect].
type providerStore struct {
	nothing
	table *providers
}

func (s *providerStore) Query(_ context.Context, q dsq.Query) (dsq.Results, error) {
	return dsq.ResultsWithEntries(q, s.table.entries(q.Prefix, time.Now())), nil
}

// nothing is a datastore that holds nothing.
type nothing struct{}

func (nothing) Get(context.Context, ds.Key) ([]byte, error)  { return nil, ds.ErrNotFound }
func (nothing) Has(context.Context, ds.Key) (bool, error)    { return false, nil }
func (nothing) GetSize(context.Context, ds.Key) (int, error) { return -1, ds.ErrNotFound }
func (nothing) Put(context.Context, ds.Key, []byte) error    { return nil }
func (nothing) Delete(context.Context, ds.Key) error         { return nil }
func (nothing) Sync(context.Context, ds.Key) error           { return nil }
func (nothing) Close() error                                 { return nil }
func (n nothing) Batch(context.Context) (ds.Batch, error)    { return n, nil }
func (nothing) Commit(context.Context) error                 { return nil }
func (nothing) Query(context.Context, dsq.Query) (dsq.Results, error) {
	return dsq.ResultsWithEntries(dsq.Query{}, nil), nil
}

// noCache is the provider manager's cache, which must not remember what was
// withdrawn: it is always empty.
type noCache struct{}

func (noCache) Add(_, _ any) bool              { return false }
func (noCache) Get(any) (any, bool)            { return nil, false }
func (noCache) Contains(any) bool              { return false }
func (noCache) Peek(any) (any, bool)           { return nil, false }
func (noCache) Remove(any) bool                { return false }
func (noCache) RemoveOldest() (any, any, bool) { return nil, nil, false }
func (noCache) GetOldest() (any, any, bool)    { return nil, nil, false }
func (noCache) Keys() []any                    { return nil }
func (noCache) Len() int                       { return 0 }
func (noCache) Purge()                         {}
func (noCache) Resize(int) int                 { return 0 }

func oldest[K comparable](m map[K]time.Time) (k K) {
	var first time.Time
	for q, at := range m {
		if first.IsZero() || at.Before(first) {
			k, first = q, at
		}
	}
	return k
}

func insert[A, B comparable, V any](m map[A]map[B]V, a A, b B, v V) {
	if m[a] == nil {
		m[a] = make(map[B]V)
	}
	m[a][b] = v
}

func erase[A, B comparable, V any](m map[A]map[B]V, a A, b B) {
	if delete(m[a], b); len(m[a]) == 0 {
		delete(m, a)
	}
}
