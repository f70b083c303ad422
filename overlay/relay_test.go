package overlay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/x/simlibp2p"
	"github.com/marcopolo/simnet"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"

	"openmesh/overlay/overlaytest"
	"openmesh/overlay/relay"
	"openmesh/protocols/wire"
)

// sim is a simulated network of our hosts. Packets take 10 ms each way, more from
// and to a host that is far, and for ever to one that is cut off. Call its methods
// inside overlaytest.Run.
type sim struct {
	t    *testing.T
	net  *simnet.Simnet
	link simnet.NodeBiDiLinkSettings
	n    int

	mu    sync.Mutex
	delay map[string]time.Duration // by IP
}

func newSim(t *testing.T) *sim {
	link := simnet.LinkSettings{BitsPerSecond: 100 * simlibp2p.OneMbps}
	s := &sim{t: t, link: simnet.NodeBiDiLinkSettings{Downlink: link, Uplink: link}, delay: make(map[string]time.Duration)}
	s.net = &simnet.Simnet{LatencyFunc: func(p *simnet.Packet) time.Duration {
		s.mu.Lock()
		defer s.mu.Unlock()
		return 10*time.Millisecond + s.delay[ipOf(p.From)] + s.delay[ipOf(p.To)]
	}}
	s.net.Start()
	t.Cleanup(func() { s.net.Close() })
	return s
}

func ipOf(a net.Addr) string {
	ip, _, _ := net.SplitHostPort(a.String())
	return ip
}

// slow has packets of h take so much longer.
func (s *sim) slow(h *Host, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay[ipOf2(h.Network().ListenAddresses())] = d
}

func ipOf2(as []ma.Multiaddr) string {
	for _, a := range as {
		if ip, err := a.ValueForProtocol(ma.P_IP4); err == nil {
			return ip
		}
	}
	return ""
}

const forEver = 1000 * time.Hour

// host runs a host on the network.
func (s *sim) host(cfg Config) *Host {
	s.t.Helper()
	s.n++
	cfg.Key, cfg.Log = newKey(s.t), zap.NewNop()
	cfg.Listen = []ma.Multiaddr{ma.StringCast(fmt.Sprintf("/ip4/%s/udp/8000/quic-v1", simnet.IntToPublicIPv4(s.n)))}
	cfg.Options = []libp2p.Option{
		simlibp2p.QUICSimnet(s.net, s.link), libp2p.DisableIdentifyAddressDiscovery(),
		func(cfg *libp2p.Config) error { // judging others takes real sockets
			cfg.EnableAutoNATv2, cfg.AutoNATConfig.EnableService = false, false
			return nil
		},
	}
	h, err := New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	s.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			s.t.Error(err)
		}
	})
	return h
}

func (s *sim) relay() *Host {
	return s.host(Config{Public: true, Relay: &relay.Config{Reservations: 64, Circuits: 64, CircuitsPerPeer: 16}})
}

func these(relays ...*Host) func() []peer.AddrInfo {
	var infos []peer.AddrInfo
	for _, r := range relays {
		infos = append(infos, info(r))
	}
	rand.Shuffle(len(infos), func(i, j int) { infos[i], infos[j] = infos[j], infos[i] })
	return func() []peer.AddrInfo { return infos }
}

// until waits for a condition, in virtual time.
func until(t *testing.T, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > limit {
			t.Fatalf("not within %v: %s", limit, what)
		}
		<-time.After(5 * time.Millisecond)
	}
	return time.Since(began)
}

// held reports whether h is reached through exactly these relays.
func held(h *Host, relays ...*Host) bool {
	var want, got []peer.ID
	for _, r := range relays {
		want = append(want, r.ID())
	}
	for _, a := range h.Addrs() {
		if id := RelayOf(a); id != "" && !slices.Contains(got, id) {
			got = append(got, id)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	return slices.Equal(got, want)
}

// Of three relays the two nearest are used; when one dies without a word, the third
// takes its place within seconds, and its address is not advertised any more.
func TestReservationsMoveToAnotherRelay(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		s := newSim(t)
		near, near2, far := s.relay(), s.relay(), s.relay()
		s.slow(far, 100*time.Millisecond)
		h := s.host(Config{Relays: these(near, near2, far)})
		if took := until(t, 3*time.Second, "two reservations", func() bool { return held(h, near, near2) }); took > time.Second {
			t.Errorf("reservations took %v", took)
		}
		s.slow(near, forEver)
		until(t, 12*time.Second, "the third relay", func() bool { return held(h, near2, far) })
		if !slices.Contains(h.Relays(), far.ID()) {
			t.Errorf("relays %v", h.Relays())
		}
	})
}

