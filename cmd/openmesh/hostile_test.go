package main

import (
	"context"
	"net"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"openmesh/protocols/protocoltest"
	"openmesh/protocols/stream"
)

// What strangers do to a daemon is no news for its log: neither noise on its port,
// nor a flood of connections, nor garbage on any protocol.
func TestLogStaysQuiet(t *testing.T) {
	t.Parallel()
	d := newLab(t).backbone()
	at, err := peer.AddrInfoFromString(d.ready.Addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	noise(t, at.Addrs[0])

	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.2/tcp/0"), libp2p.ResourceManager(&network.NullResourceManager{}))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := h.Connect(ctx, *at); err != nil {
		t.Fatal(err)
	}
	protocols, err := h.Peerstore().GetProtocols(at.ID)
	if err != nil || len(protocols) == 0 {
		t.Fatalf("protocols: %v, %v", protocols, err)
	}
	opened := protocoltest.Storm(20*len(protocols), 32, func(i int) error {
		return garbageOn(ctx, h, at.ID, protocols[i%len(protocols)])
	})
	if opened == 0 {
		t.Error("no attack got through")
	}
	dialer := h.Network().(*swarm.Swarm).TransportForDialing(at.Addrs[0])
	protocoltest.Storm(400, 16, func(int) error {
		c, err := dialer.Dial(ctx, at.Addrs[0], at.ID)
		if err == nil {
			c.Close()
		}
		return err
	})
	if status, _, err := d.request("/healthz", nil); err != nil || status != 200 {
		t.Errorf("health after it all: %d, %v", status, err)
	}
	if lines := strings.Count(d.logged(), "\n"); lines > 30 {
		t.Errorf("%d lines of log:\n%s", lines, d.logged())
	}
}

// garbageOn fails only if the stream could not be opened.
func garbageOn(ctx context.Context, h stream.Dialer, p peer.ID, id protocol.ID) error {
	reached := false
	attack := protocoltest.Attack(func(ctx context.Context, s network.Stream) error {
		reached = true
		return protocoltest.Garbage(1<<10)(ctx, s)
	})
	if err := attack.On(ctx, h, p, id); !reached {
		return err
	}
	return nil
}

// noise connects to a port and speaks something else than it does.
func noise(t *testing.T, addr ma.Multiaddr) {
	t.Helper()
	to, err := manet.ToNetAddr(addr)
	if err != nil {
		t.Fatal(err)
	}
	protocoltest.Storm(200, 16, func(int) error {
		conn, err := net.Dial("tcp", to.String())
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
		return err
	})
}
