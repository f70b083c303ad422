package topic

import (
	"math"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// maxFaults bounds the peers whose faults are remembered. When it is full an
// arbitrary one goes.
const maxFaults = 1 << 14

// faults counts what peers did wrong. A count is halved every so often, and
// forgotten when little is left.
type faults struct {
	mu    sync.Mutex
	peers map[peer.ID]fault
}

// fault is how much there was at a time.
type fault struct {
	count float64
	at    time.Time
}

// halfLife is that of a count: after [memory] less than 1 % is left.
const halfLife = memory / 7

func newFaults() *faults { return &faults{peers: make(map[peer.ID]fault)} }

func (f fault) now(now time.Time) float64 {
	return f.count * math.Exp2(-float64(now.Sub(f.at))/float64(halfLife))
}

func (f *faults) add(p peer.ID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if _, ok := f.peers[p]; !ok {
		makeRoom(f.peers, maxFaults)
	}
	f.peers[p] = fault{f.peers[p].now(now) + 1, now}
}

// score is the square of the count, below zero: few are bad luck.
func (f *faults) score(p peer.ID) float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.peers[p].now(time.Now())
	return -n * n
}

func (f *faults) sweep(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for p, x := range f.peers {
		if x.now(now) < 0.01 {
			delete(f.peers, p)
		}
	}
}
