package overlay

import (
	"context"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/autonat"
	manet "github.com/multiformats/go-multiaddr/net"
)

const (
	firstTry  = time.Second      // after the start, until there is something to try with
	bothAgain = 10 * time.Second // while both get out, to see that both stand
	oneAgain  = 5 * time.Minute  // after one did not get out
	tryTime   = 6 * time.Second
)

// tryBoth keeps a TCP and a QUIC connection to one relay, or another public host,
// until ctx ends: libp2p has one of them, so that a NAT's mapping of the other
// would not be known, nor that it is blocked. The TCP connection also shows a change
// of the network: it breaks, where QUIC goes on and libp2p takes the old address
// for the present one.
func (h *Host) tryBoth(ctx context.Context) error {
	wait := firstTry
	for {
		sleep(ctx, wait)
		if ctx.Err() != nil {
			return nil
		}
		target := h.witness()
		if target == "" {
			wait = firstTry
			continue
		}
		wait = bothAgain
		if !h.try(ctx, target, "tcp", "tcp") || !h.try(ctx, target, "quic-v1", "udp") {
			wait = oneAgain
		}
	}
}

// try makes a connection to target over a transport, if it listens there, and
// reports whether that gets out.
func (h *Host) try(ctx context.Context, target peer.ID, transport, name string) bool {
	ctx, cancel := context.WithTimeout(network.WithForceDirectDial(ctx, "reachability"), tryTime)
	defer cancel()
	route := Route{Transport: transport}
	if h.over(target, route) == nil {
		if addrs, err := h.candidates(ctx, target, route); err != nil || len(addrs) == 0 {
			return true // it offers none: nothing can be said
		}
	}
	_, err := h.Dial(ctx, target, route)
	if err != nil && h.Network().Connectedness(target) != network.Connected {
		return true // it is gone altogether
	}
	h.reach.Block(name, err != nil)
	return err == nil
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
