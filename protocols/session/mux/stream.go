package mux

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"openmesh/protocols/wire"
)

// Stream is two byte streams, one each way, each of which can end by itself. Its
// methods are safe for concurrent use, and behave as those of a [net.Conn]: calls
// of Write do not mix, and a deadline that passed fails those that wait and those
// that follow, until it is set anew.
//
// What a peer reset, or the end of the session, shows as a [wire.Error] with the
// code that was given.
type Stream struct {
	mux  *Mux
	id   uint64
	meta []byte

	in        inbound
	out       outbound
	err       error // why neither direction can be used; nil while they can
	answered  bool  // the peer knows the stream
	abandoned bool  // the opener gave up before that
	gone      bool  // the mux has forgotten it
}

// inbound is what the peer sends.
type inbound struct {
	buffer
	waiting
	limit   uint64 // the peer may send bytes below
	charged uint64 // of the pool, for credit above the floor
	ended   bool
	final   uint64 // where it ended
}

// outbound is what the peer is sent.
type outbound struct {
	waiting
	sent  uint64
	limit uint64 // bytes below may be sent
	busy  bool   // a Write is under way
	err   error  // why nothing more can be sent; nil while it can

	// Of the Write under way: kept here so that it need not allocate.
	head  [dataHead]byte
	parts [2][]byte
}

// ID returns the stream's id, the same on both sides.
func (s *Stream) ID() uint64 { return s.id }

// Meta returns what the opener said the stream is for. It must not be changed.
func (s *Stream) Meta() []byte { return s.meta }

// Read takes bytes that have come, at least one unless p is empty. It returns
// io.EOF after the last, net.ErrClosed after Close, os.ErrDeadlineExceeded.
func (s *Stream) Read(p []byte) (int, error) {
	s.mux.mu.Lock()
	for len(p) > 0 && s.in.ready() == 0 && s.err == nil && !s.in.over() && !s.in.passed {
		s.in.wake.Wait()
	}
	n, limit, err := s.take(p)
	s.mux.mu.Unlock()
	if limit > 0 {
		s.mux.post(TypeWindow, s.id, limit)
	}
	return n, err
}

// take does what Read waited for; limit is what to tell the peer, if not 0.
func (s *Stream) take(p []byte) (n int, limit uint64, err error) {
	switch {
	case s.in.passed:
		return 0, 0, os.ErrDeadlineExceeded
	case s.err != nil:
		return 0, 0, s.err
	case len(p) == 0:
		return 0, 0, nil
	case s.in.over():
		return 0, 0, io.EOF
	}
	n = s.in.take(p)
	s.settle()
	if s.in.ended {
		s.leaveIfDone()
	} else if s.grant() {
		limit = s.in.limit
	}
	return n, limit, nil
}

// over reports whether all was taken.
func (in *inbound) over() bool { return in.ended && in.read == in.final }

// Write sends p in chunks of at most 32 KiB, as the peer gives credit. It returns
// when the session has taken the last, which is no proof that it arrived. A
// deadline ends waiting for credit, not a Send that blocks.
func (s *Stream) Write(p []byte) (n int, err error) {
	if err := s.beginWrite(); err != nil {
		return 0, err
	}
	defer s.endWrite()
	for n < len(p) {
		offset, size, err := s.reserve(len(p) - n)
		if err != nil {
			return n, err
		}
		s.out.parts = [2][]byte{appendNumbers(s.out.head[:0], s.id, offset), p[n : n+size]}
		if err := s.mux.cfg.Send(TypeData, s.out.parts[:]...); err != nil {
			err = fmt.Errorf("write to stream %d: %w", s.id, err)
			s.fail(err)
			return n, err
		}
		n += size
	}
	return n, nil
}

func (s *Stream) beginWrite() error {
	s.mux.mu.Lock()
	defer s.mux.mu.Unlock()
	for s.out.busy && s.writeError() == nil {
		s.out.wake.Wait()
	}
	err := s.writeError()
	if err == nil {
		s.out.busy = true
	}
	return err
}

func (s *Stream) endWrite() {
	s.mux.mu.Lock()
	defer s.mux.mu.Unlock()
	s.out.busy, s.out.parts = false, [2][]byte{}
	s.out.wake.Broadcast()
}

// reserve waits for credit and takes some for a chunk of at most n bytes.
func (s *Stream) reserve(n int) (offset uint64, size int, err error) {
	s.mux.mu.Lock()
	defer s.mux.mu.Unlock()
	for s.out.sent >= s.out.limit && s.writeError() == nil {
		s.out.wake.Wait()
	}
	if err := s.writeError(); err != nil {
		return 0, 0, err
	}
	offset = s.out.sent
	size = int(min(uint64(n), maxChunk, s.out.limit-offset))
	s.out.sent += uint64(size)
	return offset, size, nil
}

func (s *Stream) writeError() error {
	switch {
	case s.out.passed:
		return os.ErrDeadlineExceeded
	case s.err != nil:
		return s.err
	}
	return s.out.err
}

// CloseWrite ends what this side sends: the peer reads io.EOF after it. A Write
// under way fails. Reading goes on.
func (s *Stream) CloseWrite() error {
	s.mux.mu.Lock()
	if err := s.err; err != nil || s.out.err != nil {
		s.mux.mu.Unlock()
		return err
	}
	s.out.err = net.ErrClosed
	final := s.out.sent
	s.leaveIfDone()
	s.out.wake.Broadcast()
	s.mux.mu.Unlock()
	s.mux.post(TypeEnd, s.id, final, 0)
	return nil
}

