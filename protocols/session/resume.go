package session

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/session/seal"
	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// A persistent session outlives the process. What is stored of it is no secret:
// who the other side is, and the contract. After a restart of either side, whoever
// has something to say offers, in signaling, to go on with the session; both
// prove again who they are, and fresh keys come out. So a stolen id is worth
// nothing, and neither is a stolen store.

// persistent reports whether the session outlives the process.
func (s *Session) persistent() bool { return s.terms.Load().Persistent && s.owner.cfg.Store != nil }

// save stores what the session needs to go on after a restart.
func (s *Session) save() {
	if s.persistent() {
		s.owner.cfg.Store.Commit(delivery.SaveSession{Session: s.id, Data: s.saved()}, false, nil)
	}
}

// secure stores the session and returns when it is on disk. Each side does so
// before it tells the other that it has the session.
func (s *Session) secure() error {
	if !s.persistent() {
		return nil
	}
	done := make(chan error, 1)
	s.owner.cfg.Store.Commit(delivery.SaveSession{Session: s.id, Data: s.saved()}, true, func(err error) { done <- err })
	if err := <-done; err != nil {
		return fmt.Errorf("store session: %w", err)
	}
	return nil
}

// unsecure takes secure back: there is no such session.
func (s *Session) unsecure() {
	if s.persistent() {
		s.owner.cfg.Store.Commit(delivery.ForgetSession{Session: s.id}, false, nil)
	}
}

func (s *Session) saved() []byte {
	ends := s.ends.Load()
	m := &sessionpb.Saved{
		Session: s.id[:], Agent: string(ends.peer.Agent), Certificate: ends.peer.Raw, Initiator: s.opener,
		Contract: s.terms.Load().Marshal(), Opened: s.opened.UnixMilli(), Used: s.counters.used.Load() / int64(time.Millisecond),
		Exclusive: s.exclusive, Waits: s.waits, Offered: s.offered.Load(), Parked: s.link == nil || s.link.current.Load() == nil && s.stateNow() == Active,
	}
	if s.stateNow().Done() {
		s.mu.Lock()
		m.Ended, m.Reason = time.Now().UnixMilli(), uint32(s.reason)
		s.mu.Unlock()
	}
	for _, t := range ends.transports {
		m.Addrs = append(m.Addrs, t.Addrs...)
	}
	for _, c := range s.through {
		relays := new(sessionpb.SavedChain)
		for _, a := range c {
			relays.Agents = append(relays.Agents, string(a))
		}
		m.Through = append(m.Through, relays)
	}
	for _, p := range ends.protocols {
		m.Protocols = append(m.Protocols, &sessionpb.SavedProtocol{Name: p.Name, Version: p.Versions[0]})
	}
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err) // numbers, names and bytes always marshal
	}
	return b
}

// conclude stores that the session has ended. What became of its messages can be
// asked for as long as they would have been kept.
func (s *Session) conclude() {
	if s.persistent() {
		s.save()
		s.owner.outlive(s.id, time.Now().Add(s.terms.Load().TTL))
	}
}

// outlived is what is left of a session that ended, until it is forgotten.
type outlived struct {
	id    signal.ID
	until time.Time
}

func (e *Endpoint) outlive(id signal.ID, until time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.outlived = append(e.outlived, outlived{id, until})
}

// forget removes what was stored of sessions that ended long ago.
func (e *Endpoint) forget(now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.outlived = slices.DeleteFunc(e.outlived, func(o outlived) bool {
		if now.Before(o.until) {
			return false
		}
		e.cfg.Store.Commit(delivery.ForgetSession{Session: o.id}, false, nil)
		return true
	})
}

// restore brings back the sessions of the store; they get keys and channels when
// somebody needs them.
func (e *Endpoint) restore(ctx context.Context) error {
	if e.cfg.Store == nil {
		return nil
	}
	saved, err := e.cfg.Store.Sessions(ctx)
	if err != nil {
		return fmt.Errorf("restore sessions: %w", err)
	}
	for id, b := range saved {
		if err := e.restoreOne(ctx, id, b); err != nil {
			e.cfg.Log.Error("session not restored", zap.Stringer("session", signal.ID(id)), zap.Error(err))
		}
	}
	return nil
}

