// Package punch replaces circuits by direct connections: it dials, and where NATs
// are in the way punches holes (DCUtR), again and again for as long as a peer is
// connected through a relay only.
//
//	circuit ──> try ──fails──> 2 s, 10 s, 1 min, 5 min, … ──> try
//	             │                      ▲ the network changed: at once
//	             └──direct──2 s later, still there?──> done
//
// The side that was dialled tries first, since the other one has just done so.
package punch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"openmesh/overlay/circuit"
)

// Config is what a [Puncher] needs.
type Config struct {
	Host host.Host
	IDs  identify.IDService

	// Addrs returns where this host is seen: outer addresses of listening sockets
	// to which a hole may lead. None where no hole can be punched.
	Addrs func() []ma.Multiaddr

	// Dial makes a connection to a peer at one of the addresses, beside those that
	// there are. To punch a hole the context has network.WithSimultaneousConnect: then
	// all addresses are dialled at once.
	Dial func(context.Context, peer.ID, []ma.Multiaddr) error

	// Upgraded is told of a peer that had circuits only and now has a direct
	// connection. It must not block; nil for nobody.
	Upgraded func(peer.ID)

	Metrics prometheus.Registerer // libp2p's own metrics; nil for none
	Log     *zap.Logger
}

// Puncher makes direct connections.
type Puncher struct {
	cfg    Config
	wake   chan struct{}
	counts counters

	mu        sync.Mutex
	closed    bool
	svc       *holepunch.Service
	queue     map[peer.ID]*attempt
	asking    map[peer.ID]int            // coordinations that this side has begun
	answering map[peer.ID]int            // coordinations that the peer has begun
	digs      map[peer.ID][]ma.Multiaddr // peers to which a hole is being punched, and their addresses of QUIC
	slower    map[peer.ID][]ma.Multiaddr // peers to which TCP was sooner
	holes     map[peer.ID]struct{}       // peers to which a hole was punched
	news      []peer.ID                  // peers that got a direct connection
}

// attempt is the next try to reach a peer directly.
type attempt struct {
	due     time.Time
	tries   int
	running bool
	kicked  bool // while it ran
}

// Counts are the attempts so far to replace circuits, by a plain dial or a hole, that
// this side began.
type Counts struct{ Attempts, Successes, Failures uint64 }

type counters struct{ attempts, successes, failures atomic.Uint64 }

const (
	maxPeers    = 4096 // peers remembered; those beyond stay relayed until they connect anew
	maxAtOnce   = 4
	dialTimeout = 5 * time.Second
	tryTimeout  = 30 * time.Second
	proof       = 2 * time.Second  // until a new connection counts: both sides may close each other's
	calledFirst = 30 * time.Second // what the side that was dialled has for itself
)

// delays are what passes between tries, the last one from then on.
func delays(tries int) time.Duration {
	table := [...]time.Duration{2 * time.Second, 10 * time.Second, time.Minute, 5 * time.Minute, 15 * time.Minute}
	d := table[min(max(tries-1, 0), len(table)-1)]
	return d*3/4 + rand.N(d/2)
}

// New returns a puncher that does nothing yet.
func New(cfg Config) *Puncher {
	return &Puncher{
		cfg: cfg, wake: make(chan struct{}, 1),
		queue: make(map[peer.ID]*attempt), asking: make(map[peer.ID]int), answering: make(map[peer.ID]int),
		digs: make(map[peer.ID][]ma.Multiaddr), slower: make(map[peer.ID][]ma.Multiaddr), holes: make(map[peer.ID]struct{}),
	}
}

