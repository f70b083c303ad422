package signal

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"openmesh/protocols/identity"
	"openmesh/protocols/stream"
	"openmesh/protocols/wire"
)

// Config is what a node's signaling needs.
type Config struct {
	Local    func() Local // the current certificate and key
	Verifier *identity.Verifier
	Terms    func() Terms  // what this node offers and agrees to at most
	Timeout  time.Duration // for one exchange; for so long at least a Confirm is awaited

	// Allow may refuse a session to an agent (session.open); nil allows all.
	Allow func(*identity.Certificate) error

	// Admit may refuse a session to begin whose contract cites a market contract;
	// nil refuses them all. What it decides by must be there within Timeout.
	Admit func(ctx context.Context, c *identity.Certificate, offered Contract) error

	// Resume returns the contract of a session that this node has with the agent,
	// which asks to go on with it; or no contract if the session is unknown and may
	// begin now, for which the agent asks too. Nil refuses all.
	Resume func(c *identity.Certificate, id ID, begin bool) (*Contract, error)

	// Record is told of what was sent and received, once it is known what came of
	// it; of the offers of others only if they are proved to be theirs. It must
	// return soon; nil: nobody.
	Record func(Message)

	PerPeer int // offers per second from one peer; default 20
	Total   int // offers per second in all; default 200

	// MaxPending bounds sessions answered and not yet confirmed; default 1024. If there
	// are more, those give way whose Confirm did not come within Timeout.
	MaxPending int

	Log *zap.Logger
}

// Server answers offers and holds the sessions that await their Confirm. Safe
// for concurrent use.
type Server struct {
	cfg    Config
	limits *limiter
	seen   *replayCache

	mu      sync.Mutex
	pending map[ID]awaited
}

// awaited is a session whose Confirm did not come yet. Under load, on either side, it
// may take long, and whoever sent it believes to have a session: so it is waited for
// beyond the timeout, as long as there is room.
type awaited struct {
	*Pending
	answered time.Time
}

const lateness = 6 // how many timeouts a Confirm is awaited at most

// NewServer returns a server that is not yet serving.
func NewServer(cfg Config) *Server {
	cfg.PerPeer = orDefault(cfg.PerPeer, 20)
	cfg.Total = orDefault(cfg.Total, 200)
	cfg.MaxPending = orDefault(cfg.MaxPending, 1024)
	return &Server{
		cfg:     cfg,
		limits:  newLimiter(cfg.PerPeer, cfg.Total),
		seen:    newReplayCache(2 * identity.ClockSkew),
		pending: make(map[ID]awaited),
	}
}

func orDefault(n, def int) int {
	if n == 0 {
		return def
	}
	return n
}

// Run serves offers until ctx ends.
func (s *Server) Run(ctx context.Context, m stream.Mux) {
	server := stream.Server{
		Protocol: Protocol,
		Service:  "openmesh.signal",
		Limits:   stream.Limits{Request: MaxMessage, Response: MaxMessage, Time: s.cfg.Timeout},
		Handler:  s.handle,
		Log:      s.cfg.Log,
	}
	server.Run(ctx, m)
}

// handle answers one offer from peer p, or refuses it.
func (s *Server) handle(ctx context.Context, p peer.ID, offer []byte) ([]byte, error) {
	return s.take(ctx, p, p, offer)
}

// Exchange answers one offer that came by other means than a stream of libp2p,
// from a source that is limited as a peer would be, or refuses it.
func (s *Server) Exchange(source string, offer []byte) ([]byte, error) {
	return s.take(context.Background(), peer.ID(source), "", offer)
}

// take answers an offer of a source that is known to be host p, if that is not
// empty.
func (s *Server) take(ctx context.Context, source, p peer.ID, offer []byte) ([]byte, error) {
	now := time.Now()
	if !s.limits.allow(source, now) {
		return nil, wire.Errorf(wire.ResourceExhausted, "too many offers")
	}
	answer, err := s.answer(ctx, p, offer, now)
	if err != nil {
		level := zap.DebugLevel
		if errors.Is(err, wire.NoCommonSchema) {
			level = zap.InfoLevel // for an operator to mend
		}
		s.cfg.Log.Log(level, "offer refused", zap.Stringer("peer", p), zap.Error(err))
		return Refuse(err), nil
	}
	return answer, nil
}

func (s *Server) answer(ctx context.Context, p peer.ID, offer []byte, now time.Time) ([]byte, error) {
	var who *identity.Certificate // once it is proved
	admit := func(c *identity.Certificate, offerHash hash) error {
		if p != "" && c.Peer != p {
			return wire.Errorf(wire.Unauthenticated, "certificate is for peer %s, presented by %s", c.Peer, p)
		}
		if !s.seen.add(offerHash, now) {
			return wire.Errorf(wire.Replayed, "offer seen before")
		}
		who = c
		if s.cfg.Allow == nil {
			return nil
		}
		return s.cfg.Allow(c)
	}
	begin := func(c *identity.Certificate, offered Contract) error { return s.cfg.MayBegin(ctx, c, offered) }
	pending, answer, err := Answer(s.cfg.Local(), offer, s.cfg.Verifier, s.cfg.Terms(), now, Gate{admit, begin, s.resume})
	if err == nil {
		err = s.await(pending, now)
	}
	s.cfg.answered(who, offer, answer, pending, err)
	return answer, err
}

