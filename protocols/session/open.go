package session

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/session/seal"
	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/signal"
	"openmesh/protocols/stream"
	"openmesh/protocols/wire"
)

// Session returns a usable session with an agent that delivers at most once and
// cites no market contract, or nil.
func (e *Endpoint) Session(a identity.AgentID) *Session {
	c := &e.cfg.Contract
	return e.at(slot{agent: a, qos: signal.AtMostOnce, ordered: c.Ordered, persistent: c.Persistent && c.QoS <= signal.AtMostOnce})
}

// Reached tells who an agent is and where, if some session with it has a channel now.
func (e *Endpoint) Reached(a identity.AgentID) (c *identity.Certificate, r Route, ok bool) {
	for _, s := range e.list() {
		if s.Peer().Agent == a && s.link.current.Load() != nil && s.through == nil && !s.waits {
			ends := s.ends.Load()
			return ends.peer, Route{Peer: ends.peer.Peer, Transports: ends.transports}, true
		}
	}
	return nil, Route{}, false
}

// Agreed returns the version of an application protocol that was agreed on with an
// agent, in any session that there is.
func (e *Endpoint) Agreed(a identity.AgentID, protocol string) (version string, ok bool) {
	for _, s := range e.list() {
		if s.Peer().Agent != a {
			continue
		}
		if version, ok = s.Protocol(protocol); ok {
			return version, true
		}
	}
	return "", false
}

// Target is an agent and where to reach it.
type Target struct {
	Agent identity.AgentID
	Route Route

	// Mailbox, if set, is the agent's certificate: it has a mailbox, and if it cannot
	// be reached a persistent session is offered by mail.
	Mailbox *identity.Certificate
}

// Want says what a session should be like. Terms of the contract left zero are
// this node's.
type Want struct {
	Contract  signal.Contract
	Exclusive bool // a session of its own, which nothing else uses
}

// Open returns a session with the agent; unless it is exclusive, one that is there
// will do, and one is set up once for all who ask meanwhile.
func (e *Endpoint) Open(ctx context.Context, t Target, w Want) (*Session, error) {
	if m := w.Contract.Market; m != "" {
		if err := signal.CheckMarket(m); err != nil {
			return nil, err
		}
	}
	terms := e.terms(w)
	if w.Exclusive {
		return e.setUp(ctx, t, terms, true)
	}
	at := slotOf(t.Agent, terms.Contract)
	at.through = names(t.Route.Through)
	if s := e.at(at); s != nil {
		return s, s.ready(ctx)
	}
	res := e.opening.DoChan(fmt.Sprint(at), func() (any, error) {
		if s := e.at(at); s != nil {
			return s, s.ready(ctx)
		}
		return e.setUp(context.WithoutCancel(ctx), t, terms, false) // one caller's patience must not decide for the others
	})
	select {
	case r := <-res:
		if r.Err != nil {
			return nil, fmt.Errorf("open session with %s: %w", t.Agent, r.Err)
		}
		return r.Val.(*Session), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("open session with %s: %w: %w", t.Agent, errorCode(ctx.Err()), ctx.Err())
	}
}

func (e *Endpoint) at(at slot) *Session {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.usable[at]
}

// terms are what this node offers for w.
func (e *Endpoint) terms(w Want) signal.Terms {
	t := e.cfg.Signal.Terms()
	t.Contract = t.Contract.With(e.cfg.Contract).With(w.Contract)
	t.Contract.QoS = cmp.Or(w.Contract.QoS, e.cfg.Contract.QoS, signal.AtMostOnce)
	t.Contract.Persistent = t.Contract.QoS > signal.AtMostOnce || w.Contract.Persistent ||
		e.cfg.Contract.Persistent && e.cfg.Contract.QoS <= signal.AtMostOnce
	t.Contract.Ordered = w.Contract.Ordered || e.cfg.Contract.Ordered
	return t
}

func (e *Endpoint) setUp(ctx context.Context, t Target, terms signal.Terms, exclusive bool) (*Session, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*e.cfg.Signal.Timeout)
	defer cancel()
	start := time.Now()
	s, err := e.open(ctx, t, terms, exclusive)
	if err != nil && wire.CodeOf(err) == wire.Unreachable && t.Mailbox != nil && t.Route.Through == nil && terms.Contract.Persistent && e.cfg.Mail != nil {
		s, err = e.invite(t, terms, exclusive)
	}
	if e.cfg.Observe != nil {
		e.cfg.Observe.SessionSetup(true, time.Since(start), err)
	}
	return s, err
}

