// Package session is work between two agents: sealed frames over one or several
// channels, requests with deadlines, an end that says why.
//
// A session is set up by package signal. Its initiator opens a stream of
// [Protocol] and writes one message in the clear, Attach: the session id and the
// signal Confirm. All that follows, both ways, are sealed frames:
//
//	length    uvarint     of what follows; at most the contract's MaxMessageBytes
//	                      and maxMeta for what goes with a message
//	version   1 byte      1
//	type      1 byte      data, request, response, error, ping, pong, close, …
//	session   16 bytes
//	epoch     4 bytes     big-endian; counts key changes
//	sequence  8 bytes     big-endian; counts frames of one direction from 1
//	sealed    …           AEAD of the plaintext; all but length is associated data
//
// Each direction and epoch has a key of its own, from the session's secret by
// HKDF-Expand (RFC 5869, SHA-256); the nonce is made as in TLS 1.3:
//
//	key    32 bytes for "openmesh/session/v1/<initiator|responder>/<epoch>/key"
//	iv     12 bytes for "openmesh/session/v1/<initiator|responder>/<epoch>/iv"
//	nonce  iv XOR sequence, in its last 8 bytes
//
// A frame that does not
// open, or was seen before, changes nothing; a window of 4096 frames tolerates
// reordering. Plaintexts are the messages of sessionpb; a data frame's is the
// bytes sent.
//
// States: see [State] and the table transitions. Delivery is at most once: a
// request has one answer, or fails; [wire.Code.Retry] tells whether it is known
// to have had no effect.
package session

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	pool "github.com/libp2p/go-buffer-pool"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// Protocol is the libp2p protocol id of a channel.
const Protocol = "/openmesh/session/1.0.0"

// maxMeta bounds what travels with a message's body: names, trace context, keys.
const maxMeta = 8 << 10

// Session is one session. Its methods are safe for concurrent use.
type Session struct {
	id        signal.ID
	peer      *identity.Certificate
	initiator bool
	suite     signal.Suite
	contract  signal.Contract
	protocols []signal.AppProtocol
	opened    time.Time
	names     Names

	owner      *Endpoint
	send, recv *sealer
	sequence   atomic.Uint64 // of the last frame sent
	channel    *channel
	calls      calls
	inbox      inbox
	counters   counters
	answering  atomic.Int32 // answers being written
	quick      atomic.Bool  // the last request was answered at once
	reading    atomic.Pointer[reader]
	done       chan struct{} // closed when the session is done

	mu      sync.Mutex
	state   State
	reason  wire.Code // why it was terminated
	history []Event
}

// Names are the texts by which a session and its peer are spoken of, made once:
// they are on the path of every request.
type Names struct {
	Session string // the id, as 32 hex digits
	Agent   string // the peer's agent id
	Address string // the peer's address
	Suite   string
}

// counters are what a session has seen; read by Info and the sweeper.
type counters struct {
	sent, received atomic.Uint64 // frames
	rejected       atomic.Uint64 // frames that did not open or were seen before
	heard          atomic.Int64  // when the last frame came, ns since the epoch
	used           atomic.Int64  // when last something other than keepalive went either way
}

// Event is one change of a session's state.
type Event struct {
	Session  signal.ID
	Agent    identity.AgentID
	From, To State
	Reason   wire.Code // of Terminated; 0 otherwise
	At       time.Time
}

// maxHistory bounds the events that a session remembers.
const maxHistory = 32

// newSession makes a session from what signaling agreed, and erases the secret.
func newSession(owner *Endpoint, e *signal.Established, c Conduit, now time.Time) (*Session, error) {
	mine, theirs, err := deriveSealers(e.Suite, e.Secret[:], 0)
	clear(e.Secret[:])
	if err != nil {
		return nil, err
	}
	if !e.Initiator {
		mine, theirs = theirs, mine
	}
	s := &Session{
		id: e.ID, peer: e.Peer, initiator: e.Initiator, suite: e.Suite, contract: e.Contract, protocols: e.Protocols,
		names:  Names{e.ID.String(), string(e.Peer.Agent), e.Peer.Address.String(), e.Suite.String()},
		opened: now, owner: owner, send: mine, recv: theirs, done: make(chan struct{}),
		calls:   calls{waiting: make(map[uint64]waiting), limit: e.Contract.MaxPending},
		inbox:   inbox{working: make(map[uint64]working), limit: e.Contract.MaxPending},
		channel: newChannel(c, now),
	}
	s.counters.heard.Store(now.UnixNano())
	s.counters.used.Store(now.UnixNano())
	return s, nil
}

// ID returns the session's id.
func (s *Session) ID() signal.ID { return s.id }

// Peer returns the certificate of the agent at the other end.
func (s *Session) Peer() *identity.Certificate { return s.peer }

// Names returns the session's and its peer's names.
func (s *Session) Names() Names { return s.names }

// Path returns how the session's channel reaches the peer.
func (s *Session) Path() Path { return s.channel.path }

// Done is closed when the session has ended.
func (s *Session) Done() <-chan struct{} { return s.done }

// move changes the state and tells the owner; reason is for Terminated.
func (s *Session) move(to State, reason wire.Code) error {
	s.mu.Lock()
	from := s.state
	next, err := from.next(to)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	ev := Event{Session: s.id, Agent: s.peer.Agent, From: from, To: to, Reason: reason, At: time.Now()}
	s.state, s.reason = next, reason
	s.history = append(s.history, ev)
	if len(s.history) > maxHistory {
		s.history = append(s.history[:1], s.history[2:]...)
	}
	s.mu.Unlock()
	s.owner.changed(s, ev)
	if to.Done() {
		close(s.done)
	}
	return nil
}

