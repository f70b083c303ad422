//go:build linux

package netlab_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"openmesh/overlay/overlaytest/netlab"
)

// home is a router with a host behind it, and two public hosts.
type home struct {
	lab    *netlab.Lab
	router *netlab.Router
	host   *netlab.Host
	p, q   *netlab.Host
}

func newHome(t *testing.T, kind netlab.Kind) *home {
	t.Helper()
	lab := netlab.New(t)
	r := lab.Router("router", kind)
	return &home{lab: lab, router: r, host: r.Host("host"), p: lab.Host("p"), q: lab.Host("q")}
}

// socket is a UDP socket on a host.
type socket struct {
	*net.UDPConn
	addr netip.AddrPort
}

func open(t *testing.T, h *netlab.Host, port uint16) socket {
	t.Helper()
	at := netip.AddrPortFrom(h.Addr, port)
	var conn *net.UDPConn
	err := h.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		return err
	})
	check(t, err)
	t.Cleanup(func() { conn.Close() })
	return socket{conn, at}
}

func (s socket) send(t *testing.T, to netip.AddrPort) {
	t.Helper()
	_, err := s.WriteToUDPAddrPort([]byte("word"), to)
	check(t, err)
}

// receive returns who a packet came from; nobody if none comes.
func (s socket) receive(t *testing.T, wait time.Duration) netip.AddrPort {
	t.Helper()
	check(t, s.SetReadDeadline(time.Now().Add(wait)))
	_, from, err := s.ReadFromUDPAddrPort(make([]byte, 16))
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

var nobody = netip.AddrPortFrom(netip.Addr{}, 0)

// Each kind of router maps and filters as it says.
func TestRouter(t *testing.T) {
	t.Parallel()
	tests := []struct {
		kind          netlab.Kind
		udp           bool // gets out, and answers in
		sameMapping   bool // towards everybody
		tcp80, tcp443 string
	}{
		{netlab.Easy, true, true, "open", "open"},
		{netlab.Symmetric, true, false, "open", "open"},
		{netlab.NoUDP, false, false, "open", "open"},
		{netlab.Only443, false, false, "dead", "open"},
	}
	for _, test := range tests {
		t.Run(test.kind.String(), func(t *testing.T) {
			t.Parallel()
			n := newHome(t, test.kind)
			n.checkTCP(t, 80, test.tcp80)
			n.checkTCP(t, 443, test.tcp443)
			n.checkUDP(t, test.udp, test.sameMapping)
		})
	}
}

// checkTCP connects out, and tries to connect in.
func (n *home) checkTCP(t *testing.T, port uint16, want string) {
	t.Helper()
	echo(t, n.p.Listen(addr(n.p, port)))
	wait := soon
	if want == "dead" {
		wait = lost
	}
	if got := outcome(try(t, n.host, "tcp", addr(n.p, port), wait)); got != want {
		t.Errorf("TCP to port %d is %s, want %s", port, got, want)
	}
	echo(t, n.host.Listen(addr(n.host, port)))
	public := netip.AddrPortFrom(n.router.Addr, port).String()
	if got := outcome(try(t, n.p, "tcp", public, lost)); got != "dead" {
		t.Errorf("TCP from outside to port %d is %s, want it lost", port, got)
	}
}

// checkUDP has the host send from one port to p, p again and q.
func (n *home) checkUDP(t *testing.T, passes, sameMapping bool) {
	t.Helper()
	host, p, p2, q := open(t, n.host, 4000), open(t, n.p, 443), open(t, n.p, 2), open(t, n.q, 443)
	host.send(t, p.addr)
	if !passes {
		if got := p.receive(t, lost); got != nobody {
			t.Errorf("UDP of %s got out", got)
		}
		return
	}
	seen := p.receive(t, soon)
	if seen.Addr() != n.router.Addr {
		t.Fatalf("p sees %s, want the router's %s", seen, n.router.Addr)
	}
	for who, stranger := range map[string]socket{"another host": q, "another port of p": p2} {
		stranger.send(t, seen)
		if got := host.receive(t, lost); got != nobody {
			t.Errorf("%s got in", who)
		}
	}
	for _, to := range []socket{p2, q} {
		host.send(t, to.addr)
		got := to.receive(t, soon)
		if (got == seen) != sameMapping {
			t.Errorf("p sees %s, %s sees %s", seen, to.addr, got)
		}
		to.send(t, got)
		if back := host.receive(t, soon); back != to.addr {
			t.Errorf("an answer came from %s, want %s", back, to.addr)
		}
	}
}

// Hosts behind one router reach each other, others with the same private address
// are apart, and two routers translate twice.
func TestRouterLAN(t *testing.T) {
	t.Parallel()
	lab := netlab.New(t)
	p, one, two := lab.Host("p"), lab.Router("one", netlab.Easy), lab.Router("two", netlab.Easy)
	a, b, stranger := one.Host("a"), one.Host("b"), two.Host("a")
	inner := one.Router("inner", netlab.Easy)
	deep := inner.Host("deep")
	if a.Addr != stranger.Addr || deep.Addr == a.Addr {
		t.Errorf("the private addresses are %s, %s and, further inside, %s", a.Addr, stranger.Addr, deep.Addr)
	}
	echo(t, b.Listen(addr(b, 80)))
	check(t, try(t, a, "tcp", addr(b, 80), soon))
	check(t, try(t, deep, "tcp", addr(b, 80), soon)) // outwards
	if err := try(t, stranger, "tcp", addr(b, 80), lost); err == nil {
		t.Error("a host reached a private address of another LAN")
	}
	if err := try(t, a, "tcp", "8.8.8.8:80", lost); outcome(err) != "dead" {
		t.Errorf("what no network has is %v, want it lost without a word", err)
	}
	outside, within := open(t, p, 1), open(t, deep, 4000)
	within.send(t, outside.addr)
	if got := outside.receive(t, soon); got.Addr() != one.Addr {
		t.Errorf("from behind two routers p sees %s, want %s", got, one.Addr)
	} else {
		outside.send(t, got)
		if got := within.receive(t, soon); got != outside.addr {
			t.Errorf("the answer is from %s", got)
		}
	}
}

// A forwarded port is reached from outside, by UDP too where a router lets none
// out, and the host sees who it is. It stays so at another address.
func TestForward(t *testing.T) {
	t.Parallel()
	for _, kind := range netlab.Kinds() {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			n := newHome(t, kind)
			n.router.Forward("tcp", 80, n.host.Addr)
			n.router.Forward("udp", 81, n.host.Addr)
			echo(t, n.host.Listen(addr(n.host, 80)))
			host, p := open(t, n.host, 81), open(t, n.p, 5000)
			n.checkForwarded(t, host, p)
			n.router.Readdress()
			n.checkForwarded(t, host, p)
		})
	}
}

