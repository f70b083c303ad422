//go:build linux

package netlab_test

import (
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"openmesh/overlay/overlaytest/netlab"
)

// A capture sees what passes its host, by whom, and nothing else.
func TestCapture(t *testing.T) {
	t.Parallel()
	lab := netlab.New(t)
	lab.Cloud(netlab.Link{})
	a, b, c := lab.Host("a"), lab.Host("b"), lab.Host("c")
	router := lab.Router("router", netlab.Easy)
	inside := router.Host("inside")
	all, wan := b.Capture(nil), router.Capture(nil)
	udp := b.Capture(func(f netlab.Flow) bool { return f.Proto == "udp" })
	for _, h := range []*netlab.Host{b, c} {
		echo(t, h.Listen(addr(h, 80)))
		echoPackets(t, h, addr(h, 80))
	}
	say(t, connect(t, a, "tcp", addr(b, 80)), "spoken to b")
	say(t, connect(t, inside, "udp", addr(b, 80)), "a datagram")
	say(t, connect(t, a, "tcp", addr(c, 80)), "spoken to c")

	seen := all.Stop()
	if want := []netip.Addr{a.Addr, router.Addr}; !slices.Equal(seen.Remotes(), want) {
		t.Errorf("b dealt with %v, want %v", seen.Remotes(), want)
	}
	for what, want := range map[string]bool{"spoken to b": true, "a datagram": true, "spoken to c": false} {
		if seen.Contains([]byte(what)) != want {
			t.Errorf("b saw %q: %t", what, !want)
		}
	}
	for f, payload := range seen { // what b sent is what it echoed
		back := f
		back.Sent = !f.Sent
		if f.Local.Port() != 80 || f.Local.Addr() != b.Addr || string(seen[back]) != string(payload) {
			t.Errorf("flow %v has %q, its other direction %q", f, payload, seen[back])
		}
	}
	if seen := udp.Stop(); len(seen) != 2 || seen.Contains([]byte("spoken")) || !seen.Contains([]byte("a datagram")) {
		t.Errorf("of UDP was seen: %v", seen)
	}
	if seen := wan.Stop(); !slices.Equal(seen.Remotes(), []netip.Addr{b.Addr}) || !seen.Contains([]byte("a datagram")) {
		t.Errorf("the router dealt with %v", seen.Remotes())
	}
}

// say has a text echoed, which goes in two packets over a stream.
func say(t *testing.T, conn io.ReadWriter, text string) {
	t.Helper()
	parts := []string{text[:3], text[3:]}
	if strings.HasSuffix(text, "datagram") {
		parts = []string{text}
	}
	for _, part := range parts {
		_, err := io.WriteString(conn, part)
		check(t, err)
		_, err = io.ReadFull(conn, make([]byte, len(part)))
		check(t, err)
	}
}