// Send sends one message at most once: it returns when the channel has taken it,
// which is no proof that it arrived.
func (s *Session) Send(data []byte) error {
	if len(data) > s.contract.MaxMessageBytes {
		return s.tooLarge(len(data))
	}
	buf := pool.Get(maxPrefix + overhead + len(data))
	defer pool.Put(buf)
	n := copy(buf[maxPrefix+headerSize:], data)
	return s.write(typeData, buf[:maxPrefix+headerSize+n])
}

func (s *Session) tooLarge(n int) error {
	return wire.Errorf(wire.TooLarge, "message of %d bytes, the session's limit is %d", n, s.contract.MaxMessageBytes).
		WithHint("raise session.max_message_bytes on both sides, or send less at a time")
}

// message seals m as a frame of type t and writes it.
func (s *Session) message(t frameType, m proto.Message) error {
	size := proto.Size(m)
	buf := pool.Get(maxPrefix + overhead + size)
	defer pool.Put(buf)
	b, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(buf[:maxPrefix+headerSize], m)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	return s.write(t, b)
}

// write seals buf, whose plaintext starts after room for length and header, and
// writes it as one frame.
func (s *Session) write(t frameType, buf []byte) error {
	frame := s.seal(t, buf)
	if t != typePing && t != typePong {
		s.counters.used.Store(time.Now().UnixNano())
	}
	s.counters.sent.Add(1)
	s.owner.stats.sent(s.channel.path.Kind, len(frame))
	if err := s.channel.write(frame, s.crowded()); err != nil {
		return wire.Errorf(wire.SessionClosed, "write to %s: %w", s.peer.Agent, err)
	}
	return nil
}

// crowded reports whether several requests are under way, so that frames come in
// company.
func (s *Session) crowded() bool { return s.calls.len()+s.inbox.len() > 1 }

func (s *Session) seal(t frameType, buf []byte) []byte {
	seq := s.sequence.Add(1)
	frame := buf[maxPrefix:]
	header{typ: t, session: s.id, sequence: seq}.put(frame)
	frame = s.send.seal(frame, seq)
	var length [maxPrefix]byte
	n := binary.PutUvarint(length[:], uint64(len(frame)))
	start := maxPrefix - n
	copy(buf[start:], length[:n])
	return buf[start : maxPrefix+len(frame)]
}

// post seals a short message and queues it without waiting.
func (s *Session) post(t frameType, plain []byte) {
	buf := append(make([]byte, maxPrefix+headerSize, maxPrefix+overhead+len(plain)), plain...)
	s.channel.post(s.seal(t, buf))
	s.counters.sent.Add(1)
}

// Close ends the session in order: nothing new begins, what is under way ends or
// ctx does, and the peer is told.
func (s *Session) Close(ctx context.Context) error {
	if err := s.move(Draining, 0); err != nil {
		return err
	}
	closed := wire.Errorf(wire.SessionClosed, "session %s is closing", s.id)
	s.calls.refuse(closed, false)
	s.inbox.refuse(false)
	s.drain(ctx)
	s.end(Closed, 0, true)
	return nil
}

// drain waits until no request or answer is under way either way.
func (s *Session) drain(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for s.calls.len()+s.inbox.len()+int(s.answering.Load()) > 0 {
		select {
		case <-tick.C:
		case <-s.done:
			return
		case <-ctx.Done():
			return
		}
	}
}

// Terminate ends the session at once and tells the peer why.
func (s *Session) Terminate(reason wire.Code) { s.end(Terminated, reason, true) }

// end moves to a final state and frees all; tell sends the peer a close frame. It
// does nothing if the session has ended already.
func (s *Session) end(to State, reason wire.Code, tell bool) {
	if s.move(to, reason) != nil {
		return
	}
	err := wire.Errorf(wire.SessionClosed, "session %s with %s ended", s.id, s.peer.Agent)
	switch {
	case reason == wire.ResourceExhausted && !tell && s.counters.received.Load() == 0:
		// The peer refused the channel: it has seen none of our requests.
		err = wire.Errorf(reason, "%s takes no more sessions now", s.peer.Agent)
	case reason != 0:
		err = wire.Errorf(wire.SessionClosed, "session %s with %s was terminated: %w", s.id, s.peer.Agent, reason)
	}
	s.calls.refuse(err, true)
	s.inbox.refuse(true)
	if tell {
		b, merr := proto.Marshal(&sessionpb.Close{Code: uint32(reason)})
		if merr == nil {
			s.post(typeClose, b)
		}
	}
	// A peer that does not read must not keep the conduit open.
	force := time.AfterFunc(5*time.Second, func() { s.channel.conduit.Reset(wire.SessionClosed) })
	s.owner.group.Go(func() {
		defer force.Stop()
		s.channel.finish()
		if !tell {
			s.channel.conduit.Reset(or(reason, wire.SessionClosed))
		}
	})
}

func or(c, def wire.Code) wire.Code {
	if c == 0 {
		return def
	}
	return c
}

func (s *Session) log(msg string, fields ...zap.Field) {
	s.owner.cfg.Log.Debug(msg, append(fields, zap.Stringer("session", s.id), zap.String("agent", string(s.peer.Agent)))...)
}
