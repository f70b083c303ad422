package session

import (
	"encoding/binary"
	"math"
	"time"

	"go.uber.org/zap"

	"openmesh/protocols/session/seal"
	"openmesh/protocols/wire"
)

// sweepInterval is how often all sessions are looked after; where keepalive is
// short, an eighth of that.
const sweepInterval = time.Second

// sweep does what is due at now for every session: keepalive, and the end of
// those that are dead, idle or whose peer's key has expired. It returns when to
// sweep again.
func (e *Endpoint) sweep(now time.Time) time.Duration {
	e.signal.Sweep(now)
	e.forget(now)
	shortest := time.Duration(math.MaxInt64)
	e.swept = e.swept[:0]
	e.each(func(s *Session) { e.swept = append(e.swept, s) })
	for _, s := range e.swept {
		s.expire(now)
		s.sweep(now)
		shortest = min(shortest, s.terms.Load().Keepalive)
	}
	clear(e.swept)
	return min(max(shortest/8, 50*time.Millisecond), sweepInterval)
}

// sweep does what is due for one session.
func (s *Session) sweep(now time.Time) {
	if reason := s.invalid(now); reason != 0 && !s.disown(reason) {
		return
	}
	unused := now.Sub(time.Unix(0, s.counters.used.Load()))
	channels := s.link.all()
	switch {
	case s.offered.Load() && now.Sub(s.opened) > s.terms.Load().TTL && s.resting():
		s.end(Terminated, wire.DeadlineExceeded, false) // the other side has not come back
	case unused > s.unusedLimit() && s.resting():
		s.owner.start(func() { s.Close(s.owner.work) })
	case len(channels) > 0 && s.isInitiator() && unused > s.owner.cfg.ParkAfter && s.resting():
		s.park()
	default:
		for _, ch := range channels {
			s.sweepChannel(ch, now)
		}
		s.sweepDelivery(now)
		s.wakeForWork()
		s.acknowledge()
		s.repair(now)
		s.renewKeys(now)
		s.improve(now)
	}
}

// unusedLimit is how long the session stays while nobody uses it.
func (s *Session) unusedLimit() time.Duration {
	if s.persistent() {
		return s.owner.cfg.Retention
	}
	return s.owner.cfg.IdleTimeout
}

// wakeForWork has a session without a channel look for one if there is something
// for it to do: that may have come at the moment when the channel was given up, or
// when nobody needed one any more.
func (s *Session) wakeForWork() {
	if s.link.current.Load() == nil && (!s.resting() || s.offered.Load() || s.owes()) {
		s.wake()
	}
}

// stallLimit is how long one write may take before the channel counts as dead.
const stallLimit = 15 * time.Second

// sweepChannel pings a channel when it is time to, and gives it up if it is dead:
// silent for one and a half keepalive intervals, in which at least one ping had no
// answer; or for three quarters while something waits for the peer. One whose first
// ping has no answer yet has two intervals for it, or the time of a handshake if that
// is less: how long a round trip takes there is not known, and whoever gives up at once
// what only begins finds no way that is slower.
func (s *Session) sweepChannel(ch *channel, now time.Time) {
	keepalive := s.terms.Load().Keepalive
	silent := ch.silent(now)
	interval, limit := keepalive, keepalive+keepalive/2
	if n, since := s.link.waiting(); n > 0 && now.Sub(since) > keepalive/4 && silent > keepalive/4 {
		interval, limit = keepalive/8, keepalive*3/4
	} else if silent > keepalive {
		interval = keepalive / 8
	}
	if ch.roundTrip() == 0 {
		limit = max(limit, min(2*keepalive, s.owner.cfg.Signal.Timeout))
	}
	if silent > limit || ch.stalled(now, min(stallLimit, limit)) {
		s.log("channel is dead", zap.String("transport", ch.path.Transport), zap.Duration("silent", silent))
		ch.conduit.Abandon()
		s.lost(ch, wire.Unreachable)
		return
	}
	if ch.health.due(now, interval) {
		s.ping(ch, now)
	}
}

// ping sends a ping over ch.
func (s *Session) ping(ch *channel, now time.Time) {
	var token [8]byte
	binary.BigEndian.PutUint64(token[:], ch.health.ping(now))
	s.tell(ch, seal.Ping, token[:])
}

// repair sends again what was lost on channels that live.
func (s *Session) repair(now time.Time) {
	ch := s.link.current.Load()
	if n, _ := s.link.waiting(); n == 0 || ch == nil {
		return
	}
	rtt, _ := ch.health.read()
	if late, any := s.link.overdue(now, max(time.Second, 4*rtt)); any && !ch.stalled(now, time.Millisecond) {
		s.owner.start(func() { s.link.resend(ch, late) })
	}
}

// renewKeys erases old keys and, when it is time, begins the change to new ones.
func (s *Session) renewKeys(now time.Time) {
	keys := s.link.opener()
	if keys == nil {
		return
	}
	keys.Sweep(now)
	if s.link.current.Load() == nil || !keys.Due(now) {
		return
	}
	m, err := keys.Propose()
	if err != nil {
		s.owner.cfg.Log.Error("rekey failed", zap.Error(err))
		return
	}
	s.offer(keys, seal.Rekey, m, false)
}

// park closes the channels of a session that nobody uses; it has one again as
// soon as there is something to send.
func (s *Session) park() {
	s.acknowledge()
	for _, ch := range s.link.all() {
		if found, _, _ := s.link.drop(ch, false); found {
			s.release(ch, true, 0)
		}
	}
	s.save()
}

// invalid says why the key of the session's peer is not valid any more; 0 if it is.
func (s *Session) invalid(now time.Time) wire.Code {
	switch {
	case !now.Before(s.Peer().NotAfter):
		return wire.KeyExpired
	case s.owner.cfg.Signal.Verifier.Current(s.Peer()) != nil:
		return wire.KeySuperseded
	}
	return 0
}

// disown ends a session whose peer's key is not valid any more. A persistent one
// only loses its keys and channels, for the agent may come back with a new key:
// then it reports that the session goes on.
func (s *Session) disown(reason wire.Code) bool {
	if !s.persistent() {
		s.Terminate(reason)
		return false
	}
	if s.link.opener() != nil {
		s.suspend(reason)
	}
	return true
}
