package topic

import (
	"crypto/sha256"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"openmesh/protocols/identity"
)

// What a bouncer remembers at most. When it is full an arbitrary entry goes: a
// message may then be heard twice, or an origin say a little more.
const (
	maxBuckets = 1 << 14
	maxSeen    = 1 << 16
)

// bouncer limits how much an origin says on a topic, and knows what was said
// for as long as it could be said again: GossipSub forgets after two minutes.
type bouncer struct {
	every rate.Limit
	burst int

	mu      sync.Mutex
	buckets map[bucket]*rate.Limiter
	seen    map[[sha256.Size]byte]time.Time // until when
}

type bucket struct {
	topic  string
	origin identity.AgentID
	here   bool // published by this node, so that replays do not use up what it may say
}

func newBouncer(l Limits) *bouncer {
	return &bouncer{
		every: rate.Every(l.Every), burst: l.Burst,
		buckets: make(map[bucket]*rate.Limiter), seen: make(map[[sha256.Size]byte]time.Time),
	}
}

// admit takes one message from what an origin may say now. Others get a quarter
// more than this node gives itself: messages bunch up on their way, and an honest
// origin must not be taken for one that cheats.
func (b *bouncer) admit(k bucket) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.buckets[k]
	if l == nil {
		burst := b.burst
		if !k.here {
			burst += b.burst/4 + 1
		}
		l = rate.NewLimiter(b.every, burst)
		makeRoom(b.buckets, maxBuckets)
		b.buckets[k] = l
	}
	return l.Allow()
}

// known reports whether a message was here before.
func (b *bouncer) known(id [sha256.Size]byte) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.seen[id]
	return ok
}

// first remembers a message, and reports whether it is new.
func (b *bouncer) first(id [sha256.Size]byte, until time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.seen[id]; ok {
		return false
	}
	makeRoom(b.seen, maxSeen)
	b.seen[id] = until
	return true
}

// sweep forgets what makes no difference any more.
func (b *bouncer) sweep(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for k, l := range b.buckets {
		if l.TokensAt(now) >= float64(l.Burst()) {
			delete(b.buckets, k)
		}
	}
	for id, until := range b.seen {
		if now.After(until) {
			delete(b.seen, id)
		}
	}
}

func makeRoom[K comparable, V any](m map[K]V, limit int) {
	if len(m) < limit {
		return
	}
	for k := range m {
		delete(m, k)
		return
	}
}
