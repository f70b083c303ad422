package relay

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	pbv2 "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	ma "github.com/multiformats/go-multiaddr"

	"openmesh/overlay/overlaytest"
	"openmesh/protocols/stream"
	"openmesh/protocols/wire"
)

// Every quota: what is beyond it is refused with its status and counted, and
// accepted when room is made.
func TestQuotas(t *testing.T) {
	for _, tc := range []struct {
		name   string
		cfg    Config
		story  func(l *lab, want func(pbv2.Status, pbv2.Status))
		reason Reason
	}{
		{"reservations", Config{Reservations: 1}, reservationsTaken, NoSlot},
		{"no reservation", Config{}, notReserved, NoReservation},
		{"reservation expires", Config{ReservationTTL: time.Hour}, reservationExpires, NoReservation},
		{"circuits", Config{Circuits: 1}, circuitsTaken, NoCircuit},
		{"circuits of source", Config{CircuitsPerPeer: 1}, circuitsOfSource, NoCircuitOfPeer},
		{"circuits of destination", Config{CircuitsToPeer: 2}, circuitsOfDestination, NoCircuitOfPeer},
		{"circuits of a pair", Config{}, circuitsOfPair, NoCircuitOfPeer},
		{"volume of a day", Config{DailyBytesPerPeer: 10_000, Idle: 200 * time.Hour}, volumeUsed, VolumeUsed},
		{"requests per second", Config{RequestsPerSecond: 1}, tooFast, TooFast},
		{"destination does not accept", Config{}, silentDestination, Unanswered},
		{"to itself", Config{}, toItself, Denied},
	} {
		t.Run(tc.name, func(t *testing.T) {
			overlaytest.Run(t, func(t *testing.T) {
				l := newLab(t, tc.cfg)
				tc.story(l, func(got, want pbv2.Status) {
					t.Helper()
					if got != want {
						t.Fatalf("status %s, want %s", got, want)
					}
				})
				settle()
				if u := l.relay.Usage(); u.Refusals[tc.reason] == 0 || len(u.Refusals) != 1 {
					t.Errorf("refusals %v, want some of %s and no others", u.Refusals, tc.reason)
				}
			})
		})
	}
}

func reservationsTaken(l *lab, want func(pbv2.Status, pbv2.Status)) {
	a, b := l.peer(), l.peer()
	want(l.reserve(a), pbv2.Status_OK)
	want(l.reserve(b), pbv2.Status_RESERVATION_REFUSED)
	want(l.reserve(a), pbv2.Status_OK) // to renew needs no other slot
	a.Network().ClosePeer(l.host.ID())
	settle()
	want(l.reserve(b), pbv2.Status_OK)
}

func notReserved(l *lab, want func(pbv2.Status, pbv2.Status)) {
	a, b := l.peer(), l.peer()
	accept(b, echo)
	_, got := l.connect(a, b.ID())
	want(got, pbv2.Status_NO_RESERVATION)
	want(l.reserve(b), pbv2.Status_OK)
	exchange(l.T, l.mustConnect(a, b.ID()), 100)
}

func reservationExpires(l *lab, want func(pbv2.Status, pbv2.Status)) {
	a, b := l.peer(), l.listener(echo)
	time.Sleep(40 * time.Minute)
	want(l.reserve(b), pbv2.Status_OK)
	time.Sleep(40 * time.Minute)
	s := l.mustConnect(a, b.ID())
	time.Sleep(21 * time.Minute)
	_, got := l.connect(a, b.ID())
	want(got, pbv2.Status_NO_RESERVATION)
	if u := l.relay.Usage(); u.Reservations != 0 || l.host.ConnManager().IsProtected(b.ID(), reservationTag) {
		l.Errorf("%d reservations after they expired, or still protected", u.Reservations)
	}
	s.Reset()
	want(l.reserve(b), pbv2.Status_OK)
	l.mustConnect(a, b.ID())
}

func circuitsTaken(l *lab, want func(pbv2.Status, pbv2.Status)) {
	a, b, c, d := l.peer(), l.listener(echo), l.peer(), l.listener(echo)
	s := l.mustConnect(a, b.ID())
	_, got := l.connect(c, d.ID())
	want(got, pbv2.Status_RESOURCE_LIMIT_EXCEEDED)
	exchange(l.T, s, 100)
	s.Reset()
	settle()
	exchange(l.T, l.mustConnect(c, d.ID()), 100)
}

