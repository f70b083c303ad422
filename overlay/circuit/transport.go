// Package circuit dials through relays (circuit relay v2) so that a relay that
// does not answer holds nobody up.
//
//	/ip4/5.5.0.1/tcp/4747/p2p/RELAY/p2p-circuit    an address of whoever reserved at RELAY
//
// libp2p's client has one dial to a peer at a time, whatever the relay, and does
// not give it up when its caller does. This transport dials each on its own, and
// ranks relays: those that answer first.
package circuit

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Transport is libp2p's circuit transport with dials that do not wait for each
// other.
type Transport struct {
	*client.Client // accepts, and says what a circuit is
	host           host.Host
	upgrader       transport.Upgrader
}

// Attach adds the transport to h, which must not have libp2p's own, and accepts
// circuits from then on. It ends with the host.
func Attach(h host.Host, u transport.Upgrader) error {
	n, ok := h.Network().(transport.TransportNetwork)
	if !ok {
		return fmt.Errorf("%T takes no transports", h.Network())
	}
	c, err := client.New(h, u)
	if err != nil {
		return err
	}
	if err := n.AddTransport(&Transport{Client: c, host: h, upgrader: u}); err != nil {
		return err
	}
	if err := h.Network().Listen(ma.StringCast("/p2p-circuit")); err != nil {
		return err
	}
	c.Start()
	return nil
}

// Dial makes a circuit to p through the relay that a names. It ends with ctx, even
// if the relay is silent.
func (t *Transport) Dial(ctx context.Context, a ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	c, err := client.New(t.host, t.upgrader) // its own, for a client has one dial to a peer at a time
	if err != nil {
		return nil, err
	}
	type result struct {
		conn transport.CapableConn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		conn, err := c.Dial(ctx, a, p)
		done <- result{conn, err}
	}()
	select {
	case r := <-done:
		return r.conn, r.err
	case <-ctx.Done():
		go func() {
			if r := <-done; r.err == nil {
				r.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// Relay returns the relay of a circuit address; "" of any other address.
func Relay(a ma.Multiaddr) peer.ID {
	var relay peer.ID
	for _, part := range a {
		switch part.Protocol().Code {
		case ma.P_P2P:
			relay = peer.ID(part.RawValue())
		case ma.P_CIRCUIT:
			return relay
		}
	}
	return ""
}

// Is reports whether a is an address through a relay.
func Is(a ma.Multiaddr) bool {
	return slices.ContainsFunc(a, func(part ma.Component) bool { return part.Protocol().Code == ma.P_CIRCUIT })
}

// headStart is what a relay has before the next one is tried beside it.
const headStart = 150 * time.Millisecond

// Rank says after which delay to dial each address, as libp2p's ranker does: first
// directly, then through relays, best first. grade gives a relay's place: 0 is the
// best.
func Rank(addrs []ma.Multiaddr, grade func(relay peer.ID) int) []network.AddrDelay {
	var direct []ma.Multiaddr
	byRelay := make(map[peer.ID][]ma.Multiaddr)
	var relays []peer.ID
	var offset time.Duration
	for _, a := range addrs {
		relay := Relay(a)
		switch {
		case !Is(a):
			direct = append(direct, a)
			if manet.IsPublicAddr(a) {
				offset = swarm.RelayDelay
			}
		case byRelay[relay] == nil:
			relays = append(relays, relay)
			fallthrough
		default:
			byRelay[relay] = append(byRelay[relay], a)
		}
	}
	slices.SortStableFunc(relays, func(a, b peer.ID) int { return cmp.Compare(grade(a), grade(b)) })
	ranked := swarm.DefaultDialRanker(direct)
	for i, relay := range relays {
		for _, a := range swarm.DefaultDialRanker(byRelay[relay]) {
			a.Delay += offset + time.Duration(i)*headStart
			ranked = append(ranked, a)
		}
	}
	return ranked
}
