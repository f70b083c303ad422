package relay

import (
	"container/list"
	"math"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	pbv2 "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/time/rate"
)

// Reason says why a request was refused.
type Reason uint8

// The reasons, with the status that the peer gets.
const (
	accepted        Reason = iota
	Malformed              // MALFORMED_MESSAGE: not a request, or none in time
	Busy                   // stream reset: too many requests open at once, or no resources for one
	TooFast                // RESOURCE_LIMIT_EXCEEDED: above RequestsPerSecond
	Denied                 // PERMISSION_DENIED: by policy, or over a circuit
	Throttled              // RESOURCE_LIMIT_EXCEEDED: by policy, for now
	NoSlot                 // RESERVATION_REFUSED: Reservations are taken
	NoSlotForIP            // RESERVATION_REFUSED: ReservationsPerIP are taken
	NoReservation          // NO_RESERVATION: the destination has no slot
	NoCircuit              // RESOURCE_LIMIT_EXCEEDED: Circuits are open
	NoCircuitOfPeer        // RESOURCE_LIMIT_EXCEEDED: the source has CircuitsPerPeer or its part of CircuitsToPeer, or that is used up
	VolumeUsed             // RESOURCE_LIMIT_EXCEEDED: the source or the destination used DailyBytesPerPeer
	NoMemory               // RESOURCE_LIMIT_EXCEEDED: the resource manager has none for buffers
	Unanswered             // CONNECTION_FAILED: the destination did not accept
	reasons                // how many there are
)

var reasonTable = [reasons]struct {
	name   string
	status pbv2.Status
}{
	accepted:        {"accepted", pbv2.Status_OK},
	Malformed:       {"malformed", pbv2.Status_MALFORMED_MESSAGE},
	Busy:            {"busy", pbv2.Status_RESOURCE_LIMIT_EXCEEDED},
	TooFast:         {"too_fast", pbv2.Status_RESOURCE_LIMIT_EXCEEDED},
	Denied:          {"denied", pbv2.Status_PERMISSION_DENIED},
	Throttled:       {"throttled", pbv2.Status_RESOURCE_LIMIT_EXCEEDED},
	NoSlot:          {"no_slot", pbv2.Status_RESERVATION_REFUSED},
	NoSlotForIP:     {"no_slot_for_ip", pbv2.Status_RESERVATION_REFUSED},
	NoReservation:   {"no_reservation", pbv2.Status_NO_RESERVATION},
	NoCircuit:       {"no_circuit", pbv2.Status_RESOURCE_LIMIT_EXCEEDED},
	NoCircuitOfPeer: {"no_circuit_of_peer", pbv2.Status_RESOURCE_LIMIT_EXCEEDED},
	VolumeUsed:      {"volume_used", pbv2.Status_RESOURCE_LIMIT_EXCEEDED},
	NoMemory:        {"no_memory", pbv2.Status_RESOURCE_LIMIT_EXCEEDED},
	Unanswered:      {"unanswered", pbv2.Status_CONNECTION_FAILED},
}

// String returns the reason's name, such as "too_fast".
func (r Reason) String() string {
	if r >= reasons {
		return "unknown"
	}
	return reasonTable[r].name
}

// book is who holds what: it decides on reservations and circuits, without I/O
// and without a clock. Its methods want a lock held; what circuits count while
// they run is atomic.
type book struct {
	cfg          Config
	accounts     map[peer.ID]*account
	idle         list.List // of accounts that nothing holds, last used first
	reservations int
	perIP        map[netip.Prefix]int
	circuits     int
	opened       uint64
	refusals     refusals
}

type refusals [reasons]uint64

// account is a peer's.
type account struct {
	peer     peer.ID
	holds    int           // by requests, circuits and the reservation
	element  *list.Element // in idle, if holds is 0
	requests *rate.Limiter
	pacer    *pacer  // of RatePerPeer
	other    []*flow // of what [Relay.Pace] lets pass, once there was any

	pending  int
	circuits int // that it opened
	led      led // that lead to it
	opened   uint64
	refusals refusals

	reserved time.Time // when the reservation ends; zero for none
	from     netip.Prefix
	expiry   *time.Timer

	sent, received atomic.Uint64 // bytes relayed from and to the peer

	day     time.Time     // when the current 24 h began
	ceiling atomic.Uint64 // of sent and received together, for that day
}

// led counts the circuits that lead to a peer.
type led struct {
	all    int
	bySrc  map[peer.ID]int
	bySite map[netip.Prefix]int
}

func (l *led) add(src peer.ID, from netip.Prefix, n int) {
	l.all += n
	tally(&l.bySrc, src, n)
	tally(&l.bySite, from, n)
}

// tally adds n to an entry of a map that has none with 0.
func tally[K comparable](m *map[K]int, key K, n int) {
	if *m == nil {
		*m = make(map[K]int)
	}
	if (*m)[key] += n; (*m)[key] == 0 {
		delete(*m, key)
	}
}

