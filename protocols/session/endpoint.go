package session

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/signal"
	"openmesh/protocols/stream"
	"openmesh/protocols/wire"
)

// A Host opens and serves streams; host.Host is one.
type Host interface {
	stream.Mux
	stream.Dialer
}

// Config is what an [Endpoint] needs.
type Config struct {
	Host    Host
	Signal  signal.Config
	Handler Handler
	Data    func(s *Session, data []byte) // messages of Send; data is valid during the call only; nil drops them

	// Path tells how a connection reaches its peer; default [PathOf].
	Path func(network.Conn) Path

	MaxChannels int           // concurrent channels, both ways; default 256
	IdleTimeout time.Duration // a session unused for so long is closed; default 10 min
	MaxTimeout  time.Duration // longest deadline granted to a request; default 24 h
	DrainTime   time.Duration // how long Run lets requests end when it stops; default 5 s

	Observe Observer // may be nil
	Log     *zap.Logger
}

// Observer is told of what happens rarely. Its methods must return soon.
type Observer interface {
	SessionSetup(initiator bool, took time.Duration, err error)
	SessionEvent(Event)
}

// Endpoint holds all sessions of a node: it answers offers and channels, opens
// sessions, keeps them alive and ends them. Safe for concurrent use.
type Endpoint struct {
	cfg      Config
	signal   *signal.Server
	workers  workers
	watch    watch
	stats    stats
	opening  singleflight.Group
	group    sync.WaitGroup // all that was started
	channels atomic.Int64
	work     context.Context // of requests being handled; ends after draining
	stop     context.CancelFunc

	mu       sync.Mutex
	sessions map[signal.ID]*Session
	usable   map[identity.AgentID]*Session
	ended    []Info // most recent last
	closed   bool
}

// maxEnded bounds the ended sessions that are remembered.
const maxEnded = 256

// New returns an endpoint that serves once it runs.
func New(cfg Config) *Endpoint {
	cfg.MaxChannels = cmp.Or(cfg.MaxChannels, 256)
	cfg.IdleTimeout = cmp.Or(cfg.IdleTimeout, 10*time.Minute)
	cfg.MaxTimeout = cmp.Or(cfg.MaxTimeout, 24*time.Hour)
	cfg.DrainTime = cmp.Or(cfg.DrainTime, 5*time.Second)
	if cfg.Path == nil {
		cfg.Path = PathOf
	}
	e := &Endpoint{
		cfg:      cfg,
		signal:   signal.NewServer(cfg.Signal),
		workers:  workers{jobs: make(chan job)},
		sessions: make(map[signal.ID]*Session),
		usable:   make(map[identity.AgentID]*Session),
	}
	e.watch.owner = e
	e.work, e.stop = context.WithCancel(context.Background())
	return e
}

// Run serves until ctx ends. Then it takes nothing new, lets what is under way
// end within DrainTime, closes all sessions and returns.
func (e *Endpoint) Run(ctx context.Context) error {
	var servers sync.WaitGroup
	servers.Go(func() { e.signal.Run(ctx, e.cfg.Host) })
	e.cfg.Host.SetStreamHandler(Protocol, e.serve)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			e.sweep(now)
		case <-ctx.Done():
			e.shutdown()
			servers.Wait()
			return nil
		}
	}
}

func (e *Endpoint) shutdown() {
	e.cfg.Host.RemoveStreamHandler(Protocol)
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), e.cfg.DrainTime)
	defer cancel()
	var closing sync.WaitGroup
	for _, s := range e.list() {
		closing.Go(func() {
			if s.Close(ctx) != nil {
				s.Terminate(wire.SessionClosed)
			}
		})
	}
	closing.Wait()
	e.stop()
	e.group.Wait() // nothing is received any more
	e.workers.close()
}

// Session returns the usable session with an agent, or nil.
func (e *Endpoint) Session(a identity.AgentID) *Session {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.usable[a]
}

// Open returns the session with agent a at peer p; it sets one up if there is
// none, once for all who ask meanwhile.
func (e *Endpoint) Open(ctx context.Context, a identity.AgentID, p peer.ID) (*Session, error) {
	if s := e.Session(a); s != nil {
		return s, nil
	}
	res := e.opening.DoChan(string(a), func() (any, error) {
		if s := e.Session(a); s != nil {
			return s, nil
		}
		// One caller's patience must not decide for the others.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*e.cfg.Signal.Timeout)
		defer cancel()
		start := time.Now()
		s, err := e.open(ctx, a, p)
		e.setup(true, time.Since(start), err)
		return s, err
	})
	select {
	case r := <-res:
		if r.Err != nil {
			return nil, fmt.Errorf("open session with %s: %w", a, r.Err)
		}
		return r.Val.(*Session), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("open session with %s: %w: %w", a, errorCode(ctx.Err()), ctx.Err())
	}
}

