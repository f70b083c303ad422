package forward

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// Usage is what a server carries now, and has carried.
type Usage struct {
	Circuits int    // now, setups included
	Limit    int    // of Circuits
	Bytes    uint64 // spliced since the server was made, both directions
	Peers    map[peer.ID]PeerUsage
}

// PeerUsage is what one peer asked for. It is forgotten once the peer has no
// circuit and room is needed for others.
type PeerUsage struct {
	Circuits int
	Bytes    uint64
}

// maxAccounts bounds the peers that are remembered without a circuit.
const maxAccounts = 4096

// Quota is how many circuits a peer may have at a time.
type Quota struct {
	Circuits int // whatever others have; and as many it may begin a second
	Spare    int // while less than half of all circuits are in use
}

// ledger holds every peer to its share. Nobody begins more than a quarter of the setups
// of a second that there are in all.
type ledger struct {
	circuits int
	quota    func(peer.ID) Quota
	bytes    atomic.Uint64

	mu    sync.Mutex
	open  int
	all   *rate.Limiter // of setups
	peers map[peer.ID]*account
}

type account struct {
	open   int
	rate   int // of setups
	setups *rate.Limiter
	bytes  atomic.Uint64
}

// take opens an account of p for one more circuit. Undone by release.
func (l *ledger) take(p peer.ID, now time.Time) (*account, error) {
	quota := l.quota(p)
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.account(p, min(quota.Circuits, max(l.all.Burst()/4, 1)), now)
	most := quota.Circuits
	if l.open < l.circuits/2 {
		most = max(most, quota.Spare)
	}
	switch {
	case !a.setups.AllowN(now, 1):
		return nil, wire.Errorf(wire.ResourceExhausted, "too many setups a second of one peer")
	case a.open >= most:
		return nil, wire.Errorf(wire.ResourceExhausted, "%d circuits of one peer", a.open)
	case l.open >= l.circuits:
		return nil, wire.Errorf(wire.ResourceExhausted, "%d circuits", l.open)
	}
	a.open++
	l.open++
	return a, nil
}

// charge counts a setup against those of all peers. It is for envelopes that open: what
// costs a peer nothing must cost the others nothing.
func (l *ledger) charge(now time.Time) error {
	if !l.all.AllowN(now, 1) {
		return wire.Errorf(wire.ResourceExhausted, "too many setups a second")
	}
	return nil
}

func (l *ledger) account(p peer.ID, perSecond int, now time.Time) *account {
	a := l.peers[p]
	if a == nil {
		l.makeRoom(now)
		a = &account{rate: perSecond, setups: rate.NewLimiter(rate.Limit(perSecond), perSecond)}
		l.peers[p] = a
	}
	if a.rate != perSecond {
		a.rate = perSecond
		a.setups.SetLimitAt(now, rate.Limit(perSecond))
		a.setups.SetBurstAt(now, perSecond)
	}
	return a
}

func (l *ledger) release(a *account) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a.open--
	l.open--
}

// makeRoom forgets a peer that has no circuit, one at rest if there is one among a
// few; l.mu is held. What has circuits is bounded by their number.
func (l *ledger) makeRoom(now time.Time) {
	if len(l.peers) < maxAccounts+l.circuits {
		return
	}
	var victim peer.ID
	looked := 0
	for p, a := range l.peers {
		if a.open > 0 {
			continue
		}
		victim = p
		if looked++; looked == 16 || a.setups.TokensAt(now) >= float64(a.rate) {
			break
		}
	}
	delete(l.peers, victim)
}

func (l *ledger) usage() Usage {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := Usage{Circuits: l.open, Limit: l.circuits, Bytes: l.bytes.Load(), Peers: make(map[peer.ID]PeerUsage, len(l.peers))}
	for p, a := range l.peers {
		u.Peers[p] = PeerUsage{Circuits: a.open, Bytes: a.bytes.Load()}
	}
	return u
}

// seen remembers the envelopes that could come again, in two generations, each as
// long as an envelope can be valid. The rate of setups bounds it.
type seen struct {
	mu       sync.Mutex
	turned   time.Time
	old, new map[[16]byte]struct{}
}

const generation = MaxLife + 2*identity.ClockSkew

// add remembers path. The error is wire.Replayed: it was seen before.
func (s *seen) add(path [16]byte, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.turned) >= generation {
		s.old, s.new, s.turned = s.new, make(map[[16]byte]struct{}), now
	}
	_, inOld := s.old[path]
	_, inNew := s.new[path]
	if inOld || inNew {
		return wire.Errorf(wire.Replayed, "envelope seen before")
	}
	s.new[path] = struct{}{}
	return nil
}
