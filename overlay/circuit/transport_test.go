package circuit

import (
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	relayA = "12D3KooWJbJFaZ1dwpuu9tQY3ELCKCpWMJc1dSRVbcMwhiLiFq7q"
	relayB = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
)

func TestRelay(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{
		"/ip4/5.0.0.1/tcp/1/p2p/" + relayA + "/p2p-circuit":               relayA,
		"/ip4/5.0.0.1/tcp/1/p2p/" + relayA + "/p2p-circuit/p2p/" + relayB: relayA,
		"/ip4/5.0.0.1/tcp/1/p2p/" + relayA:                                "",
		"/p2p-circuit":                                                    "",
	} {
		a := ma.StringCast(addr)
		if got := Relay(a); want == "" && got != "" || want != "" && got.String() != want {
			t.Errorf("Relay(%s) = %s, want %s", addr, got, want)
		}
		if Is(a) != strings.Contains(addr, "circuit") {
			t.Errorf("Is(%s) = %v", addr, Is(a))
		}
	}
}

// Direct addresses come first if they are public; of relays, the better one.
func TestRank(t *testing.T) {
	t.Parallel()
	a, b := ma.StringCast("/ip4/5.0.0.1/tcp/1/p2p/"+relayA+"/p2p-circuit"), ma.StringCast("/ip4/5.0.0.2/tcp/1/p2p/"+relayB+"/p2p-circuit")
	public, private := ma.StringCast("/ip4/9.9.9.9/tcp/1"), ma.StringCast("/ip4/192.168.1.2/tcp/1")
	grade := func(relay peer.ID) int {
		if relay.String() == relayA {
			return 2
		}
		return 0
	}
	for _, tc := range []struct {
		name  string
		addrs []ma.Multiaddr
		want  map[string]time.Duration
	}{
		{"relays only", []ma.Multiaddr{a, b}, map[string]time.Duration{b.String(): 0, a.String(): headStart}},
		{"beside a public one", []ma.Multiaddr{a, public, b}, map[string]time.Duration{
			public.String(): 0, b.String(): 500 * time.Millisecond, a.String(): 500*time.Millisecond + headStart}},
		{"beside a private one", []ma.Multiaddr{private, a}, map[string]time.Duration{private.String(): 0, a.String(): 0}},
	} {
		got := Rank(tc.addrs, grade)
		if len(got) != len(tc.want) {
			t.Errorf("%s: %v", tc.name, got)
		}
		for _, r := range got {
			if d, ok := tc.want[r.Addr.String()]; !ok || d != r.Delay {
				t.Errorf("%s: %s after %v, want %v", tc.name, r.Addr, r.Delay, d)
			}
		}
	}
}
