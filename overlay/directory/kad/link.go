package kad

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"go.uber.org/zap"
)

// How the link to the directory is kept and watched.
const (
	minRetry     = 500 * time.Millisecond
	maxRetry     = 30 * time.Second
	checkEvery   = 5 * time.Second
	pingTimeout  = 3 * time.Second
	pingTries    = 3 // servers that may be silent before all count as lost
	dialTimeout  = 5 * time.Second
	patience     = 500 * time.Millisecond // for the other dials, once one is through
	dialsAtATime = 4
	joinTimeout  = 2 * time.Second // from a connection to a place in the routing table
	topUpEvery   = 2 * time.Minute
	settle       = 500 * time.Millisecond // from a server's connection to the resend
)

// link is whether a directory server is in reach. Safe for concurrent use.
type link struct {
	wake chan struct{} // something changed: check now

	mu    sync.Mutex
	since time.Time // when the last server was lost; zero if in reach
	err   error
}

func newLink() *link { return &link{wake: make(chan struct{}, 1), since: time.Now()} }

func (l *link) status() (since time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.since, l.err
}

// set records whether a server is in reach and reports whether that is news.
func (l *link) set(err error) (regained bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
	if err == nil {
		regained = !l.since.IsZero()
		l.since = time.Time{}
	} else if l.since.IsZero() {
		l.since = time.Now()
	}
	return regained
}

func (l *link) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// stayConnected checks that a directory server is in reach, every checkEvery
// and whenever a connection to one ends, and while none is, tries to connect to
// one, with exponential backoff and jitter.
func (t *Table) stayConnected(ctx context.Context) {
	retry := &backoff.ExponentialBackOff{InitialInterval: minRetry, Multiplier: 2, RandomizationFactor: 0.5, MaxInterval: maxRetry}
	_ = t.connect(ctx) // even if a server is in reach already: it may be on an island
	topUp := time.Now()
	first := sync.OnceFunc(func() { close(t.joined) })
	for ctx.Err() == nil {
		wait := retry.NextBackOff()
		err := t.check(ctx)
		first()
		if err == nil {
			wait = checkEvery + rand.N(checkEvery/5)
			retry.Reset()
		}
		if t.link.set(err) && t.cfg.Reachable != nil {
			t.cfg.Reachable()
		}
		if err == nil && time.Since(topUp) > topUpEvery && t.dht.RoutingTable().Size() < bucket {
			topUp = time.Now()
			_ = t.connect(ctx) // one is in reach: a second would only be better
		}
		select {
		case <-time.After(wait):
		case <-t.link.wake:
		case <-ctx.Done():
		}
	}
}

// check returns nil if a server answers, after connecting if need be.
func (t *Table) check(ctx context.Context) error {
	if t.alone() || t.ping(ctx) {
		return nil
	}
	err := t.connect(ctx)
	if t.ping(ctx) {
		return nil
	}
	if err == nil {
		err = errors.New("the peers reached serve no directory of this realm")
	}
	t.cfg.Log.Info("no directory server in reach", zap.Error(err))
	return err
}

// ping reports whether any of a few connected servers answers.
func (t *Table) ping(ctx context.Context) bool {
	servers := t.connected()
	rand.Shuffle(len(servers), func(i, j int) { servers[i], servers[j] = servers[j], servers[i] })
	for _, p := range servers[:min(len(servers), pingTries)] {
		ctx, cancel := context.WithTimeout(ctx, pingTimeout)
		err := t.dht.Ping(ctx, p)
		cancel()
		if err == nil {
			return true
		}
	}
	return false
}

// connected returns the servers of the routing table that are connected.
func (t *Table) connected() []peer.ID {
	return slices.DeleteFunc(t.dht.RoutingTable().ListPeers(), func(p peer.ID) bool {
		return t.cfg.Host.Network().Connectedness(p) != network.Connected
	})
}

// bootstrap returns the bootstrap list without this node.
func (t *Table) bootstrap() []peer.AddrInfo {
	if t.cfg.Bootstrap == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(t.cfg.Bootstrap()), func(pi peer.AddrInfo) bool { return pi.ID == t.cfg.Host.ID() })
}

// connect dials a few bootstrap peers and servers known from before that are not
// connected, and waits for one to enter the routing table. It returns nil if one
// could be reached.
func (t *Table) connect(ctx context.Context) error {
	peers := t.bootstrap()
	for _, p := range t.dht.RoutingTable().ListPeers() {
		peers = append(peers, peer.AddrInfo{ID: p})
	}
	peers = slices.DeleteFunc(peers, func(pi peer.AddrInfo) bool {
		return t.cfg.Host.Network().Connectedness(pi.ID) == network.Connected
	})
	if len(peers) == 0 {
		return nil
	}
	rand.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] })
	peers = peers[:min(len(peers), dialsAtATime)]
	if err := t.dialAny(ctx, peers); err != nil {
		return err
	}
	return t.await(ctx)
}

// dialAny dials all of peers at once; nil if one could be reached. The others
// get patience more: two links are better than one.
func (t *Table) dialAny(ctx context.Context, peers []peer.AddrInfo) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	results := make(chan error, len(peers))
	for _, pi := range peers {
		go func() { results <- t.cfg.Host.Connect(ctx, pi) }()
	}
	var failed error
	reached := false
	for range peers {
		err := <-results
		failed = errors.Join(failed, err)
		if err == nil && !reached {
			reached = true
			defer time.AfterFunc(patience, cancel).Stop()
		}
	}
	if reached {
		return nil
	}
	return fmt.Errorf("connect to %d bootstrap peers: %w", len(peers), failed)
}

// await waits for a server to be in the routing table, where the DHT puts it
// once identify has told that it is one and it has answered.
func (t *Table) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for len(t.connected()) == 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.New("a bootstrap peer was reached, but it serves no directory of this realm")
		}
	}
	return nil
}

func (t *Table) subscribe() (event.Subscription, error) {
	sub, err := t.cfg.Host.EventBus().Subscribe(
		[]any{new(event.EvtPeerConnectednessChanged), new(event.EvtPeerIdentificationCompleted)}, eventbus.BufSize(256))
	if err != nil {
		return nil, fmt.Errorf("watch connections: %w", err)
	}
	return sub, nil
}

// watch turns connection events into checks and resends. Servers that connect
// within settle of each other are served together, so that a burst of events is
// drained at once.
func (t *Table) watch(ctx context.Context, events event.Subscription) {
	defer events.Close()
	var resends sync.WaitGroup
	defer resends.Wait()
	fresh := make(map[peer.ID]bool)
	var due <-chan time.Time
	for {
		select {
		case e := <-events.Out():
			if p, ok := t.freshServer(e); ok && len(fresh) < maxPeers {
				fresh[p] = true
				due = time.After(settle)
			}
		case <-due:
			peers := fresh
			fresh, due = make(map[peer.ID]bool), nil
			resends.Go(func() {
				for p := range peers {
					t.resend(ctx, p)
				}
			})
		case <-ctx.Done():
			return
		}
	}
}

// freshServer returns the server that e says has connected.
func (t *Table) freshServer(e any) (peer.ID, bool) {
	switch e := e.(type) {
	case event.EvtPeerIdentificationCompleted:
		return e.Peer, slices.Contains(e.Protocols, Protocol(t.cfg.Realm))
	case event.EvtPeerConnectednessChanged:
		if e.Connectedness == network.NotConnected && t.dht.RoutingTable().Find(e.Peer) != "" && len(t.connected()) == 0 {
			t.link.poke()
		}
	}
	return "", false
}
