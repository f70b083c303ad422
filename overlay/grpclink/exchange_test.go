package grpclink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"openmesh/protocols/wire"
)

type answer = func(context.Context, netip.AddrPort, []byte) ([]byte, error)

func refusing(err error) answer {
	return func(context.Context, netip.AddrPort, []byte) ([]byte, error) { return nil, err }
}

// A request is answered by the handler of its protocol. Of a failure the peer
// learns the code, and nothing else.
func TestExchange(t *testing.T) {
	t.Parallel()
	s, _ := serve(t, Config{ExchangeRate: 1000, Exchange: map[string]answer{
		"/echo": func(_ context.Context, from netip.AddrPort, b []byte) ([]byte, error) {
			if from.Addr() != netip.MustParseAddr("127.0.0.1") || from.Port() == 0 {
				return nil, wire.Internal
			}
			return b, nil
		},
		"/denied":  refusing(wire.Errorf(wire.Denied, "the secret reason")),
		"/broken":  refusing(errors.New("the secret state")),
		"/revoked": refusing(fmt.Errorf("check: %w", wire.KeyRevoked)),
		"/large":   func(context.Context, netip.AddrPort, []byte) ([]byte, error) { return make([]byte, MaxBody+1), nil },
		"/wait": func(ctx context.Context, _ netip.AddrPort, _ []byte) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
	}})
	d := dialer(t)
	for _, tc := range []struct {
		protocol string
		size     int
		want     error
	}{
		{"/echo", 0, nil}, {"/echo", 1, nil}, {"/echo", MaxBody, nil}, {"/echo", MaxBody + 1, wire.TooLarge},
		{"/denied", 1, wire.Denied}, {"/broken", 1, wire.Internal}, {"/revoked", 1, wire.KeyRevoked},
		{"/large", 1, wire.Internal}, {"/unknown", 1, wire.Unsupported}, {strings.Repeat("x", maxProtocol+1), 1, wire.TooLarge},
	} {
		body := random(tc.size)
		out, err := d.Exchange(t.Context(), s.Addrs()[0], tc.protocol, body)
		if !errors.Is(err, tc.want) || err == nil && !bytes.Equal(out, body) {
			t.Errorf("%.20s, %d bytes: %d bytes, %v; want %v", tc.protocol, tc.size, len(out), err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", tc.protocol, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := d.Exchange(ctx, s.Addrs()[0], "/wait", nil); !errors.Is(err, wire.DeadlineExceeded) {
		t.Errorf("deadline: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err := d.Exchange(ctx, s.Addrs()[0], "/wait", nil); !errors.Is(err, wire.Cancelled) {
		t.Errorf("cancelled: %v", err)
	}
}

// One IP address cannot make more exchanges than it may.
func TestExchangeRate(t *testing.T) {
	t.Parallel()
	s, _ := serve(t, Config{ExchangeRate: 2, Exchange: map[string]answer{"/x": refusing(nil)}})
	d := dialer(t)
	refused := 0
	for range 20 {
		_, err := d.Exchange(t.Context(), s.Addrs()[0], "/x", nil)
		if errors.Is(err, wire.ResourceExhausted) {
			refused++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if refused < 5 || refused > 12 {
		t.Errorf("%d of 20 refused, want about 12", refused)
	}
}

// A dialer has one connection for each address, for as long as it is of use.
func TestDialerKeepsOneConnection(t *testing.T) {
	t.Parallel()
	s, _ := serve(t, Config{Accept: echo, Exchange: map[string]answer{"/x": refusing(nil)}})
	d := dialer(t)
	for range 5 {
		if _, err := d.Exchange(t.Context(), s.Addrs()[0], "/x", nil); err != nil {
			t.Fatal(err)
		}
	}
	c, err := d.Open(t.Context(), s.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	var l *link
	for _, l = range d.links {
	}
	if len(d.links) != 1 || connections(s) != 1 || l.users != 1 {
		t.Errorf("%d links, %d connections, %d users", len(d.links), connections(s), l.users)
	}
	d.expire(l)
	if len(d.links) != 1 {
		t.Error("a link in use has expired")
	}
	c.Close()
	d.hangups.Wait()
	d.expire(l)
	if len(d.links) != 0 {
		t.Error("an idle link has not expired")
	}
	if _, err := d.Exchange(t.Context(), s.Addrs()[0], "/x", nil); err != nil {
		t.Errorf("after that: %v", err)
	}
}

// What cannot be dialled says why; a failure is not remembered.
func TestDialerRefusals(t *testing.T) {
	t.Parallel()
	s, stop := serve(t, Config{Accept: echo})
	gone := s.Addrs()[0]
	stop()
	d := dialer(t)
	for range 3 {
		if _, err := d.Open(t.Context(), gone); !errors.Is(err, wire.Unreachable) {
			t.Errorf("nobody there: %v", err)
		}
	}
	if len(d.links) != 0 {
		t.Errorf("%d links to nobody are kept", len(d.links))
	}
	if _, err := d.Open(t.Context(), ma.StringCast("/ip4/127.0.0.1/tcp/1")); !errors.Is(err, wire.InvalidArgument) {
		t.Errorf("another kind of address: %v", err)
	}
	d.Close()
	if _, err := d.Open(t.Context(), gone); !errors.Is(err, wire.Cancelled) {
		t.Errorf("closed: %v", err)
	}
}