func (e *Endpoint) restoreOne(ctx context.Context, id signal.ID, b []byte) error {
	var m sessionpb.Saved
	if err := proto.Unmarshal(b, &m); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	c, err := identity.ParseCertificate(m.Certificate)
	if err != nil {
		return fmt.Errorf("certificate of the peer: %w", err)
	}
	contract, err := signal.ParseContract(m.Contract)
	if err != nil {
		return err
	}
	est := &signal.Established{ID: id, Peer: c, Initiator: m.Initiator, Contract: contract}
	for _, p := range m.Protocols {
		est.Protocols = append(est.Protocols, signal.AppProtocol{Name: p.Name, Versions: []string{p.Version}})
	}
	est.Transports = []signal.Transport{{Addrs: m.Addrs}}
	s := e.build(est, time.UnixMilli(m.Opened))
	if m.Ended != 0 {
		e.recall(s, &m)
		return nil
	}
	s.astray.Store(true)
	s.restored = true
	s.exclusive, s.waits = m.Exclusive, m.Waits
	for _, c := range m.Through {
		var relays Chain
		for _, a := range c.Agents {
			relays = append(relays, identity.AgentID(a))
		}
		s.through = append(s.through, relays)
	}
	s.offered.Store(m.Offered)
	s.counters.used.Store(m.Used * int64(time.Millisecond))
	s.eager = !m.Parked
	s.link = newLink(nil)
	if err := s.restoreDelivery(ctx); err != nil {
		return err
	}
	if err := e.begin(s); err != nil {
		return err
	}
	if !m.Offered {
		s.move(Active, 0)
		s.move(Migrating, 0)
	}
	if s.outstanding() || !m.Parked { // the peer may have something for this side
		s.wake()
	}
	return nil
}

// recall remembers a session that has ended.
func (e *Endpoint) recall(s *Session, m *sessionpb.Saved) {
	s.link = newLink(nil)
	s.state, s.reason = Closed, wire.Code(m.Reason)
	if m.Reason != 0 {
		s.state = Terminated
	}
	e.outlive(s.id, time.UnixMilli(m.Ended).Add(s.terms.Load().TTL))
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ended = append(e.ended, s.Info())
	e.ended = e.ended[max(0, len(e.ended)-maxEnded):]
}

// Recall tells what became of the message that was posted with an idempotency key
// in a session that has ended; wire.NotFound if that is not known any more.
func (e *Endpoint) Recall(ctx context.Context, id signal.ID, key string) (uint64, delivery.Outcome, error) {
	if e.cfg.Store == nil {
		return 0, delivery.Outcome{}, wire.Errorf(wire.NotFound, "message %.40q", key)
	}
	return e.cfg.Store.Outcome(ctx, id, key)
}

// How long an attempt to reach a peer waits for the directory, which may be out of
// reach while the peer is not: less if the peer was there a moment ago.
const (
	findPatience     = time.Second
	findPatienceLive = 200 * time.Millisecond
)

// locate says where the session's peer may be. What the directory finds too late is
// for the next attempt.
func (e *Endpoint) locate(s *Session) Route {
	r := e.place(s)
	if r.Through = s.through; r.Through != nil {
		r.Target = s.Peer()
	}
	return r
}

func (e *Endpoint) place(s *Session) Route {
	if e.cfg.Find != nil && s.astray.Load() {
		patience := findPatience
		if s.link.opener() != nil {
			patience = findPatienceLive
		}
		s.search(patience)
	}
	known := Route{Peer: s.Peer().Peer, Transports: s.ends.Load().transports}
	found := s.found.Load()
	if found == nil || !s.astray.Load() {
		return known
	}
	r := *found
	if r.Transports == nil {
		r.Transports = known.Transports
	}
	return r
}

// maxReached bounds the addresses of a peer that are remembered beside those that it
// offers.
const maxReached = 16

// remember adds the addresses of the route by which the peer was reached to those
// that it offers: it may not know by what name or gateway others reach it.
func remember(offered []signal.Transport, r Route) []signal.Transport {
	var own [][]byte
	for _, a := range r.Addrs {
		own = append(own, a.Bytes())
	}
	for _, t := range r.Transports {
		if t.Name == "" {
			own = append(own, t.Addrs...)
		}
	}
	var more [][]byte
	for _, a := range own {
		same := func(b []byte) bool { return bytes.Equal(a, b) }
		known := slices.ContainsFunc(offered, func(t signal.Transport) bool { return slices.ContainsFunc(t.Addrs, same) })
		if !known && !slices.ContainsFunc(more, same) && len(more) < maxReached {
			more = append(more, a)
		}
	}
	if more == nil {
		return offered
	}
	return append(offered[:len(offered):len(offered)], signal.Transport{Addrs: more})
}

