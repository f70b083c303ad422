package overlay

import (
	"context"
	"crypto/fips140"
	"slices"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/p2p/transport/tcpreuse"
	libp2pwebrtc "github.com/libp2p/go-libp2p/p2p/transport/webrtc"
	"github.com/libp2p/go-libp2p/p2p/transport/websocket"
	libp2pwebtransport "github.com/libp2p/go-libp2p/p2p/transport/webtransport"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"

	"openmesh/overlay/reach"
)

// Circuit is what [TransportOf] calls the way through a relay, whatever
// transport leads to the relay.
const Circuit = "p2p-circuit"

// TransportOf names the transport of an address: tcp, quic-v1, ws, wss,
// webtransport, webrtc-direct or [Circuit]; "" if it has none of these.
func TransportOf(a ma.Multiaddr) string {
	name, secured := "", false
	for _, part := range a {
		switch code := part.Protocol().Code; code {
		case ma.P_CIRCUIT:
			return Circuit
		case ma.P_TLS:
			secured = true
		case ma.P_WS:
			name = "ws"
			if secured {
				name = "wss"
			}
		case ma.P_TCP, ma.P_WSS, ma.P_QUIC_V1, ma.P_WEBTRANSPORT, ma.P_WEBRTC_DIRECT:
			name = part.Protocol().Name
		case ma.P_HTTP:
			name = "" // not a transport of libp2p
		}
	}
	return name
}

// TransportOfConn names the transport of a connection, as [TransportOf] does.
func TransportOfConn(c network.Conn) string {
	if name := TransportOf(c.RemoteMultiaddr()); name != "" {
		return name
	}
	return c.ConnState().Transport // WebRTC's listener sees a bare UDP address
}

// transports are those that the host listens and dials with. One that nobody
// uses costs no goroutine.
func (h *Host) transports() []libp2p.Option {
	options := []libp2p.Option{
		libp2p.Transport(h.newTCP),
		libp2p.Transport(libp2pquic.NewTransport),
	}
	if fips140.Enforced() {
		return options
	}
	return append(options,
		libp2p.Transport(websocket.New),
		libp2p.Transport(libp2pwebtransport.New),
		libp2p.Transport(libp2pwebrtc.New),
	)
}

// newTCP has TCP connections leave from the ports that the host listens on, as
// [reach.Dialer] does, where libp2p would pick one of them at random. The hosts that
// libp2p makes to judge others have keys of their own: they dial from fresh ports,
// which no NAT lets in by mistake.
func (h *Host) newTCP(u transport.Upgrader, limits network.ResourceManager, shared *tcpreuse.ConnMgr, key crypto.PrivKey) (*tcp.TcpTransport, error) {
	if !key.Equals(h.cfg.Key) || !tcpreuse.ReuseportIsAvailable() {
		return tcp.NewTCPTransport(u, limits, shared)
	}
	dialer := reach.Dialer{Listening: h.reach.Listening, Holes: h.reach.Holes}
	return tcp.NewTCPTransport(u, limits, shared, tcp.WithDialerForAddr(func(ma.Multiaddr) (tcp.ContextDialer, error) { return dialer, nil }))
}

// upgraderTap takes libp2p's upgrader, which secures connections, out of the
// construction of a host, for the circuit transport. As a transport it does nothing.
type upgraderTap struct {
	key crypto.PrivKey
	transport.Upgrader
}

// tap is called for the host, and for the ones that libp2p makes to judge others,
// which have keys of their own.
func (t *upgraderTap) tap(u transport.Upgrader, key crypto.PrivKey) transport.Transport {
	if key.Equals(t.key) {
		t.Upgrader = u
	}
	return noTransport{}
}

// noTransport neither dials nor listens.
type noTransport struct{}

func (noTransport) CanDial(ma.Multiaddr) bool { return false }
func (noTransport) Protocols() []int          { return []int{ma.P_UNIX} }
func (noTransport) Proxy() bool               { return false }

func (noTransport) Dial(context.Context, ma.Multiaddr, peer.ID) (transport.CapableConn, error) {
	return nil, transport.ErrListenerClosed
}

func (noTransport) Listen(ma.Multiaddr) (transport.Listener, error) {
	return nil, transport.ErrListenerClosed
}

// listenAddrs are the configured addresses without those that cannot be used
// where only FIPS 140 approved cryptography may run (GODEBUG=fips140=only):
// WebTransport and WebRTC authenticate by Noise, with X25519; the handshake of
// WebSocket uses SHA-1, and so does WebRTC, which would end the process.
func (c Config) listenAddrs() []ma.Multiaddr {
	if !fips140.Enforced() {
		return c.Listen
	}
	return slices.DeleteFunc(slices.Clone(c.Listen), func(a ma.Multiaddr) bool {
		t := TransportOf(a)
		barred := t != "tcp" && t != "quic-v1"
		if barred {
			c.Log.Warn("not listened on: the transport is not FIPS 140 approved", zap.Stringer("addr", a))
		}
		return barred
	})
}
