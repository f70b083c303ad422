package grpclink

import (
	"context"
	"crypto/rand"
	"io"
	"testing"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// BenchmarkPath compares a link with a libp2p stream over TCP: 256 bytes there
// and back, and bulk one way in writes of 64 KiB.
func BenchmarkPath(b *testing.B) {
	for name, open := range map[string]func(*testing.B) io.ReadWriteCloser{"link": openLink, "libp2p": openTCP} {
		b.Run(name+"/echo", func(b *testing.B) {
			c := open(b)
			buf := make([]byte, 256)
			for b.Loop() {
				if _, err := c.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/bulk", func(b *testing.B) {
			c := open(b)
			buf := make([]byte, 64<<10)
			b.SetBytes(int64(len(buf)))
			for b.Loop() {
				if _, err := c.Write(buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// mirror sends back what it reads, up to 256 bytes of each piece: an echo of
// small messages, a sink for large ones.
func mirror(c io.ReadWriter) {
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if n > 256 {
			continue
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

func openLink(b *testing.B) io.ReadWriteCloser {
	s, _ := serve(b, Config{Accept: func(c *Conn) { mirror(c) }})
	c, err := dialer(b).Open(b.Context(), s.Addrs()[0])
	if err != nil {
		b.Fatal(err)
	}
	return c
}

func openTCP(b *testing.B) io.ReadWriteCloser {
	hosts := make([]host.Host, 2)
	for i := range hosts {
		key, _, err := crypto.GenerateEd25519Key(rand.Reader)
		if err != nil {
			b.Fatal(err)
		}
		h, err := libp2p.New(libp2p.Identity(key), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableMetrics(), libp2p.ResourceManager(&network.NullResourceManager{}))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { h.Close() })
		hosts[i] = h
	}
	hosts[1].SetStreamHandler("/echo", func(st network.Stream) { mirror(st) })
	if err := hosts[0].Connect(b.Context(), peer.AddrInfo{ID: hosts[1].ID(), Addrs: hosts[1].Addrs()}); err != nil {
		b.Fatal(err)
	}
	st, err := hosts[0].NewStream(context.Background(), hosts[1].ID(), "/echo")
	if err != nil {
		b.Fatal(err)
	}
	return st
}
