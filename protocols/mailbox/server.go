package mailbox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox/limit"
	"openmesh/protocols/mailbox/mailboxpb"
	"openmesh/protocols/stream"
	"openmesh/protocols/wire"
)

// Limits bound what a relay gives. A zero field means the default.
type Limits struct {
	Letters    int           // for one recipient; default 1,000
	Bytes      int64         // of letters for one recipient; default 64 MiB
	TTL        time.Duration // of a letter; default and most MaxTTL
	Lifetime   time.Duration // of a registration; default and most MaxLifetime
	Recipients int           // registered; default 10,000
	Total      int64         // bytes of all letters; default 16 GiB; exceeded by no more than a few seconds bring
	PerPeer    int           // requests per second of one peer; default 50
	Rate       int           // requests per second in all; default 5,000
	Receiving  int64         // bytes of letters that are coming in at one time; default 128 MiB
}

func (l Limits) withDefaults() Limits {
	return Limits{
		Letters: orDefault(l.Letters, 1000), Bytes: orDefault(l.Bytes, 64<<20),
		TTL: min(orDefault(l.TTL, MaxTTL), MaxTTL), Lifetime: min(orDefault(l.Lifetime, MaxLifetime), MaxLifetime),
		Recipients: orDefault(l.Recipients, 10000), Total: orDefault(l.Total, 16<<30),
		PerPeer: orDefault(l.PerPeer, 50), Rate: orDefault(l.Rate, 5000),
		Receiving: max(orDefault(l.Receiving, 128<<20), MaxBody),
	}
}

func orDefault[T int | int64 | time.Duration](n, def T) T {
	if n == 0 {
		return def
	}
	return n
}

// share has one depositor alone get a quarter of a mailbox. Anyone can make peer ids:
// of those who come one after the other and take all they can, each gets a quarter of
// what is free then.
const share = 3

// quota is what one recipient gets.
func (l Limits) quota() Quota { return Quota{Letters: l.Letters, Bytes: l.Bytes, Share: share} }

// Event is something that happened at a relay, for its metrics.
type Event struct {
	Kind  Kind
	Count int       // letters; for Held: held now
	Bytes int64     // of bodies; for Deposited and Held
	Code  wire.Code // for Refused
}

// Kind says what happened.
type Kind int

// The kinds of events.
const (
	Deposited Kind = iota // a letter was stored, or was there already
	Refused               // a deposit was refused, or any request for coming too fast
	Delivered             // letters were acknowledged and deleted
	Expired               // letters were dropped
	Held                  // how much is held, every few seconds
)

// ServerConfig is what a relay needs.
type ServerConfig struct {
	Store    Store
	Verifier *identity.Verifier
	Limits   Limits

	// Poll is how often to look for letters that other relays have put into Store;
	// 0: nobody else does.
	Poll time.Duration

	// Allow may refuse a deposit (mailbox.deposit); nil allows all.
	Allow func(from peer.ID, to identity.AgentID) error

	Observe func(Event)      // must return soon; may be nil
	Now     func() time.Time // nil: time.Now
	Log     *zap.Logger
}

// Server is the relay's side.
type Server struct {
	cfg     ServerConfig
	limits  *limit.Limiter
	memory  *semaphore.Weighted // bytes of deposits in hand
	held    atomic.Int64        // bytes in the store, about
	outlets outlets
}

// NewServer returns a server that is not yet serving.
func NewServer(cfg ServerConfig) *Server {
	cfg.Limits = cfg.Limits.withDefaults()
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Observe == nil {
		cfg.Observe = func(Event) {}
	}
	return &Server{
		cfg:     cfg,
		limits:  limit.New(cfg.Limits.PerPeer, cfg.Limits.Rate),
		memory:  semaphore.NewWeighted(cfg.Limits.Receiving),
		outlets: outlets{all: make(map[identity.AgentID]*outlet)},
	}
}

// Run serves streams from m until ctx ends, then waits for those in progress.
func (s *Server) Run(ctx context.Context, m stream.Mux) {
	var loops sync.WaitGroup
	loops.Go(func() { s.sweep(ctx) })
	if s.cfg.Poll > 0 {
		loops.Go(func() { s.poll(ctx) })
	}
	var streams sync.RWMutex // read-held by each
	m.SetStreamHandler(Protocol, func(st network.Stream) {
		streams.RLock()
		defer streams.RUnlock()
		s.serveStream(ctx, st)
	})
	<-ctx.Done()
	m.RemoveStreamHandler(Protocol)
	streams.Lock()
	defer streams.Unlock()
	loops.Wait()
}

func (s *Server) serveStream(ctx context.Context, st network.Stream) {
	err := s.serve(ctx, st)
	if err == nil {
		st.Close()
		return
	}
	st.ResetWithError(network.StreamErrorCode(wire.CodeOf(err)))
	level := zap.DebugLevel
	if wire.CodeOf(err) == wire.Internal && ctx.Err() == nil {
		level = zap.WarnLevel
	}
	s.cfg.Log.Log(level, "mailbox request refused", zap.Stringer("peer", st.Conn().RemotePeer()), zap.Error(err))
}

