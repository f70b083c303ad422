package punch

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"

	"openmesh/overlay/circuit"
)

// side is a host with a puncher, which tells its addresses only while it is open.
type side struct {
	host.Host
	*Puncher
	open     atomic.Bool
	upgraded chan peer.ID
}

func newHost(t *testing.T) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func newSide(t *testing.T, open bool) *side {
	s := &side{Host: newHost(t), upgraded: make(chan peer.ID, 8)}
	s.open.Store(open)
	s.Puncher = New(Config{
		Host: s.Host, IDs: s.Host.(interface{ IDService() identify.IDService }).IDService(), Log: zap.NewNop(),
		Upgraded: func(p peer.ID) { s.upgraded <- p },
		Dial: func(ctx context.Context, p peer.ID, addrs []ma.Multiaddr) error {
			return s.Host.Connect(ctx, peer.AddrInfo{ID: p, Addrs: addrs})
		},
		Addrs: func() []ma.Multiaddr {
			if s.open.Load() {
				return ma.FilterAddrs(s.Host.Network().ListenAddresses(), func(a ma.Multiaddr) bool { return !circuit.Is(a) })
			}
			return nil
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

// relayed returns a and b, where b is reached through a relay only; a then connects.
func relayed(t *testing.T, open bool) (a, b *side) {
	t.Helper()
	r := newHost(t)
	service, err := relay.New(r, relay.WithInfiniteLimits())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { service.Close() })
	a, b = newSide(t, open), newSide(t, open)
	at := peer.AddrInfo{ID: r.ID(), Addrs: r.Addrs()}
	if err := b.Connect(t.Context(), at); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Reserve(t.Context(), b.Host, at); err != nil {
		t.Fatal(err)
	}
	through := ma.StringCast(r.Addrs()[0].String() + "/p2p/" + r.ID().String() + "/p2p-circuit")
	if err := a.Connect(t.Context(), peer.AddrInfo{ID: b.ID(), Addrs: []ma.Multiaddr{through}}); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// wait returns when s was told of a direct connection to other, which is there.
func wait(t *testing.T, s, other *side) {
	t.Helper()
	select {
	case p := <-s.upgraded:
		if p != other.ID() {
			t.Errorf("told of %s", p)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("still relayed")
	}
	if _, direct := connections(s.Host.Network(), other.ID()); len(direct) == 0 {
		t.Error("there is no direct connection")
	}
}

// A circuit is replaced, both sides are told, and count it.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	a, b := relayed(t, true)
	wait(t, a, b)
	wait(t, b, a)
	if err := a.Punch(t.Context(), b.ID()); err != nil {
		t.Errorf("with a direct connection: %v", err)
	}
	deadline := time.After(20 * time.Second)
	for b.Counts().Successes == 0 || !b.Punched(a.ID()) { // known a little after the connection
		select {
		case <-deadline:
			t.Fatalf("counts %+v, punched %v", b.Counts(), b.Punched(a.ID()))
		case <-time.After(time.Millisecond):
		}
	}
}

// Hosts that do not know where they are seen get no hole; once they know, they
// try again at once.
func TestKick(t *testing.T) {
	t.Parallel()
	a, b := relayed(t, false)
	if err := b.Punch(t.Context(), a.ID()); err == nil {
		t.Error("a hole was punched to nowhere")
	}
	a.open.Store(true)
	b.open.Store(true)
	a.Kick()
	b.Kick()
	wait(t, b, a)
	wait(t, a, b)
}

func TestPunchRefusals(t *testing.T) {
	t.Parallel()
	a, b := newSide(t, true), newHost(t)
	if err := a.Punch(t.Context(), b.ID()); !errors.Is(err, errNoCircuit) {
		t.Errorf("a stranger: %v", err)
	}
	if err := a.Connect(t.Context(), peer.AddrInfo{ID: b.ID(), Addrs: b.Addrs()}); err != nil {
		t.Fatal(err)
	}
	if err := a.Punch(t.Context(), b.ID()); err != nil {
		t.Errorf("connected directly: %v", err)
	}
	st, err := b.NewStream(t.Context(), a.ID(), holepunch.Protocol)
	if err != nil {
		return // its puncher has not begun
	}
	if _, err := st.Read(make([]byte, 1)); err == nil {
		t.Error("asked over a direct connection it answers")
	}
}

// What the service reports is how peers count until they are gone, and whoever
// connects meanwhile comes through the hole.
func TestPunched(t *testing.T) {
	t.Parallel()
	p := New(Config{Host: newHost(t)})
	p.Trace(&holepunch.Event{Remote: "y", Evt: &holepunch.StartHolePunchEvt{}})
	for id, want := range map[peer.ID]bool{"y": true, "z": false} {
		if p.connected(directTo{peer: id}); p.Punched(id) != want {
			t.Errorf("%s connected, punched: %v", id, p.Punched(id))
		}
	}
	for _, success := range []bool{false, true} {
		p.Trace(&holepunch.Event{Remote: "x", Evt: &holepunch.EndHolePunchEvt{Success: success}})
		if p.Punched("x") != success {
			t.Errorf("punched: %v after %v", p.Punched("x"), success)
		}
	}
}

// Where a hole led to a peer by TCP sooner than by QUIC, QUIC follows.
func TestQUICFollows(t *testing.T) {
	t.Parallel()
	const quic = "/ip4/9.9.9.9/udp/4747/quic-v1"
	dialled, upgraded := make(chan []ma.Multiaddr, 1), make(chan peer.ID, 1)
	p := New(Config{
		Host: newHost(t), Log: zap.NewNop(), Addrs: func() []ma.Multiaddr { return nil },
		Dial:     func(_ context.Context, _ peer.ID, addrs []ma.Multiaddr) error { dialled <- addrs; return nil },
		Upgraded: func(id peer.ID) { upgraded <- id },
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	begin := &holepunch.StartHolePunchEvt{RemoteAddrs: []string{"/ip4/9.9.9.9/tcp/443", quic, "nonsense"}}
	for _, success := range []bool{false, true} {
		p.Trace(&holepunch.Event{Remote: "x", Evt: begin})
		p.Trace(&holepunch.Event{Remote: "x", Evt: &holepunch.EndHolePunchEvt{Success: success}})
	}
	if got := <-dialled; len(got) != 1 || got[0].String() != quic {
		t.Errorf("dialled %v, want %s", got, quic)
	}
	if got := <-upgraded; got != "x" {
		t.Errorf("told of %q", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if len(dialled) > 0 {
		t.Error("dialled again")
	}
}

// directTo is a connection to a peer.
type directTo struct {
	network.Conn
	peer peer.ID
}

func (c directTo) RemotePeer() peer.ID           { return c.peer }
func (c directTo) RemoteMultiaddr() ma.Multiaddr { return ma.StringCast("/ip4/9.9.9.9/tcp/1") }

// An attempt that fails after the host learned where it is seen is made again at
// once.
func TestKickWhileTrying(t *testing.T) {
	t.Parallel()
	p := New(Config{Host: newHost(t), Log: zap.NewNop()})
	for _, kicked := range []bool{false, true} {
		p.queue["x"] = &attempt{tries: 3, running: true}
		if kicked {
			p.Kick()
		}
		p.finish("x", errors.New("no way"))
		if a := p.queue["x"]; a.running || time.Until(a.due) <= 0 != kicked {
			t.Errorf("kicked %v: the next attempt is due in %v", kicked, time.Until(a.due))
		}
	}
}

// A hole is dialled by the addresses that the peer told alone, and never with both
// sides as the client.
func TestPunchDials(t *testing.T) {
	t.Parallel()
	errDialled := errors.New("dialled")
	p := New(Config{Host: newHost(t), Dial: func(ctx context.Context, to peer.ID, _ []ma.Multiaddr) error { return errDialled }})
	to := peer.AddrInfo{ID: newHost(t).ID()}
	for _, tc := range []struct{ answers, client, dials bool }{{true, true, true}, {false, false, true}, {false, true, false}} {
		if tc.answers {
			p.answer(to.ID)
		}
		err := seat{p.cfg.Host, p}.Connect(network.WithSimultaneousConnect(t.Context(), tc.client, "test"), to)
		if errors.Is(err, errDialled) != tc.dials {
			t.Errorf("%+v: %v", tc, err)
		}
		if tc.answers {
			p.answered(to.ID)
		}
	}
	if err := (seat{p.cfg.Host, p}).Connect(t.Context(), to); errors.Is(err, errDialled) {
		t.Error("a plain dial is made like one of a hole")
	}
}

// Only one attempt is made at a time with a peer, whoever asks.
func TestOneAtATime(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	smaller, larger := peer.ID(""), h.ID()+"x"
	for _, tc := range []struct {
		peer    peer.ID
		answers bool // while it is asking itself
	}{{smaller, true}, {larger, false}} {
		p := New(Config{Host: h})
		if !p.answer(tc.peer) || p.begin(tc.peer) {
			t.Error("asks while it answers")
		}
		p.answered(tc.peer)
		if !p.begin(tc.peer) {
			t.Error("does not ask after it answered")
		}
		if p.answer(tc.peer) != tc.answers {
			t.Errorf("answers a peer while it asks: %v", !tc.answers)
		}
		p.end(tc.peer)
		if !p.answer(tc.peer) {
			t.Error("does not answer after it asked")
		}
	}
}

func TestDelaysGrow(t *testing.T) {
	t.Parallel()
	last := time.Duration(0)
	for tries := 1; tries < 6; tries++ {
		d := delays(tries)
		if d <= last {
			t.Errorf("%v after %v", d, last)
		}
		last = d
	}
	if d := delays(1000); d > 20*time.Minute {
		t.Errorf("%v at last", d)
	}
}

var _ network.Network = deaf{}
