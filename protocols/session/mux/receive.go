package mux

import (
	"bytes"

	"openmesh/protocols/wire"
)

// Receive acts on a frame of the peer; it keeps nothing of the payload. It never
// waits for a reader or writer of a stream. An error means that the peer broke the
// protocol, wire.Malformed or wire.PolicyViolation, and that the session should
// end. Calls may be concurrent.
func (m *Mux) Receive(t Type, payload []byte) error {
	v, rest, err := parse(t, payload)
	if err != nil {
		return err
	}
	if t == TypeOpen {
		return m.accept(v[0], v[1], rest)
	}
	m.mu.Lock()
	s, err := m.find(t, v[0])
	if s == nil {
		m.mu.Unlock()
		return err
	}
	err = s.receive(t, v, rest)
	unwanted := s.abandoned && !s.gone
	if unwanted {
		s.drop(wire.Cancelled)
	}
	m.mu.Unlock()
	if unwanted {
		m.post(TypeEnd, s.id, 0, uint64(wire.Cancelled))
	}
	return err
}

// find returns the stream of a frame that is not an open; nil if it has ended.
// An id that was never opened is an error.
func (m *Mux) find(t Type, id uint64) (*Stream, error) {
	if m.err != nil {
		return nil, nil
	}
	opened := id != 0 && id <= m.newest
	if m.opener(id) == 1 {
		opened = id < m.next
	}
	if !opened {
		return nil, wire.Errorf(wire.Malformed, "%v: stream %d was never opened", t, id)
	}
	return m.streams[id], nil
}

// accept takes or refuses a stream that the peer opens.
func (m *Mux) accept(id, credit uint64, meta []byte) error {
	m.mu.Lock()
	s, code, err := m.admit(id)
	if s == nil {
		m.mu.Unlock()
		if code != 0 {
			m.post(TypeEnd, id, 0, uint64(code))
		}
		return err
	}
	s.answered, s.out.limit, s.meta = true, credit, bytes.Clone(meta)
	limit := s.in.limit
	m.mu.Unlock()
	m.cfg.Accept(s)
	if s.alive() {
		m.post(TypeWindow, id, limit)
	}
	return nil
}

// admit makes a stream of the peer's, or says with which code to refuse it, or
// what is wrong with it.
func (m *Mux) admit(id uint64) (*Stream, wire.Code, error) {
	if m.err != nil {
		return nil, 0, nil
	}
	if id == 0 || m.opener(id) == 1 || m.streams[id] != nil {
		return nil, 0, wire.Errorf(wire.Malformed, "%v: stream %d is not the peer's to open", TypeOpen, id)
	}
	if len(m.owed) >= maxOwed+4*m.cfg.MaxStreams {
		return nil, 0, wire.Errorf(wire.PolicyViolation, "the peer opens streams and does not read the answers")
	}
	m.newest = max(m.newest, id)
	if m.cfg.Accept == nil {
		return nil, wire.Unsupported, nil
	}
	if m.count[0] >= m.cfg.MaxStreams {
		return nil, wire.ResourceExhausted, nil
	}
	return m.add(id), 0, nil
}

// receive acts on a frame of this stream; the mux is locked.
func (s *Stream) receive(t Type, v [3]uint64, data []byte) error {
	if !s.answered {
		s.answered = true
		s.out.wake.Broadcast()
	}
	switch t {
	case TypeData:
		return s.receiveData(v[1], data)
	case TypeWindow:
		s.receiveWindow(v[1])
		return nil
	}
	return s.receiveEnd(v[1], wire.Code(v[2]))
}

func (s *Stream) receiveData(offset uint64, data []byte) error {
	end := offset + uint64(len(data))
	if s.in.ended && end > s.in.final {
		return wire.Errorf(wire.Malformed, "stream %d: data up to %d, but it ends at %d", s.id, end, s.in.final)
	}
	if end > s.in.limit {
		return wire.Errorf(wire.PolicyViolation, "stream %d: data up to %d with credit up to %d", s.id, end, s.in.limit)
	}
	before := s.in.have
	if !s.in.put(offset, data, uint64(s.mux.cfg.Window)) {
		return wire.Errorf(wire.Malformed, "stream %d: data at %d overlaps what came before", s.id, offset)
	}
	if s.in.have > before {
		s.in.wake.Broadcast()
	}
	return nil
}

func (s *Stream) receiveWindow(limit uint64) {
	switch {
	case limit == 0:
		if s.out.err == nil {
			s.out.err = wire.Errorf(wire.Cancelled, "write to stream %d: the peer reads no more of it", s.id)
		}
		s.leaveIfDone()
	case limit > s.out.limit:
		s.out.limit = limit
	default:
		return // overtaken by a later one
	}
	s.out.wake.Broadcast()
}

func (s *Stream) receiveEnd(final uint64, code wire.Code) error {
	if final < s.in.high || s.in.ended && (final != s.in.final || code == 0) {
		return wire.Errorf(wire.Malformed, "stream %d: ends at %d after data up to %d", s.id, final, s.in.high)
	}
	if final > s.in.limit {
		return wire.Errorf(wire.PolicyViolation, "stream %d: ends at %d with credit up to %d", s.id, final, s.in.limit)
	}
	if code != 0 {
		s.drop(wire.Errorf(code, "the peer reset stream %d", s.id))
		return nil
	}
	s.in.ended, s.in.final, s.in.limit = true, final, final
	s.settle()
	s.leaveIfDone()
	s.in.wake.Broadcast()
	return nil
}
