package netlab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Kind is what a router does to those behind it. No kind lets anything in that
// nobody inside has asked for, and none says so: such packets are dropped.
type Kind int

const (
	// Easy maps a source to the same public port whatever the destination, mostly
	// the source's own, and lets in what comes from an address and port that the
	// source has sent to: endpoint-independent mapping, address- and port-dependent
	// filtering (RFC 4787), as most homes have it.
	Easy Kind = iota
	// Symmetric maps to another port, a random one, for each destination.
	Symmetric
	// NoUDP is Easy without UDP.
	NoUDP
	// Only443 is Easy for TCP to port 443 of others and nothing else.
	Only443
)

// Kinds returns all kinds.
func Kinds() []Kind { return []Kind{Easy, Symmetric, NoUDP, Only443} }

// String is the kind's name in tables.
func (k Kind) String() string {
	return [...]string{"easy", "symmetric", "noUDP", "443"}[k]
}

// Router is a namespace between the network, on its interface wan, and a LAN of
// private addresses, on its interface lan. It translates addresses (NAT).
//
// Every router has the LAN 192.168.1.0/24, as most homes do, so that a private
// address means somebody else, or oneself, in the LAN of another; behind a
// router that is behind another it is 192.168.2.0/24, and so on.
//
// A host is not reached at the public address of its own router (no hairpin).
type Router struct {
	*Namespace
	Kind Kind
	Addr netip.Addr // on wan: public, unless the router is behind another

	lab      *Lab
	outer    *Router // that it is behind; nil for none
	depth    int     // of routers; the outermost is 1
	hosts    int     // on the LAN
	forwards []forward
	wan      *Firewall
}

// forward is a port that the router passes on to a host.
type forward struct {
	proto string
	port  uint16
	to    netip.Addr
}

// Router adds a router with a public address.
func (l *Lab) Router(name string, kind Kind) *Router {
	l.t.Helper()
	r := l.router(name, kind, l.nextAddr(), nil)
	l.Plug(r.Namespace, "wan", netip.PrefixFrom(r.Addr, publicBits))
	r.start()
	return r
}

// Router adds a router on the LAN, behind which addresses are translated once
// more.
func (r *Router) Router(name string, kind Kind) *Router {
	r.t.Helper()
	inner := r.lab.router(name, kind, r.nextAddr(), r)
	r.plug(inner.Namespace, "wan", inner.Addr)
	inner.start()
	return inner
}

func (l *Lab) router(name string, kind Kind, addr netip.Addr, outer *Router) *Router {
	ns := l.Namespace(name)
	r := &Router{Namespace: ns, Kind: kind, Addr: addr, lab: l, outer: outer, depth: 1, wan: &Firewall{ns: ns, device: "wan"}}
	if outer != nil {
		r.depth = outer.depth + 1
	}
	return r
}

// start makes the LAN and begins to forward. What is for no network that the
// router knows is lost without a word, as it is somewhere on the way.
func (r *Router) start() {
	r.t.Helper()
	r.IP("link add name lan type bridge", "addr add "+r.lanAddr(1).String()+"/24 dev lan", "link set lan up")
	if r.outer == nil {
		r.IP("route add blackhole default")
	}
	r.apply()
	err := r.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
	if err != nil {
		r.t.Fatalf("forward packets in %s: %v", r.Name, err)
	}
}

// Host adds a host with a private address: the first has 192.168.1.2.
func (r *Router) Host(name string) *Host {
	r.t.Helper()
	ns := r.lab.Namespace(name)
	h := &Host{Namespace: ns, Addr: r.nextAddr(), Router: r, firewall: &Firewall{ns: ns, device: "eth0"}}
	r.plug(ns, "eth0", h.Addr)
	return h
}

// plug gives a namespace an interface on the LAN, with the router as its way out.
func (r *Router) plug(ns *Namespace, device string, addr netip.Addr) {
	r.t.Helper()
	port := fmt.Sprintf("port%d", r.hosts)
	r.lab.Link(ns, device, r.Namespace, port)
	r.IP("link set " + port + " master lan")
	ns.IP("addr add "+addr.String()+"/24 dev "+device, "route add default via "+r.lanAddr(1).String())
}

