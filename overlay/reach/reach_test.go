package reach

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"

	"openmesh/overlay/nat"
)

// collector returns one of a host that listens on loopback, and its TCP and UDP
// port.
func collector(t *testing.T) (r *Collector, tcp, udp uint16) {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	r = New(false)
	r.Attach(h, h.Network().(*swarm.Swarm))
	tcps, udps := r.Ports()
	if len(tcps) != 1 || len(udps) != 1 {
		t.Fatalf("ports %v, %v", tcps, udps)
	}
	return r, tcps[0], udps[0]
}

func parse(text string) (as []ma.Multiaddr) {
	for _, a := range strings.Fields(text) {
		as = append(as, ma.StringCast(a))
	}
	return as
}

// Public addresses are advertised if they lead to the host, private ones always.
func TestLeadHere(t *testing.T) {
	t.Parallel()
	const private, public, other = "/ip4/192.168.1.2/tcp/4747", "/ip4/9.9.9.9/tcp/4747", "/ip4/9.9.9.9/udp/4747/quic-v1"
	for _, tc := range []struct {
		name    string
		verdict network.Reachability
		good    string
		want    string
	}{
		{"nothing known: observed by others, not an interface's", network.ReachabilityUnknown, "", private},
		{"private", network.ReachabilityPrivate, "", private},
		{"one port forwarded", network.ReachabilityPrivate, public, private + " " + public + " " + other}, // public then: v2 withdraws what it refutes
		{"public", network.ReachabilityPublic, public, private + " " + public + " " + other},
	} {
		r, _, _ := collector(t)
		r.DialledBack(tc.verdict)
		r.Confirmed(event.EvtHostReachableAddrsChanged{Reachable: parse(tc.good)})
		if got := r.LeadHere(parse(private + " " + public + " " + other)); !slices.EqualFunc(got, parse(tc.want), ma.Multiaddr.Equal) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// A host that peers reached, who did not tell where, guesses: its outer IP, its own
// ports.
func TestForwardedIsGuessed(t *testing.T) {
	t.Parallel()
	r, tcp, _ := collector(t)
	r.book.Add("a", nat.Observation{
		Network: "tcp", Local: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), tcp),
		Observed: netip.MustParseAddrPort("9.9.9.9:31337"), Observer: netip.MustParseAddrPort("5.0.0.1:1"),
	})
	want := ma.StringCast(fmt.Sprintf("/ip4/9.9.9.9/tcp/%d", tcp))
	if got := r.LeadHere(nil); len(got) != 0 {
		t.Errorf("before: %v", got)
	}
	if got := r.Claims(); len(got) != 1 || !got[0].Equal(want) {
		t.Errorf("asked to dial %v, want %v", got, want)
	}
	r.DialledBack(network.ReachabilityPublic)
	if got := r.LeadHere(nil); len(got) != 1 || !got[0].Equal(want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// Holes lead to where peers see the sockets, unless each sees another port.
func TestHoles(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		udp     [2]string // as two peers see it
		want    int
		because string
	}{
		{"easy", [2]string{"9.9.9.9:1000", "9.9.9.9:1000"}, 2, "UDP as seen, and TCP"},
		{"symmetric", [2]string{"9.9.9.9:1000", "9.9.9.9:1001"}, 0, "TCP, seen once, is not better"},
	} {
		r, tcp, udp := collector(t)
		at := netip.MustParseAddr("10.0.0.2")
		for i, seen := range tc.udp {
			r.book.Add(fmt.Sprint(i), nat.Observation{
				Network: "udp", Local: netip.AddrPortFrom(at, udp), Observed: netip.MustParseAddrPort(seen),
				Observer: netip.MustParseAddrPort(fmt.Sprintf("5.0.0.%d:1", i+1)),
			})
		}
		r.book.Add("tcp", nat.Observation{
			Network: "tcp", Local: netip.AddrPortFrom(at, tcp), Observed: netip.MustParseAddrPort("9.9.9.9:2000"),
			Observer: netip.MustParseAddrPort("5.0.0.1:1"),
		})
		if got := r.Holes(); len(got) != tc.want {
			t.Errorf("%s: %v (%s)", tc.name, got, tc.because)
		}
	}
}

func TestAddrPort(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{
		"/ip4/1.2.3.4/tcp/80":              "1.2.3.4:80",
		"/ip4/1.2.3.4/udp/4747/quic-v1":    "1.2.3.4:4747",
		"/ip6/::ffff:1.2.3.4/tcp/80/ws":    "1.2.3.4:80",
		"/ip6zone/eth0/ip6/fe80::1/tcp/80": "[fe80::1]:80",
		"/dns4/a.example/tcp/80":           "invalid AddrPort",
		"/p2p-circuit":                     "invalid AddrPort",
		"/ip4/1.2.3.4":                     "invalid AddrPort",
	} {
		if got := addrPort(ma.StringCast(addr)).String(); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}