// serve answers one stream.
func (s *Server) serve(ctx context.Context, st network.Stream) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v", v)
			s.cfg.Log.Error("mailbox panicked", zap.Any("panic", v), zap.Stack("stack"))
		}
	}()
	if ctx.Err() != nil {
		return wire.Unreachable
	}
	if err := st.Scope().SetService("openmesh.mailbox"); err != nil {
		return fmt.Errorf("%w: %w", wire.ResourceExhausted, err)
	}
	leave, err := s.limits.Enter(st.Conn().RemotePeer(), time.Now())
	if err != nil {
		s.cfg.Observe(Event{Kind: Refused, Code: wire.CodeOf(err)})
		return err
	}
	defer leave()
	in := bufio.NewReader(st)
	if err := st.SetReadDeadline(time.Now().Add(requestTime)); err != nil {
		return err
	}
	raw, err := wire.ReadFrame(in, maxRequest)
	if err != nil {
		return fmt.Errorf("%w: %w", stream.ReadCode(err), err)
	}
	var req mailboxpb.Request
	if err := proto.Unmarshal(raw, &req); err != nil {
		return wire.Errorf(wire.Malformed, "mailbox request: %w", err)
	}
	if c := req.GetCollect(); c != nil {
		return s.collect(ctx, st, in, c)
	}
	ctx, cancel := context.WithTimeout(ctx, depositTime)
	defer cancel()
	defer context.AfterFunc(ctx, func() { st.Reset() })()
	resp, err := s.answer(ctx, st, in, &req)
	if err != nil {
		return err
	}
	return send(st, resp)
}

// answer handles a request that has one answer.
func (s *Server) answer(ctx context.Context, st network.Stream, in *bufio.Reader, req *mailboxpb.Request) (proto.Message, error) {
	from := st.Conn().RemotePeer()
	switch r := req.Request.(type) {
	case *mailboxpb.Request_Register:
		return s.register(ctx, from, r.Register)
	case *mailboxpb.Request_Forget:
		cert, _, err := s.admit(ctx, from, r.Forget.Certificate)
		if err != nil {
			return nil, err
		}
		return &mailboxpb.Forgotten{}, s.cfg.Store.Forget(ctx, cert.Agent)
	case *mailboxpb.Request_Deposit:
		stored, err := s.deposit(ctx, st, in, r.Deposit)
		if err != nil {
			s.cfg.Observe(Event{Kind: Refused, Code: wire.CodeOf(err)})
			return nil, err
		}
		s.cfg.Observe(Event{Kind: Deposited, Count: 1, Bytes: r.Deposit.Size})
		return stored, nil
	}
	return nil, wire.Errorf(wire.Unsupported, "mailbox request of a kind not known here")
}

func (s *Server) register(ctx context.Context, from peer.ID, r *mailboxpb.Register) (proto.Message, error) {
	cert, err := s.cfg.Verifier.VerifyPeer(r.Certificate, from)
	if err != nil {
		return nil, err
	}
	if r.Lifetime <= 0 {
		return nil, wire.Errorf(wire.Malformed, "register for %d s", r.Lifetime)
	}
	lim := s.cfg.Limits
	lifetime := time.Duration(min(r.Lifetime, int64(lim.Lifetime/time.Second))) * time.Second
	expires := s.cfg.Now().Add(lifetime).Truncate(time.Second)
	if err := s.cfg.Store.Register(ctx, cert.Agent, cert.Version, expires, lim.Recipients); err != nil {
		return nil, err
	}
	return &mailboxpb.Registered{Expires: expires.Unix(), MaxLetters: int64(lim.Letters), MaxBytes: lim.Bytes, Ttl: int64(lim.TTL / time.Second)}, nil
}

// admit verifies that peer from is the host of an agent that is registered here,
// with a key no older than that of the registration.
func (s *Server) admit(ctx context.Context, from peer.ID, certificate []byte) (*identity.Certificate, Box, error) {
	cert, err := s.cfg.Verifier.VerifyPeer(certificate, from)
	if err != nil {
		return nil, Box{}, err
	}
	box, err := s.cfg.Store.Box(ctx, cert.Agent)
	switch {
	case err != nil:
		return nil, Box{}, err
	case box.Version > cert.Version:
		return nil, Box{}, wire.Errorf(wire.KeySuperseded, "certificate version %d of %s is superseded by version %d", cert.Version, cert.Agent, box.Version)
	case !s.cfg.Now().Before(box.Expires):
		return nil, Box{}, notRegistered(cert.Agent)
	}
	return cert, box, nil
}

func notRegistered(agent identity.AgentID) error {
	return wire.Errorf(wire.NotFound, "%s is not registered here", agent)
}

