// Package limit bounds what peers ask of a relay: requests per second, of one peer
// and in all, and the streams that a peer has open.
package limit

import (
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"openmesh/protocols/wire"
)

const (
	maxStreams = 16   // of one peer at one time
	maxPeers   = 8192 // whose rates are remembered
	burst      = 2    // seconds of its rate that a peer at rest may use at once
)

// Limiter counts requests. A peer over its share uses up nobody else's. It is safe
// for concurrent use.
type Limiter struct {
	perPeer int // requests per second

	mu    sync.Mutex
	all   *rate.Limiter
	peers map[peer.ID]*caller
}

type caller struct {
	*rate.Limiter
	open int // streams
}

// New returns a limiter of perPeer requests per second of one peer, of which one at
// rest may make two seconds' worth at once, and of total in all.
func New(perPeer, total int) *Limiter {
	return &Limiter{perPeer: perPeer, all: rate.NewLimiter(rate.Limit(total), total), peers: make(map[peer.ID]*caller)}
}

// Enter counts a request of p on a stream that stays open until leave is called.
// The error is wire.ResourceExhausted.
func (l *Limiter) Enter(p peer.ID, now time.Time) (leave func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.peers[p]
	if c == nil {
		if !l.makeRoom(now) {
			return nil, wire.Errorf(wire.ResourceExhausted, "too many peers at once")
		}
		c = &caller{Limiter: rate.NewLimiter(rate.Limit(l.perPeer), burst*l.perPeer)}
		l.peers[p] = c
	}
	if c.open >= maxStreams || !c.AllowN(now, 1) || !l.all.AllowN(now, 1) {
		return nil, wire.Errorf(wire.ResourceExhausted, "too many requests")
	}
	c.open++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		c.open--
	}, nil
}

// makeRoom forgets peers without streams when there are too many: those at rest,
// whose limiters hold no history, and if that is not enough others, which gain a
// burst within the total. It forgets many at once, for it looks at all.
func (l *Limiter) makeRoom(now time.Time) bool {
	if len(l.peers) < maxPeers {
		return true
	}
	for _, rest := range []bool{true, false} {
		for p, c := range l.peers {
			if len(l.peers) > maxPeers*7/8 && c.open == 0 && (!rest || c.TokensAt(now) >= float64(c.Burst())) {
				delete(l.peers, p)
			}
		}
	}
	return len(l.peers) < maxPeers
}