func (e *Endpoint) setup(initiator bool, took time.Duration, err error) {
	if e.cfg.Observe != nil {
		e.cfg.Observe.SessionSetup(initiator, took, err)
	}
}

func (e *Endpoint) open(ctx context.Context, a identity.AgentID, p peer.ID) (*Session, error) {
	if err := e.reserveChannel(); err != nil {
		return nil, err
	}
	s, r, err := e.dial(ctx, a, p)
	if err == nil {
		err = e.begin(s)
	}
	if err != nil {
		e.channels.Add(-1)
		return nil, err
	}
	go e.run(s, &reader{Reader: r})
	return s, nil
}

// dial does the signaling and opens the first channel.
func (e *Endpoint) dial(ctx context.Context, a identity.AgentID, p peer.ID) (*Session, *bufio.Reader, error) {
	est, confirm, err := signal.Open(ctx, e.cfg.Host, p, a, e.cfg.Signal)
	if errors.Is(err, context.DeadlineExceeded) { // the handshake's: callers may have more time, and try elsewhere
		return nil, nil, fmt.Errorf("%w: %w", wire.Unreachable, err)
	}
	if err != nil {
		return nil, nil, err
	}
	st, err := e.cfg.Host.NewStream(ctx, p, Protocol)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: open channel: %w", wire.Unreachable, err)
	}
	attach, err := proto.Marshal(&sessionpb.Attach{Session: est.ID[:], Confirm: confirm})
	if err != nil {
		return nil, nil, err
	}
	s, err := newSession(e, est, streamConduit{st, e.cfg.Path(st.Conn())}, time.Now())
	if err == nil {
		err = s.channel.write(wire.AppendFrame(nil, attach), false)
	}
	if err != nil {
		st.Reset()
		return nil, nil, fmt.Errorf("%w: open channel: %w", wire.Unreachable, err)
	}
	return s, bufio.NewReaderSize(st, readBuffer), nil
}

// readBuffer is small, for there may be many idle channels; large frames are read
// past it.
const readBuffer = 4 << 10

// serve takes a channel that a peer opened.
func (e *Endpoint) serve(st network.Stream) {
	start := time.Now()
	if err := st.Scope().SetService("openmesh.session"); err != nil {
		st.ResetWithError(network.StreamErrorCode(wire.ResourceExhausted))
		return
	}
	s, r, err := e.accept(st)
	if err == nil {
		err = e.join(s)
	}
	e.setup(false, time.Since(start), err)
	if err != nil {
		st.ResetWithError(network.StreamErrorCode(errorCode(err)))
		e.cfg.Log.Debug("channel refused", zap.Stringer("peer", st.Conn().RemotePeer()), zap.Error(err))
		return
	}
	e.run(s, &reader{Reader: r})
}

// accept reads the Attach of a new channel and makes its session.
func (e *Endpoint) accept(st network.Stream) (*Session, *bufio.Reader, error) {
	if err := st.SetReadDeadline(time.Now().Add(e.cfg.Signal.Timeout)); err != nil {
		return nil, nil, err
	}
	r := bufio.NewReaderSize(st, readBuffer)
	b, err := wire.ReadFrame(r, signal.MaxMessage)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", stream.ReadCode(err), err)
	}
	if err := st.SetReadDeadline(time.Time{}); err != nil {
		return nil, nil, err
	}
	var m sessionpb.Attach
	if err := unmarshal(b, &m); err != nil {
		return nil, nil, err
	}
	if len(m.Session) != len(signal.ID{}) {
		return nil, nil, wire.Errorf(wire.Malformed, "session id of %d bytes", len(m.Session))
	}
	est, err := e.signal.Confirm(st.Conn().RemotePeer(), signal.ID(m.Session), m.Confirm)
	if err != nil {
		return nil, nil, err
	}
	s, err := newSession(e, est, streamConduit{st, e.cfg.Path(st.Conn())}, time.Now())
	return s, r, err
}

// join begins a session that the other side opened. Only now does it count as a
// channel: streams of who has proved nothing take no room of those who have, and
// are bounded by the resource manager and the handshake's timeout.
func (e *Endpoint) join(s *Session) error {
	err := e.reserveChannel()
	if err != nil {
		return err
	}
	if err = e.begin(s); err != nil {
		e.channels.Add(-1)
	}
	return err
}

// begin registers a new session and makes it active. The caller runs it.
func (e *Endpoint) begin(s *Session) error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		s.channel.conduit.Reset(wire.SessionClosed)
		return wire.Errorf(wire.SessionClosed, "this node is shutting down")
	}
	e.group.Add(1)
	e.sessions[s.id] = s
	e.usable[s.peer.Agent] = s
	e.mu.Unlock()
	s.move(Establishing, 0)
	s.move(Active, 0)
	return nil
}

