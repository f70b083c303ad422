package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"openmesh/overlay/overlaytest"
	"openmesh/protocols/session"
	"openmesh/protocols/wire"

	"openmesh/overlay/relay"
)

// all are the transports of a host, as their connections are named.
var all = []string{"quic-v1", "tcp", "webrtc-direct", "webtransport", "ws"}

// everywhere listens with all transports.
func everywhere() []ma.Multiaddr {
	var as []ma.Multiaddr
	for _, a := range []string{"tcp/0", "udp/0/quic-v1", "tcp/0/ws", "udp/0/quic-v1/webtransport", "udp/0/webrtc-direct"} {
		as = append(as, ma.StringCast("/ip4/127.0.0.1/"+a))
	}
	return as
}

// at returns where h is reached over a transport.
func at(t *testing.T, h *Host, transport string) []ma.Multiaddr {
	t.Helper()
	as := slices.DeleteFunc(h.Addrs(), func(a ma.Multiaddr) bool { return TransportOf(a) != transport })
	if len(as) == 0 {
		t.Fatalf("no %s among %v", transport, h.Addrs())
	}
	return as
}

// echoOn has size bytes come back on exactly connection c.
func echoOn(ctx context.Context, h *Host, c network.Conn, size int) error {
	st, err := h.OpenStream(ctx, c, echo)
	if err != nil {
		return err
	}
	defer st.Reset()
	go func() {
		st.Write(make([]byte, size))
		st.CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, st); err != nil || n != int64(size) {
		return fmt.Errorf("%d of %d bytes came back: %w", n, size, err)
	}
	if st.Conn() != c {
		return errors.New("the stream is on another connection")
	}
	return nil
}

// pair returns two hosts that echo; b is reached over every transport.
func pair(t *testing.T) (a, b *Host) {
	t.Helper()
	a, _ = start(t, Config{Listen: everywhere()})
	b, _ = start(t, Config{Listen: everywhere()})
	serveEcho(a)
	serveEcho(b)
	return a, b
}

// Hosts connect over each transport, and name it, as sessions do.
func TestEachTransport(t *testing.T) {
	t.Parallel()
	for _, transport := range all {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			a, b := pair(t)
			if err := a.Connect(t.Context(), info(b, at(t, b, transport)...)); err != nil {
				t.Fatal(err)
			}
			ours, theirs := a.Network().ConnsToPeer(b.ID())[0], waitForConns(t, b, a, 1)[0]
			if r := a.Reach(b.ID()); r != "direct" {
				t.Errorf("reach %q", r)
			}
			if err := echoOn(t.Context(), a, ours, 1<<20); err != nil {
				t.Error(err)
			}
			if err := echoOn(t.Context(), b, theirs, 1<<20); err != nil {
				t.Errorf("towards the dialler: %v", err)
			}
			for _, c := range []network.Conn{ours, theirs} {
				if name := TransportOfConn(c); name != transport {
					t.Errorf("transport %q", name)
				}
				if p := session.PathOf(c); p.Kind != "direct" || c == ours && p.Transport != transport {
					t.Errorf("path %+v", p)
				}
			}
		})
	}
}

// waitForConns waits until h has n connections to other.
func waitForConns(t *testing.T, h, other *Host, n int) []network.Conn {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if cs := h.Network().ConnsToPeer(other.ID()); len(cs) == n {
			return cs
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("connections %v, want %d", h.Network().ConnsToPeer(other.ID()), n)
		}
	}
}

