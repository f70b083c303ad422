package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"openmesh/overlay"
	"openmesh/overlay/grpclink"
	"openmesh/protocols/identity"
	"openmesh/protocols/session"
	"openmesh/protocols/signal"
	"openmesh/protocols/stream"
	"openmesh/protocols/wire"
)

// grpcTransport is the transport that is not libp2p's.
const grpcTransport = "grpc"

// ways is how sessions reach other hosts: over libp2p, whatever the transport, or
// over gRPC where nothing else is let through.
type ways struct {
	n    *Node
	grpc *grpclink.Dialer
}

// Offer lists the addresses of this node by transport.
func (w ways) Offer() []signal.Transport {
	addrs := slices.Concat(w.n.host.Addrs(), w.n.grpcAddrs())
	var offered []signal.Transport
	for _, a := range addrs {
		name := overlay.TransportOf(a)
		if grpclink.IsAddr(a) {
			name = grpcTransport
		}
		i := slices.IndexFunc(offered, func(t signal.Transport) bool { return t.Name == name })
		if i < 0 {
			i = len(offered)
			offered = append(offered, signal.Transport{Name: name})
		}
		offered[i].Addrs = append(offered[i].Addrs, a.Bytes())
	}
	return offered
}

// Signal makes an exchange over libp2p or gRPC, whichever connects first. The offer
// goes one way only, for the other side answers it once.
func (w ways) Signal(ctx context.Context, r session.Route, offer []byte) (reply []byte, proven bool, err error) {
	if r.Through != nil {
		reply, err = w.signalForwarded(ctx, r, offer)
		return reply, true, err
	}
	patience := w.n.settings.Networking.HandshakeTimeout
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var attempts []func(context.Context) (ma.Multiaddr, error) // of the address chosen; nil is libp2p
	if r.Transport != grpcTransport && r.Peer != "" {
		attempts = append(attempts, func(ctx context.Context) (ma.Multiaddr, error) { return nil, w.connect(ctx, r) })
	}
	for _, a := range w.grpcAddrs(r) {
		attempts = append(attempts, func(ctx context.Context) (ma.Multiaddr, error) { return a, w.grpc.Connect(ctx, a) })
	}
	a, err := race(ctx, attempts, func(ma.Multiaddr) {})
	switch {
	case err != nil:
		return nil, false, fmt.Errorf("connect to %s: %w", r.Peer, err)
	case a != nil:
		reply, err = w.grpc.Exchange(ctx, a, signal.Protocol, offer)
		return reply, false, err
	}
	lim := stream.Limits{Request: signal.MaxMessage, Response: signal.MaxMessage, Time: patience}
	reply, err = stream.Call(ctx, w.n.host, r.Peer, signal.Protocol, offer, lim)
	return reply, true, err
}

// connect makes sure that there is a connection to the route's host.
func (w ways) connect(ctx context.Context, r session.Route) error {
	if r.Peer == "" {
		return wire.Errorf(wire.Unreachable, "the peer's host is not known")
	}
	w.know(r)
	_, err := w.n.host.Dial(ctx, r.Peer, overlay.Route{Transport: r.Transport})
	return err
}

// Dial opens a conduit over libp2p or gRPC, whichever is there first.
func (w ways) Dial(ctx context.Context, r session.Route) (session.Conduit, error) {
	if r.Through != nil {
		c, err := w.forward(ctx, r, session.Protocol)
		if err != nil {
			return nil, err
		}
		return newForwarded(c), nil
	}
	var attempts []func(context.Context) (session.Conduit, error)
	if r.Transport != grpcTransport && r.Peer != "" {
		attempts = append(attempts, func(ctx context.Context) (session.Conduit, error) { return w.dialHost(ctx, r) })
	}
	for _, a := range w.grpcAddrs(r) {
		attempts = append(attempts, func(ctx context.Context) (session.Conduit, error) {
			c, err := w.grpc.Open(ctx, a)
			if err != nil {
				return nil, err
			}
			return newGRPCConduit(c), nil
		})
	}
	return race(ctx, attempts, func(c session.Conduit) { c.Reset(wire.Cancelled) })
}

