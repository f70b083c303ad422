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

// What the service reports is how peers count until they are gone.
func TestPunched(t *testing.T) {
	t.Parallel()
	p := New(Config{})
	for _, success := range []bool{false, true} {
		p.Trace(&holepunch.Event{Remote: "x", Evt: &holepunch.EndHolePunchEvt{Success: success}})
		if p.Punched("x") != success {
			t.Errorf("punched: %v after %v", p.Punched("x"), success)
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
