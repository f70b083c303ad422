package reach

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-reuseport"
	ma "github.com/multiformats/go-multiaddr"
)

func TestLocals(t *testing.T) {
	t.Parallel()
	const all = "/ip4/0.0.0.0/tcp/4747 /ip4/0.0.0.0/tcp/443 /ip4/0.0.0.0/tcp/4748/ws /ip4/0.0.0.0/udp/9/quic-v1 /ip6/::/tcp/80"
	for _, tc := range []struct{ name, listening, to, want string }{
		{"the port that is dialled first", all, "9.9.9.9:4747", "[0.0.0.0:4747 0.0.0.0:443]"},
		{"the lowest", all, "9.9.9.9:1", "[0.0.0.0:443 0.0.0.0:4747]"},
		{"IPv6", all, "[2600::1]:1", "[[::]:80]"},
		{"the address that leads there", "/ip4/127.0.0.1/tcp/1 /ip4/127.0.0.2/tcp/2", "127.0.0.1:9", "[127.0.0.1:1]"},
		{"a port once", "/ip4/127.0.0.1/tcp/1 /ip4/0.0.0.0/tcp/1", "127.0.0.1:9", "[127.0.0.1:1]"},
		{"none", "", "9.9.9.9:1", "[]"},
	} {
		d := Dialer{Listening: func() []ma.Multiaddr { return parse(tc.listening) }}
		if got := fmt.Sprint(d.locals(netip.MustParseAddrPort(tc.to))); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

// Whoever keeps ports begins with the pair of the lowest; both sides of a pair have
// their turns close together.
func TestTurns(t *testing.T) {
	t.Parallel()
	locals := []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:4747"), netip.MustParseAddrPort("0.0.0.0:443")}
	for _, tc := range []struct {
		from, to uint16
		turn     time.Duration
	}{{443, 443, 0}, {4747, 4747, 1}, {443, 4747, 2}, {4747, 443, 3}, {443, 31337, 0}, {4747, 31337, 1}} {
		if got := delay(locals, tc.from, tc.to); got != tc.turn*otherAfter {
			t.Errorf("%d to %d: after %v, want %d turns", tc.from, tc.to, got, tc.turn)
		}
	}
}

// listen returns a listener on loopback whose port may be dialled from, and that
// port.
func listen(t *testing.T) (net.Listener, uint16) {
	t.Helper()
	l, err := reuseport.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, uint16(l.Addr().(*net.TCPAddr).Port)
}

// dialers returns one that listens on two ports, the lower one first.
func dialers(t *testing.T) (d Dialer, ports []uint16) {
	t.Helper()
	var addrs []ma.Multiaddr
	for range 2 {
		_, port := listen(t)
		ports = append(ports, port)
		addrs = append(addrs, ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port)))
	}
	slices.Sort(ports)
	holes := func() []ma.Multiaddr { return parse("/ip4/9.9.9.9/udp/4747/quic-v1") }
	return Dialer{Listening: func() []ma.Multiaddr { return addrs }, Holes: holes}, ports
}

// dial connects and returns the port that the connection, which stays, left from.
func dial(t *testing.T, ctx context.Context, d Dialer, to net.Listener) uint16 {
	t.Helper()
	conn, err := d.DialContext(ctx, "tcp4", to.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	})
	return uint16(conn.LocalAddr().(*net.TCPAddr).Port)
}

// Connections leave from the ports listened on, one after the other as they are used
// up.
func TestDialFromListener(t *testing.T) {
	t.Parallel()
	d, ports := dialers(t)
	to, _ := listen(t)
	for i, want := range ports {
		if got := dial(t, t.Context(), d, to); got != want {
			t.Errorf("connection %d leaves from port %d of %v", i, got, ports)
		}
	}
	if got := dial(t, t.Context(), d, to); slices.Contains(ports, got) {
		t.Errorf("one more leaves from port %d, which is in use", got)
	}
}

func TestDialFrom(t *testing.T) {
	t.Parallel()
	d, ports := dialers(t)
	to, _ := listen(t)
	ctx := From(t.Context(), ports[1])
	if got := dial(t, ctx, d, to); got != ports[1] {
		t.Errorf("leaves from port %d, want %d", got, ports[1])
	}
	for name, ctx := range map[string]context.Context{"in use": ctx, "not listened on": From(t.Context(), 1)} {
		if conn, err := d.DialContext(ctx, "tcp4", to.Addr().String()); err == nil {
			conn.Close()
			t.Errorf("dialled from a port %s", name)
		}
	}
}

// Where a hole is punched the other ports have their turn too.
func TestPunch(t *testing.T) {
	t.Parallel()
	d, ports := dialers(t)
	to, _ := listen(t)
	ctx := network.WithSimultaneousConnect(t.Context(), true, "test")
	for i, want := range ports {
		began := time.Now()
		if got := dial(t, ctx, d, to); got != want {
			t.Errorf("connection %d leaves from port %d of %v", i, got, ports)
		}
		if took := time.Since(began); took < quicFirst+time.Duration(i)*otherAfter {
			t.Errorf("port %d was tried after %v", i, took)
		}
	}
	if conn, err := d.DialContext(ctx, "tcp4", to.Addr().String()); err == nil {
		conn.Close()
		t.Error("a hole was punched from a port that nobody knows")
	}
}

// A socket may connect to itself, which is nobody.
func TestDialSelf(t *testing.T) {
	t.Parallel()
	l, port := listen(t)
	l.Close()
	d := Dialer{Listening: func() []ma.Multiaddr {
		return []ma.Multiaddr{ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port))}
	}}
	if conn, err := d.DialContext(t.Context(), "tcp4", l.Addr().String()); err == nil {
		conn.Close()
		t.Error("the host reached itself")
	}
}
