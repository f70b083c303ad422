// Package reserve keeps a host reachable through relays: it holds reservations at
// a few of them (circuit relay v2), near ones with little load, notices within
// seconds when one dies, and takes another.
//
//	candidates ──race──> connected, pinged ──> reserved ──half of its life──> reserved …
//	                                               │ connection lost
//	                                               └──> again at once; if that fails, another candidate
//
// A relay that fails is left alone for a while, longer each time.
package reserve

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"
)

// Candidate is a relay that may be used.
type Candidate struct {
	peer.AddrInfo
	Load float64 // what the relay says of itself, in [0,1]; 0 if it says nothing
}

// Config is what a [Keeper] needs.
type Config struct {
	Host host.Host

	// Configured are the relays to prefer, read anew at each attempt; Find gives
	// others when those do not suffice. Either may be nil.
	Configured func() []peer.AddrInfo
	Find       func(context.Context) []Candidate

	Needed  func() bool // whether to hold reservations now
	Changed func()      // the circuit addresses changed; called from several goroutines
	Open    Open        // opens a stream on one connection

	Want  int           // reservations; default 2
	Every time.Duration // between checks of the relays in use; default 5 s

	Log *zap.Logger
}

// Open opens a stream of a protocol on exactly one connection.
type Open func(context.Context, network.Conn, protocol.ID) (network.Stream, error)

// Keeper holds the reservations.
type Keeper struct {
	cfg    Config
	wake   chan struct{} // something changed: see whether reservations are missing
	health *health

	mu     sync.Mutex
	slots  map[peer.ID]*slot
	trials map[peer.ID]*trial // a relay has no slot meanwhile
	fails  map[peer.ID]*failure
	asking bool // Find is under way
}

// slot is a relay that a reservation is held at, or being made.
type slot struct {
	cancel context.CancelFunc
	addrs  []ma.Multiaddr // circuit addresses; none until the reservation is held
}

// failure is when a relay may be tried again.
type failure struct {
	wait  *backoff.ExponentialBackOff
	until time.Time
}

const (
	rescan      = 30 * time.Second // at most between looks at the candidates
	rebalance   = 10 * time.Minute // between comparisons of the relays held with others
	attemptTime = 10 * time.Second
	againTime   = 3 * time.Second // after a connection was lost: another relay may do
	lateTime    = 2 * time.Second // for relays of the configuration before others are tried
	maxFailures = 64              // relays whose failures are remembered
)

// New returns a keeper that holds nothing yet.
func New(cfg Config) *Keeper {
	if cfg.Want == 0 {
		cfg.Want = 2
	}
	if cfg.Every == 0 {
		cfg.Every = 5 * time.Second
	}
	return &Keeper{
		cfg: cfg, wake: make(chan struct{}, 1), health: newHealth(cfg),
		slots: make(map[peer.ID]*slot), trials: make(map[peer.ID]*trial), fails: make(map[peer.ID]*failure),
	}
}

// Run holds reservations until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { k.health.run(ctx, k.held) })
	compare := time.NewTicker(rebalance)
	defer compare.Stop()
	for ctx.Err() == nil {
		k.settle(ctx, &all)
		select {
		case <-k.wake:
		case <-time.After(k.pause()):
		case <-compare.C:
			all.Go(func() { k.improve(ctx) })
		case <-ctx.Done():
		}
	}
	return nil
}

// Addrs returns the addresses under which this host is reached through relays.
func (k *Keeper) Addrs() []ma.Multiaddr {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []ma.Multiaddr
	for _, s := range k.slots {
		all = append(all, s.addrs...)
	}
	return all
}

