package topic

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/x/simlibp2p"
	"github.com/marcopolo/simnet"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"openmesh/overlay"
	"openmesh/overlay/overlaytest"
	"openmesh/overlay/relay"
	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
)

// sim runs hosts of package overlay, with their relays, on a simulated network.
type sim struct {
	t    *testing.T
	net  *simnet.Simnet
	next int
}

func newSim(t *testing.T) *sim {
	s := &sim{t: t, net: &simnet.Simnet{LatencyFunc: simnet.StaticLatency(10 * time.Millisecond)}}
	s.net.Start()
	t.Cleanup(func() { s.net.Close() })
	return s
}

func (s *sim) host(a *protocoltest.Agent, cfg overlay.Config) *overlay.Host {
	s.t.Helper()
	s.next++
	link := simnet.LinkSettings{BitsPerSecond: 100 * simlibp2p.OneMbps}
	cfg.Key, cfg.Log = a.Host, zap.NewNop()
	cfg.Listen = []ma.Multiaddr{ma.StringCast(fmt.Sprintf("/ip4/%s/udp/8000/quic-v1", simnet.IntToPublicIPv4(s.next)))}
	cfg.Options = []libp2p.Option{
		simlibp2p.QUICSimnet(s.net, simnet.NodeBiDiLinkSettings{Downlink: link, Uplink: link}),
		libp2p.DisableIdentifyAddressDiscovery(),
		func(cfg *libp2p.Config) error { // judging others takes real sockets
			cfg.EnableAutoNATv2, cfg.AutoNATConfig.EnableService = false, false
			return nil
		},
	}
	h, err := overlay.New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	s.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			s.t.Error(err)
		}
	})
	return h
}

// agent is a node with a host of package overlay.
func (s *sim) agent(cfg overlay.Config) *node {
	a := protocoltest.NewAgent(s.t, realm, time.Now())
	return start(s.t, a, s.host(a, cfg), func(c *Config) { c.Relay = cfg.Relay != nil })
}

// circuits returns where h is reached through relays.
func circuits(h *overlay.Host) peer.AddrInfo {
	return peer.AddrInfo{ID: h.ID(), Addrs: slices.DeleteFunc(slices.Clone(h.Addrs()), func(a ma.Multiaddr) bool { return !overlay.IsCircuit(a) })}
}

// Agents that reach each other through a relay only, which takes no part in
// gossip, hear each other: circuits of our relays count as connections.
func TestRelayedOnly(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		s, fx := newSim(t), name(t, "finance/fx")
		r := s.host(protocoltest.NewAgent(t, realm, time.Now()), overlay.Config{
			Public: true, Relay: &relay.Config{Reservations: 8, Circuits: 8, CircuitsPerPeer: 4},
		})
		relays := func() []peer.AddrInfo { return []peer.AddrInfo{overlaytest.Info(r)} }
		a, b := s.agent(overlay.Config{Relays: relays}), s.agent(overlay.Config{Relays: relays})
		a.listen(fx)
		b.listen(fx)
		wait(5 * time.Second)
		to := circuits(b.host.(*overlay.Host))
		if len(to.Addrs) == 0 {
			t.Fatal("no reservation")
		}
		if err := a.host.Connect(t.Context(), to); err != nil {
			t.Fatal(err)
		}
		for _, c := range a.host.Network().ConnsToPeer(b.host.ID()) {
			if !overlay.IsCircuit(c.RemoteMultiaddr()) {
				t.Fatalf("a direct connection: %v", c.RemoteMultiaddr())
			}
		}
		if got := a.host.Network().Connectedness(b.host.ID()); got != network.Connected {
			t.Fatalf("over a circuit: %v", got)
		}
		wait(2 * time.Second)
		a.say(fx, "from a")
		b.say(fx, "from b")
		wait(time.Second)
		a.hears("a", "from b")
		b.hears("b", "from a")
	})
}

// When Run has ended, nothing of it is left, though the host lives on. With real
// sockets: in a bubble the hosts would have to go too.
func TestNothingLeft(t *testing.T) {
	fx := name(t, "finance/fx")
	agents := []*protocoltest.Agent{protocoltest.NewAgent(t, realm, time.Now()), protocoltest.NewAgent(t, realm, time.Now())}
	var nodes []*node
	for _, a := range agents {
		h, err := libp2p.New(libp2p.Identity(a.Host), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableMetrics())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { h.Close() })
		nodes = append(nodes, &node{Agent: a, host: h})
	}
	if err := nodes[0].host.Connect(t.Context(), overlaytest.Info(nodes[1].host)); err != nil {
		t.Fatal(err)
	}
	before := goleak.IgnoreCurrent()
	heard := make(chan string, 1)
	for i, n := range nodes {
		nodes[i] = start(t, n.Agent, n.host)
	}
	if _, err := nodes[1].Subscribe(fx, func(_ identity.AgentID, payload []byte) { heard <- string(payload) }); err != nil {
		t.Fatal(err)
	}
	nodes[0].say(fx, "hello")
	if got := <-heard; got != "hello" {
		t.Errorf("heard %q", got)
	}
	for _, n := range nodes {
		n.stop() // the other one still holds its ends of the streams
		for limit := time.After(time.Minute); streams(n.host) > 0; {
			select {
			case <-limit:
				t.Fatalf("%d streams are left", streams(n.host))
			case <-time.After(time.Millisecond): // libp2p lets go of them by and by
			}
		}
	}
	overlaytest.NoneLeft(t, before)
}

// streams counts the streams of gossip on a host.
func streams(h host.Host) (n int) {
	for _, c := range h.Network().Conns() {
		for _, s := range c.GetStreams() {
			if slices.Contains(gossipProtocols(), s.Protocol()) {
				n++
			}
		}
	}
	return n
}
