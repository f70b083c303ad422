package relay

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"

	"openmesh/protocols/wire"
)

// Config holds a relay's quotas. The zero value of each field means its default.
type Config struct {
	Reservations      int           // peers that hold a slot; default 1024
	ReservationsPerIP int           // of them from one IPv4 address or IPv6 /56; default: no limit of its own
	ReservationTTL    time.Duration // default 1 h

	Circuits int // open at once; default 1024

	// CircuitsPerPeer may be opened by one peer, a quarter of them to the same
	// destination; default 16. CircuitsToPeer may lead to one, half of them from the
	// same IPv4 address or IPv6 /56; default four times CircuitsPerPeer. So nobody
	// takes all the ways to an agent that is reached through relays only.
	CircuitsPerPeer, CircuitsToPeer int

	// Rate is that of all circuits, RatePerPeer that of one peer's circuits, both
	// directions together. A byte counts once in Rate, and for each of the two
	// peers in RatePerPeer. Beyond it circuits slow down. Rate is shared equally
	// among the peers that opened the circuits, a peer's own among those it has
	// circuits with. Default: none.
	Rate, RatePerPeer Rate

	// DailyBytesPerPeer is how much a peer may send and receive in 24 h, counted
	// from its first circuit. Beyond it its circuits are closed and new ones
	// refused. 0: no limit.
	DailyBytesPerPeer int64

	// Idle is how long a circuit may pass nothing before it is closed; default
	// 5 min, ten of a session's keepalives. One whose receiver takes nothing for
	// half as long is closed, too: what waits for it would fill the connection
	// that other circuits of the sender share. Both are checked every Idle/4.
	Idle time.Duration

	RequestsPerSecond float64 // of one peer, four seconds' worth at once; default 8
	Peers             int     // accounts kept of peers with neither slot nor circuit; default 4096

	Policy Policy      // nil: everything is allowed
	Log    *zap.Logger // nil: no log
}

// Rate is a bandwidth; the zero Rate is unlimited.
type Rate struct {
	BytesPerSecond int64
	Burst          int64 // bytes that may pass at once after a pause; default: those of a second
}

// Kind is what a peer asks for.
type Kind string

// The kinds, named as in the rules of policies.
const (
	Reserve Kind = "relay.reserve" // a slot, to be reached through this relay
	Transit Kind = "relay.transit" // a circuit
)

// Request is what a [Policy] judges.
type Request struct {
	Kind Kind
	Peer peer.ID      // who asks
	Addr ma.Multiaddr // from where
	Dst  peer.ID      // to whom a circuit leads; empty for Reserve
}

// Policy decides who may use the relay. An error refuses: RESOURCE_LIMIT_EXCEEDED
// if it wraps [wire.ResourceExhausted], else PERMISSION_DENIED. Allow is called
// for each request that is within its peer's rate, by many goroutines.
type Policy interface {
	Allow(Request) error
}

func (c Config) check() error {
	for _, n := range []int64{int64(c.Reservations), int64(c.ReservationsPerIP), int64(c.ReservationTTL), int64(c.Circuits),
		int64(c.CircuitsPerPeer), int64(c.CircuitsToPeer), c.Rate.BytesPerSecond, c.Rate.Burst, c.RatePerPeer.BytesPerSecond, c.RatePerPeer.Burst,
		c.DailyBytesPerPeer, int64(c.Idle), int64(c.Peers)} {
		if n < 0 {
			return wire.Errorf(wire.InvalidArgument, "a quota of %d", n).WithHint("set quotas to 0 for their default, or above")
		}
	}
	if !(c.RequestsPerSecond >= 0) {
		return wire.Errorf(wire.InvalidArgument, "%v requests per second", c.RequestsPerSecond).WithHint("set quotas to 0 for their default, or above")
	}
	return nil
}

func (c Config) withDefaults() Config {
	c.Reservations = orDefault(c.Reservations, 1024)
	c.ReservationTTL = orDefault(c.ReservationTTL, time.Hour)
	c.Circuits = orDefault(c.Circuits, 1024)
	c.CircuitsPerPeer = orDefault(c.CircuitsPerPeer, 16)
	c.CircuitsToPeer = orDefault(c.CircuitsToPeer, 4*c.CircuitsPerPeer)
	c.Idle = orDefault(c.Idle, 5*time.Minute)
	c.RequestsPerSecond = orDefault(c.RequestsPerSecond, 8)
	c.Peers = orDefault(c.Peers, 4096)
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	return c
}

func orDefault[N int | time.Duration | float64](n, def N) N {
	if n == 0 {
		return def
	}
	return n
}

// perPair is how many circuits lead from one peer to another: two where a quarter is
// less, for one that is dead may not be noticed yet.
func (c Config) perPair() int { return max(c.CircuitsPerPeer/4, min(2, c.CircuitsPerPeer)) }

// perSite is how many circuits lead from one IP address to one peer.
func (c Config) perSite() int { return max(c.CircuitsToPeer/2, 1) }

// chunk returns how many bytes pass at once: at a low rate few, so that nobody
// waits long behind another's.
func (c Config) chunk() int {
	n := int64(largeBuffer)
	for _, rate := range []Rate{c.Rate, c.RatePerPeer} {
		if rate.BytesPerSecond > 0 {
			n = min(n, max(smallBuffer, rate.BytesPerSecond/256))
		}
	}
	return int(n)
}

// Raise makes room in a host's resource limits for the streams and the memory of
// c's circuits: libp2p's own would refuse some of them before a quota does, and
// without a status.
func (c Config) Raise(l *rcmgr.PartialLimitConfig) {
	c = c.withDefaults()
	all := streamLimit(640 + c.Circuits + c.Reservations) // 640 and 128 are libp2p's
	peers := streamLimit(128 + c.CircuitsPerPeer + c.CircuitsToPeer)
	for _, id := range []protocol.ID{proto.ProtoIDv2Hop, proto.ProtoIDv2Stop} {
		l.Protocol = with(l.Protocol, id, all)
		l.ProtocolPeer = with(l.ProtocolPeer, id, peers)
	}
	l.ServicePeer = with(l.ServicePeer, ServiceName, peers)
	all.Memory = rcmgr.LimitVal64(c.Circuits) * perCircuit
	l.Service = with(l.Service, ServiceName, all)
}

func streamLimit(n int) rcmgr.ResourceLimits {
	each := rcmgr.LimitVal(n)
	return rcmgr.ResourceLimits{Streams: 2 * each, StreamsInbound: each, StreamsOutbound: each}
}

func with[K comparable](m map[K]rcmgr.ResourceLimits, key K, l rcmgr.ResourceLimits) map[K]rcmgr.ResourceLimits {
	if m == nil {
		m = make(map[K]rcmgr.ResourceLimits)
	}
	m[key] = l
	return m
}
