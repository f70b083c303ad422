package reach

import (
	"fmt"
	"net/netip"
	"slices"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"openmesh/overlay/circuit"
	"openmesh/overlay/nat"
)

// LeadHere leaves out the public addresses that do not lead to this host: whoever
// dials one loses five seconds, and perhaps the hole that would have been punched.
// Private ones stay, for neighbours, and for meshes that have no others; they are
// dialled beside the rest and cost nobody time. If peers did reach this host but
// none told at which address, its outer IP with the ports it listens on is a good
// guess: they were asked to try that.
func (r *Collector) LeadHere(found []ma.Multiaddr) []ma.Multiaddr {
	s := r.Standing(0, true)
	r.mu.Lock()
	good := r.good
	r.mu.Unlock()
	if s.Reachability == nat.Public {
		if len(good) == 0 && !r.forced {
			return ma.Unique(slices.Concat(found, r.forwarded()))
		}
		return found
	}
	own := r.Own()
	return slices.DeleteFunc(slices.Clone(found), func(a ma.Multiaddr) bool {
		if circuit.Is(a) || !manet.IsPublicAddr(a) || slices.ContainsFunc(good, a.Equal) {
			return false
		}
		return s.Reachability == nat.Private || !slices.Contains(own, addrPort(a).Addr())
	})
}

// forwarded are this host's addresses if its router forwards the ports that it
// listens on.
func (r *Collector) forwarded() []ma.Multiaddr {
	own := r.Own()
	var out []ma.Multiaddr
	for _, a := range r.Listening() {
		v := r.book.View(networkOf(a), own)
		if len(v.Outer) == 0 || v.Mapping == nat.NoNAT {
			continue
		}
		if _, rest := ma.SplitFirst(a); rest != nil {
			out = append(out, ma.Join(ipAddr(v.Outer[0].Addr.Addr()), rest))
		}
	}
	return ma.Unique(out)
}

// Claims are what other hosts are asked to dial: public addresses.
func (r *Collector) Claims() []ma.Multiaddr {
	return slices.DeleteFunc(ma.Unique(slices.Concat(r.everything(), r.forwarded())), notPublic)
}

// everything are the addresses that libp2p knows of: of interfaces, mapped by
// UPnP, and seen by many.
func (r *Collector) everything() []ma.Multiaddr {
	if l := r.local.Load(); l != nil {
		if h, ok := l.host.(interface{ AllAddrs() []ma.Multiaddr }); ok {
			return h.AllAddrs()
		}
	}
	return nil
}

// Holes are the addresses at which a peer may meet this host while it dials that
// peer: where others see its sockets, if they all see the same. A NAT that is known
// to be symmetric for one network is taken to be so for the other.
func (r *Collector) Holes() []ma.Multiaddr {
	own := r.Own()
	views := map[string]nat.View{"tcp": r.book.View("tcp", own), "udp": r.book.View("udp", own)}
	symmetric := views["tcp"].Mapping == nat.EndpointDependent || views["udp"].Mapping == nat.EndpointDependent
	var out []ma.Multiaddr
	for _, a := range r.everything() {
		if plain(a) && !notPublic(a) {
			out = append(out, a)
		}
	}
	for _, a := range r.Listening() {
		if !plain(a) {
			continue
		}
		v := views[networkOf(a)]
		if v.Mapping == nat.NoNAT || v.Mapping == nat.EndpointDependent || v.Mapping == nat.Unknown && symmetric {
			continue
		}
		for _, o := range v.Outer {
			if o.Local == addrPort(a).Port() {
				out = append(out, outer(a, o.Addr))
			}
		}
	}
	return ma.Unique(out)
}

// outer returns address a with another IP and port.
func outer(a ma.Multiaddr, at netip.AddrPort) ma.Multiaddr {
	port := ma.StringCast(fmt.Sprintf("/%s/%d", networkOf(a), at.Port()))
	return ma.Join(ipAddr(at.Addr()), port, a[2:])
}

func ipAddr(ip netip.Addr) ma.Multiaddr {
	if ip.Is4() {
		return ma.StringCast("/ip4/" + ip.String())
	}
	return ma.StringCast("/ip6/" + ip.String())
}

func notPublic(a ma.Multiaddr) bool { return circuit.Is(a) || !manet.IsPublicAddr(a) }

// plain reports whether a is of TCP or QUIC itself.
func plain(a ma.Multiaddr) bool { return isTCP(a) || endsIn(a, ma.P_QUIC_V1) }

func isTCP(a ma.Multiaddr) bool { return endsIn(a, ma.P_TCP) }

func endsIn(a ma.Multiaddr, code int) bool {
	return len(a) > 0 && a[len(a)-1].Protocol().Code == code
}