// deposit takes a letter. All that can refuse it without its body does so before
// the body is read.
func (s *Server) deposit(ctx context.Context, st network.Stream, in *bufio.Reader, d *mailboxpb.Deposit) (proto.Message, error) {
	l, err := newLetter(d.Recipient, d.Id, d.Expires)
	if err != nil {
		return nil, err
	}
	now, from := s.cfg.Now(), st.Conn().RemotePeer()
	if err := s.acceptable(ctx, from, &l, d.Size, now); err != nil {
		return nil, err
	}
	if err := st.SetReadDeadline(time.Now().Add(depositTime)); err != nil {
		return nil, err
	}
	body, taken, err := s.receive(in, d.Size)
	defer s.memory.Release(taken)
	if err != nil {
		return nil, err
	}
	l.Body = body
	until := now.Add(s.cfg.Limits.TTL).Truncate(time.Second)
	if l.Expires.Before(until) {
		until = l.Expires
	}
	if err := s.cfg.Store.Deposit(ctx, Entry{Letter: l, Depositor: from, Until: until}, s.cfg.Limits.quota(), now); err != nil {
		return nil, err
	}
	s.held.Add(d.Size)
	s.outlets.wake(l.Recipient)
	return &mailboxpb.Stored{Until: until.Unix()}, nil
}

// receiveChunk is how much of a letter is received at a time.
const receiveChunk = 64 << 10

// acceptable says whether a letter of size bytes is worth receiving.
func (s *Server) acceptable(ctx context.Context, from peer.ID, l *Letter, size int64, now time.Time) error {
	if size > MaxBody {
		return wire.Errorf(wire.TooLarge, "letter of %d bytes", size)
	}
	if size <= 0 {
		return wire.Errorf(wire.Malformed, "letter of %d bytes", size)
	}
	if err := l.current(now); err != nil {
		return err
	}
	if s.cfg.Allow != nil {
		if err := s.cfg.Allow(from, l.Recipient); err != nil {
			return err
		}
	}
	if s.held.Load()+size > s.cfg.Limits.Total {
		return wire.Errorf(wire.ResourceExhausted, "the relay is full")
	}
	if size <= receiveChunk { // which costs less to receive than to ask for
		return nil
	}
	box, err := s.cfg.Store.Box(ctx, l.Recipient)
	if err == nil && !now.Before(box.Expires) {
		err = notRegistered(l.Recipient)
	}
	return err
}

// receive reads the frame of a letter's body, whose size was announced and
// checked. Memory is taken as the body comes, so that whoever announces much and
// sends little holds little; the caller gives back what was taken.
func (s *Server) receive(in *bufio.Reader, size int64) (body []byte, taken int64, err error) {
	n, err := wire.ReadLength(in, int(size))
	if err == nil && int64(n) != size {
		err = wire.Errorf(wire.Malformed, "%d bytes, %d were announced", n, size)
	}
	for err == nil && len(body) < n {
		have, chunk := len(body), min(n-len(body), receiveChunk)
		if !s.memory.TryAcquire(int64(chunk)) {
			return nil, taken, wire.Errorf(wire.ResourceExhausted, "too many letters are coming in")
		}
		taken += int64(chunk)
		body = slices.Grow(body, chunk)[:have+chunk]
		_, err = io.ReadFull(in, body[have:])
	}
	if err != nil {
		return nil, taken, fmt.Errorf("letter: %w: %w", stream.ReadCode(err), err)
	}
	return body, taken, nil
}

const (
	sweepEvery = 10 * time.Second
	sweepBatch = 256 // letters
)

// sweep drops what has expired, and keeps count of what is held.
func (s *Server) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		if err := s.sweepOnce(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("expired letters are not dropped; trying again", zap.Error(err))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (s *Server) sweepOnce(ctx context.Context) error {
	for n := sweepBatch; n == sweepBatch; {
		var err error
		if n, err = s.cfg.Store.Expire(ctx, s.cfg.Now(), sweepBatch); err != nil {
			return err
		}
		if n > 0 {
			s.cfg.Observe(Event{Kind: Expired, Count: n})
		}
	}
	u, err := s.cfg.Store.Usage(ctx)
	if err != nil {
		return err
	}
	s.held.Store(u.Bytes)
	s.cfg.Observe(Event{Kind: Held, Count: u.Letters, Bytes: u.Bytes})
	return nil
}

// poll looks for letters that other relays have stored.
func (s *Server) poll(ctx context.Context) {
	tick := time.NewTicker(s.cfg.Poll)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		last, err := s.cfg.Store.Last(ctx, s.outlets.agents())
		if err != nil && !errors.Is(err, context.Canceled) {
			s.cfg.Log.Warn("letters that other relays took are not seen; trying again", zap.Error(err))
		}
		for agent, cursor := range last {
			s.outlets.wakeAfter(agent, cursor)
		}
	}
}
