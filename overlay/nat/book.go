// Package nat finds out from what others see whether a host is behind a NAT, of
// which kind, and what would help.
//
//	socket 10.0.0.2:4747 ──NAT── seen by r1 as 5.5.1.1:4747 ┐ the same port for all:
//	                             seen by r2 as 5.5.1.1:4747 ┘ endpoint-independent
//	                             seen by r2 as 5.5.1.1:9313   another for each: endpoint-dependent
//
// The terms are those of RFC 4787. A NAT whose mapping is endpoint-independent lets
// holes be punched; one whose mapping depends on the endpoint is called symmetric.
// What peers say is not verified: a port counts when two of them agree on it.
package nat

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"sync"
)

// Observation is where a peer saw one of this host's sockets.
type Observation struct {
	Network  string         // "tcp" or "udp"
	Local    netip.AddrPort // the socket; its IP is unspecified if it is bound to none
	Observed netip.AddrPort // as the peer saw it
	Observer netip.AddrPort // the peer
	Trusted  bool           // the host relies on this peer anyway

	order uint64 // of its coming
}

// Mapping is how a NAT chooses the outer port of a socket.
type Mapping string

// The mappings.
const (
	Unknown             Mapping = "unknown"              // fewer than two observers
	NoNAT               Mapping = "none"                 // the socket's own address is seen
	EndpointIndependent Mapping = "endpoint-independent" // the same outer port towards all
	EndpointDependent   Mapping = "endpoint-dependent"   // another one towards each: symmetric
)

// View is what the observations of one network say.
type View struct {
	Mapping   Mapping
	Observers int     // addresses that saw this host
	Outer     []Outer // where it was seen, most observers first
}

// Outer is an address that observers saw, and the port of the socket behind it.
type Outer struct {
	Addr  netip.AddrPort
	Local uint16
}

// maxObservations bounds the book: what more peers say adds nothing.
const maxObservations = 256

// Book keeps one observation for each connection while it stands. It is safe for
// concurrent use.
type Book struct {
	mu    sync.Mutex
	all   map[string]Observation // by connection
	count uint64
}

// NewBook returns an empty book.
func NewBook() *Book { return &Book{all: make(map[string]Observation)} }

// Add records what the peer at the other end of connection conn observed. It
// reports whether the outer address is news: a first one, that of another network, or
// of another socket.
func (b *Book) Add(conn string, o Observation) (news bool) {
	o.Local, o.Observed, o.Observer = unmap(o.Local), unmap(o.Observed), unmap(o.Observer)
	ip := o.Observed.Addr()
	if !ip.IsValid() || !o.Observer.IsValid() || ip.IsLoopback() || ip.IsUnspecified() {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, known := b.all[conn]; !known && len(b.all) >= maxObservations {
		return false
	}
	news = true
	for _, other := range b.all {
		news = news && (other.Network != o.Network || other.Observed.Addr() != ip || other.Local.Port() != o.Local.Port())
	}
	b.count++
	o.order = b.count
	b.all[conn] = o
	return news
}

// Remove forgets what was observed on a connection, which has ended.
func (b *Book) Remove(conn string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.all, conn)
}

// View sums up the observations of a network ("tcp" or "udp"), given the host's
// own addresses. That a neighbour sees a private address of the host's says
// nothing. What was observed before the latest word of a trusted peer is taken to
// have moved to the IP that this one saw, and to have kept its port: connections that
// survive a change of the network still tell the old one. Of several outer addresses the one most observers saw counts:
// IPv4 before IPv6, where there are few NATs.
func (b *Book) View(network string, own []netip.Addr) View {
	b.mu.Lock()
	seen := slices.Collect(maps.Values(b.all))
	b.mu.Unlock()
	relocate(seen)
	seen = slices.DeleteFunc(seen, func(o Observation) bool {
		ip := o.Observed.Addr()
		return o.Network != network || ip.IsPrivate() && slices.Contains(own, ip)
	})
	ip, ok := mostSeen(seen)
	if !ok {
		return View{Mapping: Unknown}
	}
	observers := make(map[Outer]map[netip.AddrPort]bool)
	everybody := make(map[netip.AddrPort]bool)
	for _, o := range seen {
		if o.Observed.Addr() != ip {
			continue
		}
		outer := Outer{o.Observed, o.Local.Port()}
		if observers[outer] == nil {
			observers[outer] = make(map[netip.AddrPort]bool)
		}
		observers[outer][o.Observer], everybody[o.Observer] = true, true
	}
	outers := slices.SortedFunc(maps.Keys(observers), func(a, b Outer) int {
		return cmp.Or(cmp.Compare(len(observers[b]), len(observers[a])), a.Addr.Compare(b.Addr))
	})
	v := View{Mapping: Unknown, Observers: len(everybody), Outer: outers[:min(len(outers), maxOuter)]}
	switch {
	case slices.Contains(own, ip):
		v.Mapping = NoNAT
	case len(observers[outers[0]]) >= 2:
		v.Mapping = EndpointIndependent
	case differ(outers):
		v.Mapping = EndpointDependent
	}
	return v
}

const maxOuter = 3

// relocate changes observations that a later one of a trusted peer contradicts.
func relocate(seen []Observation) {
	for _, is4 := range []bool{true, false} {
		var last Observation
		for _, o := range seen {
			if o.Trusted && o.order > last.order && o.Observed.Addr().Is4() == is4 {
				last = o
			}
		}
		for i, o := range seen {
			if o.order < last.order && o.Observed.Addr().Is4() == is4 {
				seen[i].Observed = netip.AddrPortFrom(last.Observed.Addr(), o.Observed.Port())
			}
		}
	}
}

// differ reports whether one socket was seen at different ports.
func differ(outers []Outer) bool {
	ports := make(map[uint16]uint16)
	for _, o := range outers {
		if port, ok := ports[o.Local]; ok && port != o.Addr.Port() {
			return true
		}
		ports[o.Local] = o.Addr.Port()
	}
	return false
}

// mostSeen returns the outer IP that most connections saw.
func mostSeen(seen []Observation) (ip netip.Addr, ok bool) {
	votes := make(map[netip.Addr]int)
	for _, o := range seen {
		votes[o.Observed.Addr()]++
	}
	weight := func(a netip.Addr) int {
		if a.Is4() {
			return votes[a] + maxObservations
		}
		return votes[a]
	}
	for a := range votes {
		if !ok || weight(a) > weight(ip) || weight(a) == weight(ip) && a.Less(ip) {
			ip, ok = a, true
		}
	}
	return ip, ok
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