// checkForwarded reaches the host's ports TCP 80 and UDP 81.
func (n *home) checkForwarded(t *testing.T, host, p socket) {
	t.Helper()
	check(t, try(t, n.p, "tcp", netip.AddrPortFrom(n.router.Addr, 80).String(), soon))
	public := netip.AddrPortFrom(n.router.Addr, 81)
	p.send(t, public)
	if got := host.receive(t, soon); got != p.addr {
		t.Errorf("the host sees %s, want %s", got, p.addr)
	}
	host.send(t, p.addr)
	if got := p.receive(t, soon); got != public {
		t.Errorf("the answer is from %s, want %s", got, public)
	}
	p.send(t, netip.AddrPortFrom(n.router.Addr, 82))
	if got := host.receive(t, lost); got != nobody {
		t.Error("another port is forwarded")
	}
}

// A router that gets another address, or starts anew, lets nothing in until the
// host has sent again. Its namesake in another lab does not notice.
func TestRouterMoves(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		change func(*netlab.Router)
		moves  bool
	}{
		{"new address", (*netlab.Router).Readdress, true},
		{"state lost", (*netlab.Router).Flush, false},
	}
	for _, test := range tests {
		for _, link := range []netlab.Link{{}, {Delay: time.Millisecond}} {
			t.Run(test.name+" "+link.Delay.String(), func(t *testing.T) {
				t.Parallel()
				var hosts, outside [2]socket
				var seen [2]netip.AddrPort
				var routers [2]*netlab.Router
				for i := range 2 {
					lab := netlab.New(t)
					if link.Delay > 0 {
						lab.Cloud(link)
					}
					routers[i] = lab.Router("router", netlab.Easy)
					hosts[i], outside[i] = open(t, routers[i].Host("host"), 4000), open(t, lab.Host("p"), 1)
					hosts[i].send(t, outside[i].addr)
					seen[i] = outside[i].receive(t, soon)
				}
				test.change(routers[0])
				if moved := routers[0].Addr != seen[0].Addr(); moved != test.moves {
					t.Fatalf("the router had %s and has %s", seen[0].Addr(), routers[0].Addr)
				}
				for i, wait := range []time.Duration{lost, soon} {
					outside[i].send(t, seen[i])
					outside[i].send(t, netip.AddrPortFrom(routers[i].Addr, seen[i].Port()))
					if got := hosts[i].receive(t, wait); (got == nobody) != (i == 0) {
						t.Errorf("in lab %d the host got something from %s", i, got)
					}
				}
				hosts[0].send(t, outside[0].addr)
				if got := outside[0].receive(t, soon); got.Addr() != routers[0].Addr {
					t.Errorf("p sees %s, want %s", got, routers[0].Addr)
				}
			})
		}
	}
}

// A cable that is pulled says nothing to either end, and flows go on once it is
// back.
func TestLink(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"host", "router"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			n := newHome(t, netlab.Easy)
			link := n.host.Link
			if what == "router" {
				link = n.router.Link
			}
			echoPackets(t, n.p, addr(n.p, 1))
			flow := connect(t, n.host, "udp", addr(n.p, 1))
			link(false)
			if got := outcome(exchange(flow, lost)); got != "dead" {
				t.Errorf("with the cable pulled the flow is %s", got)
			}
			link(true)
			check(t, exchange(flow, soon))
		})
	}
}