// While a dead relay is tried again, another one that is there from then on is used at
// once: it is not waited for.
func TestDeadRelayHoldsNobodyUp(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		s := newSim(t)
		r1, r2, r3 := s.relay(), s.relay(), s.relay()
		var more atomic.Bool
		h := s.host(Config{Relays: func() []peer.AddrInfo {
			if more.Load() {
				return these(r1, r2, r3)()
			}
			return these(r1, r2)()
		}})
		until(t, 3*time.Second, "two reservations", func() bool { return held(h, r1, r2) })
		s.slow(r1, forEver)
		until(t, 12*time.Second, "that a reservation is lost", func() bool { return held(h, r2) })
		<-time.After(5 * time.Second) // it is tried again by now, which takes 5 s
		more.Store(true)
		until(t, 1500*time.Millisecond, "another relay", func() bool { return held(h, r2, r3) })
	})
}

// A relay of the configuration that does not answer does not keep those found away.
func TestFoundRelaysBesideDeadOne(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		s := newSim(t)
		configured, found := s.relay(), s.relay()
		s.slow(configured, forEver)
		h := s.host(Config{Relays: these(configured), FindRelays: func(context.Context) []RelayCandidate {
			return []RelayCandidate{{AddrInfo: info(found)}}
		}})
		until(t, 3*time.Second, "the one found", func() bool { return held(h, found) })
	})
}

// Found relays fill up what those configured leave open; one under load comes last.
func TestFoundRelays(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		s := newSim(t)
		configured, idle, busy := s.relay(), s.relay(), s.relay()
		h := s.host(Config{Relays: these(configured), FindRelays: func(context.Context) []RelayCandidate {
			return []RelayCandidate{{AddrInfo: info(busy), Load: 0.9}, {AddrInfo: info(configured)}, {AddrInfo: info(idle), Load: 0.1}}
		}})
		until(t, 3*time.Second, "one configured and one found", func() bool { return held(h, configured, idle) })
	})
}

// A public host holds reservations only at relays that it is told of, and keeps its
// own addresses beside those.
func TestPublicHostReserves(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		s := newSim(t)
		r := s.relay()
		told := s.host(Config{Public: true, Relays: these(r)})
		found := s.host(Config{Public: true, Relays: these(), FindRelays: func(context.Context) []RelayCandidate {
			return []RelayCandidate{{AddrInfo: info(r)}}
		}})
		until(t, 10*time.Second, "the reservation", func() bool { return held(told, r) })
		addrs := told.Addrs()
		if !slices.ContainsFunc(addrs, IsCircuit) || !slices.ContainsFunc(addrs, func(a ma.Multiaddr) bool { return !IsCircuit(a) }) {
			t.Errorf("addresses %v, want its own and those through the relay", addrs)
		}
		if relays := found.Relays(); len(relays) > 0 {
			t.Errorf("a public host that was told of no relay reserved at %v", relays)
		}
	})
}

