// Package mux carries byte streams inside a session, with flow control by
// credit. It knows no network and no keys: below it is a session that delivers
// each frame once, perhaps out of order, for its paths may be several.
//
// Frames are the plaintexts of the session's stream frames. Numbers are uvarints
// (as in Protocol Buffers) below 2⁶²; whatever else is malformed ends the session.
//
//	stream-open    id | credit | metadata, at most 8 KiB
//	stream-data    id | offset | 1 or more bytes
//	stream-window  id | limit
//	stream-end     id | final offset | code
//
// Ids count up from 1 by twos for streams that the session's initiator opens, and
// from 2 for the responder's. Each direction of a stream has offsets from 0, and
// credit: the offset that its sender must not pass. Credit and limit are such
// offsets, for the direction from the frame's receiver to its sender; limits only
// grow, so that the largest seen is the one that holds.
//
//	opener                                 acceptor
//	  │ open: id, credit for the acceptor     │
//	  ├──────────────────────────────────────►│ or end with resource_exhausted:
//	  │ window: credit for the opener         │ more streams than it takes
//	  │◄──────────────────────────────────────┤
//	  │ data ⇄, window when half is consumed  │
//	  │ end, code 0: this direction is whole  │
//	  ├──────────────────────────────────────►│ which may go on to send
//	  │ end, code ≠ 0: reset, both directions │
//	  │◄──────────────────────────────────────┤
//
// The opener sends nothing more before the first frame of the acceptor. Hence no
// frame overtakes the open; a frame of a stream that is not there belongs to one
// that has ended, and is dropped. A window with limit 0 says that its sender reads
// no more: what the other side writes fails with [wire.Cancelled], while what it
// has still to read reaches it. Nothing is sent twice: bytes that overlap others
// are malformed, and so are bytes beyond the final offset. Bytes beyond the credit
// are a [wire.PolicyViolation].
//
// # Memory
//
// All credit that is outstanding in a session stays within SessionWindow, so
// that no sender, honest or not, can fill more. Half of it is divided among as
// many streams as there may be: a stream's floor, which no other can take. The
// other half is a pool. A stream's window is its floor and at most an eighth of
// what the pool has free, up to Window: a few streams get all they can use, many
// share, and those that are not read slow the others without ever stopping them.
//
//	outstanding(stream) = limit − bytes taken by the reader ≤ Window
//	Σ outstanding ≤ SessionWindow
//
// Bytes are kept in blocks of 4 KiB, so a stream may hold up to two blocks more
// than its credit; and an eighth more while bytes are out of order. Metadata comes
// on top. Without streams a [Mux] is one small struct.
package mux

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"openmesh/protocols/wire"
)

// Config says how a [Mux] reaches the peer and what it takes. Send, Post and
// Accept are called without locks held.
type Config struct {
	// Initiator says that this side initiated the session: its streams have odd
	// ids, the peer's even ones.
	Initiator bool

	// Send sends a frame whose payload is the parts one after another; it does not
	// keep them. It may block: that is the channel's backpressure. An error means
	// that the frame is lost for good.
	Send func(t Type, payload ...[]byte) error

	// Post is Send that never blocks: it reports false if there is no room now. It
	// may keep the payload.
	Post func(t Type, payload []byte) bool

	// Accept takes a stream that the peer opened. It is called by Receive and must
	// not block; it may refuse the stream with [Stream.Reset]. If it is nil, all
	// are refused.
	Accept func(*Stream)

	Window        int // bytes of credit of one stream at most; default 256 KiB
	MaxStreams    int // streams at a time that either side opened; default 256
	SessionWindow int // bytes of credit of all streams; default 4 MiB, at least 4 × MaxStreams
}

const (
	defaultWindow        = 256 << 10
	defaultStreams       = 256
	defaultSessionWindow = 4 << 20

	poolShare = 8 // one stream gets this part of what the pool has free

	// maxOwed bounds the frames that wait for a peer that opens streams and does
	// not read, above some for each stream.
	maxOwed = 4096
)

// Mux is the streams of one session. Its methods are safe for concurrent use.
type Mux struct {
	cfg   Config
	floor uint64 // credit that every stream can have

	mu       sync.Mutex // guards all below, and all of the streams
	streams  map[uint64]*Stream
	count    [2]int // streams opened by the peer; by us
	next     uint64 // id of our next stream
	newest   uint64 // largest id that the peer opened
	pool     uint64 // credit that no stream has taken, floors aside
	owed     []frame
	flushing bool  // a goroutine sends what is owed
	err      error // why no stream can be; nil while open
}

type frame struct {
	typ     Type
	payload []byte
}

