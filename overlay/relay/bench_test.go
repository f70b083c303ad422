package relay

import (
	"io"
	"testing"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	library "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
)

// What a stream between two peers carries directly and over relays, in one
// process over loopback TCP: go-libp2p's own relay with its buffer of 2 KiB and
// one of 16 KiB, and this one without and with (unreached) rates.
func BenchmarkPath(b *testing.B) {
	rate := Rate{BytesPerSecond: 1 << 40}
	for _, bc := range []struct {
		name  string
		relay func(*testing.B, host.Host)
	}{
		{"direct", nil},
		{"library-2KiB", libraryRelay(2 << 10)},
		{"library-16KiB", libraryRelay(16 << 10)},
		{"ours", ourRelay(Config{})},
		{"ours-paced", ourRelay(Config{Rate: rate, RatePerPeer: rate})},
	} {
		b.Run("bulk/"+bc.name, func(b *testing.B) { bulk(b, path(b, bc.relay, discard)) })
		b.Run("pingpong/"+bc.name, func(b *testing.B) { pingPong(b, path(b, bc.relay, echo)) })
	}
}

func libraryRelay(buffer int) func(*testing.B, host.Host) {
	return func(b *testing.B, h host.Host) {
		rc := library.DefaultResources()
		rc.BufferSize = buffer
		r, err := library.New(h, library.WithResources(rc), library.WithInfiniteLimits())
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { r.Close() })
	}
}

func ourRelay(cfg Config) func(*testing.B, host.Host) {
	return func(b *testing.B, h host.Host) {
		r, err := New(h, cfg)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { r.Close() })
	}
}

// path returns a stream from one host to f on another.
func path(b *testing.B, relay func(*testing.B, host.Host), f network.StreamHandler) network.Stream {
	b.Helper()
	src, dst := loopback(b), loopback(b)
	dst.SetStreamHandler("/bench", f)
	to := peer.AddrInfo{ID: dst.ID(), Addrs: dst.Addrs()}
	if relay != nil {
		h := loopback(b)
		relay(b, h)
		if _, err := client.Reserve(b.Context(), dst, peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()}); err != nil {
			b.Fatal(err)
		}
		to = through(h, dst.ID())
	}
	if err := src.Connect(b.Context(), to); err != nil {
		b.Fatal(err)
	}
	s, err := src.NewStream(b.Context(), dst.ID(), "/bench")
	if err != nil {
		b.Fatal(err)
	}
	return s
}

func loopback(b *testing.B) host.Host {
	b.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.EnableRelay(), libp2p.DisableMetrics(),
		libp2p.ResourceManager(&network.NullResourceManager{}))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { h.Close() })
	return h
}

func bulk(b *testing.B, s network.Stream) {
	buf := make([]byte, 256<<10)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := s.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	s.CloseWrite()
	io.Copy(io.Discard, s) // until all has arrived
}

func pingPong(b *testing.B, s network.Stream) {
	buf := make([]byte, 256)
	for b.Loop() {
		if _, err := s.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(s, buf); err != nil {
			b.Fatal(err)
		}
	}
}
