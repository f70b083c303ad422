package session

import (
	"context"
	"fmt"
	"strings"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"openmesh/protocols/identity"
	"openmesh/protocols/signal"
	"openmesh/protocols/stream"
	"openmesh/protocols/wire"
)

// Network reaches other hosts. [OverHost] is one.
type Network interface {
	// Signal makes one exchange of the signaling protocol. Proven says that the
	// reply is known to be from host r.Peer.
	Signal(ctx context.Context, r Route, offer []byte) (reply []byte, proven bool, err error)

	// Dial opens a conduit for a channel.
	Dial(ctx context.Context, r Route) (Conduit, error)

	// Offer lists the transports, with addresses, by which this node is reached.
	Offer() []signal.Transport
}

// Route says where and how to reach a host.
type Route struct {
	Peer      peer.ID
	Transport string         // only by this one; empty: by any
	Addrs     []ma.Multiaddr // beside those that are known

	Transports []signal.Transport // as the peer offered them, best first

	// Again says that the host was just tried in vain: whatever failed a moment ago is to
	// be tried again, for who asks waits between attempts by himself.
	Again bool

	// Through, if not empty, are chains of forwarding relays, best first: only over one
	// of these is the host to be reached. Then Target is its certificate.
	Through []Chain
	Target  *identity.Certificate
}

// Chain is the relays of a forwarded path, first hop first. It does not name the
// target.
type Chain []identity.AgentID

// names is what tells lists of chains apart.
func names(chains []Chain) string {
	var b strings.Builder
	for _, c := range chains {
		for _, a := range c {
			b.WriteString(string(a) + " ")
		}
		b.WriteString("\n")
	}
	return b.String()
}

// Host opens and serves streams; host.Host is one.
type Host interface {
	stream.Mux
	stream.Dialer
}

// OverHost returns a network of streams over whatever connection the host has, or
// makes, to a peer.
func OverHost(h Host, cfg signal.Config, path func(network.Conn) Path) Network {
	return overHost{h, cfg, path}
}

type overHost struct {
	host   Host
	signal signal.Config
	path   func(network.Conn) Path
}

func (n overHost) Signal(ctx context.Context, r Route, offer []byte) ([]byte, bool, error) {
	reply, err := signal.Over(n.host, r.Peer, n.signal.Timeout)(ctx, offer)
	return reply, true, err
}

func (n overHost) Dial(ctx context.Context, r Route) (Conduit, error) {
	st, err := n.host.NewStream(ctx, r.Peer, Protocol)
	if err != nil {
		return nil, err
	}
	c := StreamConduit(st, n.path(st.Conn()), nil)
	if r.Transport != "" && c.Path().Transport != r.Transport {
		st.ResetWithError(network.StreamErrorCode(wire.Cancelled))
		return nil, fmt.Errorf("the connection to %s is over %s, not %s", r.Peer, c.Path().Transport, r.Transport)
	}
	return c, nil
}

func (n overHost) Offer() []signal.Transport { return nil }

// StreamConduit makes a libp2p stream a conduit. Abandon closes the stream's
// connection once it is taken for dead, and what must have died with it; nil closes
// just that.
func StreamConduit(st network.Stream, path Path, abandon func(network.Conn)) Conduit {
	return streamConduit{st, path, abandon}
}

// streamConduit makes a libp2p stream a conduit.
type streamConduit struct {
	network.Stream
	path    Path
	abandon func(network.Conn)
}

func (s streamConduit) Reset(c wire.Code) { s.Stream.ResetWithError(network.StreamErrorCode(c)) }

func (s streamConduit) Reserve(n int) error {
	return s.Scope().ReserveMemory(n, network.ReservationPriorityMedium)
}

func (s streamConduit) Release(n int) { s.Scope().ReleaseMemory(n) }

func (s streamConduit) Path() Path { return s.path }

func (s streamConduit) Peer() peer.ID { return s.Conn().RemotePeer() }

// Abandon closes the whole connection: libp2p would go on to use it until its own,
// longer timeout.
func (s streamConduit) Abandon() {
	s.Reset(wire.Unreachable)
	if s.abandon != nil {
		s.abandon(s.Conn())
		return
	}
	s.Conn().Close()
}

// PathOf tells how a libp2p connection reaches its peer.
func PathOf(c network.Conn) Path {
	addr := c.RemoteMultiaddr()
	p := Path{Kind: "direct", Addr: addr.String(), Transport: transportOf(addr)}
	if _, err := addr.ValueForProtocol(ma.P_CIRCUIT); err == nil {
		p.Kind = "relayed"
	}
	if t := c.ConnState().Transport; p.Transport == "unknown" && t != "" {
		p.Transport = t // whoever accepts WebRTC sees a bare UDP address
	}
	return p
}

func transportOf(addr ma.Multiaddr) string {
	name := "unknown"
	for _, part := range addr {
		switch part.Protocol().Code {
		case ma.P_CIRCUIT:
			return name // of the relay's own address
		case ma.P_TCP:
			name = "tcp"
		case ma.P_WS, ma.P_WSS, ma.P_QUIC_V1, ma.P_WEBTRANSPORT, ma.P_WEBRTC_DIRECT:
			name = part.Protocol().Name
		}
	}
	return name
}
