package forward

import (
	"context"
	"crypto/hpke"
	"crypto/rand"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"openmesh/protocols/stream"
	"openmesh/protocols/wire"
)

// Config is what a server needs. Zero limits mean the defaults.
type Config struct {
	// Keys returns the private keys of the host's mailbox key, and of the one
	// before it while envelopes sealed to that may be under way.
	Keys func() []hpke.PrivateKey

	// Accept has, for each protocol that this host speaks as a target, who takes
	// the circuit. It is called on a goroutine of its own, and the Conn is its own
	// from then on, also after it has returned; until then it counts as a circuit.
	Accept map[protocol.ID]func(*Conn)

	Relay  bool   // carry circuits of others
	Dialer Dialer // to their next hops; needed with Relay

	// Allow may refuse to carry a circuit from one neighbour to the next
	// (relay.transit); nil allows all. The source learns the code.
	Allow func(from, to peer.ID) error

	// Pacer holds neighbours to their bandwidth; nil: none.
	Pacer Pacer

	Circuits  int           // at a time, setups included; default 1024
	PerPeer   int           // of one neighbour, and begun by it a second; default 16
	PerSecond int           // begun a second in all, a quarter of it by one neighbour; default 200
	Idle      time.Duration // after which a circuit that carries nothing ends; default 5 min

	// Quota replaces PerPeer for peers that deserve another: what a relay asks for
	// is for many sources. nil: PerPeer for all.
	Quota func(peer.ID) Quota

	Log *zap.Logger
}

// A Pacer is a bandwidth quota. Pace returns when n bytes may pass that neighbour p
// asked for, in either direction, or an error, whose code ends the circuit.
type Pacer interface {
	Pace(ctx context.Context, p peer.ID, n int) error
}

// Server is a host's part in paths: as their target and, if it is one, as a relay.
type Server struct {
	cfg    Config
	ledger ledger
	seen   seen
}

// NewServer returns a server that is not yet serving.
func NewServer(cfg Config) *Server {
	cfg.Circuits = orDefault(cfg.Circuits, 1024)
	cfg.PerPeer = orDefault(cfg.PerPeer, 16)
	cfg.PerSecond = orDefault(cfg.PerSecond, 200)
	cfg.Idle = orDefault(cfg.Idle, 5*time.Minute)
	if cfg.Quota == nil {
		cfg.Quota = func(peer.ID) Quota { return Quota{Circuits: cfg.PerPeer} }
	}
	return &Server{cfg: cfg, ledger: ledger{
		circuits: cfg.Circuits, quota: cfg.Quota, peers: make(map[peer.ID]*account),
		all: rate.NewLimiter(rate.Limit(cfg.PerSecond), cfg.PerSecond),
	}}
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// Usage tells what the server carries.
func (s *Server) Usage() Usage { return s.ledger.usage() }

// Run serves streams from m until ctx ends; it ends the circuits that it relays,
// and returns when they, and all calls of Accept, have ended.
func (s *Server) Run(ctx context.Context, m stream.Mux) error {
	var mu sync.Mutex
	var ended bool // guarded by mu
	var streams sync.WaitGroup
	begin := func() bool {
		mu.Lock()
		defer mu.Unlock()
		if ended {
			return false
		}
		streams.Add(1)
		return true
	}
	m.SetStreamHandler(Protocol, func(st network.Stream) {
		if !begin() {
			st.ResetWithError(network.StreamErrorCode(wire.Unreachable))
			return
		}
		defer streams.Done()
		if err := s.serve(ctx, st); err != nil {
			st.ResetWithError(network.StreamErrorCode(wire.CodeOf(err)))
			s.cfg.Log.Debug("forwarding refused", zap.Stringer("peer", st.Conn().RemotePeer()), zap.Error(err))
		}
	})
	<-ctx.Done()
	m.RemoveStreamHandler(Protocol)
	mu.Lock()
	ended = true
	mu.Unlock()
	streams.Wait()
	return nil
}

// serve takes part in one path. An error is one that the source cannot be told; it
// is for the neighbour.
func (s *Server) serve(ctx context.Context, st network.Stream) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v", v)
			s.cfg.Log.Error("forwarding panicked", zap.Any("panic", v), zap.Stack("stack"))
		}
	}()
	from := st.Conn().RemotePeer()
	a, err := s.ledger.take(from, time.Now())
	if err != nil {
		return err
	}
	defer s.ledger.release(a)
	hop, err := s.receive(st)
	if err != nil {
		return err
	}
	refusal := s.check(hop, from, st.Conn().LocalPeer())
	if err := send(st, []byte{waiting}); err != nil {
		return err
	}
	if refusal != nil {
		s.cfg.Log.Debug("circuit refused", zap.Stringer("peer", from), zap.Error(refusal))
		return refuse(st, hop.keys, status{code: wire.CodeOf(refusal)})
	}
	if hop.next == "" {
		return s.accept(st, hop)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := circuit{cfg: &s.cfg, from: st, keys: hop.keys, cancel: cancel, carried: []*atomic.Uint64{&a.bytes, &s.ledger.bytes}}
	return c.run(ctx, hop)
}

