package session

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"openmesh/protocols/wire"
)

// preference orders transports: earlier ones are moved to when they become
// possible and are not slower. QUIC needs no head-of-line blocking and survives a
// change of address, gRPC is what is left when nothing else is let through.
var preference = [...]string{"quic-v1", "tcp", "webtransport", "ws", "wss", "webrtc-direct", "grpc"}

// rank is how good a path is, 0 the best.
func rank(p Path) int {
	r := slices.Index(preference[:], p.Transport)
	if r < 0 {
		r = len(preference)
	}
	if p.Kind == "relayed" {
		r += len(preference) + 1
	}
	return r
}

const (
	firstProbe = 2 * time.Second  // after a session got its channel
	minProbe   = 15 * time.Second // between probes, at first
	maxProbe   = 10 * time.Minute

	linger = 3 * time.Second // how long the channel that was left still is read
)

// improve looks for a better channel than the one in use, from time to time: the
// network may let through now what it did not before.
func (s *Session) improve(now time.Time) {
	ch := s.link.current.Load()
	if ch == nil || s.pinned || s.through != nil || !s.isInitiator() || s.stateNow() != Active {
		return
	}
	if names := s.ways.Swap(nil); names != nil {
		s.consider(ch, *names)
		return
	}
	if now.Before(s.probeAt) {
		return
	}
	if s.probeAt.IsZero() {
		s.probeAt = now.Add(firstProbe)
		return
	}
	better := s.betterThan(ch.path)
	s.probeWait = min(max(2*s.probeWait, minProbe), maxProbe)
	s.probeAt = now.Add(s.probeWait)
	if len(better) > 0 {
		s.look(ch, better)
	}
}

// look probes in the background, once at a time; it reports false if somebody does
// already.
func (s *Session) look(ch *channel, names []string) bool {
	if !s.probing.CompareAndSwap(false, true) {
		return false
	}
	if !s.owner.start(func() {
		defer s.probing.Store(false)
		s.probe(ch, names)
	}) {
		s.probing.Store(false)
	}
	return true
}

// Upgrade tells that host p has connections over other transports now, as when a
// hole was punched to it: sessions with it look at once whether to move there.
func (e *Endpoint) Upgrade(p peer.ID, transports []string) {
	for _, s := range e.list() {
		if s.Peer().Peer != p || s.pinned || s.through != nil || !s.isInitiator() {
			continue
		}
		if ch := s.link.current.Load(); ch != nil && s.stateNow() == Active {
			s.consider(ch, transports)
		} else {
			s.ways.Store(&transports) // for the sweep
		}
	}
}

// consider looks whether to move to one of the transports that there is now a
// connection over.
func (s *Session) consider(ch *channel, transports []string) {
	better := slices.DeleteFunc(slices.Clone(transports), func(name string) bool {
		return !slices.Contains(preference[:], name) || rank(Path{Kind: "direct", Transport: name}) >= rank(ch.path)
	})
	slices.SortFunc(better, func(a, b string) int { return rank(Path{Transport: a}) - rank(Path{Transport: b}) })
	if len(better) > 0 && !s.look(ch, better) {
		s.ways.CompareAndSwap(nil, &transports) // later
	}
}

// betterThan lists the transports that the peer offers and that are preferred to a
// path's.
func (s *Session) betterThan(p Path) []string {
	var names []string
	for _, t := range s.ends.Load().transports {
		if slices.Contains(preference[:], t.Name) && rank(Path{Kind: "direct", Transport: t.Name}) < rank(p) && !slices.Contains(names, t.Name) {
			names = append(names, t.Name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return rank(Path{Transport: a}) - rank(Path{Transport: b}) })
	return names
}

// probe tries the transports in their order and moves to the first that works and
// is not slower than old.
func (s *Session) probe(old *channel, names []string) {
	for _, name := range names {
		err := s.tryTransport(old, name)
		if err == nil {
			return
		}
		s.log("no better channel", zap.String("transport", name), zap.Error(err))
		if s.stateNow() != Active || s.link.current.Load() != old {
			return
		}
	}
}

func (s *Session) tryTransport(old *channel, name string) error {
	ctx, cancel := context.WithTimeout(s.owner.work, s.owner.cfg.Signal.Timeout)
	defer cancel()
	c, err := s.owner.cfg.Network.Dial(ctx, Route{Peer: s.Peer().Peer, Transport: name, Transports: s.ends.Load().transports})
	if err != nil {
		return err
	}
	ch := newChannel(c, true, time.Now())
	if rank(ch.path) >= rank(old.path) {
		c.Reset(wire.Cancelled)
		return fmt.Errorf("%s leads over a path that is no better", name)
	}
	if err := s.owner.attach(s, ch); err != nil {
		c.Reset(wire.SessionClosed)
		return err
	}
	s.owner.follow(s, newReader(ch))
	if err := s.proven(ctx, ch); err != nil {
		return err
	}
	was, is := old.roundTrip(), s.measureRoundTrip(ctx, ch)
	if was > 0 && is > was+was/4+5*time.Millisecond {
		s.retire(ch)
		return fmt.Errorf("%s takes %v, the channel in use %v", name, is, was)
	}
	s.moveTo(ch)
	return nil
}

func (c *channel) roundTrip() time.Duration {
	rtt, _ := c.health.read()
	return rtt
}

// measureRoundTrip pings over a new channel.
func (s *Session) measureRoundTrip(ctx context.Context, ch *channel) time.Duration {
	s.ping(ch, time.Now())
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ch.roundTrip() == 0 {
		select {
		case <-tick.C:
		case <-ch.gone:
			return maxProbe
		case <-ctx.Done():
			return maxProbe
		}
	}
	return ch.roundTrip()
}

// moveTo lets both sides send over ch from now on, and ends the other channels
// once what is under way on them has arrived. Nothing can be lost: what the peer
// does not say it has is sent again.
func (s *Session) moveTo(ch *channel) {
	s.move(Migrating, 0)
	if s.link.choose(ch) {
		s.over(ch)
	}
	s.rebind(ch, true)
	s.back()
	s.pause(linger)
	for _, other := range s.link.all() {
		if other != ch {
			s.retire(other)
		}
	}
}

// retire closes a channel that is not in use, in order.
func (s *Session) retire(ch *channel) {
	if s.link.current.Load() == ch {
		return
	}
	if found, _, _ := s.link.drop(ch, false); found {
		s.release(ch, true, 0)
	}
}