// open does the signaling and opens the first channel. The session is active at
// once: what is sent now travels with the Confirm.
func (e *Endpoint) open(ctx context.Context, t Target, terms signal.Terms, exclusive bool) (*Session, error) {
	est, confirm, _, err := e.agree(ctx, t, terms)
	if err != nil {
		return nil, err
	}
	ch, err := e.confirm(ctx, est.ID, t.Route, confirm)
	if err != nil {
		return nil, err
	}
	est.Transports = remember(est.Transports, t.Route)
	s, err := e.establish(est, ch, exclusive, t.Route)
	if err != nil {
		ch.conduit.Reset(wire.SessionClosed)
		return nil, err
	}
	e.follow(s, newReader(ch))
	if s.persistent() { // it must not be forgotten there, whatever happens from now on
		if err := s.proven(ctx, ch); err != nil {
			s.end(Terminated, errorCode(err), false)
			return nil, err
		}
	}
	return s, nil
}

// forwardedKeepalive is how often, at least, a forwarded path is probed: a relay that
// dies on it without a word is noticed by nobody else.
const forwardedKeepalive = 5 * time.Second

// agree does the signaling with an agent; proven says that what came back is known
// to be from the host that was asked.
func (e *Endpoint) agree(ctx context.Context, t Target, terms signal.Terms) (est *signal.Established, confirm []byte, proven bool, err error) {
	if t.Route.Through != nil {
		terms.Transports = nil // the other side learns no address of this one
		terms.Contract.Keepalive = min(terms.Contract.Keepalive, forwardedKeepalive)
	}
	exchange := func(ctx context.Context, offer []byte) (reply []byte, err error) {
		reply, proven, err = e.cfg.Network.Signal(ctx, t.Route, offer)
		return reply, err
	}
	est, confirm, err = signal.Open(ctx, exchange, t.Agent, terms, e.cfg.Signal)
	if errors.Is(err, context.DeadlineExceeded) { // the handshake's: callers may have more time, and try elsewhere
		err = fmt.Errorf("%w: %w", wire.Unreachable, err)
	}
	return est, confirm, proven, err
}

// confirm opens the channel that follows signaling.
func (e *Endpoint) confirm(ctx context.Context, id signal.ID, r Route, confirm []byte) (*channel, error) {
	c, err := e.cfg.Network.Dial(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("%w: open channel: %w", wire.Unreachable, err)
	}
	attach, err := proto.Marshal(&sessionpb.Attach{Session: id[:], Confirm: confirm})
	if err != nil {
		return nil, err
	}
	ch := newChannel(c, true, time.Now())
	if err := ch.write(wire.AppendFrame(nil, attach), false); err != nil {
		c.Reset(wire.SessionClosed)
		return nil, fmt.Errorf("%w: open channel: %w", wire.Unreachable, err)
	}
	return ch, nil
}

// establish makes the session that signaling agreed on, with its first channel. Chosen
// is what whoever opened it demands of its paths.
func (e *Endpoint) establish(est *signal.Established, ch *channel, exclusive bool, chosen Route) (*Session, error) {
	s, err := newSession(e, est, time.Now())
	if err != nil {
		return nil, err
	}
	s.exclusive, s.through, s.pinned = exclusive, chosen.Through, chosen.Transport != ""
	s.waits = !est.Initiator && ch.path.Kind == "forwarded"
	if err := e.commence(s, ch); err != nil {
		return nil, err
	}
	return s, s.move(Active, 0)
}

// commence stores a session that is new, gives it its first channel, if it has one,
// and registers it. If one of that fails, nothing of it is left; the conduit is the
// caller's.
func (e *Endpoint) commence(s *Session, ch *channel) error {
	if err := e.claim(s); err != nil {
		return err
	}
	defer e.unclaim(s.id)
	if err := s.secure(); err != nil {
		return err
	}
	if ch != nil {
		if err := s.add(ch, true); err != nil {
			s.unsecure()
			return err
		}
	}
	if err := e.begin(s); err != nil {
		if ch != nil {
			s.link.drop(ch, false)
			e.channels.Add(-1)
		}
		s.unsecure()
		return err
	}
	return nil
}

// follow reads a channel until it ends. The first ping goes out at once: how long a
// round trip takes tells the sweep what silence means.
func (e *Endpoint) follow(s *Session, r *reader) {
	r.channel.reading.Store(r)
	s.ping(r.channel, time.Now())
	if !e.start(func() { s.receive(r) }) {
		s.lost(r.channel, wire.SessionClosed)
	}
}

// readBuffer is small, for there may be many idle channels; large frames are read
// past it.
const readBuffer = 4 << 10

func newReader(ch *channel) *reader {
	return &reader{Reader: bufio.NewReaderSize(ch.conduit, readBuffer), channel: ch}
}

