package session

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/session/seal"
	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/wire"
)

// add makes ch a channel of the session, counted against the node's limit.
func (s *Session) add(ch *channel, primary bool) error {
	if err := s.owner.reserveChannel(); err != nil {
		return err
	}
	ok, resend := s.link.attach(ch, primary)
	if !ok {
		s.owner.channels.Add(-1)
		return wire.Errorf(wire.ResourceExhausted, "session %s has %d channels, or has ended", s.id, maxChannels)
	}
	if s.link.current.Load() == ch {
		s.over(ch)
	}
	if resend {
		s.resend(ch)
	}
	return nil
}

// resend sends what the peer does not have over ch.
func (s *Session) resend(ch *channel) {
	if n, _ := s.link.waiting(); n > 0 {
		s.owner.group.Go(func() { s.link.resend(ch, nil) })
	}
}

// drop gives a channel up. It reports whether the session had it, and whether it
// has another one.
func (s *Session) drop(ch *channel) (found, another bool) {
	found, next, left := s.link.drop(ch, ch.refused())
	if !found {
		return false, left > 0
	}
	close(ch.gone)
	s.owner.channels.Add(-1)
	ch.conduit.Reset(wire.SessionClosed)
	if next != nil {
		s.over(next)
		s.rebind(next, true)
		s.resend(next)
	}
	return true, left > 0
}

// lost gives up a channel that failed for the reason cause. The session goes on
// over another one, or waits for a new one.
func (s *Session) lost(ch *channel, cause wire.Code) {
	ch.fail(cause)
	found, another := s.drop(ch)
	if !found || another {
		return
	}
	if s.counters.received.Load() == 0 && !ch.proven.Load() && ch.mine && cause != wire.Unreachable && !s.persistent() {
		s.endFor(Terminated, cause, false, s.untaken(ch, cause)) // the peer refused the session's first channel
		return
	}
	s.move(Migrating, 0)
	s.wake()
}

// untaken is the error of calls in a session whose first channel the peer refused,
// having seen none of them: they may be made again, or elsewhere. It is nil if that is
// not certain: who proves nothing may have refused what he passed on before.
func (s *Session) untaken(ch *channel, cause wire.Code) error {
	switch {
	case ch.refused():
		return wire.Errorf(wire.ResourceExhausted, "%s does not wait for this session any more: to set it up took too long", s.Peer().Agent)
	case cause == wire.ResourceExhausted && ch.conduit.Peer() != "":
		return wire.Errorf(cause, "%s takes no more sessions now", s.Peer().Agent)
	}
	return nil
}

// resting reports whether nothing is under way in either direction.
func (s *Session) resting() bool {
	n, _ := s.link.waiting()
	return n == 0 && s.calls.len()+s.inbox.len()+int(s.answering.Load()) == 0 && !s.outstanding() && s.mail.in.Busy()+s.streams.Load().Len() == 0
}

// wake sees to it that a session without a channel gets one.
func (s *Session) wake() {
	if s.link.current.Load() != nil || s.stateNow().Done() || !s.connecting.CompareAndSwap(false, true) {
		return
	}
	if !s.owner.start(func() {
		defer s.connecting.Store(false)
		s.reconnect()
	}) {
		s.connecting.Store(false)
	}
}

// patience is how long a session that no restart may end looks for a channel
// before it gives up.
func (s *Session) patience() time.Duration { return max(2*s.terms.Load().Keepalive, time.Minute) }

// The waits between attempts to open a channel. Whoever lost its peer a moment ago
// waits for no longer than twice the keepalive interval, but not less than shortWait.
const (
	firstWait = 100 * time.Millisecond
	shortWait = time.Second
	maxWait   = 30 * time.Second
)

// reconnect opens a channel, again and again until the session has one, or nobody
// waits for it, or it has ended. The responder gives the initiator a head start,
// so that not both do the same: of two connections of a kind that die together, the
// second would be tried when the first is given up.
func (s *Session) reconnect() {
	since := time.Now()
	if s.persistent() {
		defer time.AfterFunc(mailAfter, func() { s.owner.start(s.turnToMail) }).Stop()
	}
	if !s.isInitiator() && s.stateNow() == Migrating && !s.pause(min(max(s.terms.Load().Keepalive/4, time.Second), 2*time.Second)) {
		return
	}
	wait, again := time.Duration(0), false
	for {
		there, news := s.await(wait)
		if !there || s.link.current.Load() != nil {
			return
		}
		err := s.connect(again)
		if err == nil {
			return
		}
		again = true
		s.astray.Store(true)
		s.trouble.Store(&err)
		s.log("channel not opened", zap.Error(err))
		if s.hopeless(err, time.Since(since)) {
			return
		}
		if news {
			wait = 0
		}
		wait = s.longer(wait, time.Since(since))
	}
}

// longer is how long to wait after an attempt that failed, if it was waited for wait
// before it and a channel is looked for since so long.
func (s *Session) longer(wait, since time.Duration) time.Duration {
	most := maxWait
	if since < s.patience() {
		most = min(most, max(2*s.terms.Load().Keepalive, shortWait))
	}
	wait = min(max(2*wait, firstWait), most)
	return wait + time.Duration(rand.Int64N(int64(wait)/4+1))
}

