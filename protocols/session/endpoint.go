package session

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"

	"openmesh/protocols/identity"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/session/mux"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// Config is what an [Endpoint] needs.
type Config struct {
	Host    Host
	Network Network // default: [OverHost] of Host
	Signal  signal.Config
	Handler Handler
	Data    func(s *Session, data []byte) // messages of Send; data is valid during the call only; nil drops them

	// Stream takes a stream that the other side opened, with its meta; it must not
	// block. Nil refuses them.
	Stream func(s *Session, st *mux.Stream, meta []byte)

	// Path tells how a connection reaches its peer; default [PathOf].
	Path func(network.Conn) Path

	// Abandon closes a connection that is taken for dead, and what must have died with
	// it; nil closes just that.
	Abandon func(network.Conn)

	MaxChannels int // concurrent channels, both ways; default 256
	MaxSessions int // sessions, with channels or without; default 16384
	MaxPerAgent int // sessions that one agent may have opened with this node; default 256

	IdleTimeout time.Duration // a session unused for so long is closed; default 10 min
	ParkAfter   time.Duration // a session unused for so long has its channels closed; default 2 min
	MaxTimeout  time.Duration // longest deadline granted to a request; default 24 h
	DrainTime   time.Duration // how long Run lets requests end when it stops; default 5 s

	// Contract holds the terms that this node offers where they differ from those
	// that it agrees to at most, which are Signal.Terms.
	Contract signal.Contract

	// Store keeps persistent sessions and their messages; without one there are
	// none.
	Store delivery.Store

	// Find looks up where an agent is now that was not reached at host last; nil
	// looks nowhere.
	Find func(ctx context.Context, a identity.AgentID, last peer.ID) (Route, error)

	// Mail leaves letters for agents that cannot be reached; nil: sessions wait for
	// them.
	Mail Mail

	Retention time.Duration // a persistent session unused for so long is closed; default 30 days

	RekeyFrames, RekeyBytes uint64 // of one epoch and direction; defaults 2^32 and 64 GiB

	Observe Observer // may be nil
	Log     *zap.Logger
}

// Observer is told of what happens rarely. Its methods must return soon.
type Observer interface {
	SessionSetup(initiator bool, took time.Duration, err error)
	SessionEvent(Event)

	// MessageOutcome tells what became of a message that this side posted; m has no
	// body.
	MessageOutcome(s *Session, m *delivery.Message, o delivery.Outcome)
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
	swept    []*Session    // of the sweep; kept for reuse
	restored chan struct{} // closed once the store has been read
	began    time.Time     // when that was

	mu       sync.Mutex
	sessions map[signal.ID]*Session
	claimed  map[signal.ID]bool // of sessions that are about to begin
	usable   map[slot]*Session
	opened   map[identity.AgentID]int // sessions by who opened them
	ended    []Info                   // most recent last
	outlived []outlived
	closed   bool // no session begins any more
	stopped  bool // nothing is started any more
}

// slot is what a session is shared for: anyone here who wants to deal with that
// agent in that way.
type slot struct {
	agent      identity.AgentID
	qos        signal.QoS
	ordered    bool
	persistent bool
	market     string // the market contract that it cites
	through    string // the chains of relays, if it has to go over one
}

func slotOf(a identity.AgentID, c signal.Contract) slot {
	return slot{agent: a, qos: c.QoS, ordered: c.Ordered, persistent: c.Persistent, market: c.Market}
}

// maxEnded bounds the ended sessions that are remembered.
const maxEnded = 256

// New returns an endpoint that serves once it runs.
func New(cfg Config) *Endpoint {
	cfg.MaxChannels = cmp.Or(cfg.MaxChannels, 256)
	cfg.MaxSessions = cmp.Or(cfg.MaxSessions, 16<<10)
	cfg.MaxPerAgent = cmp.Or(cfg.MaxPerAgent, 256)
	cfg.IdleTimeout = cmp.Or(cfg.IdleTimeout, 10*time.Minute)
	cfg.Retention = cmp.Or(cfg.Retention, 30*24*time.Hour)
	cfg.ParkAfter = cmp.Or(cfg.ParkAfter, 2*time.Minute)
	cfg.MaxTimeout = cmp.Or(cfg.MaxTimeout, 24*time.Hour)
	cfg.DrainTime = cmp.Or(cfg.DrainTime, 5*time.Second)
	if cfg.Path == nil {
		cfg.Path = PathOf
	}
	if cfg.Network == nil {
		cfg.Network = OverHost(cfg.Host, cfg.Signal, cfg.Path)
	}
	e := &Endpoint{
		cfg:      cfg,
		workers:  workers{jobs: make(chan job)},
		sessions: make(map[signal.ID]*Session),
		claimed:  make(map[signal.ID]bool),
		usable:   make(map[slot]*Session),
		opened:   make(map[identity.AgentID]int),
		restored: make(chan struct{}),
	}
	e.cfg.Signal.Resume = e.mayResume
	e.cfg.Signal.Terms = func() signal.Terms {
		t := cfg.Signal.Terms()
		t.Transports = cfg.Network.Offer()
		return t
	}
	e.signal = signal.NewServer(e.cfg.Signal)
	e.watch.owner = e
	e.work, e.stop = context.WithCancel(context.Background())
	return e
}