// serve takes a channel that a peer opened by a stream.
func (e *Endpoint) serve(st network.Stream) {
	if err := st.Scope().SetService("openmesh.session"); err != nil {
		st.ResetWithError(network.StreamErrorCode(wire.ResourceExhausted))
		return
	}
	e.Accept(StreamConduit(st, e.cfg.Path(st.Conn()), e.cfg.Abandon))
}

// Accept takes a channel that a peer opened. It returns when the channel belongs
// to a session, which then owns the conduit, or was refused.
func (e *Endpoint) Accept(c Conduit) {
	start := time.Now()
	patience := time.AfterFunc(e.cfg.Signal.Timeout, func() { c.Reset(wire.DeadlineExceeded) })
	r := newReader(newChannel(c, false, start))
	s, first, err := e.accept(r)
	if late := !patience.Stop(); late && err == nil {
		s.lost(r.channel, wire.DeadlineExceeded)
	} else if late {
		err = fmt.Errorf("%w: %w", wire.DeadlineExceeded, err)
	}
	if first && e.cfg.Observe != nil {
		e.cfg.Observe.SessionSetup(false, time.Since(start), err)
	}
	if err != nil {
		c.Reset(errorCode(err))
		e.cfg.Log.Debug("channel refused", zap.String("from", c.Path().Addr), zap.Error(err))
		return
	}
	e.follow(s, r)
}

// accept reads what begins a new channel and adds it to its session, which it may
// make; first reports whether it is the session's first one.
func (e *Endpoint) accept(r *reader) (s *Session, first bool, err error) {
	if err := e.whole(); err != nil {
		return nil, true, err
	}
	b, err := wire.ReadFrame(r.Reader, signal.MaxMessage)
	if err != nil {
		return nil, true, fmt.Errorf("%w: %w", stream.ReadCode(err), err)
	}
	var m sessionpb.Attach
	if err := proto.Unmarshal(b, &m); err != nil {
		return nil, true, fmt.Errorf("%w: %w", wire.Malformed, err)
	}
	if len(m.Session) != len(signal.ID{}) {
		return nil, true, wire.Errorf(wire.Malformed, "session id of %d bytes", len(m.Session))
	}
	if len(m.Confirm) == 0 {
		s, err = e.rejoin(signal.ID(m.Session), r)
		return s, false, err
	}
	// Only now does it count as a channel: streams of who has proved nothing take no
	// room of those who have, and are bounded by the resource manager and the
	// handshake's timeout.
	est, err := e.signal.Confirm(r.channel.conduit.Peer(), signal.ID(m.Session), m.Confirm)
	if err != nil {
		return nil, true, err
	}
	if est.Resumed {
		s, err = e.revive(est, r.channel)
		return s, false, err
	}
	if s, err = e.establish(est, r.channel, false, Route{}); err == nil && s.persistent() {
		s.affirm(r.channel)
	}
	return s, true, err
}

// affirm shows the peer that this side has the session.
func (s *Session) affirm(ch *channel) { s.sayReceived(ch, s.received()) }

// maxRebind bounds the frame that begins a channel of a session that is there.
const maxRebind = 4 << 10

// rejoin adds a channel to a session that is there. Its first frame proves that
// the peer has the session's keys; nobody learns whether the session exists who
// does not.
func (e *Endpoint) rejoin(id signal.ID, r *reader) (*Session, error) {
	frame, err := wire.ReadFrame(r.Reader, maxRebind) // before the look-up: that must not show
	if err != nil {
		return nil, fmt.Errorf("%w: %w", stream.ReadCode(err), err)
	}
	s := e.session(id)
	if s == nil || s.link.opener() == nil {
		return nil, wire.Errorf(wire.NotFound, "session %s", id)
	}
	if p := r.channel.conduit.Peer(); p != "" && p != s.Peer().Peer {
		return nil, wire.Errorf(wire.NotFound, "session %s is with %s, not %s", id, s.Peer().Peer, p)
	}
	// Only a rebind is opened: of another frame, taken off its way, this side would
	// think from then on that it had it.
	if len(frame) < seal.Overhead || seal.Type(frame[1]) != seal.Rebind {
		return nil, wire.Errorf(wire.NotFound, "channel of session %s begins with no rebind", id)
	}
	keys, _, plain, err := s.open(frame)
	if err != nil {
		return nil, wire.Errorf(wire.NotFound, "channel of session %s begins with what does not open: %v", id, err)
	}
	r.channel.keys = keys
	r.channel.hear(time.Now())
	if err := s.add(r.channel, false); err != nil {
		return nil, err
	}
	if err := s.rebound(r.channel, plain); err != nil {
		s.lost(r.channel, wire.Malformed)
		return nil, wire.Malformed
	}
	s.accepted()
	s.back()
	return s, nil
}

func (e *Endpoint) session(id signal.ID) *Session {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.sessions[id]
}