func circuitsOfSource(l *lab, want func(pbv2.Status, pbv2.Status)) {
	a, b, c := l.peer(), l.listener(echo), l.listener(echo)
	s := l.mustConnect(a, b.ID())
	_, got := l.connect(a, c.ID())
	want(got, pbv2.Status_RESOURCE_LIMIT_EXCEEDED)
	s.Reset()
	settle()
	l.mustConnect(a, c.ID())
}

func circuitsOfDestination(l *lab, want func(pbv2.Status, pbv2.Status)) {
	a, b, c, d := l.peer(), l.peer(), l.listener(echo), l.listener(echo)
	s := l.mustConnect(a, c.ID())
	l.mustConnect(d, c.ID())
	_, got := l.connect(b, c.ID())
	want(got, pbv2.Status_RESOURCE_LIMIT_EXCEEDED)
	l.mustConnect(c, d.ID()) // what it opens itself is not concerned
	s.CloseWrite()           // both ways end: the destination echoes the end
	settle()
	l.mustConnect(b, c.ID())
}

// Whoever opens all that it may to one peer leaves room for others, and may reach
// others itself.
func circuitsOfPair(l *lab, want func(pbv2.Status, pbv2.Status)) {
	flooder, victim, other := l.peer(), l.listener(echo), l.listener(echo)
	var s network.Stream
	for range 16 / 4 {
		s = l.mustConnect(flooder, victim.ID())
	}
	_, got := l.connect(flooder, victim.ID())
	want(got, pbv2.Status_RESOURCE_LIMIT_EXCEEDED)
	settle()
	l.mustConnect(flooder, other.ID())
	for range 40 {
		exchange(l.T, l.mustConnect(l.peer(), victim.ID()), 100)
	}
	s.Reset()
	settle()
	l.mustConnect(flooder, victim.ID())
}

func volumeUsed(l *lab, want func(pbv2.Status, pbv2.Status)) {
	a, b, c, d := l.peer(), l.listener(echo), l.listener(echo), l.peer()
	s := l.mustConnect(a, b.ID())
	exchange(l.T, s, 4000) // 8000 of 10000 for either peer
	s.Write(make([]byte, 4000))
	_, err := io.Copy(io.Discard, s)
	if !errors.Is(stream.RemoteError(err), wire.ResourceExhausted) {
		l.Errorf("circuit ended with %v, want %v", err, wire.ResourceExhausted)
	}
	_, got := l.connect(a, c.ID())
	want(got, pbv2.Status_RESOURCE_LIMIT_EXCEEDED)
	other := l.mustConnect(d, c.ID())
	exchange(l.T, other, 3000) // others are not concerned
	time.Sleep(24 * time.Hour)
	want(l.reserve(c), pbv2.Status_OK)
	exchange(l.T, l.mustConnect(a, c.ID()), 500)
	exchange(l.T, other, 4000) // its day is new as well
}

func tooFast(l *lab, want func(pbv2.Status, pbv2.Status)) {
	a, b := l.peer(), l.peer()
	for range 4 {
		want(l.reserve(a), pbv2.Status_OK)
	}
	want(l.reserve(a), pbv2.Status_RESOURCE_LIMIT_EXCEEDED)
	_, got := l.connect(a, b.ID())
	want(got, pbv2.Status_RESOURCE_LIMIT_EXCEEDED)
	want(l.reserve(b), pbv2.Status_OK)
	time.Sleep(time.Second)
	want(l.reserve(a), pbv2.Status_OK)
}

func silentDestination(l *lab, want func(pbv2.Status, pbv2.Status)) {
	a, b := l.peer(), l.peer()
	want(l.reserve(b), pbv2.Status_OK)
	_, got := l.connect(a, b.ID()) // does not speak stop
	want(got, pbv2.Status_CONNECTION_FAILED)
	accept(b, echo)
	settle()
	exchange(l.T, l.mustConnect(a, b.ID()), 100)
}

func toItself(l *lab, want func(pbv2.Status, pbv2.Status)) {
	a := l.listener(echo)
	_, got := l.connect(a, a.ID())
	want(got, pbv2.Status_PERMISSION_DENIED)
}

// ban is a policy.
type ban struct {
	mu   sync.Mutex
	errs map[Kind]error
	last Request
}

func (b *ban) Allow(r Request) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = r
	return b.errs[r.Kind]
}

func (b *ban) set(errs map[Kind]error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.errs = errs
}

