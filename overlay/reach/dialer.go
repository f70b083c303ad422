package reach

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-reuseport"
	ma "github.com/multiformats/go-multiaddr"
)

// Dialer makes TCP connections from the ports that the host listens on, so that
// where a NAT shows them leads to the listeners. It makes the connections of
// libp2p's transport.
//
//	From(ctx, port)    from this port and no other
//	a hole is punched  from each port, a little after the one before: see [delay]
//	all others         from the port that is dialled, if the host listens there, or
//	                   the next one that is not in use towards there
//
// Where peers punch from port X to port X, a hole gets through networks that let
// nothing but TCP 443 of others out, and through NATs that keep ports, which most do.
// Of ports that a NAT changed nobody knows which belong together, so all are tried.
type Dialer struct {
	// Listening returns what the host listens on; only TCP itself counts.
	Listening func() []ma.Multiaddr
	// Holes returns where a peer may meet this host; QUIC among them has a head start
	// when a hole is punched.
	Holes func() []ma.Multiaddr
}

// Both ends of a hole dial several addresses at once and keep the connection that is
// there first. It must be the same at both, so they take turns.
const (
	quicFirst  = 250 * time.Millisecond
	otherAfter = 500 * time.Millisecond // between one pair of ports and the next
)

type fromKey struct{}

// From has a [Dialer] dial from a port alone.
func From(ctx context.Context, port uint16) context.Context {
	return context.WithValue(ctx, fromKey{}, port)
}

// DialContext connects to an address of digits.
func (d Dialer) DialContext(ctx context.Context, name, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	locals := d.locals(to)
	if port, ok := ctx.Value(fromKey{}).(uint16); ok {
		locals = slices.DeleteFunc(locals, func(at netip.AddrPort) bool { return at.Port() != port })
		if len(locals) == 0 {
			return nil, fmt.Errorf("dial %s: this host does not listen on TCP port %d towards there", address, port)
		}
		return dialFrom(ctx, locals[0], name, to)
	}
	if punch, _, _ := network.GetSimultaneousConnect(ctx); punch && len(locals) > 0 {
		return d.punch(ctx, locals, name, to)
	}
	for _, at := range locals {
		conn, err := dialFrom(ctx, at, name, to)
		if !inUse(err) {
			return conn, err
		}
	}
	return new(net.Dialer).DialContext(ctx, name, address)
}

// locals are the addresses listened on from which to may be reached, best first and
// one of each port.
func (d Dialer) locals(to netip.AddrPort) []netip.AddrPort {
	var source netip.Addr // the kernel's choice
	var found []netip.AddrPort
	for _, a := range d.Listening() {
		at := addrPort(a)
		if !isTCP(a) || at.Addr().Is4() != to.Addr().Unmap().Is4() {
			continue
		}
		if !at.Addr().IsUnspecified() {
			if !source.IsValid() {
				source = sourceOf(to)
			}
			if at.Addr() != source {
				continue
			}
		}
		found = append(found, at)
	}
	slices.SortFunc(found, func(a, b netip.AddrPort) int {
		if (a.Port() == to.Port()) != (b.Port() == to.Port()) {
			return map[bool]int{true: -1, false: 1}[a.Port() == to.Port()]
		}
		return cmp.Compare(a.Port(), b.Port())
	})
	return slices.CompactFunc(found, func(a, b netip.AddrPort) bool { return a.Port() == b.Port() })
}

// inUse reports whether a port cannot be dialled from: the connection exists, or has
// just ended, or the right to use the port was given up after it was listened on.
func inUse(err error) bool {
	return errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EACCES)
}

// sourceOf is the address that this machine has towards another; nothing is sent.
func sourceOf(to netip.AddrPort) netip.Addr {
	conn, err := net.Dial("udp", to.String())
	if err != nil {
		return netip.IPv4Unspecified()
	}
	defer conn.Close()
	at, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil {
		return netip.IPv4Unspecified()
	}
	return at.Addr()
}

// delay is when it is the turn of a port to dial another in a punch: those that are
// the same one after the other, then others. A port that this host does not listen on
// is one that a NAT changed, and may belong to any.
func delay(locals []netip.AddrPort, from, to uint16) time.Duration {
	turn, known := 0, false
	for _, at := range locals {
		if at.Port() < from {
			turn++
		}
		known = known || at.Port() == to
	}
	if known && from != to {
		turn += len(locals)
	}
	return time.Duration(turn) * otherAfter
}

func dialFrom(ctx context.Context, at netip.AddrPort, name string, to netip.AddrPort) (net.Conn, error) {
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(at), Control: reuseport.Control}
	conn, err := dialer.DialContext(ctx, name, to.String())
	if err != nil {
		return nil, err
	}
	if conn.LocalAddr().String() == conn.RemoteAddr().String() { // TCP can do that
		conn.Close()
		return nil, fmt.Errorf("dial %s: that is this socket itself", to)
	}
	return conn, nil
}

// punch dials from each of the addresses when it is its turn and returns the first
// connection.
func (d Dialer) punch(ctx context.Context, locals []netip.AddrPort, name string, to netip.AddrPort) (net.Conn, error) {
	start := time.Duration(0)
	if slices.ContainsFunc(d.Holes(), func(a ma.Multiaddr) bool { return endsIn(a, ma.P_QUIC_V1) }) {
		start = quicFirst
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result, len(locals))
	for _, at := range locals {
		go func() {
			select {
			case <-time.After(start + delay(locals, at.Port(), to.Port())):
			case <-ctx.Done():
			}
			conn, err := dialFrom(ctx, at, name, to)
			results <- result{conn, err}
		}()
	}
	var won net.Conn
	var errs []error
	for range locals {
		switch r := <-results; {
		case r.err != nil:
			errs = append(errs, r.err)
		case won == nil:
			won = r.conn
			cancel()
		default:
			r.conn.Close()
		}
	}
	if won != nil {
		return won, nil
	}
	return nil, errors.Join(errs...)
}
