package overlay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"

	"openmesh/overlay/circuit"
	"openmesh/overlay/reach"
	"openmesh/protocols/wire"
)

// Route says how to reach a peer.
type Route struct {
	// Transport is a name that [TransportOf] gives. With "" any will do, and a
	// connection that exists is taken, even one that is dead without knowing it
	// yet: close it, or avoid its relay, before dialling anew.
	Transport string
	// From is the TCP port of this host that the connection leaves from, one that it
	// listens on; 0 for any.
	From uint16
	// Addrs are where the peer may be; if empty, the peerstore's addresses.
	Addrs []ma.Multiaddr
	// Avoid are relays that circuits must not lead through: they seem to be dead.
	Avoid []peer.ID
}

const (
	// maxDialAddrs bounds the addresses tried in one call: they may be a
	// stranger's word.
	maxDialAddrs = 16
	dialTimeout  = 15 * time.Second
)

// Dial returns a connection to peer p over the transport of r. If those that
// exist are of other transports it makes one beside them; they stay. Streams on
// exactly this connection come from [Host.OpenStream]. Calls for the same peer
// and transport take turns, so that together they make one connection. Relays are
// tried beside each other, those first that are connected and answer.
//
// An address that failed is left alone for as long as libp2p would
// (swarm.ErrDialBackoff), unless ctx has network.WithForceDirectDial, or it is
// forgiven ([Host.Forgive]). An error is a [wire.Error] with the code Unreachable, or ctx's.
func (h *Host) Dial(ctx context.Context, p peer.ID, r Route) (network.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := h.dial(ctx, p, r)
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("dial %s over %s: %w", p, r.name(), ctx.Err())
	}
	failure := wire.Errorf(wire.Unreachable, "dial %s over %s: %w", p, r.name(), err)
	if h.cfg.NoCircuits && slices.ContainsFunc(h.known(p, r), IsCircuit) {
		return nil, failure.WithHint("the peer is reached through relays, which this node does not use; set networking.relay_fallback: true")
	}
	return nil, failure
}

func (r Route) name() string {
	if r.Transport == "" {
		return "any transport"
	}
	return r.Transport
}

func (h *Host) dial(ctx context.Context, p peer.ID, r Route) (network.Conn, error) {
	switch err := p.Validate(); {
	case err != nil:
		return nil, err
	case p == h.ID():
		return nil, swarm.ErrDialToSelf
	case r.Transport == "" && len(r.Avoid) == 0 && (h.over(p, r) != nil || len(h.Network().ConnsToPeer(p)) == 0):
		h.Peerstore().AddAddrs(p, r.Addrs[:min(len(r.Addrs), maxDialAddrs)], peerstore.TempAddrTTL)
		return h.Network().DialPeer(ctx, p)
	}
	done, err := h.turns.take(ctx, turn{p, r.Transport, r.From})
	if err != nil {
		return nil, err
	}
	defer done()
	if conn := h.over(p, r); conn != nil {
		return conn, nil
	}
	return h.make(ctx, p, r)
}

// make makes a connection, whatever others there are.
func (h *Host) make(ctx context.Context, p peer.ID, r Route) (network.Conn, error) {
	if h.cfg.Gater != nil && !h.cfg.Gater.InterceptPeerDial(p) {
		return nil, swarm.ErrGaterDisallowedConnection
	}
	addrs, err := h.candidates(ctx, p, r)
	if err != nil {
		return nil, err
	}
	if r.From != 0 {
		ctx = reach.From(ctx, r.From)
	}
	conn, err := h.race(ctx, p, addrs)
	if err != nil {
		return nil, err
	}
	return h.handover.give(ctx, h.Network(), conn)
}

// dialBeside makes a direct connection beside those that there are, for a puncher.
func (h *Host) dialBeside(ctx context.Context, p peer.ID, addrs []ma.Multiaddr) error {
	direct := slices.DeleteFunc(slices.Clone(addrs), IsCircuit)
	if len(direct) == 0 {
		return swarm.ErrNoAddresses
	}
	_, err := h.make(ctx, p, Route{Addrs: direct})
	return err
}