// headStart is how long an attempt to reach a host has for itself before the next
// one begins beside it: a network that loses packets silently must not use up the
// time of the way that works. libp2p does the same among its transports.
const headStart = 400 * time.Millisecond

// race makes attempts, each a head start after the one before or as soon as that
// has failed, and returns what the first to succeed gives; the others are given
// up, and what they give is dropped.
func race[T any](ctx context.Context, attempts []func(context.Context) (T, error), drop func(T)) (won T, err error) {
	if len(attempts) == 0 {
		return won, wire.Errorf(wire.Unreachable, "no address of the host is known")
	}
	type result struct {
		value T
		err   error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan result, len(attempts))
	next := time.NewTimer(0)
	defer next.Stop()
	for begun, ended := 0, 0; ended < len(attempts); {
		select {
		case <-next.C:
			if begun == len(attempts) {
				continue
			}
			attempt := attempts[begun]
			begun++
			go func() {
				v, err := attempt(ctx)
				results <- result{v, err}
			}()
			next.Reset(headStart)
		case r := <-results:
			ended++
			if r.err != nil {
				err = errors.Join(err, r.err)
				next.Reset(0)
				continue
			}
			go func() {
				for range begun - ended {
					if r := <-results; r.err == nil {
						drop(r.value)
					}
				}
			}()
			return r.value, nil
		}
	}
	return won, err
}

func (w ways) dialHost(ctx context.Context, r session.Route) (session.Conduit, error) {
	h := w.n.host
	w.know(r)
	dialing := ctx
	if r.Transport != "" {
		dialing = network.WithForceDirectDial(ctx, "session")
	}
	c, err := h.Dial(dialing, r.Peer, overlay.Route{Transport: r.Transport})
	if err != nil {
		return nil, err
	}
	st, err := h.OpenStream(ctx, c, session.Protocol)
	if err != nil {
		return nil, err
	}
	return session.StreamConduit(st, w.n.pathOf(c), h.Abandon), nil
}

// know has the host learn where the route's host is.
func (w ways) know(r session.Route) {
	w.n.host.Peerstore().AddAddrs(r.Peer, hostAddrs(r), peerstore.TempAddrTTL)
	if r.Again {
		w.n.host.Forgive(r.Peer, overlay.Route{})
	}
}

// watchWays has sessions that look for a channel try again at once when their peer
// connects, and when this host's addresses change, such as those through relays.
func (n *Node) watchWays(ctx context.Context) error {
	sub, err := n.host.EventBus().Subscribe(new(event.EvtLocalAddressesUpdated))
	if err != nil {
		return fmt.Errorf("watch addresses: %w", err)
	}
	defer sub.Close()
	conns := &network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) { n.sessions.Retry(c.RemotePeer()) }}
	n.host.Network().Notify(conns)
	defer n.host.Network().StopNotify(conns)
	for {
		select {
		case <-sub.Out():
			n.sessions.Retry("")
		case <-ctx.Done():
			return nil
		}
	}
}

// hostAddrs are the addresses of a route that libp2p can dial; grpcAddrs are the
// others.
func hostAddrs(r session.Route) []ma.Multiaddr {
	return slices.DeleteFunc(routeAddrs(r), grpclink.IsAddr)
}

// grpcAddrs leaves this node's own addresses out: another host's may look the same.
func (w ways) grpcAddrs(r session.Route) []ma.Multiaddr {
	if r.Transport != "" && r.Transport != grpcTransport {
		return nil
	}
	var own []ma.Multiaddr
	if w.n.links != nil {
		own = w.n.links.Addrs()
	}
	addrs := slices.DeleteFunc(routeAddrs(r), func(a ma.Multiaddr) bool {
		return !grpclink.IsAddr(a) || slices.ContainsFunc(own, a.Equal)
	})
	addrs = ma.Unique(addrs)
	return addrs[:min(len(addrs), maxGRPCAddrs)]
}

