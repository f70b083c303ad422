// Package stream runs request/response protocols over libp2p streams.
//
// A call is one stream: the caller writes one request frame and closes its
// side; the server writes one response frame and closes the stream, or resets
// it with a [wire.Code]. Every limit on a peer's behaviour is applied here, so a
// protocol's handler sees only whole requests within bounds.
package stream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"go.uber.org/zap"

	"openmesh/protocols/wire"
)

// Limits bound what one call may cost.
type Limits struct {
	Request  int           // bytes
	Response int           // bytes
	Time     time.Duration // from first byte to last
}

// A Handler answers one request. To refuse it, return an error that wraps a
// [wire.Code]; any other error reaches the peer as [wire.Internal].
type Handler func(ctx context.Context, from peer.ID, req []byte) (resp []byte, err error)

// Server serves one protocol.
type Server struct {
	Protocol protocol.ID
	Service  string // name under which the resource manager accounts for it
	Limits   Limits
	Handler  Handler
	Log      *zap.Logger
}

// A Mux routes incoming streams to handlers; host.Host is one.
type Mux interface {
	SetStreamHandler(protocol.ID, network.StreamHandler)
	RemoveStreamHandler(protocol.ID)
}

// Run serves streams from m until ctx ends, then waits for calls in progress,
// which see their context end too.
func (s *Server) Run(ctx context.Context, m Mux) {
	var calls sync.RWMutex // read-held by each call
	m.SetStreamHandler(s.Protocol, func(st network.Stream) {
		calls.RLock()
		defer calls.RUnlock()
		s.serveStream(ctx, st)
	})
	<-ctx.Done()
	m.RemoveStreamHandler(s.Protocol)
	calls.Lock() // waits for calls in progress
	defer calls.Unlock()
}

func (s *Server) serveStream(ctx context.Context, st network.Stream) {
	err := s.serve(ctx, st)
	if err == nil {
		st.Close()
		return
	}
	st.ResetWithError(network.StreamErrorCode(wire.CodeOf(err)))
	s.Log.Debug("call refused", zap.String("service", s.Service), zap.Stringer("peer", st.Conn().RemotePeer()), zap.Error(err))
}

func (s *Server) serve(ctx context.Context, st network.Stream) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v", v)
			s.Log.Error("handler panicked", zap.String("service", s.Service), zap.Any("panic", v), zap.Stack("stack"))
		}
	}()
	if ctx.Err() != nil {
		return wire.Unreachable
	}
	if err := st.Scope().SetService(s.Service); err != nil {
		return fmt.Errorf("%w: %w", wire.ResourceExhausted, err)
	}
	size := s.Limits.Request + s.Limits.Response
	if err := st.Scope().ReserveMemory(size, network.ReservationPriorityMedium); err != nil {
		return fmt.Errorf("%w: %w", wire.ResourceExhausted, err)
	}
	defer st.Scope().ReleaseMemory(size)

	ctx, cancel := context.WithTimeout(ctx, s.Limits.Time)
	defer cancel()
	defer bind(ctx, st)()

	req, err := wire.ReadFrame(bufio.NewReader(st), s.Limits.Request)
	if err != nil {
		return fmt.Errorf("%w: %w", ReadCode(err), err)
	}
	resp, err := s.Handler(ctx, st.Conn().RemotePeer(), req)
	if err != nil {
		return err
	}
	if len(resp) > s.Limits.Response {
		return fmt.Errorf("response of %d bytes, the limit is %d", len(resp), s.Limits.Response)
	}
	_, err = st.Write(wire.AppendFrame(nil, resp))
	return err
}

// A Dialer opens streams; host.Host is one.
type Dialer interface {
	NewStream(ctx context.Context, p peer.ID, ids ...protocol.ID) (network.Stream, error)
}

// Call sends req to peer p and returns its response. If the server refused the
// request, the error wraps its [wire.Code]; if there is no way to the peer, or it
// does not answer within lim.Time, [wire.Unreachable].
func Call(ctx context.Context, d Dialer, p peer.ID, id protocol.ID, req []byte, lim Limits) ([]byte, error) {
	limited, cancel := context.WithTimeout(ctx, lim.Time)
	defer cancel()
	resp, err := call(limited, d, p, id, req, lim.Response)
	if err == nil {
		return resp, nil
	}
	switch { // the reset that ended the read is only a symptom
	case ctx.Err() != nil:
		err = ctx.Err()
	case limited.Err() != nil:
		err = fmt.Errorf("%w: no answer within %v", wire.Unreachable, lim.Time)
	}
	return nil, fmt.Errorf("call %s at %s: %w", id, p, RemoteError(err))
}

func call(ctx context.Context, d Dialer, p peer.ID, id protocol.ID, req []byte, limit int) ([]byte, error) {
	st, err := d.NewStream(ctx, p, id)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", wire.Unreachable, err)
	}
	defer st.Close()
	defer bind(ctx, st)()
	// A server may answer or refuse, and close, before it has read all of this:
	// what it sent tells more than that it stopped reading.
	_, sent := st.Write(wire.AppendFrame(nil, req))
	if sent == nil {
		sent = st.CloseWrite()
	}
	resp, err := wire.ReadFrame(bufio.NewReader(st), limit)
	if err == nil {
		return resp, nil
	}
	st.Reset()
	if code := new(wire.Code); errors.As(RemoteError(err), code) {
		return nil, *code
	}
	// A reset that is not of the stream is of the connection: nobody refused.
	if end := new(network.StreamError); errors.Is(err, network.ErrReset) && !errors.As(err, &end) {
		return nil, fmt.Errorf("%w: %w", wire.Unreachable, err)
	}
	return nil, errors.Join(sent, err)
}

// bind resets st when ctx ends, which unblocks any Read or Write on it. The
// returned func undoes that.
func bind(ctx context.Context, st network.Stream) (release func() bool) {
	return context.AfterFunc(ctx, func() { st.Reset() })
}

// ReadCode says what a failure to read a frame is called.
func ReadCode(err error) wire.Code {
	if errors.Is(err, wire.ErrTooLarge) {
		return wire.TooLarge
	}
	return wire.Malformed
}

// RemoteError replaces a reset by the peer with the [wire.Code] it carried.
func RemoteError(err error) error {
	var se *network.StreamError
	if errors.As(err, &se) && se.Remote && wire.Code(se.ErrorCode).Known() {
		return wire.Code(se.ErrorCode)
	}
	return err
}
