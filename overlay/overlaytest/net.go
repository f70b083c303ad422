package overlaytest

import (
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/x/simlibp2p"
	"github.com/marcopolo/simnet"
)

// never is how long packets of a host that is cut off take: longer than tests
// last.
const never = 1000 * time.Hour

// Net is a simulated network that hosts join one by one, not connected to each
// other. Its methods are called from the test's goroutine, inside [Run].
type Net struct {
	t    *testing.T
	net  *simnet.Simnet
	link simnet.NodeBiDiLinkSettings
	all  []host.Host

	mu  sync.Mutex
	cut map[string]bool // by IP
}

// NewNet returns a network on which a packet takes oneWay between any two hosts,
// each with 100 Mbit/s. It ends with the test, and its hosts with it.
func NewNet(t *testing.T, oneWay time.Duration) *Net {
	t.Helper()
	link := simnet.LinkSettings{BitsPerSecond: 100 * simlibp2p.OneMbps}
	n := &Net{t: t, link: simnet.NodeBiDiLinkSettings{Downlink: link, Uplink: link}, cut: make(map[string]bool)}
	n.net = &simnet.Simnet{LatencyFunc: func(p *simnet.Packet) time.Duration {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.cut[ip(p.From)] || n.cut[ip(p.To)] {
			return never
		}
		return oneWay
	}}
	n.net.Start()
	t.Cleanup(func() {
		for _, h := range n.all {
			h.Close()
		}
		n.net.Close()
	})
	return n
}

// Host adds a host with an address of its own, which speaks QUIC. opts come
// after, and so override, what makes a host cheap: no limits, no metrics, no
// relay.
func (n *Net) Host(opts ...libp2p.Option) host.Host {
	n.t.Helper()
	addr := fmt.Sprintf("/ip4/%s/udp/8000/quic-v1", simnet.IntToPublicIPv4(len(n.all)))
	h, err := libp2p.New(append([]libp2p.Option{
		libp2p.ListenAddrStrings(addr),
		simlibp2p.QUICSimnet(n.net, n.link),
		libp2p.DisableIdentifyAddressDiscovery(), // it stalls virtual time
		libp2p.ResourceManager(&network.NullResourceManager{}),
		libp2p.DisableMetrics(),
		libp2p.DisableRelay(),
	}, opts...)...)
	if err != nil {
		n.t.Fatal(err)
	}
	n.all = append(n.all, h)
	return h
}

// Cut loses all packets from and to h from now on, or no longer.
func (n *Net) Cut(h host.Host, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range h.Addrs() {
		if ip4, err := a.ValueForProtocol(4); err == nil {
			n.cut[ip4] = cut
		}
	}
}

// Info returns where h is.
func Info(h host.Host) peer.AddrInfo { return peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()} }

// RaceEnabled reports whether the race detector is on: tests that many hosts
// make slow use fewer then.
const RaceEnabled = raceEnabled

func ip(a net.Addr) string {
	host, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return host
}
