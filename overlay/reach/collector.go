// Package reach collects what tells where a host stands in the network, and says
// which of its addresses lead to it.
package reach

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"openmesh/overlay/circuit"
	"openmesh/overlay/nat"
)

// Collector collects the evidence of where a host stands. It is safe for
// concurrent use; before Attach nothing is known.
type Collector struct {
	forced bool // public
	book   *nat.Book
	local  atomic.Pointer[local]

	mu       sync.Mutex
	dialBack nat.Reachability // AutoNAT v1
	good     []ma.Multiaddr   // AutoNAT v2: confirmed,
	bad      []ma.Multiaddr   // and not reached
	since    time.Time        // when a peer first said where it sees this host
	blocked  map[string]bool  // by network
}

// local is what the host knows of its own addresses.
type local struct {
	host  host.Host
	swarm *swarm.Swarm
}

// New returns a collector that knows nothing; forced says that the host is public.
func New(forced bool) *Collector {
	return &Collector{forced: forced, book: nat.NewBook(), dialBack: nat.Unsure, blocked: make(map[string]bool)}
}

// Attach gives the host, which does not need to run yet.
func (r *Collector) Attach(h host.Host, s *swarm.Swarm) { r.local.Store(&local{h, s}) }

// Standing weighs what is known.
func (r *Collector) Standing(relays int, circuits bool) nat.Standing {
	own := r.Own()
	tcp, udp := r.Ports()
	r.mu.Lock()
	e := nat.Evidence{Forced: r.forced, DialBack: r.dialBack, Relays: relays, Circuits: circuits}
	if !r.since.IsZero() {
		e.Waited = time.Since(r.since)
	}
	e.TCP = nat.TransportEvidence{Ports: tcp, Reachable: of("tcp", r.good), Refuted: of("tcp", r.bad), Blocked: r.blocked["tcp"]}
	e.UDP = nat.TransportEvidence{Ports: udp, Reachable: of("udp", r.good), Refuted: of("udp", r.bad), Blocked: r.blocked["udp"]}
	r.mu.Unlock()
	e.TCP.Seen, e.UDP.Seen = r.book.View("tcp", own), r.book.View("udp", own)
	return nat.Judge(e)
}

// of returns the addresses of one network.
func of(name string, addrs []ma.Multiaddr) []string {
	var out []string
	for _, a := range addrs {
		if networkOf(a) == name {
			out = append(out, a.String())
		}
	}
	return out
}

// networkOf returns "tcp" or "udp"; "" of other addresses, and of circuits.
func networkOf(a ma.Multiaddr) string {
	if circuit.Is(a) {
		return ""
	}
	for _, part := range a {
		switch part.Protocol().Code {
		case ma.P_TCP:
			return "tcp"
		case ma.P_UDP:
			return "udp"
		}
	}
	return ""
}

// Own returns the IPs of the interfaces that the host listens on.
func (r *Collector) Own() []netip.Addr {
	l := r.local.Load()
	if l == nil {
		return nil
	}
	addrs, err := l.swarm.InterfaceListenAddresses()
	if err != nil {
		return nil
	}
	var ips []netip.Addr
	for _, a := range addrs {
		if ip, err := manet.ToIP(a); err == nil {
			if ip, ok := netip.AddrFromSlice(ip); ok {
				ips = append(ips, ip.Unmap())
			}
		}
	}
	slices.SortFunc(ips, netip.Addr.Compare)
	return slices.Compact(ips)
}

// Ports returns what the host listens on.
func (r *Collector) Ports() (tcp, udp []uint16) {
	for _, a := range r.Listening() {
		port := addrPort(a).Port()
		switch networkOf(a) {
		case "tcp":
			tcp = append(tcp, port)
		case "udp":
			udp = append(udp, port)
		}
	}
	slices.Sort(tcp)
	slices.Sort(udp)
	return slices.Compact(tcp), slices.Compact(udp)
}

// Punchable returns the ports of TCP itself to which holes may lead: those listened
// on for more than this machine.
func (r *Collector) Punchable() []uint16 {
	var ports []uint16
	for _, a := range r.Listening() {
		if at := addrPort(a); isTCP(a) && !at.Addr().IsLoopback() {
			ports = append(ports, at.Port())
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// Listening returns what the host listens on.
func (r *Collector) Listening() []ma.Multiaddr {
	l := r.local.Load()
	if l == nil {
		return nil
	}
	return l.swarm.ListenAddresses()
}

// addrPort returns the IP and port that an address begins with; the zero value if it
// does not begin so.
func addrPort(a ma.Multiaddr) netip.AddrPort {
	if len(a) > 0 && a[0].Protocol().Code == ma.P_IP6ZONE {
		a = a[1:]
	}
	if len(a) < 2 {
		return netip.AddrPort{}
	}
	ip, ok := netip.AddrFromSlice(a[0].RawValue())
	port := a[1].RawValue()
	if code := a[1].Protocol().Code; !ok || code != ma.P_TCP && code != ma.P_UDP || len(port) != 2 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ip.Unmap(), binary.BigEndian.Uint16(port))
}

// Port returns the TCP or UDP port that an address begins with; 0 if there is none.
func Port(a ma.Multiaddr) uint16 { return addrPort(a).Port() }

// Note records where the peer of connection c says it sees this host, and reports
// whether that was news. Only the sockets that others may be told of matter. trusted
// says that this host chose the peer to rely on.
func (r *Collector) Note(c network.Conn, seen ma.Multiaddr, trusted bool) (news bool) {
	mine, theirs := c.LocalMultiaddr(), c.RemoteMultiaddr()
	name := networkOf(mine)
	if c.IsClosed() || name == "" || name != networkOf(seen) || circuit.Is(theirs) {
		return false
	}
	tcp, udp := r.Ports()
	at := addrPort(mine)
	if !slices.Contains(map[string][]uint16{"tcp": tcp, "udp": udp}[name], at.Port()) {
		return false
	}
	news = r.book.Add(c.ID(), nat.Observation{
		Network: name, Local: at, Observed: addrPort(seen), Observer: addrPort(theirs), Trusted: trusted,
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	if news && r.since.IsZero() {
		r.since = time.Now()
	}
	return news
}

// Forget drops what was observed on a connection that has ended.
func (r *Collector) Forget(c network.Conn) { r.book.Remove(c.ID()) }

// DialledBack takes the verdict of AutoNAT v1.
func (r *Collector) DialledBack(verdict network.Reachability) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch verdict {
	case network.ReachabilityPublic:
		r.dialBack = nat.Public
	case network.ReachabilityPrivate:
		r.dialBack = nat.Private
	default:
		r.dialBack = nat.Unsure
	}
}

// Confirmed takes what AutoNAT v2 found.
func (r *Collector) Confirmed(ev event.EvtHostReachableAddrsChanged) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.good, r.bad = ev.Reachable, ev.Unreachable
}

// Block records whether dials of a network ("tcp" or "udp") get out.
func (r *Collector) Block(name string, blocked bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blocked[name] = blocked
}