// A host that is connected over TCP gets every other transport beside it; streams
// go both ways on each; closing one leaves the others; what is there is not made
// twice.
func TestDialBeside(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	if err := a.Connect(t.Context(), info(b, at(t, b, "tcp")...)); err != nil {
		t.Fatal(err)
	}
	a.Peerstore().AddAddrs(b.ID(), b.Addrs(), peerstore.PermanentAddrTTL)
	conns := make(map[string]network.Conn)
	for _, transport := range all {
		c, err := a.Dial(t.Context(), b.ID(), Route{Transport: transport})
		if err != nil {
			t.Fatal(err)
		}
		again, err := a.Dial(t.Context(), b.ID(), Route{Transport: transport})
		if err != nil || again != c {
			t.Errorf("%s: dialled again: %v, %v; want %v", transport, again, err, c)
		}
		conns[transport] = c
	}
	if got := a.Transports(b.ID()); !slices.Equal(got, all) {
		t.Errorf("transports %v", got)
	}
	theirs := waitForConns(t, b, a, len(all))
	for range all {
		for name, c := range conns {
			if err := echoOn(t.Context(), a, c, 1<<16); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, c := range theirs {
			if err := echoOn(t.Context(), b, c, 1<<16); err != nil {
				t.Errorf("%s, inbound: %v", c.RemoteMultiaddr(), err)
			}
		}
		for name, c := range conns { // any one
			c.Close()
			delete(conns, name)
			theirs = waitForConns(t, b, a, len(conns))
			break
		}
	}
	if got := a.Transports(b.ID()); len(got) != 0 {
		t.Errorf("transports %v are left", got)
	}
}

// A connection that was handed over is like any other: identify and ping work on
// it, the limits count it as outbound, and it leaves nothing behind.
func TestDialledIsLikeAnyOther(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	c, err := a.Dial(t.Context(), b.ID(), Route{Transport: "quic-v1", Addrs: at(t, b, "quic-v1")})
	if err != nil {
		t.Fatal(err)
	}
	scope := func() (in, out int) {
		a.Network().ResourceManager().ViewPeer(b.ID(), func(s network.PeerScope) error {
			in, out = s.Stat().NumConnsInbound, s.Stat().NumConnsOutbound
			return nil
		})
		return in, out
	}
	if in, out := scope(); in != 0 || out != 1 {
		t.Errorf("%d inbound and %d outbound connections are counted", in, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if r := <-ping.Ping(ctx, a.Host, b.ID()); r.Error != nil {
		t.Errorf("ping: %v", r.Error)
	}
	// Host.NewStream knows the protocols of the peer from identify alone.
	if err := roundTrip(ctx, a, b.ID(), 1024); err != nil {
		t.Error(err)
	}
	if v, err := a.Peerstore().Get(b.ID(), "AgentVersion"); err != nil || v != "openmesh" {
		t.Errorf("identified as %v, %v", v, err)
	}
	if slices.ContainsFunc(slices.Concat(a.Addrs(), b.Peerstore().Addrs(a.ID())), IsCircuit) {
		t.Errorf("addresses %v, as the peer has them %v", a.Addrs(), b.Peerstore().Addrs(a.ID()))
	}
	c.Close()
	waitForConns(t, b, a, 0)
	if in, out := scope(); in != 0 || out != 0 {
		t.Errorf("%d inbound and %d outbound connections are still counted", in, out)
	}
}

// Both sides dial everything at once, several times over.
func TestDialFromBothSides(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	var group sync.WaitGroup
	for _, transport := range all {
		for _, d := range []struct{ from, to *Host }{{a, b}, {b, a}, {a, b}, {b, a}} {
			addrs := at(t, d.to, transport)
			group.Go(func() {
				c, err := d.from.Dial(t.Context(), d.to.ID(), Route{Transport: transport, Addrs: addrs})
				if err != nil {
					t.Error(err)
				} else if err := echoOn(t.Context(), d.from, c, 1<<16); err != nil {
					t.Errorf("%s: %v", transport, err)
				}
			})
		}
	}
	group.Wait()
	for _, d := range []struct{ from, to *Host }{{a, b}, {b, a}} {
		if n := len(d.from.Network().ConnsToPeer(d.to.ID())); n < len(all) || n > 2*len(all) {
			t.Errorf("%d connections", n)
		}
		if got := d.from.Transports(d.to.ID()); !slices.Equal(got, all) {
			t.Errorf("transports %v", got)
		}
	}
}

// Names are looked up, and addresses that name the peer are taken.
func TestDialByName(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	for _, transport := range []string{"tcp", "ws"} {
		addr := strings.Replace(at(t, b, transport)[0].String(), "/ip4/127.0.0.1/", "/dns4/localhost/", 1)
		for _, suffix := range []string{"", "/p2p/" + b.ID().String()} {
			c, err := a.Dial(t.Context(), b.ID(), Route{Transport: transport, Addrs: []ma.Multiaddr{ma.StringCast(addr + suffix)}})
			if err != nil {
				t.Fatal(err)
			}
			c.Close()
		}
		other := ma.StringCast(addr + "/p2p/" + newPeer(t).String())
		if _, err := a.Dial(t.Context(), b.ID(), Route{Transport: transport, Addrs: []ma.Multiaddr{other}}); !errors.Is(err, swarm.ErrNoGoodAddresses) {
			t.Errorf("address of another peer: %v", err)
		}
	}
}

// A path through a relay stands beside a direct one.
func TestDialCircuitBesideDirect(t *testing.T) {
	t.Parallel()
	relay, _ := start(t, Config{Public: true, Relay: &relay.Config{Reservations: 64, Circuits: 64, CircuitsPerPeer: 16}})
	relayAt := info(relay)
	b, _ := start(t, Config{Relays: func() []peer.AddrInfo { return []peer.AddrInfo{relayAt} }})
	serveEcho(b)
	a, _ := start(t, Config{})
	circuit := waitForCircuit(t, b, true)
	if err := a.Connect(t.Context(), info(b, at(t, b, "tcp")...)); err != nil {
		t.Fatal(err)
	}
	c, err := a.Dial(t.Context(), b.ID(), Route{Transport: Circuit, Addrs: []ma.Multiaddr{circuit}})
	if err != nil {
		t.Fatal(err)
	}
	if err := echoOn(t.Context(), a, c, 1<<20); err != nil {
		t.Error(err)
	}
	if got := a.Transports(b.ID()); !slices.Equal(got, []string{Circuit, "tcp"}) {
		t.Errorf("transports %v", got)
	}
}

// gate forbids to dial a peer, and counts.
type gate struct{ allow bool }

func (g gate) InterceptPeerDial(peer.ID) bool                                           { return g.allow }
func (g gate) InterceptAddrDial(peer.ID, ma.Multiaddr) bool                             { return true }
func (g gate) InterceptAccept(network.ConnMultiaddrs) bool                              { return true }
func (g gate) InterceptSecured(network.Direction, peer.ID, network.ConnMultiaddrs) bool { return true }
func (g gate) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason)          { return !g.allow, 0 }

// What cannot be dialled says why, with a code to act on.
func TestDialRefusals(t *testing.T) {
	t.Parallel()
	b, _ := start(t, Config{Listen: everywhere()})
	a, stopA := start(t, Config{Listen: everywhere()})
	other, stopOther := start(t, Config{Listen: everywhere()})
	gated, _ := start(t, Config{Gater: gate{allow: false}})
	late, _ := start(t, Config{Gater: gate{allow: true}})
	gone := at(t, other, "tcp")
	stopOther()
	dead := []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/1")}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tc := range []struct {
		name  string
		ctx   context.Context
		from  *Host
		to    peer.ID
		route Route
		want  error
	}{
		{"no address", t.Context(), a, b.ID(), Route{Transport: "tcp"}, swarm.ErrNoGoodAddresses},
		{"address of another transport", t.Context(), a, b.ID(), Route{Transport: "ws", Addrs: at(t, b, "tcp")}, swarm.ErrNoGoodAddresses},
		{"unknown transport", t.Context(), a, b.ID(), Route{Transport: "pigeon", Addrs: b.Addrs()}, swarm.ErrNoGoodAddresses},
		{"nobody there", t.Context(), a, b.ID(), Route{Transport: "tcp", Addrs: dead}, wire.Unreachable},
		{"too soon after that", t.Context(), a, b.ID(), Route{Transport: "tcp", Addrs: dead}, swarm.ErrDialBackoff},
		{"again, on purpose", network.WithForceDirectDial(t.Context(), "test"), a, b.ID(), Route{Transport: "tcp", Addrs: dead}, wire.Unreachable},
		{"another peer", t.Context(), a, newPeer(t), Route{Transport: "tcp", Addrs: at(t, b, "tcp")}, wire.Unreachable},
		{"a peer that is gone", t.Context(), a, other.ID(), Route{Transport: "tcp", Addrs: gone}, wire.Unreachable},
		{"itself", t.Context(), a, a.ID(), Route{Transport: "tcp", Addrs: a.Addrs()}, swarm.ErrDialToSelf},
		{"no peer", t.Context(), a, "", Route{Transport: "tcp", Addrs: b.Addrs()}, wire.Unreachable},
		{"cancelled", cancelled, a, b.ID(), Route{Transport: "quic-v1", Addrs: at(t, b, "quic-v1")}, context.Canceled},
		{"gated before", t.Context(), gated, b.ID(), Route{Transport: "tcp", Addrs: at(t, b, "tcp")}, swarm.ErrGaterDisallowedConnection},
		{"gated after", t.Context(), late, b.ID(), Route{Transport: "tcp", Addrs: at(t, b, "tcp")}, wire.Unreachable},
	} {
		conn, err := tc.from.Dial(tc.ctx, tc.to, tc.route)
		if !errors.Is(err, tc.want) || conn != nil {
			t.Errorf("%s: %v, %v; want %v", tc.name, conn, err, tc.want)
		}
	}
	late.Network().ResourceManager().ViewPeer(b.ID(), func(s network.PeerScope) error {
		if n := s.Stat().NumConnsOutbound; n != 0 {
			t.Errorf("%d refused connections are counted", n)
		}
		return nil
	})
	addrs := at(t, b, "tcp")
	stopA()
	if _, err := a.Dial(t.Context(), b.ID(), Route{Transport: "tcp", Addrs: addrs}); !errors.Is(err, wire.Unreachable) {
		t.Errorf("a closed host dials: %v", err)
	}
}

func newPeer(t *testing.T) peer.ID {
	t.Helper()
	id, err := peer.IDFromPrivateKey(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// A peer that does not speak the protocol says so on the first read.
func TestOpenStreamUnknownProtocol(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	c, err := a.Dial(t.Context(), b.ID(), Route{Addrs: b.Addrs()})
	if err != nil {
		t.Fatal(err)
	}
	st, err := a.OpenStream(t.Context(), c, "/test/nothing/1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if _, err := st.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read: %v", err)
	}
}

// Hosts that dialled each other over everything end without a trace.
func TestNoGoroutineIsLeft(t *testing.T) {
	before := goleak.IgnoreCurrent()
	a, stopA := start(t, Config{Listen: everywhere()})
	b, stopB := start(t, Config{Listen: everywhere()})
	serveEcho(b)
	for _, transport := range all {
		c, err := a.Dial(t.Context(), b.ID(), Route{Transport: transport, Addrs: at(t, b, transport)})
		if err != nil {
			t.Fatal(err)
		}
		if err := echoOn(t.Context(), a, c, 1024); err != nil {
			t.Errorf("%s: %v", transport, err)
		}
	}
	stopA()
	stopB()
	overlaytest.NoneLeft(t, before)
}

func TestTransportOf(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{
		"/ip4/1.2.3.4/tcp/1":                      "tcp",
		"/ip4/1.2.3.4/udp/1/quic-v1":              "quic-v1",
		"/ip4/1.2.3.4/tcp/1/ws":                   "ws",
		"/dns4/a.example/tcp/1/wss":               "wss",
		"/ip4/1.2.3.4/tcp/1/tls/sni/a.example/ws": "wss",
		"/ip4/1.2.3.4/udp/1/quic-v1/webtransport": "webtransport",
		"/ip4/1.2.3.4/udp/1/webrtc-direct":        "webrtc-direct",
		"/ip4/1.2.3.4/tcp/1/p2p/12D3KooWJbJFaZ1dwpuu9tQY3ELCKCpWMJc1dSRVbcMwhiLiFq7q/p2p-circuit": Circuit,
		"/ip4/1.2.3.4/udp/1":               "",
		"/dns4/a.example/tcp/443/tls/http": "",
	} {
		if got := TransportOf(ma.StringCast(addr)); got != want {
			t.Errorf("TransportOf(%s) = %q, want %q", addr, got, want)
		}
	}
}

// Where only approved cryptography may run, a host comes up with what is left,
// and works.
func TestFIPS(t *testing.T) {
	t.Parallel()
	if os.Getenv("GODEBUG") != "fips140=only" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFIPS$", "-test.v")
		cmd.Env = append(os.Environ(), "GODEBUG=fips140=only")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "transports [quic-v1 tcp]") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	a, _ := start(t, Config{Listen: everywhere()})
	b, _ := start(t, Config{Listen: everywhere(), Log: zap.NewNop()})
	serveEcho(b)
	for _, transport := range []string{"quic-v1", "tcp"} {
		c, err := a.Dial(t.Context(), b.ID(), Route{Transport: transport, Addrs: at(t, b, transport)})
		if err != nil {
			t.Fatal(err)
		}
		if err := echoOn(t.Context(), a, c, 1024); err != nil {
			t.Errorf("%s: %v", transport, err)
		}
	}
	foreign := ma.StringCast("/ip4/127.0.0.1/udp/1/webrtc-direct/certhash/uEiAkH5a4DPGKUuOBjYw0CgwjvcJCJMD2K_1aluKR_tpevQ")
	if _, err := a.Dial(t.Context(), b.ID(), Route{Transport: "webrtc-direct", Addrs: []ma.Multiaddr{foreign}}); err == nil {
		t.Error("webrtc is dialled")
	}
	t.Logf("transports %v", a.Transports(b.ID()))
}
