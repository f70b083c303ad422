package session

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	pool "github.com/libp2p/go-buffer-pool"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/stream"
	"openmesh/protocols/wire"
)

// maxRejected is how many frames that do not open a channel may carry before it
// is reset: on a path in order an honest peer sends none.
const maxRejected = 16

// largeFrame is the size from which a frame's memory is accounted for before it
// is read.
const largeFrame = 64 << 10

// reader is what reading a channel needs. One goroutine owns it at a time.
type reader struct {
	*bufio.Reader
	seen replayFilter
	next job // the request just received, if any; for the owner to start

	// What the owner does: free, or running a request; taken, once another
	// goroutine owns the reader.
	state atomic.Int32
	since atomic.Int64 // when it began to run the request, ns since the epoch
}

const (
	readerFree int32 = iota
	readerRunning
	readerTaken
)

// receive reads frames until the channel ends, or until another goroutine has
// taken the reader over: then it reports false.
func (s *Session) receive(r *reader) bool {
	for {
		err := s.receiveFrame(r)
		if err != nil {
			s.log("channel ended", zap.Error(err))
			s.end(Terminated, lostReason(err), false)
			return true
		}
		j := r.next
		if j.in == nil {
			continue
		}
		r.next = job{}
		if r.Buffered() > 0 || s.inbox.len() > 1 || !s.quick.Load() {
			s.owner.workers.do(j)
		} else if !s.inline(j, r) {
			return false
		}
	}
}

// lostReason says why a channel that ended with err ended its session.
func lostReason(err error) wire.Code {
	var c wire.Code
	if errors.As(stream.RemoteError(err), &c) {
		return c
	}
	return wire.Unreachable
}

func (s *Session) receiveFrame(r *reader) error {
	n, err := wire.ReadLength(r.Reader, s.contract.MaxMessageBytes+maxMeta+overhead)
	if err != nil {
		return readError(err)
	}
	if n >= largeFrame {
		if err := s.channel.conduit.Reserve(n); err != nil {
			return fmt.Errorf("%w: %w", wire.SessionClosed, err)
		}
		defer s.channel.conduit.Release(n)
	}
	frame := pool.Get(n)
	defer pool.Put(frame)
	if _, err := io.ReadFull(r, frame); err != nil {
		return err
	}
	s.owner.stats.received(s.channel.path.Kind, n)
	h, plain, err := s.open(frame, &r.seen)
	if err != nil {
		if s.counters.rejected.Add(1) > maxRejected {
			return err
		}
		return nil
	}
	now := time.Now()
	s.counters.heard.Store(now.UnixNano())
	s.counters.received.Add(1)
	if h.typ != typePing && h.typ != typePong {
		s.counters.used.Store(now.UnixNano())
	}
	return s.dispatch(r, h, plain, now)
}

func readError(err error) error {
	if errors.Is(err, wire.ErrTooLarge) {
		return fmt.Errorf("%w: %w", wire.TooLarge, err)
	}
	if errors.Is(err, wire.ErrMalformed) {
		return fmt.Errorf("%w: %w", wire.Malformed, err)
	}
	return err
}

// open authenticates a frame and returns its plaintext. Nothing changes unless it
// is a new frame of this session.
func (s *Session) open(frame []byte, seen *replayFilter) (header, []byte, error) {
	h, err := parseHeader(frame)
	if err != nil {
		return h, nil, err
	}
	if h.session != s.id || h.epoch != 0 {
		return h, nil, wire.Unauthenticated
	}
	if !seen.fresh(h.sequence) {
		return h, nil, wire.Replayed
	}
	plain, err := s.recv.open(frame, h.sequence)
	if err != nil {
		return h, nil, err
	}
	seen.mark(h.sequence)
	return h, plain, nil
}

// dispatch acts on an authenticated frame. Its error ends the session: the peer
// broke the protocol, or closed.
func (s *Session) dispatch(r *reader, h header, plain []byte, now time.Time) error {
	switch h.typ {
	case typeRequest:
		m := new(sessionpb.Request)
		if err := unmarshal(plain, m); err != nil {
			return err
		}
		r.next = s.take(m)
	case typeResponse:
		m := new(sessionpb.Response)
		if err := unmarshal(plain, m); err != nil {
			return err
		}
		s.calls.finish(m.Id, result{response: &Response{Encoding(m.Encoding), m.Body}})
	case typeError:
		m := new(sessionpb.Error)
		if err := unmarshal(plain, m); err != nil {
			return err
		}
		if m.Cancel {
			s.inbox.cancel(m.Id)
		} else {
			s.calls.finish(m.Id, result{err: s.failed(m)})
		}
	case typeData:
		if s.owner.cfg.Data != nil {
			s.owner.cfg.Data(s, plain)
		}
	case typePing:
		if len(plain) == 8 {
			s.post(typePong, plain)
		}
	case typePong:
		if len(plain) == 8 {
			s.channel.health.pong(binary.BigEndian.Uint64(plain), now)
		}
	case typeClose:
		return s.closedByPeer(plain)
	}
	return nil
}

func unmarshal(plain []byte, m proto.Message) error {
	if err := proto.Unmarshal(plain, m); err != nil {
		return fmt.Errorf("%w: %w", wire.Malformed, err)
	}
	return nil
}

// closedByPeer ends the session as the peer's close frame says. An orderly close
// passes through draining: the peer has no request under way, nor have we.
func (s *Session) closedByPeer(plain []byte) error {
	m := new(sessionpb.Close)
	if err := unmarshal(plain, m); err != nil {
		return err
	}
	if m.Code == 0 {
		if s.move(Draining, 0) == nil {
			s.end(Closed, 0, false)
		}
		return io.EOF
	}
	if code := wire.Code(m.Code); code.Known() {
		return code
	}
	return wire.SessionClosed
}