// Close ends the stream in both directions: what was written still reaches the
// peer, and what it goes on to write fails there. It never waits.
func (s *Stream) Close() error {
	s.mux.mu.Lock()
	if s.gone {
		s.err = net.ErrClosed
		s.mux.mu.Unlock()
		return nil
	}
	final, end, stop := s.out.sent, s.out.err == nil, !s.in.ended
	s.drop(net.ErrClosed)
	s.mux.mu.Unlock()
	if end {
		s.mux.post(TypeEnd, s.id, final, 0)
	}
	if stop {
		s.mux.post(TypeWindow, s.id, 0)
	}
	return nil
}

// Reset breaks the stream off in both directions, and tells the peer code;
// wire.Cancelled if that is 0. What is under way may be lost. It never waits.
func (s *Stream) Reset(code wire.Code) {
	if code == 0 {
		code = wire.Cancelled
	}
	s.reset(code, wire.Errorf(code, "stream %d was reset here", s.id))
}

// fail breaks the stream off because a frame of it was lost.
func (s *Stream) fail(err error) { s.reset(wire.Internal, err) }

func (s *Stream) reset(code wire.Code, err error) {
	s.mux.mu.Lock()
	if s.gone {
		s.mux.mu.Unlock()
		return
	}
	final := s.out.sent
	s.drop(err)
	s.mux.mu.Unlock()
	s.mux.post(TypeEnd, s.id, final, uint64(code))
}

// awaitAnswer waits until the peer has taken or refused the stream, or ctx ends.
func (s *Stream) awaitAnswer(ctx context.Context) (*Stream, error) {
	mu := &s.mux.mu
	stop := context.AfterFunc(ctx, func() {
		mu.Lock()
		defer mu.Unlock()
		s.out.wake.Broadcast()
	})
	defer stop()
	mu.Lock()
	defer mu.Unlock()
	for !s.answered && s.err == nil && ctx.Err() == nil {
		s.out.wake.Wait()
	}
	if s.err != nil {
		return nil, s.err
	}
	if !s.answered {
		// Its reset must not overtake its open: it waits for the answer.
		s.abandoned = true
		return nil, openError(ctx)
	}
	return s, nil
}

func (s *Stream) alive() bool {
	s.mux.mu.Lock()
	defer s.mux.mu.Unlock()
	return !s.gone
}

// leaveIfDone makes the mux forget a stream whose directions have both ended.
func (s *Stream) leaveIfDone() {
	if s.out.err != nil && s.in.over() {
		s.leave()
	}
}

// drop ends the stream at once: err is what its user gets.
func (s *Stream) drop(err error) {
	s.err = err
	s.leave()
	s.in.wake.Broadcast()
	s.out.wake.Broadcast()
}

// leave makes the mux forget the stream, and gives back all it holds.
func (s *Stream) leave() {
	if s.gone {
		return
	}
	s.gone = true
	s.mux.remove(s)
	s.in.release()
	s.in.limit = s.in.read
	s.settle()
	s.in.stop()
	s.out.stop()
}

// grant gives the peer credit if at least half of the window was consumed, and
// reports whether it did.
func (s *Stream) grant() bool {
	m := s.mux
	window := m.floor + min(uint64(m.cfg.Window)-m.floor, (m.pool+s.in.charged)/poolShare)
	if s.in.limit-s.in.read > window/2 {
		return false
	}
	s.in.limit = s.in.read + window
	s.settle()
	return true
}

// settle charges the pool for the credit that is outstanding above the floor.
func (s *Stream) settle() {
	outstanding := s.in.limit - s.in.read
	due := outstanding - min(outstanding, s.mux.floor)
	s.mux.pool += s.in.charged - due
	s.in.charged = due
}

// SetDeadline sets the deadlines of Read and Write; the zero time is none.
func (s *Stream) SetDeadline(t time.Time) error {
	return s.setDeadlines(t, &s.in.waiting, &s.out.waiting)
}

// SetReadDeadline sets when Read fails with os.ErrDeadlineExceeded.
func (s *Stream) SetReadDeadline(t time.Time) error { return s.setDeadlines(t, &s.in.waiting) }

// SetWriteDeadline sets when Write fails with os.ErrDeadlineExceeded.
func (s *Stream) SetWriteDeadline(t time.Time) error { return s.setDeadlines(t, &s.out.waiting) }

func (s *Stream) setDeadlines(t time.Time, sides ...*waiting) error {
	s.mux.mu.Lock()
	defer s.mux.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	for _, w := range sides {
		w.set(t)
	}
	return nil
}

// waiting is how users of one direction wait. The mux's lock guards it.
type waiting struct {
	wake   sync.Cond
	timer  *time.Timer
	passed bool // the deadline
}

func (w *waiting) set(t time.Time) {
	w.stop()
	w.passed = false
	if t.IsZero() {
		return
	}
	left := time.Until(t)
	if left <= 0 {
		w.passed = true
		w.wake.Broadcast()
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(left, func() {
		w.wake.L.Lock()
		defer w.wake.L.Unlock()
		if w.timer == timer { // and not of a deadline that was changed meanwhile
			w.passed = true
			w.wake.Broadcast()
		}
	})
	w.timer = timer
}

func (w *waiting) stop() {
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
}