// receive reads and opens the envelope.
func (s *Server) receive(st network.Stream) (*opened, error) {
	if err := st.Scope().SetService(service); err != nil {
		return nil, wire.Errorf(wire.ResourceExhausted, "account for a stream: %w", err)
	}
	const size = 2 * EnvelopeSize // as it comes, and as it goes on
	if err := st.Scope().ReserveMemory(size, network.ReservationPriorityMedium); err != nil {
		return nil, wire.Errorf(wire.ResourceExhausted, "account for a stream: %w", err)
	}
	defer st.Scope().ReleaseMemory(size)
	st.SetReadDeadline(time.Now().Add(sendTime))
	envelope := make([]byte, EnvelopeSize)
	if _, err := io.ReadFull(st, envelope); err != nil {
		if isDeadline(err) {
			return nil, wire.Errorf(wire.DeadlineExceeded, "no envelope within %v", sendTime)
		}
		return nil, wire.Errorf(wire.Malformed, "read envelope: %w", err)
	}
	st.SetReadDeadline(time.Time{})
	return openEnvelope(s.cfg.Keys(), st.Conn().LocalPeer(), envelope)
}

// check says why this host will not do what the envelope asks.
func (s *Server) check(hop *opened, from, self peer.ID) error {
	now := time.Now()
	if hop.err != nil {
		return hop.err
	}
	if err := hop.fresh(now); err != nil {
		return err
	}
	if err := s.ledger.charge(now); err != nil {
		return err
	}
	if err := s.seen.add(hop.keys.path, now); err != nil {
		return err
	}
	_, accepted := s.cfg.Accept[hop.protocol]
	switch {
	case hop.next == "" && !accepted && hop.protocol != ProbeProtocol:
		return wire.Errorf(wire.Unsupported, "nobody here speaks %q", hop.protocol)
	case hop.next == "":
		return nil
	case !s.cfg.Relay:
		return wire.Errorf(wire.Unsupported, "this host carries no circuits")
	case hop.next == self || hop.next == from:
		return wire.Errorf(wire.InvalidArgument, "a path that turns back to %s", hop.next)
	case s.cfg.Allow != nil:
		return s.cfg.Allow(from, hop.next)
	}
	return nil
}

// refuse tells the source why the setup ends, and closes the stream.
func refuse(st network.Stream, k *keys, why status) error {
	cell, err := why.seal(k)
	if err != nil {
		return err
	}
	if err := sendStatus(st, cell); err != nil {
		return err
	}
	return st.Close()
}

func sendStatus(st network.Stream, cell []byte) error {
	return send(st, append([]byte{settled}, cell...))
}

// send writes what is part of a setup, in time.
func send(st network.Stream, b []byte) error {
	st.SetWriteDeadline(time.Now().Add(sendTime))
	if _, err := st.Write(b); err != nil {
		return wire.Errorf(wire.Unreachable, "answer: %w", err)
	}
	return st.SetWriteDeadline(time.Time{})
}

// accept answers as the target.
func (s *Server) accept(st network.Stream, hop *opened) error {
	answer := status{salt: make([]byte, saltSize)}
	rand.Read(answer.salt)
	c, err := newConn(st, hop.protocol, hop.keys, answer.salt, "target", "source")
	if err != nil {
		return err
	}
	cell, err := answer.seal(hop.keys)
	if err != nil {
		return err
	}
	if err := sendStatus(st, cell); err != nil {
		return err
	}
	if take, ok := s.cfg.Accept[hop.protocol]; ok {
		take(c)
		return nil
	}
	return c.Close() // a probe
}