// over returns the newest connection to p that suits r, a direct one if possible;
// nil if there is none. A circuit through a relay that may be dead does not.
func (h *Host) over(p peer.ID, r Route) (found network.Conn) {
	for _, c := range slices.Backward(h.Network().ConnsToPeer(p)) {
		if c.IsClosed() || r.Transport != "" && TransportOfConn(c) != r.Transport || r.From != 0 && reach.Port(c.LocalMultiaddr()) != r.From {
			continue
		}
		relay := RelayOf(c.RemoteMultiaddr())
		switch {
		case relay == "":
			return c
		case found == nil && !slices.Contains(r.Avoid, relay) && h.grade(relay) < 2:
			found = c
		}
	}
	return found
}

// grade says how good it is to dial through a relay now: 0 is the best, 2 may be
// dead.
func (h *Host) grade(relay peer.ID) int {
	if k := h.keeper.Load(); k != nil {
		return k.Grade(relay)
	}
	return 0
}

// rank is libp2p's ranker of addresses, and ours.
func (h *Host) rank(addrs []ma.Multiaddr) []network.AddrDelay { return circuit.Rank(addrs, h.grade) }

// Abandon closes a connection that is taken for dead, and those of the same
// transport to the same peer: two hosts that dial each other at once have two, which
// die together, and libp2p would use the other one next. Of circuits it closes those
// through the same relay, which is avoided until it answers; it is asked at once.
func (h *Host) Abandon(dead network.Conn) {
	dead.Close()
	relay := RelayOf(dead.RemoteMultiaddr())
	for _, c := range h.Network().ConnsToPeer(dead.RemotePeer()) {
		if TransportOfConn(c) == TransportOfConn(dead) && RelayOf(c.RemoteMultiaddr()) == relay {
			c.Close()
		}
	}
	if k := h.keeper.Load(); k != nil {
		if relay != "" {
			k.Suspect(relay)
		}
		k.Check()
	}
}

// Forgive lets the next dial to p by r try all addresses, however recently they
// failed, and so the relays that they lead through. It is for callers who wait between
// attempts by themselves: an attempt that libp2p leaves out looks to them like one more
// that failed.
func (h *Host) Forgive(p peer.ID, r Route) {
	h.swarm.Backoff().Clear(p)
	for _, a := range h.known(p, r) {
		if relay := RelayOf(a); relay != "" {
			h.swarm.Backoff().Clear(relay)
		}
	}
}

