package grpclink

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// IsAddr reports whether a is an address of this package's form:
// /ip4, /ip6, /dns, /dns4 or /dns6, then /tcp/PORT/tls/http.
func IsAddr(a ma.Multiaddr) bool {
	_, err := HostPort(a)
	return err == nil
}

// HostPort returns the host and port of an address, to connect to. A /p2p/ at
// its end is ignored.
func HostPort(a ma.Multiaddr) (string, error) {
	if n := len(a); n > 0 && a[n-1].Protocol().Code == ma.P_P2P {
		a = a[:n-1]
	}
	if len(a) != 4 || a[1].Protocol().Code != ma.P_TCP || a[2].Protocol().Code != ma.P_TLS || a[3].Protocol().Code != ma.P_HTTP {
		return "", fmt.Errorf("%s is no gRPC address: those end in /tcp/PORT/tls/http", a)
	}
	switch a[0].Protocol().Code {
	case ma.P_IP4, ma.P_IP6, ma.P_DNS, ma.P_DNS4, ma.P_DNS6:
		return net.JoinHostPort(a[0].Value(), a[1].Value()), nil
	}
	return "", fmt.Errorf("%s is no gRPC address: it names no host", a)
}

// Addr returns the address of a host and port. The host may be an IP address or
// a name.
func Addr(hostport string) (ma.Multiaddr, error) {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, err
	}
	kind := "dns"
	if ip, err := netip.ParseAddr(host); err == nil {
		kind, host = "ip6", ip.Unmap().WithZone("").String()
		if ip.Unmap().Is4() {
			kind = "ip4"
		}
	}
	if host == "" || strings.Contains(host, "/") {
		return nil, fmt.Errorf("%q names no host", hostport)
	}
	return ma.NewMultiaddr("/" + kind + "/" + host + "/tcp/" + port + "/tls/http")
}

// ParseURL returns the address that https://HOST[:PORT] stands for.
func ParseURL(s string) (ma.Multiaddr, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, errors.New("is no URL")
	case u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("%q is not of the form https://HOST:PORT", s)
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	return Addr(net.JoinHostPort(u.Hostname(), port))
}

// FormatURL returns the human form of an address, https://HOST:PORT, or "" if it
// is not of this package's form.
func FormatURL(a ma.Multiaddr) string {
	hostport, err := HostPort(a)
	if err != nil {
		return ""
	}
	return "https://" + hostport
}

// addrsOf returns the addresses of a listener; one on all interfaces has one for
// each, of both IP versions: Go listens on all even where asked for 0.0.0.0.
func addrsOf(l net.Listener) ([]ma.Multiaddr, error) {
	bound, err := manet.FromNetAddr(l.Addr())
	if err != nil {
		return nil, err
	}
	listened := []ma.Multiaddr{bound}
	if manet.IsIPUnspecified(bound) {
		listened = []ma.Multiaddr{append(ma.StringCast("/ip4/0.0.0.0"), bound[1:]...), append(ma.StringCast("/ip6/::"), bound[1:]...)}
	}
	all, err := manet.ResolveUnspecifiedAddresses(listened, nil)
	if err != nil {
		return nil, err
	}
	suffix := ma.StringCast("/tls/http")
	for i, a := range all {
		all[i] = a.Encapsulate(suffix)
	}
	return all, nil
}

// remoteAddr returns the address of a connection's other end, in this package's
// form.
func remoteAddr(p netip.AddrPort) ma.Multiaddr {
	a, err := Addr(p.String())
	if err != nil {
		return nil // not an IP address and port
	}
	return a
}
