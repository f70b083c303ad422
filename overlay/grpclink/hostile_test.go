package grpclink

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"openmesh/overlay/grpclink/grpclinkpb"
	"openmesh/overlay/grpclink/grpclinkpb/grpclinkpbconnect"
	"openmesh/protocols/wire"
)

// foreign returns a client of another gRPC implementation, by the generated
// code.
func foreign(t *testing.T, s *Server) (client grpclinkpbconnect.LinkClient, h2 *http.Client, url string) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	h2 = &http.Client{Transport: transport}
	url = FormatURL(s.Addrs()[0])
	return grpclinkpbconnect.NewLinkClient(h2, url, connect.WithGRPC()), h2, url
}

// Any gRPC client can talk to the server: it is what link.proto says.
func TestForeignClient(t *testing.T) {
	t.Parallel()
	s, _ := serve(t, Config{Accept: echo, Exchange: map[string]answer{"/denied": refusing(wire.Denied)}})
	client, _, _ := foreign(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	st, err := client.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range [][]byte{[]byte("x"), random(1000), random(MaxBody)} {
		if err := st.Send(&grpclinkpb.Chunk{Data: want}); err != nil {
			t.Fatal(err)
		}
		var got []byte
		for len(got) < len(want) {
			in, err := st.Receive()
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, in.Data...)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%d other bytes come back", len(got))
		}
	}
	st.CloseRequest()
	if _, err := st.Receive(); !errors.Is(err, io.EOF) || st.ResponseTrailer().Get(codeTrailer) != closedNormally {
		t.Errorf("%v, trailer %v", err, st.ResponseTrailer())
	}
	_, err = client.Exchange(ctx, &grpclinkpb.ExchangeRequest{Protocol: "/denied"})
	if connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("exchange: %v", err)
	}
}

// A chunk that is too large ends its stream, and no other.
func TestOversize(t *testing.T) {
	t.Parallel()
	failed := make(chan error, 1)
	s, _ := serve(t, Config{Accept: func(c *Conn) { failed <- <-readError(c) }, Exchange: map[string]answer{"/x": refusing(nil)}})
	client, _, _ := foreign(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	st, err := client.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	st.Send(&grpclinkpb.Chunk{Data: make([]byte, maxMessage)}) // it may be refused before it is out
	if err := <-failed; !errors.Is(err, wire.TooLarge) {
		t.Errorf("server's Read: %v", err)
	}
	if _, err := st.Receive(); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("client: %v", err)
	}
	for _, n := range []int{MaxBody + 1, maxMessage + 1} {
		if _, err := client.Exchange(ctx, &grpclinkpb.ExchangeRequest{Protocol: "/x", Body: make([]byte, n)}); connect.CodeOf(err) != connect.CodeResourceExhausted {
			t.Errorf("exchange of %d bytes: %v", n, err)
		}
	}
	if _, err := client.Exchange(ctx, &grpclinkpb.ExchangeRequest{Protocol: "/x"}); err != nil {
		t.Errorf("after that: %v", err)
	}
}

// Streams beyond the limit are refused; those that are open go on.
func TestStreamLimit(t *testing.T) {
	t.Parallel()
	s, _ := serve(t, Config{Accept: echo, MaxStreams: 3})
	d := dialer(t)
	for i := range 5 {
		c, err := d.Open(t.Context(), s.Addrs()[0])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write([]byte("x"))
		_, err = io.ReadFull(c, make([]byte, 1))
		if i < 3 && err != nil || i >= 3 && !errors.Is(err, wire.ResourceExhausted) {
			t.Errorf("stream %d: %v", i, err)
		}
	}
}

// One address cannot take all connections.
func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	s, _ := serve(t, Config{Accept: echo, MaxConnsPerIP: 3})
	served := 0
	for range 6 {
		conn, err := tls.Dial("tcp", s.listeners[0].Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if err == nil {
			defer conn.Close()
			served++
		}
	}
	if served != 3 {
		t.Errorf("%d connections, want 3", served)
	}
}

