package forward

import (
	"context"
	"crypto/hpke"
	"fmt"
	"io"
	"testing"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"

	libhost "github.com/libp2p/go-libp2p/core/host"
)

// dialer is a host as a Dialer.
type dialer struct{ libhost.Host }

func (d dialer) NewStream(ctx context.Context, p peer.ID, addrs []ma.Multiaddr, id protocol.ID) (network.Stream, error) {
	d.Peerstore().AddAddrs(p, addrs, peerstore.TempAddrTTL)
	return d.Host.NewStream(ctx, p, id)
}

// answer sends 256 bytes back for 256, after a first byte of 1; after another it
// takes what comes, and says so at the end.
func answer(c io.ReadWriteCloser) {
	defer c.Close()
	buf := make([]byte, 256)
	if _, err := io.ReadFull(c, buf[:1]); err != nil {
		return
	}
	if buf[0] != 1 {
		io.Copy(io.Discard, c)
		return
	}
	for {
		if _, err := io.ReadFull(c, buf); err != nil {
			return
		}
		if _, err := c.Write(buf); err != nil {
			return
		}
	}
}

// loopback makes a source, relays and a target over TCP on this machine.
func loopback(b testing.TB, relays int, accept func(*Conn)) (libhost.Host, Path) {
	var hosts []libhost.Host
	var p Path
	for i := range relays + 2 {
		h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableMetrics(),
			libp2p.DisableRelay(), libp2p.ResourceManager(&network.NullResourceManager{}))
		check(b, err)
		b.Cleanup(func() { h.Close() })
		hosts = append(hosts, h)
		if i == 0 {
			continue
		}
		hop := newHostAt(b, h.ID(), h.Addrs()...)
		s := NewServer(Config{
			Keys: func() []hpke.PrivateKey { return []hpke.PrivateKey{hop.private} }, Relay: true, Dialer: dialer{h},
			Accept: map[protocol.ID]func(*Conn){echoProtocol: accept}, Log: zap.NewNop(),
			Circuits: 1 << 20, PerPeer: 1 << 20, PerSecond: 1 << 20,
		})
		go s.Run(b.Context(), h)
		if p.Hops = append(p.Hops, hop.Hop); i == relays+1 {
			p = Path{Hops: p.Hops[:relays], Target: hop.Hop}
		}
	}
	hosts[relays+1].SetStreamHandler("/direct", func(st network.Stream) { answer(st) })
	return hosts[0], p
}

// dialBench opens a circuit, or for 0 relays a stream, for a kind of answer.
func dialBench(b *testing.B, relays int, kind byte) io.ReadWriteCloser {
	h, p := loopback(b, relays, func(c *Conn) { answer(c) })
	var c io.ReadWriteCloser
	var err error
	if relays == 0 {
		c, err = dialer{h}.NewStream(b.Context(), p.Target.Peer, p.Target.Addrs, "/direct")
	} else {
		c, err = Dial(b.Context(), dialer{h}, p, echoProtocol)
	}
	check(b, err)
	_, err = c.Write([]byte{kind})
	check(b, err)
	return c
}

func BenchmarkThroughput(b *testing.B) {
	for relays := range 4 {
		b.Run(fmt.Sprintf("relays=%d", relays), func(b *testing.B) {
			c := dialBench(b, relays, 2)
			buf := make([]byte, 256<<10)
			b.SetBytes(int64(len(buf)))
			for b.Loop() {
				_, err := c.Write(buf)
				check(b, err)
			}
			check(b, c.(interface{ CloseWrite() error }).CloseWrite())
			io.Copy(io.Discard, c) // until all has arrived
		})
	}
}

func BenchmarkPingPong(b *testing.B) {
	for relays := range 4 {
		b.Run(fmt.Sprintf("relays=%d", relays), func(b *testing.B) {
			c := dialBench(b, relays, 1)
			buf := make([]byte, 256)
			for b.Loop() {
				_, err := c.Write(buf)
				check(b, err)
				_, err = io.ReadFull(c, buf)
				check(b, err)
			}
		})
	}
}

func BenchmarkSetup(b *testing.B) {
	for relays := 1; relays < 4; relays++ {
		b.Run(fmt.Sprintf("relays=%d", relays), func(b *testing.B) {
			h, p := loopback(b, relays, func(c *Conn) { answer(c) })
			for b.Loop() {
				c, err := Dial(b.Context(), dialer{h}, p, echoProtocol)
				check(b, err)
				c.Close()
			}
		})
	}
}