// leadsTo reports whether r and o are of the same host and addresses.
func (r Route) leadsTo(o Route) bool {
	return r.Peer == o.Peer && len(r.Addrs) == len(o.Addrs) && !slices.ContainsFunc(r.Addrs, func(a ma.Multiaddr) bool {
		return !slices.ContainsFunc(o.Addrs, a.Equal)
	})
}

// search looks the peer up in the background, once at a time, and waits for that as
// long as patience.
func (s *Session) search(patience time.Duration) {
	if !s.finding.CompareAndSwap(false, true) {
		return
	}
	done := make(chan struct{})
	started := s.owner.start(func() {
		defer close(done)
		defer s.finding.Store(false)
		ctx, cancel := context.WithTimeout(s.owner.work, 2*s.owner.cfg.Signal.Timeout)
		defer cancel()
		found, err := s.owner.cfg.Find(ctx, s.Peer().Agent, s.Peer().Peer)
		if err != nil {
			s.log("peer not found", zap.Error(err))
			return
		}
		if before := s.found.Swap(&found); before == nil || !before.leadsTo(found) {
			s.retry()
		}
	})
	if !started {
		s.finding.Store(false)
		return
	}
	enough := time.NewTimer(patience)
	defer enough.Stop()
	select {
	case <-done:
	case <-enough.C:
	}
}

// resume goes on with s under new keys. An error with wire.NotFound says that the
// peer does not know the session: it has ended.
func (e *Endpoint) resume(ctx context.Context, s *Session, r Route) error {
	s.resuming.Store(time.Now().UnixNano())
	defer s.resuming.Store(0)
	est, confirm, err := e.offerResume(ctx, s, r)
	if err != nil {
		return err
	}
	if err = e.takeUp(ctx, s, r, est, confirm); wire.CodeOf(err) == wire.NotFound && err != nil {
		// Another offer, the peer's own perhaps, came between: that says nothing of
		// the session.
		return fmt.Errorf("%w: %w", wire.Unreachable, err)
	}
	return err
}

func (e *Endpoint) offerResume(ctx context.Context, s *Session, r Route) (*signal.Established, []byte, error) {
	terms := e.cfg.Signal.Terms()
	terms.Contract, terms.Resume, terms.Begin = s.Contract(), s.id, s.offered.Load()
	est, confirm, proven, err := e.agree(ctx, Target{Agent: s.Peer().Agent, Route: r}, terms)
	if wire.CodeOf(err) == wire.NotFound && !proven {
		err = fmt.Errorf("%w: by a host that proves nothing: %w", wire.Unreachable, err)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("resume session %s: %w", s.id, err)
	}
	return est, confirm, nil
}

// takeUp opens the channel that follows an offer to resume, and goes on over it.
func (e *Endpoint) takeUp(ctx context.Context, s *Session, r Route, est *signal.Established, confirm []byte) error {
	ch, err := e.confirm(ctx, s.id, r, confirm)
	if err != nil {
		return err
	}
	est.Transports = remember(est.Transports, r)
	if err := s.renew(est, ch); err != nil {
		ch.conduit.Reset(wire.SessionClosed)
		return err
	}
	e.follow(s, newReader(ch))
	s.resumed()
	return s.proven(ctx, ch)
}

// crossing is how long an offer to go on with a session may take to arrive. If
// the peer has not minded it by then, it went to a process that is dead.
const crossing = time.Second

// mayResume is asked when the agent with certificate c offers to go on with
// session id. If both sides do so at once, the offer of the one with the lower
// agent id counts.
func (e *Endpoint) mayResume(c *identity.Certificate, id signal.ID, begin bool) (*signal.Contract, error) {
	s := e.session(id)
	switch {
	case s == nil && begin && e.cfg.Store != nil && !e.hadEnded(id):
		return nil, nil
	case s == nil || !s.persistent() || s.Peer().Agent != c.Agent:
		return nil, wire.Errorf(wire.NotFound, "session %s with %s to go on with", id, c.Agent)
	}
	if since := time.Since(time.Unix(0, s.resuming.Load())); since < crossing && e.cfg.Signal.Local().Certificate.Agent < c.Agent {
		return nil, wire.Errorf(wire.AlreadyExists, "session %s is being resumed by this side", id)
	}
	return s.terms.Load(), nil
}

