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

	"openmesh/protocols/session/seal"
	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/stream"
	"openmesh/protocols/wire"
)

// maxRejected is how many frames that do not open a channel may carry before it
// is given up: an honest peer sends none.
const maxRejected = 16

// largeFrame is the size from which a frame's memory is accounted for before it
// is read.
const largeFrame = 64 << 10

// reader is what reading a channel needs. One goroutine owns it at a time.
type reader struct {
	*bufio.Reader
	channel  *channel
	rejected int        // frames that did not open
	keys     *seal.Keys // that the last frame was opened with
	next     job        // the request just received, if any; for the owner to start

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

// broken is an error that ends the session, not only the channel: the peer broke
// the protocol, or ended the session itself.
type broken struct {
	code   wire.Code // 0: ended in order
	byPeer bool
}

func (b broken) Error() string { return "session ended: " + b.code.String() }

// receive reads frames until the channel ends, or until another goroutine has
// taken the reader over: then it reports false.
func (s *Session) receive(r *reader) bool {
	for {
		if err := s.receiveFrame(r); err != nil {
			s.ended(r, err)
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

// ended acts on the end of a channel: err ends the session or only the channel. What
// the peer did under keys that are gone is no matter of the session's present life.
func (s *Session) ended(r *reader, err error) {
	ch := r.channel
	s.log("channel ended", zap.String("transport", ch.path.Transport), zap.Error(err))
	var b broken
	switch {
	case errors.As(err, &b) && r.keys != s.link.opener():
		s.lost(ch, wire.SessionClosed)
	case errors.As(err, &b) && b.code == 0:
		if s.move(Draining, 0) == nil {
			s.end(Closed, 0, false)
		}
	case errors.As(err, &b):
		s.end(Terminated, b.code, !b.byPeer)
	case errors.Is(err, io.EOF) && s.resting():
		s.drop(ch) // parked by the peer
	default:
		s.lost(ch, lostReason(err))
	}
}

// lostReason says why a channel ended with err.
func lostReason(err error) wire.Code {
	var c wire.Code
	if errors.As(stream.RemoteError(err), &c) {
		return c
	}
	return wire.Unreachable
}

func (s *Session) receiveFrame(r *reader) error {
	n, err := wire.ReadLength(r.Reader, s.maxFrame())
	if err != nil {
		return readError(err)
	}
	if n >= largeFrame {
		if err := r.channel.conduit.Reserve(n); err != nil {
			return fmt.Errorf("%w: %w", wire.ResourceExhausted, err)
		}
		defer r.channel.conduit.Release(n)
	}
	frame := pool.Get(n)
	defer pool.Put(frame)
	if _, err := io.ReadFull(r, frame); err != nil {
		return err
	}
	s.owner.stats.received(r.channel.path.Kind, n)
	keys, h, plain, err := s.open(frame)
	switch {
	case err == nil:
	case errors.Is(err, wire.Replayed) || errors.Is(err, seal.ErrStale):
		return nil // sent again, and both arrived
	default:
		s.counters.rejected.Add(1)
		if r.rejected++; r.rejected > maxRejected {
			return err
		}
		return nil
	}
	now := time.Now()
	r.keys = keys
	r.channel.hear(now)
	s.counters.received.Add(1)
	if h.Type.Reliable() {
		s.counters.used.Store(now.UnixNano())
		if s.link.owe(n) {
			s.acknowledge()
		}
	}
	if s.conduct.Load() != nil && metered(h.Type) {
		if err := s.measure(n, now); err != nil {
			return err
		}
	}
	return s.dispatch(r, h, plain, now)
}

func (s *Session) maxFrame() int { return s.terms.Load().MaxMessageBytes + maxMeta + seal.Overhead }

// open opens a frame, and returns the keys that did.
func (s *Session) open(frame []byte) (*seal.Keys, seal.Header, []byte, error) {
	keys := s.link.opener()
	if keys == nil {
		return nil, seal.Header{}, nil, wire.Unauthenticated
	}
	h, plain, err := keys.Open(frame)
	return keys, h, plain, err
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

// dispatch acts on an authenticated frame. Its error ends the session: the peer
// broke the protocol, or closed.
func (s *Session) dispatch(r *reader, h seal.Header, plain []byte, now time.Time) error {
	switch h.Type {
	case seal.Request:
		m := new(sessionpb.Request)
		if err := unmarshal(plain, m); err != nil {
			return err
		}
		var err error
		r.next, err = s.take(r.keys, m)
		return err
	case seal.Response:
		m := new(sessionpb.Response)
		if err := unmarshal(plain, m); err != nil {
			return err
		}
		s.calls.finish(m.Id, result{response: &Response{Encoding: Encoding(m.Encoding), Body: m.Body}})
	case seal.Error:
		m := new(sessionpb.Error)
		if err := unmarshal(plain, m); err != nil {
			return err
		}
		if m.Cancel {
			s.inbox.cancel(r.keys, m.Id)
		} else {
			s.calls.finish(m.Id, result{err: s.failed(m)})
		}
	case seal.Data:
		return s.data(plain, now)
	case seal.Ack:
		return s.ack(plain, now)
	case seal.StreamOpen, seal.StreamData, seal.StreamWindow, seal.StreamEnd:
		return s.stream(r.keys, h.Type, plain)
	case seal.Rekey:
		return s.rekey(r.keys, plain, now)
	default:
		return s.control(r.channel, h.Type, plain, now)
	}
	return nil
}

// control acts on a frame that is about the session itself.
func (s *Session) control(ch *channel, t seal.Type, plain []byte, now time.Time) error {
	switch t {
	case seal.Ping:
		if len(plain) == 8 {
			s.tell(ch, seal.Pong, plain)
		}
		if m := s.received(); len(m.Missing) > 0 { // the last of what the peer sent may be lost
			s.sayReceived(ch, m)
		}
	case seal.Pong:
		if len(plain) == 8 {
			ch.health.pong(binary.BigEndian.Uint64(plain), now)
		}
	case seal.Received:
		m := new(sessionpb.Received)
		if err := unmarshal(plain, m); err != nil {
			return err
		}
		newest, missing := receivedOf(m)
		s.link.received(ch, newest, missing)
		s.room()
	case seal.Rebind:
		return s.rebound(ch, plain)
	case seal.PolicyNotice:
		return s.noticed(plain, now)
	case seal.Close:
		return closedByPeer(plain)
	}
	return nil
}

func unmarshal(plain []byte, m proto.Message) error {
	if proto.Unmarshal(plain, m) != nil {
		return broken{code: wire.Malformed}
	}
	return nil
}

// closedByPeer is the end of the session that the peer's close frame asks for.
func closedByPeer(plain []byte) error {
	m := new(sessionpb.Close)
	if err := unmarshal(plain, m); err != nil {
		return err
	}
	code := wire.Code(m.Code)
	if m.Code != 0 && !code.Known() {
		code = wire.SessionClosed
	}
	return broken{code: code, byPeer: true}
}

// rekey takes the peer's part of a change of keys, which came under them.
func (s *Session) rekey(keys *seal.Keys, plain []byte, now time.Time) error {
	m := new(sessionpb.Rekey)
	if err := unmarshal(plain, m); err != nil {
		return err
	}
	reply, err := keys.Answer(m, now)
	if errors.Is(err, wire.SessionClosed) {
		return nil // erased meanwhile
	}
	if err != nil {
		s.log("rekey failed", zap.Error(err))
		return broken{code: wire.PolicyViolation}
	}
	if reply != nil {
		s.offer(keys, seal.Rekey, reply, false)
	} else if ch := s.link.current.Load(); ch != nil {
		s.ping(ch, now) // shows the peer that this side has the new keys
	}
	return nil
}

// receivedOf returns what a Received says: the newest frame and the gaps, the most
// recent first. Gaps that make no sense are left out.
func receivedOf(m *sessionpb.Received) (newest uint64, missing []seal.Range) {
	last := m.GetNewest() + 1
	for i := 0; i+1 < len(m.GetMissing()) && i < 2*maxGaps; i += 2 {
		r := seal.Range{First: m.Missing[i], Last: m.Missing[i+1]}
		if r.First > r.Last || r.Last >= last {
			break
		}
		missing, last = append(missing, r), r.First
	}
	return m.GetNewest(), missing
}

// received is what this side tells the peer that it has.
func (s *Session) received() *sessionpb.Received {
	m := new(sessionpb.Received)
	keys := s.link.opener()
	if keys == nil {
		return m
	}
	newest, missing := keys.Received(maxGaps)
	m.Newest = newest
	for _, r := range missing {
		m.Missing = append(m.Missing, r.First, r.Last)
	}
	return m
}

// acknowledge tells the peer what this side has, so that it need not keep it.
func (s *Session) acknowledge() {
	ch := s.link.current.Load()
	if ch == nil || !s.link.paid() {
		return
	}
	s.sayReceived(ch, s.received())
}

func (s *Session) sayReceived(ch *channel, m *sessionpb.Received) {
	if b, err := proto.Marshal(m); err == nil {
		s.tell(ch, seal.Received, b)
	}
}