func (r *Router) nextAddr() netip.Addr {
	r.hosts++
	return r.lanAddr(byte(r.hosts + 1))
}

func (r *Router) lanAddr(host byte) netip.Addr {
	return netip.AddrFrom4([4]byte{192, 168, byte(r.depth), host})
}

// Forward passes what comes to a port of the router on to the same port of a
// host or router on its LAN. proto is "tcp" or "udp".
func (r *Router) Forward(proto string, port uint16, to netip.Addr) {
	r.t.Helper()
	r.forwards = append(r.forwards, forward{proto, port, to})
	r.apply()
}

// Readdress gives the router another public address and has it forget its
// connections, both at once, as happens to homes at night. Whoever uses the old
// address is not told. The new one is in Addr.
func (r *Router) Readdress() {
	r.t.Helper()
	if r.outer != nil {
		r.t.Fatalf("%s has no public address to change: it is behind %s", r.Name, r.outer.Name)
	}
	r.Link(false) // nothing gets by meanwhile
	old := r.Addr
	r.Addr = r.lab.nextAddr()
	r.IP("addr del "+prefix(old)+" dev wan", "addr add "+prefix(r.Addr)+" dev wan")
	if r.lab.cloud != nil {
		r.lab.cloud.Move(old, r.Addr)
	}
	r.Flush()
	r.Link(true)
}

func prefix(public netip.Addr) string { return netip.PrefixFrom(public, publicBits).String() }

// Link cuts the router's line (false) or mends it (true). Nobody is told: what is
// sent is lost.
func (r *Router) Link(up bool) {
	r.t.Helper()
	r.wan.cut(!up)
}

// Flush has the router forget its connections, as when it is started anew. Like
// any Linux it takes up TCP in mid-flow when the inside goes on sending.
func (r *Router) Flush() {
	r.t.Helper()
	if err := r.Do(flush); err != nil {
		r.t.Fatalf("drop the state of %s: %v", r.Name, err)
	}
}

// flush empties the connection tracking table of the thread's namespace, as
// conntrack -F does: ctnetlink's "delete" that names nothing, linux/netfilter/
// nfnetlink_conntrack.h.
func flush() (err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	const deleteConntrack = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2
	const size = unix.NLMSG_HDRLEN + 4
	request := binary.NativeEndian.AppendUint32(nil, size)
	request = binary.NativeEndian.AppendUint16(request, deleteConntrack)
	request = binary.NativeEndian.AppendUint16(request, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	request = append(request, make([]byte, 8)...)                    // sequence number, sender
	request = append(request, unix.AF_INET, unix.NFNETLINK_V0, 0, 0) // struct nfgenmsg
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("ask for it: %w", err)
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil || n < size {
		return fmt.Errorf("read the answer of %d bytes: %w", n, err)
	}
	if code := int32(binary.NativeEndian.Uint32(answer[unix.NLMSG_HDRLEN:])); code != 0 {
		return fmt.Errorf("flush connection tracking: %w", unix.Errno(-code))
	}
	return nil
}

// apply replaces the router's rules in one step. They let pass what belongs to
// something that passed before, and what stays on the LAN: some kernels ask IP's
// rules about what a bridge carries.
func (r *Router) apply() {
	r.t.Helper()
	masquerade := "masquerade"
	if r.Kind == Symmetric {
		masquerade = "masquerade fully-random"
	}
	out := map[Kind]string{NoUDP: "meta l4proto != udp", Only443: "tcp dport 443"}[r.Kind]
	var forwards strings.Builder
	for _, f := range r.forwards {
		fmt.Fprintf(&forwards, "iifname wan %s dport %d dnat to %s\n", f.proto, f.port, f.to)
	}
	r.run(fmt.Sprintf(`table ip router
delete table ip router
table ip router {
	chain prerouting { type nat hook prerouting priority -100
		%s
	}
	chain postrouting { type nat hook postrouting priority 100
		oifname wan %s
	}
	chain input { type filter hook input priority 0
		ct state established,related accept
		iifname wan drop
	}
	chain forward { type filter hook forward priority 0; policy drop
		ct state established,related accept
		ct status dnat accept
		iifname lan oifname lan accept
		iifname lan oifname wan %s accept
	}
}
`, forwards.String(), masquerade, out), "nft", "-f", "-")
}