func TestPolicy(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		policy := &ban{}
		l := newLab(t, Config{Policy: policy})
		a, b := l.peer(), l.listener(echo)
		policy.set(map[Kind]error{Transit: wire.Denied, Reserve: errors.New("no")})
		if got := l.reserve(a); got != pbv2.Status_PERMISSION_DENIED {
			t.Errorf("reservation: %s", got)
		}
		if _, got := l.connect(a, b.ID()); got != pbv2.Status_PERMISSION_DENIED {
			t.Errorf("circuit: %s", got)
		}
		if r := policy.last; r.Kind != Transit || r.Peer != a.ID() || r.Dst != b.ID() || !r.Addr.Equal(a.Addrs()[0]) {
			t.Errorf("policy was asked %+v", r)
		}
		policy.set(map[Kind]error{Transit: wire.Errorf(wire.ResourceExhausted, "later")})
		if _, got := l.connect(a, b.ID()); got != pbv2.Status_RESOURCE_LIMIT_EXCEEDED {
			t.Errorf("throttled circuit: %s", got)
		}
		policy.set(nil)
		exchange(t, l.mustConnect(a, b.ID()), 100)
	})
}

// The resource manager's memory is one more quota; with [Config.Raise] it has
// room for just the circuits of the configuration.
func TestMemory(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		var limits rcmgr.PartialLimitConfig
		Config{Circuits: 2}.Raise(&limits)
		scaled := rcmgr.DefaultLimits
		libp2p.SetDefaultServiceLimits(&scaled)
		rm, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.Build(scaled.AutoScale())), rcmgr.WithMetricsDisabled())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { rm.Close() })
		l := newLab(t, Config{})
		l.relay.Close()
		if l.relay, err = New(managed{l.host, rm}, Config{}); err != nil {
			t.Fatal(err)
		}
		defer l.relay.Close()
		a, b := l.peer(), l.listener(echo)
		s := l.mustConnect(a, b.ID())
		exchange(t, l.mustConnect(a, b.ID()), 200_000)
		if _, got := l.connect(a, b.ID()); got != pbv2.Status_RESOURCE_LIMIT_EXCEEDED {
			t.Errorf("a circuit without memory: %s", got)
		}
		s.Reset()
		settle()
		exchange(t, l.mustConnect(a, b.ID()), 1000)
		if u := l.relay.Usage(); u.Refusals[NoMemory] != 1 || len(u.Refusals) != 1 {
			t.Errorf("refusals %v", u.Refusals)
		}
	})
}

// managed is a host with another resource manager; managedNetwork is its network.
type (
	managed struct {
		host.Host
		manager network.ResourceManager
	}
	managedNetwork struct {
		network.Network
		manager network.ResourceManager
	}
)

func (m managed) Network() network.Network { return managedNetwork{m.Host.Network(), m.manager} }

func (m managedNetwork) ResourceManager() network.ResourceManager { return m.manager }

func TestReservationsPerIP(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, first, second string
		want                Reason
	}{
		{"one IPv4", "/ip4/1.2.3.4/tcp/1", "/ip4/1.2.3.4/udp/2/quic-v1", NoSlotForIP},
		{"two IPv4", "/ip4/1.2.3.4/tcp/1", "/ip4/1.2.3.5/tcp/1", accepted},
		{"one /56", "/ip6/2001:db8:0:1::1/tcp/1", "/ip6/2001:db8:0:2::1/tcp/1", NoSlotForIP},
		{"two /56", "/ip6/2001:db8:0:1::1/tcp/1", "/ip6/2001:db8:0:101::1/tcp/1", accepted},
		{"IPv4 in IPv6", "/ip4/1.2.3.4/tcp/1", "/ip6/::ffff:1.2.3.4/tcp/1", NoSlotForIP},
		{"no IP", "/memory/1", "/memory/2", NoSlotForIP},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBook(Config{ReservationsPerIP: 1, Peers: 1}.withDefaults())
			later := time.Unix(3600, 0)
			one, two := b.hold("one"), b.hold("two")
			first, second := ma.StringCast(tc.first), ma.StringCast(tc.second)
			for range 2 { // the second time it is renewed
				if why := b.reserve(one, first, later); why != accepted {
					t.Fatalf("first reservation: %s", why)
				}
			}
			if why := b.reserve(two, second, later); why != tc.want {
				t.Errorf("second reservation: %s, want %s", why, tc.want)
			}
			b.unreserve(one)
			if why := b.reserve(two, second, later); why != accepted {
				t.Errorf("after the first was given back: %s", why)
			}
			b.unreserve(two)
			if len(b.perIP) != 0 || b.reservations != 0 {
				t.Errorf("left behind: %v, %d", b.perIP, b.reservations)
			}
		})
	}
}