// Who speaks something else is told so, in its own protocol.
func TestOtherProtocols(t *testing.T) {
	t.Parallel()
	s, _ := serve(t, Config{Accept: echo})
	_, h2, url := foreign(t, s)
	host := s.listeners[0].Addr().String()
	post := func(contentType string) string {
		resp, err := h2.Post(url+openMethod, contentType, strings.NewReader("{}"))
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		return fmt.Sprintln(resp.Proto, resp.Status)
	}
	h1 := func(scheme string) string {
		var conn net.Conn
		var err error
		if scheme == "https" {
			conn, err = tls.Dial("tcp", host, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		} else {
			conn, err = net.Dial("tcp", host)
		}
		if err != nil {
			return err.Error()
		}
		defer conn.Close()
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return err.Error()
		}
		body, _ := io.ReadAll(resp.Body)
		return resp.Status + " " + string(body)
	}
	get := func(path string) string {
		resp, err := h2.Get(url + path)
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		return fmt.Sprintln(resp.Proto, resp.Status)
	}
	for _, tc := range []struct{ name, got, want string }{
		{"content type", post("application/json"), "HTTP/2.0 415"},
		{"HTTP/2 GET", get("/"), "HTTP/2.0 4"},
		{"HTTP/1.1", h1("https"), "505 HTTP Version Not Supported This port speaks gRPC"},
		{"HTTP without TLS", h1("http"), "400 Bad Request This port speaks HTTPS"},
	} {
		if !strings.HasPrefix(tc.got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, tc.got, tc.want)
		}
	}
	if _, err := tls.Dial("tcp", host, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("TLS 1.2 is spoken")
	}
}

// Those who connect and then say little or nothing are dropped in time, and do
// not keep the server from ending.
func TestSlowGreeting(t *testing.T) {
	t.Parallel()
	for _, says := range []string{"", "\x16\x03\x01", "GET"} {
		synctest.Test(t, func(t *testing.T) {
			cert, err := ephemeral()
			if err != nil {
				t.Fatal(err)
			}
			d := newDoor(cert, &crowd{perSite: 1, all: 1, connects: 1, sites: make(map[netip.Prefix]*site)}, zap.NewNop())
			client, server := net.Pipe()
			start := time.Now()
			go io.WriteString(client, says)
			d.welcome(server)
			if took := time.Since(start); took != handshakeTimeout {
				t.Errorf("%q: dropped after %v", says, took)
			}
			if _, err := client.Read(make([]byte, 1)); err == nil || d.crowd.conns != 0 {
				t.Errorf("%q: %v, %d connections are counted", says, err, d.crowd.conns)
			}
			client.Close()
		})
	}
	s, stop := serve(t, Config{})
	conn, err := net.Dial("tcp", s.listeners[0].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for arriving := 0; arriving == 0; {
		s.door.mu.Lock()
		arriving = len(s.door.arriving)
		s.door.mu.Unlock()
	}
	stop()
}

// Sites are counted apart, and forgotten when they are quiet; what is remembered
// is bounded.
func TestCrowd(t *testing.T) {
	t.Parallel()
	now := time.Unix(1, 0)
	c := &crowd{perSite: 2, all: 4, connects: rate.Limit(1), exchanges: 1, sites: make(map[netip.Prefix]*site)}
	ip := netip.MustParseAddr
	for i, tc := range []struct {
		ip   string
		want bool
	}{
		{"1.2.3.4", true}, {"::ffff:1.2.3.4", true}, {"1.2.3.4", false}, {"1.2.3.5", true},
		{"2001:db8:0:1::1", true}, {"2001:db8:0:2::1", false}, // one /56, and all are taken
	} {
		if got := c.enter(ip(tc.ip), now); got != tc.want {
			t.Errorf("%d: %s enters: %v", i, tc.ip, got)
		}
	}
	c.leave(ip("1.2.3.4"))
	if c.enter(ip("1.2.3.4"), now) {
		t.Error("a site that came and left often comes again")
	}
	if !c.enter(ip("1.2.3.4"), now.Add(time.Second)) {
		t.Error("it never comes again")
	}
	for i := range 2 * maxSites {
		c.exchange(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), now)
	}
	if len(c.sites) != maxSites || c.exchange(ip("9.9.9.9"), now) {
		t.Errorf("%d sites are remembered", len(c.sites))
	}
	if later := now.Add(2 * quiet); !c.exchange(ip("9.9.9.9"), later) || len(c.sites) != 4 {
		t.Errorf("%d sites are left", len(c.sites))
	}
}