// MayBegin reports whether an agent may have a session with this contract, which it
// offered.
func (c *Config) MayBegin(ctx context.Context, who *identity.Certificate, offered Contract) error {
	switch {
	case offered.Market == "":
		return nil
	case c.Admit == nil:
		return wire.Errorf(wire.Unsupported, "offer cites market contract %s: there are none here", offered.Market)
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	return c.Admit(ctx, who, offered)
}

func (s *Server) resume(c *identity.Certificate, id ID, begin bool) (*Contract, error) {
	if s.cfg.Resume == nil {
		return nil, wire.Errorf(wire.NotFound, "session %s to go on with", id)
	}
	return s.cfg.Resume(c, id, begin)
}

func (s *Server) await(p *Pending, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pending) >= s.cfg.MaxPending {
		s.forget(now.Add(-s.cfg.Timeout))
	}
	if len(s.pending) >= s.cfg.MaxPending {
		return wire.Errorf(wire.ResourceExhausted, "too many unconfirmed sessions")
	}
	s.pending[p.ID] = awaited{p, now}
	return nil
}

// Sweep forgets the sessions whose Confirm did not come in time, and erases their
// secrets. Call it every second or so.
func (s *Server) Sweep(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(now.Add(-lateness * s.cfg.Timeout))
}

// forget drops the sessions answered before since; s.mu is held.
func (s *Server) forget(since time.Time) {
	for id, a := range s.pending {
		if a.answered.Before(since) {
			clear(a.Secret[:])
			delete(s.pending, id)
		}
	}
}

// Confirm ends the exchange of session id with the Confirm that its initiator
// sent, from host p if that is known. It succeeds at most once for a session.
func (s *Server) Confirm(p peer.ID, id ID, confirm []byte) (*Established, error) {
	est, err := s.confirm(p, id, confirm)
	if err == nil {
		s.cfg.record(Message{Session: est.ID, Agent: est.Peer.Agent, Market: est.Contract.Market}.with(KindConfirm, false, confirm))
	}
	return est, err
}

func (s *Server) confirm(p peer.ID, id ID, confirm []byte) (*Established, error) {
	s.mu.Lock()
	a, ok := s.pending[id]
	s.mu.Unlock()
	if !ok || p != "" && a.Peer.Peer != p || time.Since(a.answered) > lateness*s.cfg.Timeout {
		return nil, wire.Errorf(wire.NotFound, "no session awaits this confirm")
	}
	est, err := a.Confirm(confirm)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending[id].Pending != a.Pending {
		return nil, wire.Errorf(wire.NotFound, "the session was confirmed already")
	}
	delete(s.pending, id)
	return est, nil
}

// Exchange makes one request of the signaling protocol and returns the reply.
type Exchange func(ctx context.Context, offer []byte) (reply []byte, err error)

// Over returns the exchange on a stream to peer p.
func Over(d stream.Dialer, p peer.ID, timeout time.Duration) Exchange {
	lim := stream.Limits{Request: MaxMessage, Response: MaxMessage, Time: timeout}
	return func(ctx context.Context, offer []byte) ([]byte, error) {
		return stream.Call(ctx, d, p, Protocol, offer, lim)
	}
}

// Open makes an offer of terms to the agent responder and returns the session with
// the Confirm that opens its first channel. It takes one round trip on a
// connection that is there.
func Open(ctx context.Context, exchange Exchange, responder identity.AgentID, terms Terms, cfg Config) (*Established, []byte, error) {
	i, offer, err := NewOffer(cfg.Local(), responder, terms, time.Now())
	if err != nil {
		return nil, nil, err
	}
	reply, err := exchange(ctx, offer)
	if err != nil {
		cfg.opened(responder, offer, nil, nil, nil, err)
		return nil, nil, err
	}
	est, confirm, err := i.Finish(reply, cfg.Verifier, time.Now())
	cfg.opened(responder, offer, reply, confirm, est, err)
	return est, confirm, err
}

// limiter bounds offers per second, per peer and in all. A peer that exceeds its
// share uses up nobody else's.
type limiter struct {
	perPeer rate.Limit
	burst   int

	mu    sync.Mutex
	all   *rate.Limiter
	peers map[peer.ID]*rate.Limiter
}

const maxLimitedPeers = 4096

func newLimiter(perPeer, total int) *limiter {
	return &limiter{
		perPeer: rate.Limit(perPeer), burst: perPeer,
		all:   rate.NewLimiter(rate.Limit(total), total),
		peers: make(map[peer.ID]*rate.Limiter),
	}
}

func (l *limiter) allow(p peer.ID, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.peers[p]
	if r == nil {
		l.makeRoom(now)
		r = rate.NewLimiter(l.perPeer, l.burst)
		l.peers[p] = r
	}
	return r.AllowN(now, 1) && l.all.AllowN(now, 1)
}

// makeRoom forgets peers that are at rest; their limiters hold no history. If
// none is, one goes: that peer gains a burst, within the total.
func (l *limiter) makeRoom(now time.Time) {
	if len(l.peers) < maxLimitedPeers {
		return
	}
	for p, r := range l.peers {
		if r.TokensAt(now) >= float64(l.burst) {
			delete(l.peers, p)
		}
	}
	for p := range l.peers {
		if len(l.peers) < maxLimitedPeers {
			return
		}
		delete(l.peers, p)
	}
}

// replayCache remembers what it was shown for at least one window, in two
// generations. The offer rate bounds its size.
type replayCache struct {
	window time.Duration

	mu       sync.Mutex
	turned   time.Time
	old, new map[hash]struct{}
}

func newReplayCache(window time.Duration) *replayCache {
	return &replayCache{window: window, new: make(map[hash]struct{})}
}

// add reports whether h is new.
func (c *replayCache) add(h hash, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.turned) >= c.window {
		c.old, c.new, c.turned = c.new, make(map[hash]struct{}), now
	}
	_, inOld := c.old[h]
	_, inNew := c.new[h]
	c.new[h] = struct{}{}
	return !inOld && !inNew
}