// maxGRPCAddrs bounds the addresses tried at a time: they are a stranger's word.
const maxGRPCAddrs = 8

func routeAddrs(r session.Route) []ma.Multiaddr {
	addrs := slices.Clone(r.Addrs)
	for _, t := range r.Transports {
		for _, b := range t.Addrs {
			if a, err := ma.NewMultiaddrBytes(b); err == nil {
				addrs = append(addrs, a)
			}
		}
	}
	return addrs
}

// grpcAddrs are where this node takes sessions over gRPC. Loopback is of use only
// if there is nothing else.
func (n *Node) grpcAddrs() []ma.Multiaddr {
	if n.links == nil {
		return nil
	}
	addrs := slices.Clone(n.links.Addrs())
	if slices.ContainsFunc(addrs, func(a ma.Multiaddr) bool { return !manet.IsIPLoopback(a) }) {
		addrs = slices.DeleteFunc(addrs, manet.IsIPLoopback)
	}
	return addrs
}

// newLinks returns the gRPC listener, or nil if it is off.
func (n *Node) newLinks() (*grpclink.Server, error) {
	listen := n.settings.Networking.GRPCListen
	if len(listen) == 0 {
		return nil, nil
	}
	return grpclink.New(grpclink.Config{
		Listen: listen,
		Exchange: map[string]func(context.Context, netip.AddrPort, []byte) ([]byte, error){
			signal.Protocol: func(_ context.Context, from netip.AddrPort, offer []byte) ([]byte, error) {
				return n.sessions.Exchange(from.Addr().String(), offer)
			},
		},
		Accept: func(c *grpclink.Conn) {
			conduit := newGRPCConduit(c)
			n.sessions.Accept(conduit)
			<-conduit.ended
		},
		MaxStreams: n.settings.Networking.MaxTunnels,
		Log:        n.log.Named("grpc"),
	})
}

// grpcConduit makes a gRPC stream a conduit. It proves nothing of who is at the
// other end; the session does.
type grpcConduit struct {
	*grpclink.Conn
	once  sync.Once
	ended chan struct{} // closed when this side needs it no more
}

func newGRPCConduit(c *grpclink.Conn) *grpcConduit {
	return &grpcConduit{Conn: c, ended: make(chan struct{})}
}

func (c *grpcConduit) end() { c.once.Do(func() { close(c.ended) }) }

// Close ends the writing side; the stream itself ends a little later, so that what
// the peer still says is read.
func (c *grpcConduit) Close() error {
	time.AfterFunc(2*time.Second, c.end)
	return c.Conn.Close()
}

func (c *grpcConduit) Reset(code wire.Code) {
	c.Conn.Reset(code)
	c.end()
}

func (c *grpcConduit) Abandon() {
	c.Conn.Abandon()
	c.end()
}

func (c *grpcConduit) Reserve(int) error { return nil }
func (c *grpcConduit) Release(int)       {}
func (c *grpcConduit) Peer() peer.ID     { return "" }

func (c *grpcConduit) Path() session.Path {
	return session.Path{Kind: "direct", Transport: grpcTransport, Addr: c.RemoteAddr().String()}
}

// find looks up where an agent is now that was not reached at host last.
func (n *Node) find(ctx context.Context, a identity.AgentID, last peer.ID) (session.Route, error) {
	n.directory.Doubt(a, last)
	found, err := n.resolve(ctx, string(a))
	if err != nil {
		return session.Route{}, fmt.Errorf("look up %s: %w", a, err)
	}
	return session.Route{Peer: found.Peer.ID, Addrs: found.Peer.Addrs}, nil
}