// New returns a mux without streams.
func New(cfg Config) *Mux {
	cfg.Window = or(cfg.Window, defaultWindow)
	cfg.MaxStreams = or(cfg.MaxStreams, defaultStreams)
	cfg.SessionWindow = max(or(cfg.SessionWindow, defaultSessionWindow), 4*cfg.MaxStreams)
	floor := min(cfg.SessionWindow/(4*cfg.MaxStreams), cfg.Window)
	m := &Mux{cfg: cfg, floor: uint64(floor), next: 2}
	m.pool = uint64(cfg.SessionWindow - 2*cfg.MaxStreams*floor)
	if cfg.Initiator {
		m.next = 1
	}
	return m
}

func or(n, def int) int {
	if n <= 0 {
		return def
	}
	return n
}

// Open opens a stream and returns it once the peer has taken it, which takes a
// round trip. Metadata tells the peer what it is for. Errors: wire.TooLarge if meta
// is longer than [MaxMeta], wire.ResourceExhausted if either side has as many
// streams as it takes, wire.DeadlineExceeded or wire.Cancelled if ctx ends first,
// and whatever code the peer refused the stream with. Ctx does not end a Send
// that blocks.
func (m *Mux) Open(ctx context.Context, meta []byte) (*Stream, error) {
	if len(meta) > MaxMeta {
		return nil, wire.Errorf(wire.TooLarge, "open stream: metadata of %d bytes, at most %d", len(meta), MaxMeta)
	}
	if ctx.Err() != nil {
		return nil, openError(ctx)
	}
	s, credit, err := m.begin(meta)
	if err != nil {
		return nil, err
	}
	head := appendNumbers(make([]byte, 0, dataHead), s.id, credit)
	if err := m.cfg.Send(TypeOpen, head, meta); err != nil {
		err = fmt.Errorf("open stream %d: %w", s.id, err)
		s.fail(err)
		return nil, err
	}
	return s.awaitAnswer(ctx)
}

// begin makes a stream of ours.
func (m *Mux) begin(meta []byte) (s *Stream, credit uint64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return nil, 0, m.err
	}
	if m.count[1] >= m.cfg.MaxStreams {
		return nil, 0, wire.Errorf(wire.ResourceExhausted, "open stream: %d are open", m.count[1]).
			WithHint("close streams that are not needed any more")
	}
	s = m.add(m.next)
	s.meta = bytes.Clone(meta)
	m.next += 2
	return s, s.in.limit, nil
}

func openError(ctx context.Context) error {
	code := wire.Cancelled
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		code = wire.DeadlineExceeded
	}
	return wire.Errorf(code, "open stream: %w", context.Cause(ctx))
}

// Close fails all streams with code, or wire.SessionClosed if it is 0, and lets no
// new one be. The peer is not told: the session's own end tells it.
func (m *Mux) Close(code wire.Code) {
	if code == 0 {
		code = wire.SessionClosed
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return
	}
	m.err = wire.Errorf(code, "the stream's session ended")
	for _, s := range m.streams {
		s.drop(m.err)
	}
	m.owed = nil
}

// Len returns how many streams there are. A stream ends when both directions
// have ended and all that came was read, or when it is closed or reset.
func (m *Mux) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.streams)
}

// add makes the stream of an id that is not in use.
func (m *Mux) add(id uint64) *Stream {
	s := &Stream{mux: m, id: id}
	s.in.wake.L, s.out.wake.L = &m.mu, &m.mu
	if m.streams == nil {
		m.streams = make(map[uint64]*Stream)
	}
	m.streams[id] = s
	m.count[m.opener(id)]++
	s.grant()
	return s
}

// remove forgets a stream.
func (m *Mux) remove(s *Stream) {
	delete(m.streams, s.id)
	m.count[m.opener(s.id)]--
	if len(m.streams) == 0 {
		m.streams = nil
	}
}

// opener returns 1 if id is of a stream that this side opens, else 0.
func (m *Mux) opener(id uint64) int {
	if id%2 == m.next%2 {
		return 1
	}
	return 0
}

// post sends a short frame without waiting. If there is no room a goroutine
// sends it, which ends when nothing is owed.
func (m *Mux) post(t Type, numbers ...uint64) {
	payload := appendNumbers(make([]byte, 0, maxHead), numbers...)
	if m.cfg.Post(t, payload) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return
	}
	m.owed = append(m.owed, frame{t, payload})
	if !m.flushing {
		m.flushing = true
		go m.flush()
	}
}

// flush sends what is owed, however long that takes. If it fails the session is
// about to end.
func (m *Mux) flush() {
	for {
		m.mu.Lock()
		if len(m.owed) == 0 {
			m.owed, m.flushing = nil, false
			m.mu.Unlock()
			return
		}
		f := m.owed[0]
		m.owed = m.owed[1:]
		m.mu.Unlock()
		if m.cfg.Send(f.typ, f.payload) != nil {
			m.mu.Lock()
			m.owed = nil
			m.mu.Unlock()
		}
	}
}
