package reserve

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

const relay = "12D3KooWJbJFaZ1dwpuu9tQY3ELCKCpWMJc1dSRVbcMwhiLiFq7q"

func addrs(text string) (as []ma.Multiaddr) {
	for _, a := range strings.Fields(text) {
		as = append(as, ma.StringCast(a))
	}
	return as
}

func TestCircuits(t *testing.T) {
	t.Parallel()
	id, err := peer.Decode(relay)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, configured, known, want string }{
		{"each port of each transport, TCP 443 first", "/ip4/5.0.0.1/udp/4747/quic-v1",
			"/ip4/5.0.0.1/tcp/4747 /ip4/5.0.0.1/tcp/4747/ws /ip4/5.0.0.1/tcp/443 /ip4/5.0.0.1/udp/4747/quic-v1/webtransport /ip4/192.168.1.2/tcp/4747 /ip4/127.0.0.1/tcp/4747",
			"/ip4/5.0.0.1/tcp/443 /ip4/5.0.0.1/udp/4747/quic-v1 /ip4/5.0.0.1/tcp/4747"},
		{"WebSocket where there is nothing else", "/ip4/5.0.0.1/tcp/443/ws", "", "/ip4/5.0.0.1/tcp/443/ws"},
		{"a private mesh", "/ip4/10.0.0.1/tcp/4747", "/ip4/127.0.0.1/tcp/4747 /ip4/10.0.0.1/udp/4747/quic-v1",
			"/ip4/10.0.0.1/udp/4747/quic-v1 /ip4/10.0.0.1/tcp/4747"},
		{"one machine", "/ip4/127.0.0.1/tcp/4747", "", "/ip4/127.0.0.1/tcp/4747"},
		{"its own circuits lead nowhere", "/ip4/5.0.0.1/tcp/1", "/ip4/5.0.0.2/tcp/2/p2p/" + relay + "/p2p-circuit", "/ip4/5.0.0.1/tcp/1"},
		{"with its id", "/ip4/5.0.0.1/tcp/1/p2p/" + relay, "/ip4/5.0.0.1/tcp/1", "/ip4/5.0.0.1/tcp/1"},
		{"no end of addresses", "", "/ip4/5.0.0.1/tcp/1 /ip4/5.0.0.1/tcp/2 /ip4/5.0.0.1/tcp/3 /ip4/5.0.0.1/tcp/4 /ip4/5.0.0.1/tcp/5 /ip4/5.0.0.1/tcp/6 /ip4/5.0.0.1/tcp/7",
			"/ip4/5.0.0.1/tcp/1 /ip4/5.0.0.1/tcp/2 /ip4/5.0.0.1/tcp/3 /ip4/5.0.0.1/tcp/4 /ip4/5.0.0.1/tcp/5 /ip4/5.0.0.1/tcp/6"},
	} {
		var got []string
		for _, a := range circuits(peer.AddrInfo{ID: id, Addrs: addrs(tc.configured)}, addrs(tc.known)) {
			bare, ok := strings.CutSuffix(a.String(), "/p2p/"+relay+"/p2p-circuit")
			if !ok {
				t.Errorf("%s: %s is no circuit through the relay", tc.name, a)
			}
			got = append(got, bare)
		}
		if !slices.Equal(got, strings.Fields(tc.want)) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// A relay is left only for one that is far better.
func TestHysteresis(t *testing.T) {
	t.Parallel()
	idle := func(rtt time.Duration) measured { return measured{rtt: rtt} }
	busy := func(rtt time.Duration) measured { return measured{rtt: rtt, Candidate: Candidate{Load: 1}} }
	for _, tc := range []struct {
		name                string
		best, worst         measured
		bestConf, worstConf bool
		want                bool
	}{
		{"half", idle(40 * time.Millisecond), idle(80 * time.Millisecond), false, false, true},
		{"a little better", idle(60 * time.Millisecond), idle(80 * time.Millisecond), false, false, false},
		{"half of next to nothing", idle(time.Millisecond), idle(2 * time.Millisecond), false, false, false},
		{"as near but idle", idle(40 * time.Millisecond), busy(40 * time.Millisecond), false, false, true},
		{"not configured", idle(10 * time.Millisecond), idle(200 * time.Millisecond), false, true, false},
		{"configured", idle(time.Second), idle(10 * time.Millisecond), true, false, true},
		{"under load, far", idle(300 * time.Millisecond), busy(time.Second), false, false, true},
	} {
		if got := tc.best.value(tc.bestConf).far(tc.worst.value(tc.worstConf)); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}
