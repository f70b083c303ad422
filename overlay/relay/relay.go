// Package relay carries circuits between peers that cannot reach each other, by
// circuit relay v2 [spec], without limits of duration or volume, under quotas of
// the operator. A circuit is a pair of streams; what passes is sealed end to
// end by the two peers.
//
//	source                     relay                      destination
//	  |                          |  <------- hop RESERVE ------ |
//	  |                          |  status OK, voucher, addrs -> |
//	  | -- hop CONNECT(dst) ---> |                               |
//	  |                          | --- stop CONNECT(src) ------> |
//	  |                          | <-- stop STATUS OK ---------- |
//	  | <- hop STATUS OK ------- |                               |
//	  | <======== bytes, paced and counted, both ways =========> |
//
// Refusals carry a status, see [Reason]:
//
//	RESERVATION_REFUSED      no slot left, in all or for the IP address
//	RESOURCE_LIMIT_EXCEEDED  requests too fast, no circuit left in all or for a
//	                         peer, volume of the day used up, no memory
//	PERMISSION_DENIED        by policy, or asked for through another relay
//	NO_RESERVATION           the destination holds no slot here
//	CONNECTION_FAILED        the destination did not accept in time
//	MALFORMED_MESSAGE        cannot be decoded, or not a request
//
// A circuit that the relay ends, it resets with a [wire.Code]:
// deadline_exceeded when it was idle or one side stopped reading,
// resource_exhausted when a peer's volume is used up, unreachable when the relay
// closes.
//
// The server is ours and not go-libp2p's, whose messages and voucher it uses:
// that one has no limit of circuits in all, answers a wrapped host's refusal
// only with CONNECTION_FAILED and its ACL's only with PERMISSION_DENIED, waits a
// minute for a request, drops a reservation only when the last connection of
// any kind goes, even if that one is itself relayed, and leaves its circuits
// running when it is closed.
//
// [spec]: https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md
package relay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"

	"openmesh/protocols/wire"
)

const (
	// ServiceName is the name under which the resource manager accounts for
	// relaying.
	ServiceName = "openmesh.relay"

	maxMessage     = 4 << 10          // bytes of a message; clients accept no more
	requestTime    = 10 * time.Second // for a peer to send its request, and to take the answer
	connectTime    = 15 * time.Second // for a destination to accept a circuit
	pendingPerPeer = 32               // requests of one peer being read or answered

	smallBuffer = 4 << 10  // bytes that a direction holds when little passes
	largeBuffer = 64 << 10 // and at most: a frame of yamux and of Noise
	perCircuit  = 2 * largeBuffer
)

// Relay is a running relay service.
type Relay struct {
	host   host.Host
	cfg    Config
	memory network.ResourceScopeSpan
	stop   context.CancelFunc
	notify network.Notifiee
	total  *pacer
	chunk  int // bytes that pass at once

	bytes atomic.Uint64 // relayed, all circuits

	mu     sync.Mutex // guards what follows, not the atomics in accounts
	book   book
	meter  meter
	closed bool

	handlers sync.WaitGroup
}

// New starts relaying on h. Its errors are a configuration that makes no sense
// and a host without key or resources.
func New(h host.Host, cfg Config) (*Relay, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("start relay: %w", err)
	}
	if h.Peerstore().PrivKey(h.ID()) == nil {
		return nil, errors.New("start relay: the host has no key to sign reservations with")
	}
	cfg = cfg.withDefaults()
	ctx, stop := context.WithCancel(context.Background())
	r := &Relay{host: h, cfg: cfg, stop: stop, total: newPacer(cfg.Rate), chunk: cfg.chunk(),
		book: newBook(cfg), meter: meter{at: time.Now()}}
	err := h.Network().ResourceManager().ViewService(ServiceName, func(s network.ServiceScope) (err error) {
		r.memory, err = s.BeginSpan()
		return err
	})
	if err != nil {
		stop()
		return nil, fmt.Errorf("start relay: %w", err)
	}
	r.notify = &network.NotifyBundle{DisconnectedF: func(_ network.Network, c network.Conn) { r.disconnected(c.RemotePeer()) }}
	h.Network().Notify(r.notify)
	h.SetStreamHandler(proto.ProtoIDv2Hop, func(s network.Stream) { r.serve(ctx, s) })
	return r, nil
}

// Close ends all circuits and reservations and returns when they have ended. The
// host stays open. It may be called again.
func (r *Relay) Close() error {
	r.mu.Lock()
	closed := r.closed
	r.closed = true
	r.mu.Unlock()
	if closed {
		return nil
	}
	r.host.RemoveStreamHandler(proto.ProtoIDv2Hop)
	r.host.Network().StopNotify(r.notify)
	r.stop()
	r.handlers.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.book.accounts {
		r.drop(a)
	}
	r.memory.Done()
	return nil
}

// serve handles one hop stream: a request, and the circuit that it opens.
func (r *Relay) serve(ctx context.Context, s network.Stream) {
	a := r.enter(s)
	if a == nil {
		return
	}
	defer r.handlers.Done()
	unbind := context.AfterFunc(ctx, func() { reset(s, wire.Unreachable) })
	answered := sync.OnceFunc(func() {
		unbind()
		r.mu.Lock()
		defer r.mu.Unlock()
		a.pending--
	})
	why := r.handle(ctx, s, a, answered)
	answered()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.book.refused(a, why)
	r.book.release(a)
}

// enter admits a stream, or resets it and returns nil. The account returned is
// held.
func (r *Relay) enter(s network.Stream) *account {
	err := s.Scope().SetService(ServiceName)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		reset(s, wire.Unreachable)
		return nil
	}
	a := r.book.hold(s.Conn().RemotePeer())
	if err != nil || a.pending == pendingPerPeer {
		r.book.refused(a, Busy)
		r.book.release(a)
		s.ResetWithError(network.StreamResourceLimitExceeded)
		return nil
	}
	a.pending++
	r.handlers.Add(1)
	return a
}

// handle returns why it refused the request, or accepted. It calls answered
// before it carries a circuit.
func (r *Relay) handle(ctx context.Context, s network.Stream, a *account, answered func()) Reason {
	s.SetReadDeadline(time.Now().Add(requestTime))
	req, err := readRequest(s)
	if err != nil {
		return r.refuse(s, Malformed)
	}
	s.SetReadDeadline(time.Time{})
	req.Peer, req.Addr = a.peer, s.Conn().RemoteMultiaddr()
	if why := r.admit(a, req); why != accepted {
		return r.refuse(s, why)
	}
	if req.Kind == Reserve {
		return r.reserve(s, a)
	}
	return r.connect(ctx, s, a, req.Dst, answered)
}

// admit applies the checks that both kinds of request share.
func (r *Relay) admit(a *account, req Request) Reason {
	if !a.requests.AllowN(time.Now(), 1) {
		return TooFast
	}
	if isCircuit(req.Addr) {
		return Denied
	}
	if r.cfg.Policy == nil {
		return accepted
	}
	err := r.cfg.Policy.Allow(req)
	switch {
	case err == nil:
		return accepted
	case errors.Is(err, wire.ResourceExhausted):
		return Throttled
	}
	r.cfg.Log.Debug("relay request denied", zap.String("kind", string(req.Kind)), zap.Stringer("peer", req.Peer), zap.Error(err))
	return Denied
}

func reset(s network.Stream, code wire.Code) { s.ResetWithError(network.StreamErrorCode(code)) }

func isCircuit(a ma.Multiaddr) bool {
	_, err := a.ValueForProtocol(ma.P_CIRCUIT)
	return err == nil
}
