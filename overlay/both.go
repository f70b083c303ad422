package overlay

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/autonat"
	manet "github.com/multiformats/go-multiaddr/net"

	"openmesh/overlay/nat"
)

const (
	firstTry  = time.Second      // until there is something to try with, and between tries
	bothAgain = 10 * time.Second // while it gets out, to see that it stands
	oneAgain  = 5 * time.Minute  // after it did not get out
	tryTime   = 6 * time.Second

	maxWitnessed = 3 // ports; a host rarely listens on more
)

// stirs tell those who try that relays were reserved at or lost.
type stirs [2]chan struct{}

func newStirs() stirs { return stirs{make(chan struct{}, 1), make(chan struct{}, 1)} }

func (s stirs) all() {
	for _, c := range s {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// tryBoth keeps TCP connections and a QUIC connection to one relay, or another public
// host, until ctx ends: libp2p has one of them, so that a NAT's mapping of the others
// would not be known, nor that a network is blocked. A TCP connection also shows a
// change of the network: it breaks, where QUIC goes on and libp2p takes the old
// address for the present one.
func (h *Host) tryBoth(ctx context.Context) error {
	var both sync.WaitGroup
	both.Go(func() { h.keepTrying(ctx, h.stirs[0], h.tryTCP) })
	both.Go(func() { h.keepTrying(ctx, h.stirs[1], h.tryQUIC) })
	both.Wait()
	return nil
}

// keepTrying calls try, which reports whether it got out, from time to time and when
// stirred.
func (h *Host) keepTrying(ctx context.Context, stirred <-chan struct{}, try func(context.Context, peer.ID) bool) {
	wait := firstTry
	for {
		select {
		case <-stirred:
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		began := time.Now()
		target := h.witness()
		switch {
		case target == "":
			wait = firstTry
		case try(ctx, target):
			wait = bothAgain
		default:
			wait = oneAgain
		}
		if target != "" {
			sleep(ctx, firstTry-time.Since(began))
		}
	}
}

func (h *Host) tryQUIC(ctx context.Context, target peer.ID) bool {
	return h.try(ctx, target, Route{Transport: "quic-v1"}, "udp")
}

// tryTCP keeps a connection from each port to which a hole may be punched, so that
// where each is seen is known; one will do if there are no holes to punch.
func (h *Host) tryTCP(ctx context.Context, target peer.ID) bool {
	ports := h.reach.Punchable()
	if m := h.Standing().TCP.Mapping; len(ports) == 0 || m == nat.NoNAT || m == nat.EndpointDependent {
		return h.try(ctx, target, Route{Transport: "tcp"}, "tcp")
	}
	var all sync.WaitGroup
	var out atomic.Bool
	for _, port := range ports[:min(len(ports), maxWitnessed)] {
		all.Go(func() {
			if h.try(ctx, target, Route{Transport: "tcp", From: port}, "tcp") {
				out.Store(true)
			}
		})
	}
	all.Wait()
	return out.Load()
}

// try makes a connection to target over a route, if it listens there, and reports
// whether the network that this uses gets out.
func (h *Host) try(ctx context.Context, target peer.ID, r Route, name string) bool {
	ctx, cancel := context.WithTimeout(network.WithForceDirectDial(ctx, "reachability"), tryTime)
	defer cancel()
	if h.over(target, r) == nil {
		if addrs, err := h.candidates(ctx, target, r); err != nil || len(addrs) == 0 {
			return true // it offers none: nothing can be said
		}
	}
	_, err := h.Dial(ctx, target, r)
	if err != nil && h.Network().Connectedness(target) != network.Connected {
		return true // it is gone altogether
	}
	out := err == nil || h.over(target, Route{Transport: r.Transport}) != nil
	h.reach.Block(name, !out)
	return out
}

// witness returns a relay where a reservation is held or else a connected public
// host that judges for others; "" if there is none.
func (h *Host) witness() peer.ID {
	if held := h.Relays(); len(held) > 0 {
		return slices.Min(held)
	}
	for _, c := range h.Network().Conns() {
		if IsCircuit(c.RemoteMultiaddr()) || !manet.IsPublicAddr(c.RemoteMultiaddr()) {
			continue
		}
		if served, err := h.Peerstore().SupportsProtocols(c.RemotePeer(), autonat.AutoNATProto); err == nil && len(served) > 0 {
			return c.RemotePeer()
		}
	}
	return ""
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