// A caller that is connected to two relays gets through at once when the one in use
// has died without a word, whether it says which one that was or has abandoned a
// connection through it.
func TestDialAroundDeadRelay(t *testing.T) {
	for _, say := range []string{"avoid", "avoid, any transport", "abandon"} {
		t.Run(say, func(t *testing.T) {
			overlaytest.Run(t, func(t *testing.T) {
				s := newSim(t)
				r1, r2 := s.relay(), s.relay()
				b, a := s.host(Config{Relays: these(r1, r2)}), s.host(Config{Relays: these(r1, r2)})
				serveEcho(b)
				until(t, 3*time.Second, "reservations", func() bool { return held(a, r1, r2) && held(b, r1, r2) })
				a.Peerstore().AddAddrs(b.ID(), slices.DeleteFunc(b.Addrs(), func(x ma.Multiaddr) bool { return !IsCircuit(x) }), peerstore.PermanentAddrTTL)
				c, err := a.Dial(t.Context(), b.ID(), Route{Transport: Circuit})
				if err != nil {
					t.Fatal(err)
				}
				dead, alive := r1, r2
				if RelayOf(c.RemoteMultiaddr()) == r2.ID() {
					dead, alive = r2, r1
				}
				s.slow(dead, forEver)
				route := Route{Transport: Circuit, Avoid: []peer.ID{dead.ID()}}
				switch say {
				case "abandon":
					a.Abandon(c)
					route = Route{}
				case "avoid, any transport":
					route.Transport = ""
				}
				began := time.Now()
				c, err = a.Dial(t.Context(), b.ID(), route)
				if err != nil || RelayOf(c.RemoteMultiaddr()) != alive.ID() {
					t.Fatalf("%v, %v", c, err)
				}
				if took := time.Since(began); took > 300*time.Millisecond+2*40*time.Millisecond {
					t.Errorf("it took %v", took)
				}
				if err := echoOn(t.Context(), a, c, 1<<10); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A dead relay that nobody suspects yet costs a head start.
func TestDialBesideDeadRelay(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		s := newSim(t)
		r1, r2 := s.relay(), s.relay()
		b, a := s.host(Config{Relays: these(r1, r2)}), s.host(Config{Relays: these(r1, r2)})
		until(t, 3*time.Second, "reservations", func() bool { return held(a, r1, r2) && held(b, r1, r2) })
		s.slow(r1, forEver)
		circuits := slices.DeleteFunc(b.Addrs(), func(x ma.Multiaddr) bool { return !IsCircuit(x) })
		for _, r := range []Route{{Addrs: circuits}, {Transport: Circuit, Addrs: circuits}} {
			began := time.Now()
			c, err := a.Dial(t.Context(), b.ID(), r)
			if err != nil || RelayOf(c.RemoteMultiaddr()) != r2.ID() {
				t.Fatalf("%v, %v", c, err)
			}
			if took := time.Since(began); took > 500*time.Millisecond {
				t.Errorf("it took %v", took)
			}
			c.Close()
		}
	})
}

// A relay that could not be reached for a moment, and those behind it, are tried again
// as soon as the caller wants it, not when libp2p would.
func TestForgive(t *testing.T) {
	for _, transport := range []string{"", Circuit} {
		overlaytest.Run(t, func(t *testing.T) {
			s := newSim(t)
			r := s.relay()
			b, a := s.host(Config{Relays: these(r)}), s.host(Config{})
			until(t, 3*time.Second, "a reservation", func() bool { return held(b, r) })
			route := Route{Transport: transport, Addrs: b.Addrs()}
			s.slow(a, forEver)
			if _, err := a.Dial(t.Context(), b.ID(), route); err == nil {
				t.Fatal("dialled through a network that passes nothing")
			}
			s.slow(a, 0)
			if _, err := a.Dial(t.Context(), b.ID(), route); err == nil {
				t.Fatal("libp2p leaves no address alone")
			}
			synctest.Wait() // some dials of the first attempt only fail after it has ended
			a.Forgive(b.ID(), route)
			if _, err := a.Dial(t.Context(), b.ID(), route); err != nil {
				t.Error(err)
			}
		})
	}
}

// Abandoning a circuit leaves the other relay's alone.
func TestAbandonCircuit(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		s := newSim(t)
		r1, r2 := s.relay(), s.relay()
		b, a := s.host(Config{Relays: these(r1, r2)}), s.host(Config{})
		until(t, 3*time.Second, "reservations", func() bool { return held(b, r1, r2) })
		var conns []network.Conn
		for _, avoid := range []*Host{r1, r2} {
			c, err := a.Dial(t.Context(), b.ID(), Route{Transport: Circuit, Addrs: b.Addrs(), Avoid: []peer.ID{avoid.ID()}})
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
		a.Abandon(conns[0])
		if !conns[0].IsClosed() || conns[1].IsClosed() {
			t.Errorf("closed: %v, %v", conns[0].IsClosed(), conns[1].IsClosed())
		}
	})
}

// Where relays are not to be used they are not, either way, and the error says what
// to set.
func TestNoCircuits(t *testing.T) {
	t.Parallel()
	relay, _ := start(t, Config{Public: true, Relay: &relay.Config{Reservations: 64, Circuits: 64, CircuitsPerPeer: 16}})
	b, _ := start(t, Config{Relays: these(relay)})
	circuit := waitForCircuit(t, b, true)
	a, _ := start(t, Config{NoCircuits: true, Relays: these(relay)})
	for _, transport := range []string{Circuit, ""} {
		_, err := a.Dial(t.Context(), b.ID(), Route{Transport: transport, Addrs: []ma.Multiaddr{circuit}})
		var e *wire.Error
		if !errors.As(err, &e) || e.Code != wire.Unreachable || e.Hint == "" {
			t.Errorf("over %q: %v", transport, err)
		}
	}
	if err := a.Connect(t.Context(), info(relay)); err != nil {
		t.Fatal(err)
	}
	towards := ma.StringCast(relay.Addresses()[0] + "/p2p-circuit")
	if _, err := b.Dial(t.Context(), a.ID(), Route{Transport: Circuit, Addrs: []ma.Multiaddr{towards}}); err == nil {
		t.Error("a circuit is accepted")
	}
	if slices.ContainsFunc(a.Addrs(), IsCircuit) {
		t.Errorf("addresses %v", a.Addrs())
	}
}

// TCP and WebSocket share a port.
func TestSharedPort(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", l.Addr().(*net.TCPAddr).Port)
	l.Close()
	tcp, ws := ma.StringCast(at), ma.StringCast(at+"/ws")
	b, _ := start(t, Config{Listen: []ma.Multiaddr{tcp, ws}})
	a, _ := start(t, Config{})
	serveEcho(b)
	for transport, addr := range map[string]ma.Multiaddr{"tcp": tcp, "ws": ws} {
		c, err := a.Dial(t.Context(), b.ID(), Route{Transport: transport, Addrs: []ma.Multiaddr{addr}})
		if err != nil {
			t.Fatal(err)
		}
		if err := echoOn(t.Context(), a, c, 1<<16); err != nil {
			t.Errorf("%s: %v", transport, err)
		}
	}
	if got := a.Transports(b.ID()); !slices.Equal(got, []string{"tcp", "ws"}) {
		t.Errorf("transports %v", got)
	}
}