// hopeless reports whether, after an attempt to open a channel failed with err, there
// will be no further one; it ends a session that cannot go on.
func (s *Session) hopeless(err error, since time.Duration) bool {
	switch code := wire.CodeOf(err); {
	case s.stateNow().Done():
	case code == wire.NotFound:
		s.end(Terminated, wire.SessionClosed, false) // the peer has restarted, and forgotten it
	case !s.persistent() && since > s.patience():
		s.end(Terminated, wire.Unreachable, false)
	case s.offered.Load() && s.refused(code):
		s.end(Terminated, code, false)
	default:
		// or nobody needs it now
		return s.persistent() && s.resting() && !s.offered.Load() && !s.owes() && !(s.eager && since < s.patience())
	}
	return true
}

// refused reports whether the code of a failed attempt to reach the other side is
// its word that it does not want the session.
func (s *Session) refused(code wire.Code) bool {
	switch code {
	case wire.Denied, wire.Unsupported, wire.NoCommonSchema, wire.PolicyViolation, wire.KeyRevoked:
		return true
	}
	return false
}

// pause waits for d, and reports whether the session is still there then.
func (s *Session) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.done:
	case <-s.owner.work.Done():
	}
	return false
}

// await is pause for whoever is about to open a channel. It ends before d if there is
// news of the way to the peer, and reports that; but firstWait passes always, for
// others make the news.
func (s *Session) await(d time.Duration) (there, news bool) {
	if !s.pause(min(d, firstWait)) {
		return false, false
	}
	t := time.NewTimer(d - firstWait)
	defer t.Stop()
	select {
	case <-t.C:
		return true, false
	case <-s.news:
		return true, true
	case <-s.done:
	case <-s.owner.work.Done():
	}
	return false, false
}

// retry has the next attempt to open a channel made soon, if the session looks for one:
// what failed a moment ago may work now.
func (s *Session) retry() {
	if !s.connecting.Load() {
		return
	}
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// Retry tells that there may be a new way to host p, such as a connection that it made;
// or to any host, if p is empty: this node is somewhere else, or reached by other
// relays. Sessions that wait before they look for a channel again do so at once.
func (e *Endpoint) Retry(p peer.ID) {
	e.each(func(s *Session) {
		if p == "" || s.Peer().Peer == p {
			s.retry()
		}
	})
}

// connect opens a channel: with the keys that there are, or with new ones if one
// side has lost them in a restart. With again, an attempt has failed just before.
func (s *Session) connect(again bool) error {
	if s.waits {
		return wire.Errorf(wire.Unreachable, "the other side of session %s chose its path, and has to come back by itself", s.id)
	}
	route := s.owner.locate(s)
	route.Again = again
	ctx, cancel := context.WithTimeout(s.owner.work, 2*s.owner.cfg.Signal.Timeout)
	defer cancel()
	if s.link.opener() != nil {
		proven, err := s.owner.rebind(ctx, s, route)
		code := wire.CodeOf(err)
		if !s.persistent() && code == wire.NotFound && !proven { // anybody on the path may have said so
			err = fmt.Errorf("%w: by a host that proves nothing: %w", wire.Unreachable, err)
		}
		if err == nil || !s.persistent() || code != wire.NotFound && code != wire.SessionClosed {
			return err
		}
	}
	return s.owner.resume(ctx, s, route)
}

// rebind opens another channel for s. It returns when the peer has shown that it
// has the session; if it has forgotten it, the error is wire.NotFound. Proven says
// that what the error says is known to be from the peer.
func (e *Endpoint) rebind(ctx context.Context, s *Session, r Route) (proven bool, err error) {
	c, err := e.cfg.Network.Dial(ctx, r)
	if err != nil {
		return false, fmt.Errorf("%w: open channel: %w", wire.Unreachable, err)
	}
	ch := newChannel(c, true, time.Now())
	if err := e.attach(s, ch); err != nil {
		c.Reset(wire.SessionClosed)
		return true, err
	}
	e.follow(s, newReader(ch))
	if err := s.proven(ctx, ch); err != nil {
		return c.Peer() != "", err
	}
	s.back()
	return true, nil
}

// attach writes what begins a channel of a session that is there, and adds it.
func (e *Endpoint) attach(s *Session, ch *channel) error {
	attach, err := proto.Marshal(&sessionpb.Attach{Session: s.id[:]})
	if err != nil {
		return err
	}
	ch.post(wire.AppendFrame(nil, attach), maxQueue)
	s.rebind(ch, s.link.current.Load() == nil)
	return s.add(ch, false)
}

// rebind tells the peer, over ch, what this side has; primary also moves the
// session to ch.
func (s *Session) rebind(ch *channel, primary bool) {
	if b, err := proto.Marshal(&sessionpb.Rebind{Received: s.received(), Primary: primary}); err == nil {
		s.tell(ch, seal.Rebind, b)
	}
}

// rebound acts on the peer's rebind: the peer has said what it has, and may have
// moved here.
func (s *Session) rebound(ch *channel, plain []byte) error {
	m := new(sessionpb.Rebind)
	if err := unmarshal(plain, m); err != nil {
		return err
	}
	newest, missing := receivedOf(m.GetReceived())
	s.link.received(ch, newest, missing)
	if m.Primary && s.link.choose(ch) {
		s.over(ch)
	}
	s.affirm(ch)
	return nil
}

// back ends a migration: the session has a channel that works.
func (s *Session) back() {
	s.trouble.Store(nil)
	if s.turnFromMail() {
		s.resumeDelivery(time.Now())
	}
	s.move(Active, 0)
}