// Run replaces circuits until ctx ends.
func (p *Puncher) Run(ctx context.Context) error {
	notifee := &network.NotifyBundle{
		ConnectedF:    func(_ network.Network, c network.Conn) { p.connected(c) },
		DisconnectedF: func(_ network.Network, c network.Conn) { p.disconnected(c) },
	}
	p.cfg.Host.Network().Notify(notifee)
	defer p.cfg.Host.Network().StopNotify(notifee)
	var all sync.WaitGroup
	defer all.Wait()
	slots := make(chan struct{}, maxAtOnce)
	for ctx.Err() == nil {
		if _, err := p.service(); err != nil {
			return err
		}
		p.tell()
		p.follow(ctx, &all)
		wait := p.start(ctx, &all, slots)
		select {
		case <-p.wake:
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
	return p.close()
}

func (p *Puncher) close() error {
	p.mu.Lock()
	svc := p.svc
	p.svc, p.closed = nil, true
	p.mu.Unlock()
	if svc == nil {
		return nil
	}
	return svc.Close()
}

// Kick says that the network changed, or what is known of it: all that wait try
// now.
func (p *Puncher) Kick() {
	p.mu.Lock()
	for _, a := range p.queue {
		a.due, a.tries, a.kicked = time.Now(), 0, a.running
	}
	p.mu.Unlock()
	p.signal()
}

func (p *Puncher) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Punched reports whether a hole leads to peer id.
func (p *Puncher) Punched(id peer.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.holes[id]
	return ok
}

// Counts returns how many attempts this side began, and how they ended.
func (p *Puncher) Counts() Counts {
	return Counts{p.counts.attempts.Load(), p.counts.successes.Load(), p.counts.failures.Load()}
}

// Punch makes a direct connection to a peer that is connected through a relay; it
// returns at once if there is one. An error says why there is none.
func (p *Puncher) Punch(ctx context.Context, to peer.ID) error {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	n := p.cfg.Host.Network()
	circuits, direct := connections(n, to)
	switch {
	case len(direct) > 0:
		return nil
	case len(circuits) == 0:
		return fmt.Errorf("punch a hole to %s: %w", to, errNoCircuit)
	}
	select {
	case <-p.cfg.IDs.IdentifyWait(circuits[0]):
	case <-ctx.Done():
		return ctx.Err()
	}
	svc, err := p.service()
	switch {
	case err != nil:
		return err
	case svc == nil: // nobody has told yet where this host is seen
		return p.dial(ctx, to)
	}
	return p.coordinate(ctx, svc, to)
}

var (
	errNoCircuit = errors.New("it is not connected through a relay")
	errAnswering = errors.New("that side has just asked for one itself")
)

// dial tries the peer's own addresses, if any may lead to it.
func (p *Puncher) dial(ctx context.Context, to peer.ID) error {
	if !slices.ContainsFunc(p.cfg.Host.Peerstore().Addrs(to), func(a ma.Multiaddr) bool {
		return !circuit.Is(a) && manet.IsPublicAddr(a)
	}) {
		return errors.New("it has no public address")
	}
	ctx, cancel := context.WithTimeout(network.WithForceDirectDial(ctx, "upgrade"), dialTimeout)
	defer cancel()
	return p.cfg.Host.Connect(ctx, peer.AddrInfo{ID: to})
}

// start begins what is due, and returns how long until more is.
func (p *Puncher) start(ctx context.Context, all *sync.WaitGroup, slots chan struct{}) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	wait := time.Minute
	for id, a := range p.queue {
		if a.running {
			continue
		}
		if left := time.Until(a.due); left > 0 {
			wait = min(wait, left)
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			return time.Minute // whoever ends wakes us
		}
		a.running = true
		all.Go(func() {
			p.try(ctx, id)
			<-slots
			p.signal()
		})
	}
	return wait
}

// try is one attempt.
func (p *Puncher) try(ctx context.Context, to peer.ID) {
	p.finish(to, p.Punch(ctx, to))
}

// finish says what follows an attempt that ended with err.
func (p *Puncher) finish(to peer.ID, err error) {
	_, direct := connections(p.cfg.Host.Network(), to)
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.queue[to]
	switch {
	case a == nil:
		return
	case errors.Is(err, errNoCircuit):
		delete(p.queue, to)
		return
	case err == nil && len(direct) > 0 && a.tries < 0:
		delete(p.queue, to) // it has stood the proof
		return
	case err == nil:
		a.tries, a.due = -1, time.Now().Add(proof)
	case errors.Is(err, errAnswering):
		a.due = time.Now().Add(delays(1)) // that may do
	case a.kicked:
		a.due = time.Now() // what it did not know yet it may not have used
	default:
		a.tries = max(a.tries, 0) + 1
		a.due = time.Now().Add(delays(a.tries))
		p.cfg.Log.Debug("still relayed", zap.Stringer("peer", to), zap.Int("tries", a.tries), zap.Error(err))
	}
	a.running, a.kicked = false, false
}

// connected queues a peer that is reached through a relay only, and notes one that
// is so no more.
func (p *Puncher) connected(c network.Conn) {
	to := c.RemotePeer()
	_, direct := connections(p.cfg.Host.Network(), to)
	p.mu.Lock()
	a := p.queue[to]
	isCircuit := circuit.Is(c.RemoteMultiaddr())
	if _, digs := p.digs[to]; digs && !isCircuit {
		p.punched(to) // known before anybody uses the connection
	}
	switch {
	case !isCircuit && a != nil:
		p.news = append(p.news, to)
	case isCircuit && a == nil && len(direct) == 0 && len(p.queue) < maxPeers:
		a = &attempt{due: time.Now()}
		if c.Stat().Direction == network.DirOutbound {
			a.due = a.due.Add(calledFirst)
		}
		p.queue[to] = a
	}
	p.mu.Unlock()
	p.signal()
}

// disconnected queues a peer that lost its direct connection and has a circuit
// left, and forgets one that has nothing left.
func (p *Puncher) disconnected(c network.Conn) {
	to := c.RemotePeer()
	circuits, direct := connections(p.cfg.Host.Network(), to)
	if len(direct) > 0 {
		return
	}
	p.mu.Lock()
	delete(p.holes, to)
	switch a := p.queue[to]; {
	case len(circuits) == 0 && a != nil && !a.running:
		delete(p.queue, to)
	case len(circuits) > 0 && a == nil && len(p.queue) < maxPeers:
		p.queue[to] = &attempt{due: time.Now().Add(delays(1))}
	}
	p.mu.Unlock()
	p.signal()
}

// tell passes on who got a direct connection.
func (p *Puncher) tell() {
	p.mu.Lock()
	news := p.news
	p.news = nil
	p.mu.Unlock()
	if p.cfg.Upgraded == nil {
		return
	}
	for _, id := range news {
		p.cfg.Upgraded(id)
	}
}

// begin notes that this side asks for a hole, unless it is answering the peer, who
// asked for one: two attempts at once would confuse who is the client.
func (p *Puncher) begin(to peer.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.answering[to] > 0 {
		return false
	}
	p.asking[to]++
	return true
}

func (p *Puncher) end(to peer.ID) { p.leave(p.asking, to) }

// answer notes that this side does as the peer asked, unless it is asking itself and
// goes ahead: of two who ask at once, the one with the smaller id does.
func (p *Puncher) answer(to peer.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asking[to] > 0 && p.cfg.Host.ID() < to {
		return false
	}
	p.answering[to]++
	return true
}

func (p *Puncher) isAnswering(to peer.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.answering[to] > 0
}

func (p *Puncher) answered(to peer.ID) { p.leave(p.answering, to) }

func (p *Puncher) leave(busy map[peer.ID]int, to peer.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if busy[to]--; busy[to] == 0 {
		delete(busy, to)
	}
}

// connections returns those to a peer that lead through relays, and the others.
func connections(n network.Network, p peer.ID) (circuits, direct []network.Conn) {
	for _, c := range n.ConnsToPeer(p) {
		switch {
		case c.IsClosed():
		case circuit.Is(c.RemoteMultiaddr()):
			circuits = append(circuits, c)
		default:
			direct = append(direct, c)
		}
	}
	return circuits, direct
}