// Peer ids cost nothing: one host with many of them takes no more than half of the
// ways to a peer. All is given back when the circuits end.
func TestCircuitsPerSite(t *testing.T) {
	t.Parallel()
	b := newBook(Config{}.withDefaults())
	noon := time.Unix(3600, 0)
	victim := b.hold("victim")
	if why := b.reserve(victim, ma.StringCast("/ip4/5.5.5.5/tcp/1"), noon.Add(time.Hour)); why != accepted {
		t.Fatal(why)
	}
	type passage struct {
		src  *account
		from netip.Prefix
	}
	var open []passage
	flood := func(peers int, at string) (got int) {
		for i := range peers {
			src, from := b.hold(peer.ID(fmt.Sprint(at, i))), site(ma.StringCast(at))
			for range 16 {
				if _, why := b.open(src, from, "victim", noon); why == accepted {
					open = append(open, passage{src, from})
					got++
				}
			}
		}
		return got
	}
	if n := flood(100, "/ip4/6.6.6.6/tcp/1"); n != 32 {
		t.Errorf("one address has %d circuits to a peer, want 32", n)
	}
	if n := flood(1, "/ip4/7.7.7.7/tcp/1"); n != 4 {
		t.Errorf("another has %d, want 4", n)
	}
	if n := flood(100, "/ip4/8.8.8.8/tcp/1"); n != 28 {
		t.Errorf("a third has %d, want the 28 that are left", n)
	}
	for _, p := range open {
		b.close(p.src, p.from, victim)
	}
	if l := victim.led; b.circuits != 0 || l.all != 0 || len(l.bySrc)+len(l.bySite) != 0 {
		t.Errorf("left behind: %d circuits, %+v", b.circuits, l)
	}
}

// Accounts that nothing holds are bounded, the last used ones stay.
func TestAccountsBounded(t *testing.T) {
	t.Parallel()
	b := newBook(Config{Peers: 2}.withDefaults())
	kept := b.hold("kept")
	for _, id := range []peer.ID{"a", "b", "a", "c", "d"} {
		b.release(b.hold(id))
	}
	if len(b.accounts) != 3 || b.accounts["kept"] != kept || b.accounts["c"] == nil || b.accounts["d"] == nil {
		t.Errorf("accounts %v; want kept, c and d", b.accounts)
	}
}

func TestConfigRefused(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		h := overlaytest.NewNet(t, time.Millisecond).Host()
		for _, cfg := range []Config{{Circuits: -1}, {Rate: Rate{BytesPerSecond: -1}}, {RequestsPerSecond: -1}, {Idle: -1}} {
			if _, err := New(h, cfg); !errors.Is(err, wire.InvalidArgument) {
				t.Errorf("New(%+v) = %v", cfg, err)
			}
		}
	})
}

func TestUsageAndLoad(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		l := newLab(t, Config{Circuits: 4, Reservations: 10, Rate: Rate{BytesPerSecond: 100_000}})
		a, b := l.peer(), l.listener(discard)
		settle()
		if got := l.relay.Load(); got != 0.1 {
			t.Errorf("load with one of ten slots taken: %v", got)
		}
		s := l.mustConnect(a, b.ID())
		if _, err := s.Write(make([]byte, 75_000)); err != nil {
			t.Fatal(err)
		}
		settle()
		if got := l.relay.Load(); got < 0.7 || got > 0.75 {
			t.Errorf("load after 75 kB in a second at 100 kB/s: %v", got)
		}
		time.Sleep(time.Minute)
		if got := l.relay.Load(); got != 0.25 {
			t.Errorf("load with one of four circuits open: %v", got)
		}
		checkUsage(t, l.relay.Usage(), a, b)
	})
}

func checkUsage(t *testing.T, u Usage, a, b host.Host) {
	t.Helper()
	if u.Bytes != 75_000 || u.Circuits != 1 || u.Opened != 1 || u.Reservations != 1 || len(u.Peers) != 2 {
		t.Fatalf("usage %+v", u)
	}
	for _, p := range u.Peers {
		switch p.Peer {
		case a.ID():
			if p.Sent != 75_000 || p.Received != 0 || p.Circuits != 1 || !p.Reserved.IsZero() {
				t.Errorf("usage of the source %+v", p)
			}
		case b.ID():
			if p.Sent != 0 || p.Received != 75_000 || p.Opened != 1 || p.Reserved.IsZero() {
				t.Errorf("usage of the destination %+v", p)
			}
		}
	}
}