// run receives until the session's channel ends, or another goroutine goes on.
func (e *Endpoint) run(s *Session, r *reader) {
	if s.receive(r) {
		e.channels.Add(-1)
		e.group.Done()
	}
}

func (e *Endpoint) reserveChannel() error {
	if e.channels.Add(1) > int64(e.cfg.MaxChannels) {
		e.channels.Add(-1)
		return wire.Errorf(wire.ResourceExhausted, "all %d channels are in use", e.cfg.MaxChannels).
			WithHint("raise networking.max_tunnels or close sessions")
	}
	return nil
}

// changed keeps the endpoint's tables as a session's state changes.
func (e *Endpoint) changed(s *Session, ev Event) {
	e.mu.Lock()
	if ev.To >= Draining && e.usable[s.peer.Agent] == s {
		delete(e.usable, s.peer.Agent)
		e.replace(s.peer.Agent)
	}
	done := ev.To.Done()
	if done {
		delete(e.sessions, s.id)
	}
	e.mu.Unlock()
	if done {
		info := s.Info()
		e.mu.Lock()
		e.ended = append(e.ended, info)
		e.ended = e.ended[max(0, len(e.ended)-maxEnded):]
		e.mu.Unlock()
	}
	if e.cfg.Observe != nil {
		e.cfg.Observe.SessionEvent(ev)
	}
}

// replace makes another session with agent a the usable one, if there is one;
// e.mu is held.
func (e *Endpoint) replace(a identity.AgentID) {
	for _, s := range e.sessions {
		if s.peer.Agent == a && s.usable() {
			e.usable[a] = s
			return
		}
	}
}

func (s *Session) usable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state == Active || s.state == Migrating
}

// each calls f for every session; f must not block.
func (e *Endpoint) each(f func(*Session)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.sessions {
		f(s)
	}
}

func (e *Endpoint) list() []*Session {
	e.mu.Lock()
	defer e.mu.Unlock()
	ss := make([]*Session, 0, len(e.sessions))
	for _, s := range e.sessions {
		ss = append(ss, s)
	}
	slices.SortFunc(ss, func(a, b *Session) int { return b.opened.Compare(a.opened) })
	return ss
}

// sweep does what is due at now for every session: keepalive, and the end of
// those that are dead, idle or whose peer's key has expired.
func (e *Endpoint) sweep(now time.Time) {
	e.signal.Sweep(now)
	for _, s := range e.list() {
		s.expire(now)
		e.sweepSession(s, now)
	}
}

// stallLimit is how long one write may take before the channel counts as dead.
const stallLimit = 15 * time.Second

func (e *Endpoint) sweepSession(s *Session, now time.Time) {
	keepalive := s.contract.Keepalive
	silent := now.Sub(time.Unix(0, s.counters.heard.Load()))
	unused := now.Sub(time.Unix(0, s.counters.used.Load()))
	switch {
	case !now.Before(s.peer.NotAfter):
		s.Terminate(wire.KeyExpired)
	case e.cfg.Signal.Verifier.Current(s.peer) != nil:
		s.Terminate(wire.KeySuperseded)
	case silent > 2*keepalive || s.channel.stalled(now, stallLimit):
		s.Terminate(wire.Unreachable)
	case unused > e.cfg.IdleTimeout && s.calls.len()+s.inbox.len() == 0:
		s.Close(e.work)
	case s.pingDue(now):
		var token [8]byte
		binary.BigEndian.PutUint64(token[:], s.channel.health.ping(now))
		s.post(typePing, token[:])
	}
}

// pingDue reports whether it is time for a ping: one at the beginning, so that
// the round-trip time is known, then every keepalive interval.
func (s *Session) pingDue(now time.Time) bool {
	h := &s.channel.health
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sent == 0 || now.Sub(h.at[h.sent%outstanding]) >= s.contract.Keepalive
}

// workers run requests without a goroutine for each: an idle worker takes the
// next one, and a new one is started only if none is idle.
type workers struct {
	jobs chan job
	idle atomic.Int64
	all  sync.WaitGroup
}

// maxIdle bounds the workers that wait for a request.
const maxIdle = 64

func (w *workers) do(j job) {
	select {
	case w.jobs <- j:
	default:
		w.all.Go(func() { w.loop(j) })
	}
}

func (w *workers) loop(j job) {
	for {
		j.run()
		if w.idle.Add(1) > maxIdle {
			w.idle.Add(-1)
			return
		}
		next, ok := <-w.jobs
		w.idle.Add(-1)
		if !ok {
			return
		}
		j = next
	}
}

// close ends the idle workers and waits for the busy ones; nothing may be done
// any more.
func (w *workers) close() {
	close(w.jobs)
	w.all.Wait()
}