// revive goes on with a session under the keys that the other side has confirmed.
func (e *Endpoint) revive(est *signal.Established, ch *channel) (*Session, error) {
	s := e.session(est.ID)
	if s == nil && est.Begin { // no letter of it has come
		s, err := e.establish(est, ch, false, Route{})
		if err == nil {
			s.affirm(ch)
		}
		return s, err
	}
	if s == nil || s.Peer().Agent != est.Peer.Agent {
		return nil, wire.Errorf(wire.NotFound, "session %s to go on with", est.ID)
	}
	if err := s.renew(est, ch); err != nil {
		return nil, err
	}
	s.affirm(ch)
	s.accepted()
	s.resumed()
	return s, nil
}

// renew gives the session the keys of est and ch as its only channel. What was
// under way and is not kept durably is over: one side has forgotten it.
func (s *Session) renew(est *signal.Established, ch *channel) error {
	keys, err := s.newKeys(est, time.Now())
	if err != nil {
		return err
	}
	s.move(Migrating, 0)
	if s.offered.Load() {
		s.tighten(est.Contract)
		s.move(Establishing, 0)
	}
	s.turnFromMail()
	interrupted := wire.Errorf(wire.SessionClosed, "session %s was resumed: %s may have restarted", s.id, s.Peer().Agent)
	s.spare(interrupted)
	old := s.link.renew(keys)
	s.ends.Store(endsOf(est))
	for _, ch := range old {
		s.release(ch, false, wire.SessionClosed)
	}
	s.interrupt(keys, interrupted)
	err = s.add(ch, true)
	s.resumeDelivery(time.Now()) // before anything of the peer's new life is read; if there is no room for ch, it comes over another
	return err
}

// interrupt ends the requests under way, both ways; others may begin, under keys.
func (s *Session) interrupt(keys *seal.Keys, err error) {
	s.calls.fail(err)
	s.inbox.cancelAll(keys)
	s.streams.Swap(s.newStreams(keys)).Close(errorCode(err))
}

// resumed follows once a session that was renewed has a channel.
func (s *Session) resumed() {
	s.back()
	s.save()
}

// suspend takes channels and keys from a persistent session.
func (s *Session) suspend(reason wire.Code) {
	s.move(Migrating, 0)
	suspended := wire.Errorf(reason, "session %s with %s is suspended", s.id, s.Peer().Agent)
	s.spare(suspended)
	for _, ch := range s.link.renew(nil) {
		s.release(ch, false, reason)
	}
	s.interrupt(nil, suspended)
}

// proven waits until the peer has shown, over ch, that it has the session.
func (s *Session) proven(ctx context.Context, ch *channel) error {
	select {
	case <-ch.proof:
		s.astray.Store(false)
		s.accepted()
		return nil
	case <-ch.gone:
		return fmt.Errorf("open channel: %w", ch.failure())
	case <-ctx.Done():
		s.lost(ch, wire.Unreachable)
		return fmt.Errorf("%w: open channel: the peer does not answer", wire.Unreachable)
	}
}

// accepted follows once the peer has shown that it has the session: until then, one
// that was offered by mail is offered again with every attempt to reach it.
func (s *Session) accepted() {
	if s.offered.Swap(false) {
		s.save()
	}
}

// ready waits until a session without keys has some; one that keeps its messages
// need not wait.
func (s *Session) ready(ctx context.Context) error {
	if s.link.opener() != nil || s.terms.Load().QoS > signal.AtMostOnce {
		return nil
	}
	up := s.link.awake()
	s.wake()
	select {
	case <-up:
		return nil
	case <-s.done:
		return wire.Errorf(wire.SessionClosed, "session %s with %s has ended", s.id, s.Peer().Agent)
	case <-ctx.Done():
		return wire.Errorf(wire.Unreachable, "session %s with %s could not be resumed: %w", s.id, s.Peer().Agent, ctx.Err())
	}
}

// Ready reports whether the session can carry requests at once: it has keys.
func (s *Session) Ready() bool { return s.link.opener() != nil }
