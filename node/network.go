package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

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

// Signal makes an exchange over libp2p or, if that fails, gRPC.
func (w ways) Signal(ctx context.Context, r session.Route, offer []byte) (reply []byte, proven bool, err error) {
	if r.Transport != grpcTransport {
		lim := stream.Limits{Request: signal.MaxMessage, Response: signal.MaxMessage, Time: w.n.settings.Networking.HandshakeTimeout}
		if err = w.connect(ctx, r); err == nil {
			reply, err = stream.Call(ctx, w.n.host, r.Peer, signal.Protocol, offer, lim)
		}
		if err == nil || r.Transport != "" {
			return reply, true, err
		}
	}
	for _, a := range grpcAddrs(r) {
		var other error
		if reply, other = w.grpc.Exchange(ctx, a, signal.Protocol, offer); other == nil {
			return reply, false, nil
		}
		err = errors.Join(err, other)
	}
	if err == nil {
		err = wire.Errorf(wire.Unreachable, "no gRPC address of %s is known", r.Peer)
	}
	return nil, false, err
}

// connect makes sure that there is a connection to the route's host.
func (w ways) connect(ctx context.Context, r session.Route) error {
	if r.Peer == "" {
		return wire.Errorf(wire.Unreachable, "the peer's host is not known")
	}
	w.n.host.Peerstore().AddAddrs(r.Peer, hostAddrs(r), peerstore.TempAddrTTL)
	if r.Transport == "" {
		return nil // opening a stream connects
	}
	_, err := w.n.host.Dial(ctx, r.Peer, overlay.Route{Transport: r.Transport})
	return err
}

// Dial opens a conduit over libp2p or, if that fails, gRPC.
func (w ways) Dial(ctx context.Context, r session.Route) (session.Conduit, error) {
	var err error
	if r.Transport != grpcTransport && r.Peer != "" {
		var c session.Conduit
		if c, err = w.dialHost(ctx, r); err == nil || r.Transport != "" {
			return c, err
		}
	}
	for _, a := range grpcAddrs(r) {
		c, other := w.grpc.Open(ctx, a)
		if other == nil {
			return newGRPCConduit(c), nil
		}
		err = errors.Join(err, other)
	}
	if err == nil {
		err = wire.Errorf(wire.Unreachable, "no gRPC address of %s is known", r.Peer)
	}
	return nil, err
}

func (w ways) dialHost(ctx context.Context, r session.Route) (session.Conduit, error) {
	h := w.n.host
	h.Peerstore().AddAddrs(r.Peer, hostAddrs(r), peerstore.TempAddrTTL)
	if r.Transport == "" {
		st, err := h.NewStream(ctx, r.Peer, session.Protocol)
		if err != nil {
			return nil, err
		}
		return session.StreamConduit(st, w.n.pathOf(st.Conn())), nil
	}
	c, err := h.Dial(network.WithForceDirectDial(ctx, "session"), r.Peer, overlay.Route{Transport: r.Transport})
	if err != nil {
		return nil, err
	}
	st, err := h.OpenStream(ctx, c, session.Protocol)
	if err != nil {
		return nil, err
	}
	return session.StreamConduit(st, w.n.pathOf(c)), nil
}

// hostAddrs are the addresses of a route that libp2p can dial; grpcAddrs are the
// others.
func hostAddrs(r session.Route) []ma.Multiaddr {
	return slices.DeleteFunc(routeAddrs(r), grpclink.IsAddr)
}

func grpcAddrs(r session.Route) []ma.Multiaddr {
	return slices.DeleteFunc(routeAddrs(r), func(a ma.Multiaddr) bool { return !grpclink.IsAddr(a) })
}

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

// grpcAddrs are where this node takes sessions over gRPC. A listener of every
// interface has the addresses that the host has.
func (n *Node) grpcAddrs() []ma.Multiaddr {
	if n.links == nil {
		return nil
	}
	var addrs []ma.Multiaddr
	for _, a := range n.links.Addrs() {
		if !manet.IsIPUnspecified(a) {
			addrs = append(addrs, a)
			continue
		}
		for _, ip := range n.hostIPs() {
			addrs = append(addrs, append(ma.Multiaddr{ip}, a[1:]...))
		}
	}
	return addrs
}

// hostIPs are the IP addresses among those of the libp2p host.
func (n *Node) hostIPs() []ma.Component {
	var ips []ma.Component
	for _, a := range n.host.Addrs() {
		if len(a) > 0 && (a[0].Protocol().Code == ma.P_IP4 || a[0].Protocol().Code == ma.P_IP6) &&
			!slices.ContainsFunc(ips, func(c ma.Component) bool { return c.Equal(&a[0]) }) {
			ips = append(ips, a[0])
		}
	}
	return ips
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

func (c *grpcConduit) Abandon()          { c.Reset(wire.Unreachable) }
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
