package nat

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// seen is an observation: the socket, as the peer saw it, the peer.
func seen(network, local, observed, observer string) Observation {
	return Observation{
		Network: network, Local: netip.MustParseAddrPort(local),
		Observed: netip.MustParseAddrPort(observed), Observer: netip.MustParseAddrPort(observer),
	}
}

func TestView(t *testing.T) {
	t.Parallel()
	const r1, r2, r3 = "5.0.0.1:4747", "5.0.0.2:4747", "5.0.0.3:4747"
	for _, tc := range []struct {
		name  string
		seen  []Observation
		own   string
		want  Mapping
		outer []string
	}{
		{"nobody", nil, "10.0.0.2", Unknown, nil},
		{"one peer", []Observation{seen("udp", "0.0.0.0:4747", "9.9.9.9:4747", r1)}, "10.0.0.2", Unknown, []string{"9.9.9.9:4747"}},
		{"same port for all", []Observation{
			seen("udp", "0.0.0.0:4747", "9.9.9.9:1000", r1), seen("udp", "0.0.0.0:4747", "9.9.9.9:1000", r2),
		}, "10.0.0.2", EndpointIndependent, []string{"9.9.9.9:1000"}},
		{"another for each", []Observation{
			seen("udp", "0.0.0.0:4747", "9.9.9.9:1000", r1), seen("udp", "0.0.0.0:4747", "9.9.9.9:1001", r2),
		}, "10.0.0.2", EndpointDependent, []string{"9.9.9.9:1000", "9.9.9.9:1001"}},
		{"two sockets, each seen once", []Observation{
			seen("tcp", "10.0.0.2:4747", "9.9.9.9:1000", r1), seen("tcp", "10.0.0.2:443", "9.9.9.9:1001", r2),
			seen("udp", "10.0.0.2:443", "9.9.9.9:1002", r2),
		}, "10.0.0.2", Unknown, nil},
		{"a liar among three", []Observation{
			seen("udp", "0.0.0.0:4747", "9.9.9.9:1000", r1), seen("udp", "0.0.0.0:4747", "9.9.9.9:1000", r2),
			seen("udp", "0.0.0.0:4747", "9.9.9.9:666", r3),
		}, "10.0.0.2", EndpointIndependent, []string{"9.9.9.9:1000", "9.9.9.9:666"}},
		{"a liar about the IP", []Observation{
			seen("udp", "0.0.0.0:4747", "9.9.9.9:1000", r1), seen("udp", "0.0.0.0:4747", "9.9.9.9:1000", r2),
			seen("udp", "0.0.0.0:4747", "6.6.6.6:1000", r3),
		}, "10.0.0.2", EndpointIndependent, []string{"9.9.9.9:1000"}},
		{"the host's own address", []Observation{seen("udp", "0.0.0.0:4747", "9.9.9.9:4747", r1)}, "9.9.9.9", NoNAT, []string{"9.9.9.9:4747"}},
		{"a neighbour sees the private one", []Observation{seen("udp", "0.0.0.0:4747", "10.0.0.2:4747", "10.0.0.3:4747")}, "10.0.0.2", Unknown, nil},
		{"IPv4 before IPv6", []Observation{
			seen("udp", "[::]:4747", "[2600::1]:4747", "[2600::2]:1"), seen("udp", "0.0.0.0:4747", "[::ffff:9.9.9.9]:4747", r1),
		}, "2600::1", Unknown, []string{"9.9.9.9:4747"}},
	} {
		b := NewBook()
		network := "udp"
		for i, o := range tc.seen {
			if i == 0 {
				network = o.Network
			}
			b.Add(fmt.Sprint(i), o)
		}
		v := b.View(network, []netip.Addr{netip.MustParseAddr(tc.own)})
		var outer []string
		for _, o := range v.Outer {
			outer = append(outer, o.Addr.String())
		}
		if v.Mapping != tc.want || tc.outer != nil && !cmp.Equal(outer, tc.outer) {
			t.Errorf("%s: %s %v, want %s %v", tc.name, v.Mapping, outer, tc.want, tc.outer)
		}
	}
}

// After the router got another address the connections that survive still tell the
// old one; one word of a trusted peer puts it right, one of a stranger does not.
func TestViewAfterMove(t *testing.T) {
	t.Parallel()
	for _, trusted := range []bool{false, true} {
		b := NewBook()
		b.Add("a", seen("udp", "0.0.0.0:4747", "9.9.9.9:4747", "5.0.0.1:1"))
		b.Add("b", seen("udp", "0.0.0.0:4747", "9.9.9.9:4747", "5.0.0.2:1"))
		o := seen("tcp", "10.0.0.2:4747", "9.9.9.7:4747", "5.0.0.1:1")
		o.Trusted = trusted
		if !b.Add("c", o) {
			t.Error("a change is no news")
		}
		want := map[bool]string{false: "9.9.9.9:4747", true: "9.9.9.7:4747"}[trusted]
		if v := b.View("udp", nil); v.Mapping != EndpointIndependent || v.Outer[0].Addr.String() != want {
			t.Errorf("trusted %v: %+v, want %s", trusted, v, want)
		}
	}
}

func TestBookNewsAndBounds(t *testing.T) {
	t.Parallel()
	b := NewBook()
	first := seen("udp", "0.0.0.0:4747", "9.9.9.9:4747", "5.0.0.1:1")
	if !b.Add("a", first) || b.Add("b", first) || b.Add("a", first) {
		t.Error("the first observation of an address is news, and no other")
	}
	if other := seen("udp", "0.0.0.0:443", "9.9.9.9:443", "5.0.0.1:1"); !b.Add("socket", other) || b.Add("socket", other) {
		t.Error("where another socket is seen is news, once")
	}
	b.Remove("a")
	b.Remove("b")
	if !b.Add("c", first) {
		t.Error("it is no news after all was forgotten")
	}
	for _, bad := range []string{"127.0.0.1:1", "0.0.0.0:1"} {
		if b.Add("d", seen("udp", "0.0.0.0:4747", bad, "5.0.0.1:1")) {
			t.Errorf("%s is taken", bad)
		}
	}
	if b.Add("e", Observation{Network: "udp"}) {
		t.Error("nothing is taken")
	}
	for i := range 2 * maxObservations {
		b.Add(fmt.Sprint(i), first)
	}
	if len(b.all) != maxObservations {
		t.Errorf("%d observations are kept", len(b.all))
	}
}
