package overlay

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"

	"openmesh/overlay/relay"
)

// start runs a host on loopback until the test, or stop, ends it.
func start(t *testing.T, cfg Config) (h *Host, stop func()) {
	t.Helper()
	if cfg.Key == nil {
		cfg.Key = newKey(t)
	}
	if cfg.Listen == nil {
		cfg.Listen = []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/0"), ma.StringCast("/ip4/127.0.0.1/udp/0/quic-v1"), ma.StringCast("/ip4/127.0.0.1/tcp/0/ws")}
	}
	cfg.Log = zap.NewNop()
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return h, stop
}

func newKey(t *testing.T) crypto.PrivKey {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func info(h *Host, addrs ...ma.Multiaddr) peer.AddrInfo {
	if addrs == nil {
		addrs = h.Addrs()
	}
	return peer.AddrInfo{ID: h.ID(), Addrs: addrs}
}

const echo = "/test/echo/1.0.0"

func serveEcho(h *Host) {
	h.SetStreamHandler(echo, func(st network.Stream) {
		io.Copy(st, st)
		st.Close()
	})
}

func roundTrip(ctx context.Context, from *Host, to peer.ID, size int) error {
	st, err := from.NewStream(ctx, to, echo)
	if err != nil {
		return err
	}
	defer st.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := st.Write(make([]byte, size))
		sent <- err
	}()
	if n, err := io.ReadFull(st, make([]byte, size)); err != nil {
		return fmt.Errorf("read %d of %d bytes: %w", n, size, err)
	}
	return <-sent
}

// Where there is one NAT there are many agents: far more than libp2p's eight may
// connect from one address, but not without end.
func TestConnectionsPerIP(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"/ip4/9.9.9.9/tcp/4001", "/ip6/2620:fe::9/tcp/4001"} {
		rm, err := Config{MaxConnections: 1024}.resourceManager()
		if err != nil {
			t.Fatal(err)
		}
		defer rm.Close()
		n := 0
		for ; n < 2*perIP; n++ {
			conn, err := rm.OpenConnection(network.DirInbound, true, ma.StringCast(addr))
			if err != nil {
				break
			}
			defer conn.Done()
			key, _ := peer.IDFromPrivateKey(newKey(t))
			if err := conn.SetPeer(key); err != nil {
				t.Fatal(err)
			}
		}
		if n != perIP {
			t.Errorf("%s: %d connections, want %d", addr, n, perIP)
		}
	}
}

// All who may be connected may have a stream of the same protocol.
func TestStreamsOfOneProtocol(t *testing.T) {
	t.Parallel()
	const peers = 2000
	rm, err := Config{MaxConnections: peers}.resourceManager()
	if err != nil {
		t.Fatal(err)
	}
	defer rm.Close()
	for i := range peers {
		scope, err := rm.OpenStream(peer.ID(fmt.Sprint("peer ", i)), network.DirInbound)
		if err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
		defer scope.Done()
		if err := scope.SetProtocol("/test/1.0.0"); err != nil {
			t.Fatalf("stream %d: %v", i, err)
		}
	}
}

// One peer cannot take the connections of others, nor all peers more than there
// may be.
func TestConnectionLimits(t *testing.T) {
	t.Parallel()
	rm, err := Config{MaxConnections: 64}.resourceManager()
	if err != nil {
		t.Fatal(err)
	}
	defer rm.Close()
	open := func(i int, p peer.ID) error {
		conn, err := rm.OpenConnection(network.DirInbound, true, ma.StringCast(fmt.Sprintf("/ip4/9.9.%d.%d/tcp/4001", i/256, i%256)))
		if err != nil {
			return err
		}
		if err := conn.SetPeer(p); err != nil {
			conn.Done()
			return err
		}
		t.Cleanup(conn.Done)
		return nil
	}
	greedy, _ := peer.IDFromPrivateKey(newKey(t))
	n := 0
	for i := range 1000 {
		if open(i, greedy) == nil {
			n++
		}
	}
	if n != perPeer {
		t.Errorf("one peer has %d connections, want %d", n, perPeer)
	}
	for i := range 200 {
		id, _ := peer.IDFromPrivateKey(newKey(t))
		if open(1000+i, id) == nil {
			n++
		}
	}
	if n != 64 {
		t.Errorf("%d connections in all, want 64", n)
	}
}

// An agent behind a relay advertises a circuit address; through it alone it is
// reached, and more goes through than libp2p's default relay would carry. When the
// relay comes back after an outage, so does the address.
func TestRelay(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	quotas := &relay.Config{Reservations: 64, Circuits: 64, CircuitsPerPeer: 16}
	relay, stopRelay := start(t, Config{Key: key, Public: true, Relay: quotas})
	at := info(relay)
	agent, _ := start(t, Config{Relays: func() []peer.AddrInfo { return []peer.AddrInfo{at} }})
	serveEcho(agent)
	caller, _ := start(t, Config{})
	circuit := waitForCircuit(t, agent, true)
	if err := caller.Connect(t.Context(), info(agent, circuit)); err != nil {
		t.Fatal(err)
	}
	if err := roundTrip(t.Context(), caller, agent.ID(), 4<<20); err != nil {
		t.Errorf("4 MiB over the relay: %v", err)
	}
	if r := caller.Reach(agent.ID()); r != "relayed" {
		t.Errorf("reach %q", r)
	}
	stopRelay()
	waitForCircuit(t, agent, false)
	start(t, Config{Key: key, Public: true, Relay: quotas, Listen: at.Addrs})
	waitForCircuit(t, agent, true)
}

// waitForCircuit waits until h has a circuit address, or none.
func waitForCircuit(t *testing.T, h *Host, want bool) ma.Multiaddr {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		i := slices.IndexFunc(h.Addrs(), IsCircuit)
		switch {
		case want && i >= 0:
			return h.Addrs()[i]
		case !want && i < 0:
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("circuit address: %v, want %v", h.Addrs(), want)
		}
	}
}

func TestAnnounceReplacesWhatWasFound(t *testing.T) {
	t.Parallel()
	announced := ma.StringCast("/dns4/agent.example/tcp/4747")
	h, _ := start(t, Config{Announce: []ma.Multiaddr{announced}})
	if a := h.Addrs(); len(a) != 1 || !a[0].Equal(announced) {
		t.Errorf("addrs %v", a)
	}
	if a := h.Addresses(); a[0] != announced.String()+"/p2p/"+h.ID().String() {
		t.Errorf("addresses %v", a)
	}
}

func TestReachability(t *testing.T) {
	t.Parallel()
	public, _ := start(t, Config{Public: true})
	if r := public.Reachability(); r != "public" {
		t.Errorf("public host is %q", r)
	}
	h, _ := start(t, Config{})
	if r := h.Reachability(); r != "unknown" {
		t.Errorf("new host is %q", r)
	}
	emitter, err := h.EventBus().Emitter(new(event.EvtLocalReachabilityChanged))
	if err != nil {
		t.Fatal(err)
	}
	defer emitter.Close()
	emitter.Emit(event.EvtLocalReachabilityChanged{Reachability: network.ReachabilityPrivate})
	deadline := time.Now().Add(10 * time.Second)
	for h.Reachability() != "private" {
		if time.Now().After(deadline) {
			t.Fatal("never private")
		}
		runtime.Gosched()
	}
}
