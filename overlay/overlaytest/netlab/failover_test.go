//go:build linux

package netlab_test

import (
	"testing"
	"time"

	"openmesh/overlay/overlaytest/netlab"
)

// cut is a step by which the network gets worse.
type cut struct {
	what string
	make func(*netlab.Firewall)
	then string // the transport that is left
}

var (
	vanish = []cut{
		{"UDP", func(f *netlab.Firewall) { f.Drop("udp") }, "tcp"},
		{"TCP port", func(f *netlab.Firewall) { f.Drop("tcp", netlab.Port) }, "ws"},
	}
	refuse = []cut{
		{"UDP", func(f *netlab.Firewall) { f.Reject("udp") }, "tcp"},
		{"TCP port", func(f *netlab.Firewall) { f.Reject("tcp", netlab.Port) }, "ws"},
	}
)

// A session outlives the connection it began with. While b sends to a, its network
// is cut step by step: numbers go on over the next transport, none is lost and none
// is worked on twice. Where packets vanish, that is noticed by a missing pong,
// within two keepalives; where they are refused, at once.
func TestFailover(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name      string
		load      load
		cuts      []cut
		keepalive time.Duration
		gap       time.Duration // without a sign of life, at most
	}{
		{"packets vanish", steady, vanish, time.Second, 2 * time.Second},
		{"packets vanish", steady, vanish, 2 * time.Second, 4 * time.Second},
		{"packets vanish", durable, vanish, time.Second, 2 * time.Second},
		{"packets vanish", bulk, vanish, time.Second, 2 * time.Second},
		{"connections are refused", steady, refuse, time.Second, 500 * time.Millisecond},
		{"connections are refused", steady, refuse, 2 * time.Second, time.Second},
		// Where a refused packet goes unnoticed among many, silence tells after 3/4 of a keepalive.
		{"connections are refused", durable, refuse, 2 * time.Second, 2 * time.Second},
		{"connections are refused", bulk, refuse, 2 * time.Second, 2 * time.Second},
	}
	for _, test := range tests {
		t.Run(test.name+", "+test.load.name+", keepalive "+test.keepalive.String(), func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, map[string]string{"OPENMESH_NETWORKING_KEEPALIVE_INTERVAL": test.keepalive.String()}, nil)
			traffic := m.start(t, test.load)
			traffic.until(t, "quic-v1", 20*time.Second)
			for _, c := range test.cuts {
				c.make(m.b.Host.Firewall())
				gap := traffic.until(t, c.then, 20*time.Second)
				t.Logf("%s cut: %s without a sign of life, then over %s", c.what, gap.Round(time.Millisecond), c.then)
				if gap > test.gap {
					t.Errorf("%s cut: %s without a sign of life, want at most %s", c.what, gap, test.gap)
				}
			}
			traffic.end(t)
		})
	}
}

// A session goes back to the better transport once that works again.
func TestMovesBack(t *testing.T) {
	t.Parallel()
	m := newMesh(t, map[string]string{"OPENMESH_NETWORKING_KEEPALIVE_INTERVAL": "1s"}, nil)
	traffic := m.start(t, steady)
	traffic.until(t, "quic-v1", 20*time.Second)
	m.b.Host.Firewall().Drop("udp")
	traffic.until(t, "tcp", 20*time.Second)
	m.b.Host.Firewall().Heal()
	healed := time.Now()
	gap := traffic.until(t, "quic-v1", time.Minute)
	t.Logf("back within %s, %s without an answer", time.Since(healed).Round(time.Second), gap.Round(time.Millisecond))
	if gap > 500*time.Millisecond {
		t.Errorf("moving back took %s without an answer", gap)
	}
	traffic.end(t)
}