// Transports names the transports of the connections that there are to peer p,
// sorted.
func (h *Host) Transports(p peer.ID) []string {
	var names []string
	for _, c := range h.Network().ConnsToPeer(p) {
		if !c.IsClosed() {
			names = append(names, TransportOfConn(c))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// known are the addresses to choose from.
func (h *Host) known(p peer.ID, r Route) []ma.Multiaddr {
	if len(r.Addrs) > 0 {
		return r.Addrs
	}
	return h.Peerstore().Addrs(p)
}

// candidates returns the addresses to dial, without names and /p2p/.
func (h *Host) candidates(ctx context.Context, p peer.ID, r Route) ([]ma.Multiaddr, error) {
	force, _ := network.GetForceDirectDial(ctx)
	var addrs []ma.Multiaddr
	waiting := false
	for _, a := range h.resolve(ctx, p, r) {
		switch {
		case len(addrs) == maxDialAddrs:
		case !h.swarm.CanDial(p, a):
		case !force && h.swarm.Backoff().Backoff(p, a):
			waiting = true
		default:
			addrs = append(addrs, a)
		}
	}
	switch {
	case len(addrs) > 0:
		return ma.Unique(addrs), nil
	case waiting:
		return nil, swarm.ErrDialBackoff
	}
	return nil, swarm.ErrNoGoodAddresses
}

// resolve looks names up and keeps what is of the transport, and of p, and does
// not lead through a relay to avoid.
func (h *Host) resolve(ctx context.Context, p peer.ID, r Route) []ma.Multiaddr {
	known := h.known(p, r)
	var found []ma.Multiaddr
	for _, a := range known[:min(len(known), 4*maxDialAddrs)] {
		for _, a := range lists(ctx, p, a) {
			bare, id := peer.SplitAddr(a)
			suits := r.Transport == "" || TransportOf(bare) == r.Transport
			if suits && (id == "" || id == p) && !slices.Contains(r.Avoid, RelayOf(bare)) {
				found = append(found, h.expand(ctx, bare)...)
			}
		}
	}
	return found
}

// lists returns what a /dnsaddr stands for, or a itself.
func lists(ctx context.Context, p peer.ID, a ma.Multiaddr) []ma.Multiaddr {
	if len(a) == 0 || a[0].Protocol().Code != ma.P_DNSADDR {
		return []ma.Multiaddr{a}
	}
	dns := swarm.ResolverFromMaDNS{Resolver: madns.DefaultResolver}
	all, err := dns.ResolveDNSAddr(ctx, p, a, 4, maxDialAddrs)
	if err != nil {
		return nil
	}
	return all
}

// expand does what the transport of a wants done with names: WebSocket moves
// the name into the address, for TLS, and a circuit has the relay's transport do
// it.
func (h *Host) expand(ctx context.Context, a ma.Multiaddr) []ma.Multiaddr {
	all := []ma.Multiaddr{a}
	t := h.swarm.TransportForDialing(a)
	if s, ok := t.(transport.SkipResolver); ok && s.SkipResolve(ctx, a) {
		return all
	}
	if r, ok := t.(transport.Resolver); ok {
		var err error
		if all, err = r.Resolve(ctx, a); err != nil {
			return nil
		}
	}
	var ips []ma.Multiaddr
	for _, a := range all {
		if !madns.Matches(a) {
			ips = append(ips, a)
		} else if found, err := madns.DefaultResolver.Resolve(ctx, a); err == nil {
			ips = append(ips, found...)
		}
	}
	return ips
}

// race dials the addresses, each a little after the one before it, as libp2p
// ranks them; the first connection wins and the others are given up.
func (h *Host) race(ctx context.Context, p peer.ID, addrs []ma.Multiaddr) (transport.CapableConn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		conn transport.CapableConn
		err  error
	}
	ranked := h.rank(addrs)
	if punch, _, _ := network.GetSimultaneousConnect(ctx); punch {
		ranked = swarm.NoDelayDialRanker(addrs)
	}
	results := make(chan result, len(ranked))
	for _, r := range ranked {
		go func() {
			conn, err := h.dialAfter(ctx, r.Delay, p, r.Addr)
			results <- result{conn, err}
		}()
	}
	var won transport.CapableConn
	var errs []error
	for range ranked {
		switch r := <-results; {
		case r.err != nil:
			errs = append(errs, r.err)
		case won == nil:
			won = r.conn
			cancel()
		default:
			r.conn.Close()
		}
	}
	if won != nil {
		return won, nil
	}
	return nil, errors.Join(errs...)
}

func (h *Host) dialAfter(ctx context.Context, delay time.Duration, p peer.ID, a ma.Multiaddr) (transport.CapableConn, error) {
	sleep(ctx, delay)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	t := h.swarm.TransportForDialing(a)
	if t == nil {
		return nil, fmt.Errorf("%s: %w", a, swarm.ErrNoTransport)
	}
	conn, err := t.Dial(ctx, a, p)
	if err != nil {
		if ctx.Err() == nil {
			h.swarm.Backoff().AddBackoff(p, a)
		}
		return nil, fmt.Errorf("%s: %w", a, err)
	}
	if conn.RemotePeer() != p {
		conn.Close()
		return nil, fmt.Errorf("%s: another peer answers", a)
	}
	return conn, nil
}

// turns makes those who want the same wait for each other.
type turns struct {
	mu    sync.Mutex
	taken map[turn]chan struct{}
}

type turn struct {
	peer      peer.ID
	transport string
	from      uint16
}

// take waits until nobody has turn t, or ctx ends.
func (ts *turns) take(ctx context.Context, t turn) (done func(), err error) {
	for {
		ts.mu.Lock()
		other, busy := ts.taken[t]
		if !busy {
			mine := make(chan struct{})
			ts.taken[t] = mine
			ts.mu.Unlock()
			return func() { ts.end(t, mine) }, nil
		}
		ts.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (ts *turns) end(t turn, mine chan struct{}) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	delete(ts.taken, t)
	close(mine)
}