func newBook(cfg Config) book {
	return book{cfg: cfg, accounts: make(map[peer.ID]*account), perIP: make(map[netip.Prefix]int)}
}

// hold returns a peer's account, which stays until it is released as often.
func (b *book) hold(id peer.ID) *account {
	a := b.accounts[id]
	if a == nil {
		perSecond := b.cfg.RequestsPerSecond
		a = &account{peer: id, pacer: newPacer(b.cfg.RatePerPeer),
			requests: rate.NewLimiter(rate.Limit(perSecond), max(1, int(4*perSecond)))}
		a.ceiling.Store(math.MaxUint64)
		b.accounts[id] = a
	}
	if a.element != nil {
		b.idle.Remove(a.element)
		a.element = nil
	}
	a.holds++
	return a
}

func (b *book) release(a *account) {
	if a.holds--; a.holds > 0 {
		return
	}
	a.element = b.idle.PushFront(a)
	if b.idle.Len() > b.cfg.Peers {
		oldest := b.idle.Remove(b.idle.Back()).(*account)
		delete(b.accounts, oldest.peer)
		for _, f := range oldest.other {
			f.leave()
		}
	}
}

func (b *book) refused(a *account, why Reason) {
	if why != accepted {
		a.refusals[why]++
		b.refusals[why]++
	}
}

// reserve gives a slot until expires to a, which is at addr, or prolongs the one
// it has. It holds the account.
func (b *book) reserve(a *account, addr ma.Multiaddr, expires time.Time) Reason {
	from := site(addr)
	has := !a.reserved.IsZero()
	switch {
	case !has && b.reservations >= b.cfg.Reservations:
		return NoSlot
	case b.cfg.ReservationsPerIP > 0 && (!has || a.from != from) && b.perIP[from] >= b.cfg.ReservationsPerIP:
		return NoSlotForIP
	}
	b.unreserve(a)
	b.hold(a.peer)
	b.reservations++
	b.perIP[from]++
	a.reserved, a.from = expires, from
	return accepted
}

// unreserve reports whether there was a reservation.
func (b *book) unreserve(a *account) bool {
	if a.reserved.IsZero() {
		return false
	}
	b.reservations--
	if b.perIP[a.from]--; b.perIP[a.from] == 0 {
		delete(b.perIP, a.from)
	}
	a.reserved = time.Time{}
	b.release(a)
	return true
}

// open takes a circuit from src, which is at from, to the peer dst, whose account it
// returns. It holds both accounts until close.
func (b *book) open(src *account, from netip.Prefix, dst peer.ID, now time.Time) (*account, Reason) {
	to := b.accounts[dst]
	switch {
	case dst == src.peer:
		return nil, Denied
	case to == nil || !now.Before(to.reserved):
		return nil, NoReservation
	case b.circuits >= b.cfg.Circuits:
		return nil, NoCircuit
	case src.circuits >= b.cfg.CircuitsPerPeer || to.led.all >= b.cfg.CircuitsToPeer,
		to.led.bySrc[src.peer] >= b.cfg.perPair() || to.led.bySite[from] >= b.cfg.perSite():
		return nil, NoCircuitOfPeer
	case b.spent(src, now) || b.spent(to, now):
		return nil, VolumeUsed
	}
	b.circuits++
	b.opened++
	src.circuits++
	to.led.add(src.peer, from, 1)
	for _, a := range []*account{b.hold(src.peer), b.hold(dst)} {
		a.opened++
	}
	return to, accepted
}

func (b *book) close(src *account, from netip.Prefix, dst *account) {
	b.circuits--
	src.circuits--
	dst.led.add(src.peer, from, -1)
	b.release(src)
	b.release(dst)
}

// spent reports whether the peer's volume of the day is used up; it begins a new
// day if one is due.
func (b *book) spent(a *account, now time.Time) bool {
	if b.cfg.DailyBytesPerPeer == 0 {
		return false
	}
	if now.Sub(a.day) >= 24*time.Hour {
		a.day = now
		a.ceiling.Store(a.relayed() + uint64(b.cfg.DailyBytesPerPeer))
	}
	return a.over()
}

func (a *account) over() bool { return a.relayed() >= a.ceiling.Load() }

func (a *account) relayed() uint64 { return a.sent.Load() + a.received.Load() }

// site returns what counts as one IP address: an IPv4 address or an IPv6 /56.
// All peers without one, as over a memory transport, are at one site.
func site(addr ma.Multiaddr) netip.Prefix {
	slice, err := manet.ToIP(addr)
	if err != nil {
		return netip.Prefix{}
	}
	ip, _ := netip.AddrFromSlice(slice)
	ip = ip.Unmap()
	bits := 56
	if ip.Is4() {
		bits = 32
	}
	p, _ := ip.Prefix(bits) // fails on the zero address only
	return p
}