// Restored is closed once Run has brought back the sessions of the store: before,
// the endpoint does not know them, and offers and channels that come wait.
func (e *Endpoint) Restored() <-chan struct{} { return e.restored }

// Run serves until ctx ends. Then it takes nothing new, lets what is under way
// end within DrainTime, closes all sessions and returns.
func (e *Endpoint) Run(ctx context.Context) error {
	if err := e.restore(ctx); err != nil {
		return err
	}
	e.began = time.Now()
	close(e.restored)
	var servers sync.WaitGroup
	servers.Go(func() { e.signal.Run(ctx, e.cfg.Host) })
	e.cfg.Host.SetStreamHandler(Protocol, e.serve)
	tick := time.NewTimer(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			tick.Reset(e.sweep(now))
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
		closing.Go(func() { s.leave(ctx) })
	}
	closing.Wait()
	e.stop()
	e.mu.Lock()
	e.stopped = true
	e.mu.Unlock()
	e.group.Wait() // nothing is received any more
	e.workers.close()
}

// start runs f in a goroutine that the endpoint waits for when it ends; it reports
// false if the endpoint is ending.
func (e *Endpoint) start(f func()) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopped {
		return false
	}
	e.group.Go(f)
	return true
}

// begin registers a session.
func (e *Endpoint) begin(s *Session) error {
	e.mu.Lock()
	if err := e.mayBegin(s); err != nil {
		e.mu.Unlock()
		return err
	}
	e.sessions[s.id] = s
	if !s.opener {
		e.opened[s.Peer().Agent]++
	}
	s.counted = !s.opener
	if !s.exclusive {
		e.usable[s.slot()] = s
	}
	e.mu.Unlock()
	if s.offered.Load() {
		return nil
	}
	return s.move(Establishing, 0)
}

// claim refuses a session that is one too many, or another one with its id, before
// anything is done for it. An id that came with an offer may come by mail too.
func (e *Endpoint) claim(s *Session) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.mayBegin(s); err != nil {
		return err
	}
	if e.claimed[s.id] || e.sessions[s.id] != nil {
		return wire.Errorf(wire.ResourceExhausted, "session %s with %s has begun just now", s.id, s.Peer().Agent)
	}
	e.claimed[s.id] = true
	return nil
}

func (e *Endpoint) unclaim(id signal.ID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.claimed, id)
}

// mayBegin refuses a session that is one too many; e.mu is held.
func (e *Endpoint) mayBegin(s *Session) error {
	switch {
	case e.closed:
		return wire.Errorf(wire.SessionClosed, "this node is shutting down")
	case s.restored:
		return nil
	case len(e.sessions) >= e.cfg.MaxSessions:
		return wire.Errorf(wire.ResourceExhausted, "there are %d sessions, all that are allowed", len(e.sessions)).
			WithHint("raise session.max_sessions or close some")
	case !s.opener && e.opened[s.Peer().Agent] >= e.cfg.MaxPerAgent:
		return wire.Errorf(wire.ResourceExhausted, "%s has opened %d sessions, all that are allowed", s.Peer().Agent, e.cfg.MaxPerAgent).
			WithHint("raise session.max_per_agent")
	}
	return nil
}

func (s *Session) slot() slot {
	at := slotOf(s.Peer().Agent, *s.terms.Load())
	at.through = names(s.through)
	if s.waits {
		at.through = "?" // it may be of no use to this side at any moment
	}
	return at
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
	if ev.To >= Draining && e.usable[s.slot()] == s {
		delete(e.usable, s.slot())
		e.replace(s.slot())
	}
	done := ev.To.Done()
	if done && e.sessions[s.id] == s {
		delete(e.sessions, s.id)
		if a := s.Peer().Agent; s.counted {
			if e.opened[a]--; e.opened[a] <= 0 {
				delete(e.opened, a)
			}
		}
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

// replace puts another session into a slot, if there is one; e.mu is held.
func (e *Endpoint) replace(at slot) {
	for _, s := range e.sessions {
		if !s.exclusive && s.slot() == at && s.usable() {
			e.usable[at] = s
			return
		}
	}
}

func (s *Session) usable() bool {
	state := s.stateNow()
	return state == Active || state == Migrating || state == Offered && s.offered.Load()
}

func (s *Session) stateNow() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
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

// Exchange answers one signaling offer that came by other means than a libp2p
// stream, from a source whose offers are limited together.
func (e *Endpoint) Exchange(source string, offer []byte) ([]byte, error) {
	if err := e.whole(); err != nil {
		return nil, err
	}
	return e.signal.Exchange(source, offer)
}

// whole waits until the sessions of the store are back, as long as a handshake may
// take: a peer must not be told that its session is not known.
func (e *Endpoint) whole() error {
	if e.cfg.Store == nil {
		return nil
	}
	patience := time.NewTimer(e.cfg.Signal.Timeout)
	defer patience.Stop()
	select {
	case <-e.restored:
		return nil
	case <-patience.C:
	case <-e.work.Done():
	}
	return wire.Errorf(wire.Unreachable, "this node has not read its sessions yet")
}
