package relay

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// topPeers is how many peers a [Usage] lists.
const topPeers = 100

// Usage is what a relay is doing and has done since it started.
type Usage struct {
	Reservations int               // held now
	Circuits     int               // open now
	Opened       uint64            // circuits in all
	Bytes        uint64            // relayed, both directions
	Refusals     map[Reason]uint64 // requests refused
	Peers        []PeerUsage       // the 100 with the most bytes, most first
}

// PeerUsage is the part of one peer, since the relay has an account of it.
type PeerUsage struct {
	Peer     peer.ID
	Reserved time.Time         // until when it holds a slot; zero for none
	Circuits int               // open now, as source or destination
	Opened   uint64            // in all
	Sent     uint64            // bytes relayed from the peer
	Received uint64            // bytes relayed to the peer
	Refusals map[Reason]uint64 // of its requests
}

// Usage returns a snapshot.
func (r *Relay) Usage() Usage {
	r.mu.Lock()
	b := &r.book
	u := Usage{Reservations: b.reservations, Circuits: b.circuits, Opened: b.opened, Bytes: r.bytes.Load(), Refusals: b.refusals.byReason()}
	for _, a := range b.accounts {
		u.Peers = append(u.Peers, PeerUsage{Peer: a.peer, Reserved: a.reserved, Circuits: a.circuits + a.led.all, Opened: a.opened,
			Sent: a.sent.Load(), Received: a.received.Load(), Refusals: a.refusals.byReason()})
	}
	r.mu.Unlock()
	slices.SortFunc(u.Peers, func(a, b PeerUsage) int {
		return cmp.Or(cmp.Compare(b.Sent+b.Received, a.Sent+a.Received), cmp.Compare(a.Peer, b.Peer))
	})
	u.Peers = slices.Clip(u.Peers[:min(topPeers, len(u.Peers))])
	return u
}

func (r refusals) byReason() map[Reason]uint64 {
	m := make(map[Reason]uint64)
	for why, n := range r {
		if n > 0 {
			m[Reason(why)] = n
		}
	}
	return m
}

// Load returns how near the relay is to its quotas, from 0 to 1: the highest of
// its shares of reservations, circuits and, if it has a rate for all, of that as
// used since Load was last called.
func (r *Relay) Load() float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	load := max(float64(r.book.reservations)/float64(r.cfg.Reservations), float64(r.book.circuits)/float64(r.cfg.Circuits))
	if limit := r.cfg.Rate.BytesPerSecond; limit > 0 {
		load = max(load, r.meter.read(r.bytes.Load(), time.Now())/float64(limit))
	}
	return min(load, 1)
}

// meter turns a count of bytes into a rate.
type meter struct {
	at    time.Time
	bytes uint64
	rate  float64 // bytes per second
}

// read returns the rate since it was last called, or what it then returned if
// that was less than a second ago.
func (m *meter) read(bytes uint64, now time.Time) float64 {
	if d := now.Sub(m.at).Seconds(); d >= 1 {
		m.rate = float64(bytes-m.bytes) / d
		m.at, m.bytes = now, bytes
	}
	return m.rate
}

// Pace returns when n bytes that peer p asked for may pass this host by other means
// than a circuit, or with ctx's error: they come out of the same rates, and p's
// circuits and these together get one share.
func (r *Relay) Pace(ctx context.Context, p peer.ID, n int) error {
	if r.total == nil && r.cfg.RatePerPeer.BytesPerSecond == 0 {
		return nil
	}
	r.mu.Lock()
	a := r.book.hold(p)
	if a.other == nil {
		a.other = []*flow{a.pacer.join(""), r.total.join(p)}
	}
	flows := a.other
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.book.release(a)
	}()
	w := newWaiter()
	for _, f := range flows {
		if !f.take(n, w, ctx.Done()) {
			return ctx.Err()
		}
	}
	return nil
}
