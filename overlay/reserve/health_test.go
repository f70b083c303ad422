package reserve

import (
	"context"
	"fmt"
	"testing"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"go.uber.org/zap"
)

func newHost(t *testing.T) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// A connection is closed when pings are not answered, and only then: a peer that has
// too many pings says so, and lives.
func TestCheck(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		fails  error // of opening a stream
		answer network.StreamHandler
		closed bool
	}{
		{"silent", nil, func(network.Stream) {}, true},
		{"refuses", nil, func(s network.Stream) { s.ResetWithError(network.StreamResourceLimitExceeded) }, false},
		{"not asked", network.ErrResourceLimitExceeded, func(network.Stream) {}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			h, relay := newHost(t), newHost(t)
			if err := h.Connect(t.Context(), peer.AddrInfo{ID: relay.ID(), Addrs: relay.Addrs()}); err != nil {
				t.Fatal(err)
			}
			open := func(ctx context.Context, c network.Conn, id protocol.ID) (network.Stream, error) {
				if tc.fails != nil {
					return nil, fmt.Errorf("open: %w", tc.fails)
				}
				return h.NewStream(ctx, c.RemotePeer(), id)
			}
			relay.SetStreamHandler(ping.ID, tc.answer)
			c := h.Network().ConnsToPeer(relay.ID())[0]
			newHealth(Config{Host: h, Open: open, Log: zap.NewNop()}).check(t.Context(), c)
			if c.IsClosed() != tc.closed {
				t.Errorf("the connection is closed: %v, want %v", c.IsClosed(), tc.closed)
			}
		})
	}
}