// Held returns the relays at which reservations are held.
func (k *Keeper) Held() []peer.ID {
	k.mu.Lock()
	defer k.mu.Unlock()
	var ids []peer.ID
	for id, s := range k.slots {
		if s.addrs != nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// held also returns those at which one is being made.
func (k *Keeper) held() []peer.ID {
	k.mu.Lock()
	defer k.mu.Unlock()
	ids := make([]peer.ID, 0, len(k.slots))
	for id := range k.slots {
		ids = append(ids, id)
	}
	return ids
}

// Wake has the keeper look at once whether reservations are missing, or not needed
// any more.
func (k *Keeper) Wake() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Check pings the relays in use now, rather than when it is time.
func (k *Keeper) Check() { k.health.nudge() }

// Doubt has the direct connections to any peer pinged soon, and closed if it does
// not answer.
func (k *Keeper) Doubt(p peer.ID) { k.health.doubt(p) }

// Suspect notes that a relay may be dead, until it answers.
func (k *Keeper) Suspect(relay peer.ID) { k.health.suspect(relay) }

// Grade says how good it is to dial through a relay now: 0 for one that is
// connected, 1 for one that is not, 2 for one that may be dead.
func (k *Keeper) Grade(relay peer.ID) int { return k.health.grade(relay) }

func (k *Keeper) configured() []Candidate {
	if k.cfg.Configured == nil {
		return nil
	}
	var cs []Candidate
	for _, info := range k.cfg.Configured() {
		cs = append(cs, Candidate{AddrInfo: info})
	}
	return cs
}

func (k *Keeper) found(ctx context.Context) []Candidate {
	if k.cfg.Find == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	return k.cfg.Find(ctx)
}

// usable leaves out this host, the relays in use or being tried, and those that failed
// lately.
func (k *Keeper) usable(cs []Candidate) []Candidate {
	k.mu.Lock()
	defer k.mu.Unlock()
	var left []Candidate
	for _, c := range cs {
		f := k.fails[c.ID]
		again := slices.ContainsFunc(left, func(o Candidate) bool { return o.ID == c.ID })
		if c.ID == k.cfg.Host.ID() || k.slots[c.ID] != nil || k.trials[c.ID] != nil || again || f != nil && time.Now().Before(f.until) {
			continue
		}
		left = append(left, c)
	}
	return left
}

// start holds a reservation at r until it fails, if one is missing.
func (k *Keeper) start(ctx context.Context, all *sync.WaitGroup, r peer.AddrInfo) {
	ctx, cancel := context.WithCancel(ctx)
	k.mu.Lock()
	if len(k.slots) >= k.cfg.Want || k.slots[r.ID] != nil {
		k.mu.Unlock()
		cancel()
		return
	}
	k.slots[r.ID] = &slot{cancel: cancel}
	if len(k.slots) == k.cfg.Want {
		k.endTrials()
	}
	k.mu.Unlock()
	all.Go(func() {
		defer cancel()
		k.cfg.Host.ConnManager().Protect(r.ID, "relay")
		err := k.hold(ctx, r)
		k.cfg.Host.ConnManager().Unprotect(r.ID, "relay")
		k.show(r, false)
		k.mu.Lock()
		delete(k.slots, r.ID)
		k.mu.Unlock()
		if ctx.Err() == nil {
			k.failed(r.ID, err)
		}
		k.Wake()
	})
}

// hold makes a reservation and renews it at half of its life, or when the
// connection was lost; it returns when that fails, or ctx ends.
func (k *Keeper) hold(ctx context.Context, r peer.AddrInfo) error {
	lost, stop := k.watch(r.ID)
	defer stop()
	patience := attemptTime
	for {
		res, err := k.reserve(ctx, r, patience)
		if err != nil {
			return err
		}
		patience = attemptTime
		k.forgive(r.ID)
		if k.show(r, true) {
			k.cfg.Log.Info("relay reservation made", zap.Stringer("relay", r.ID), zap.Time("expires", res.Expiration))
		}
		select {
		case <-time.After(max(time.Until(res.Expiration)/2, time.Second)):
		case <-lost:
			patience = againTime
			k.show(r, false)
			k.cfg.Log.Info("relay connection lost", zap.Stringer("relay", r.ID))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watch tells when the last direct connection to a relay is gone.
func (k *Keeper) watch(relay peer.ID) (lost <-chan struct{}, stop func()) {
	gone := make(chan struct{}, 1)
	notifee := &network.NotifyBundle{DisconnectedF: func(n network.Network, conn network.Conn) {
		if conn.RemotePeer() == relay && len(direct(n, relay)) == 0 {
			select {
			case gone <- struct{}{}:
			default:
			}
		}
	}}
	k.cfg.Host.Network().Notify(notifee)
	return gone, func() { k.cfg.Host.Network().StopNotify(notifee) }
}

// reserve asks r for a reservation, over a connection that it makes if there is
// none.
func (k *Keeper) reserve(ctx context.Context, r peer.AddrInfo, patience time.Duration) (*client.Reservation, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := k.connect(ctx, r); err != nil {
		return nil, err
	}
	type result struct {
		res *client.Reservation
		err error
	}
	done := make(chan result, 1)
	go func() { // the client reads for a minute, whatever ctx says
		res, err := client.Reserve(ctx, k.cfg.Host, r)
		done <- result{res, err}
	}()
	select {
	case got := <-done:
		if got.err != nil {
			return nil, fmt.Errorf("reserve at %s: %w", r.ID, got.err)
		}
		return got.res, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("reserve at %s: %w", r.ID, ctx.Err())
	}
}

// connect connects to a relay, however recently that failed.
func (k *Keeper) connect(ctx context.Context, r peer.AddrInfo) error {
	ctx = network.WithForceDirectDial(ctx, "relay")
	if err := k.cfg.Host.Connect(ctx, r); err != nil {
		return fmt.Errorf("connect to relay %s: %w", r.ID, err)
	}
	return nil
}

// show advertises the circuit addresses of r, or no longer, and reports a change.
func (k *Keeper) show(r peer.AddrInfo, held bool) bool {
	var addrs []ma.Multiaddr
	if held {
		addrs = circuits(r, k.cfg.Host.Peerstore().Addrs(r.ID))
	}
	k.mu.Lock()
	s := k.slots[r.ID]
	if s == nil {
		k.mu.Unlock()
		return false
	}
	same := slices.EqualFunc(s.addrs, addrs, ma.Multiaddr.Equal)
	s.addrs = addrs
	k.mu.Unlock()
	if !same {
		k.cfg.Changed()
	}
	return !same
}

// failed puts a relay aside for a while.
func (k *Keeper) failed(relay peer.ID, err error) {
	k.cfg.Log.Debug("relay failed", zap.Stringer("relay", relay), zap.Error(err))
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.fails[relay]
	if f == nil {
		if len(k.fails) >= maxFailures {
			clear(k.fails)
		}
		f = &failure{wait: backoff.NewExponentialBackOff()}
		f.wait.MaxInterval = rescan
		k.fails[relay] = f
	}
	f.until = time.Now().Add(f.wait.NextBackOff())
}

func (k *Keeper) forgive(relay peer.ID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.fails, relay)
}

// pause is how long to wait before looking again: until a relay may be tried again,
// if any is missing.
func (k *Keeper) pause() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	wait := rescan
	if len(k.slots) >= k.cfg.Want {
		return wait
	}
	if len(k.fails) == 0 || len(k.trials) > 0 {
		wait = time.Second // there may be nothing else to try; but the list may grow
	}
	for id, f := range k.fails {
		if k.trials[id] != nil {
			continue
		}
		wait = min(wait, max(time.Until(f.until), 100*time.Millisecond))
	}
	return wait
}
