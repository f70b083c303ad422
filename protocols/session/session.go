// Package session is work between two agents: sealed frames over one or several
// channels, requests with deadlines, an end that says why.
//
// A session is set up by package signal. Its initiator opens a channel, such as a
// stream of [Protocol], and writes one message in the clear, Attach: the session
// id and the signal Confirm. All that follows, both ways, are frames, each with
// its length as a uvarint in front: at most the contract's MaxMessageBytes and
// maxMeta for what goes with a message. Package seal has their form and keys. A
// frame that does not open, or was seen before, changes nothing. Plaintexts are
// the messages of sessionpb.
//
// A session outlives its channels. Either side may open another one at any time:
//
//	Attach{session}, Rebind{what it received}  ──────▶
//	             ◀──────  Received, and whatever was lost, sent again
//
// What was sent and not received is kept by its sender until then, so requests,
// responses and streams survive the change. A channel that is silent for too long
// or fails is given up at once for another one, or for a new one over whatever
// transport still works. A session that nobody uses is parked: it has no channel
// until somebody does.
//
// States: see [State] and the table transitions.
package session

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	pool "github.com/libp2p/go-buffer-pool"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/session/seal"
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
	opened    time.Time
	counted   bool      // against the limit of its peer; guarded by the endpoint
	opener    bool      // this side opened it
	pinned    bool      // to a transport, by whoever opened it
	through   []Chain   // only over these, by whoever opened it
	waits     bool      // for the other side to come: that chose the path, and this side does not know it
	probeAt   time.Time // when to look for a better channel; of the sweep
	probeWait time.Duration
	eager     bool                 // restored from a process that was using it
	exclusive bool                 // whoever opened it has it for himself
	ends      atomic.Pointer[ends] // as the last signaling left them
	terms     atomic.Pointer[signal.Contract]
	conduct   atomic.Pointer[conduct] // nil: no rates

	owner      *Endpoint
	link       *link
	mail       mail
	streams    atomic.Pointer[streams]
	calls      calls
	inbox      arrivals
	counters   counters
	answering  atomic.Int32          // answers being written
	answers    atomic.Int64          // and the bytes of their bodies
	blocked    atomic.Bool           // the outbox waits for room
	quick      atomic.Bool           // the last request was answered at once
	connecting atomic.Bool           // somebody is opening a channel, for there is none
	probing    atomic.Bool           // somebody looks for a better one
	resuming   atomic.Int64          // when this side offered to go on with the session; Unix time in ns; 0: it has no offer out
	astray     atomic.Bool           // the peer was not where it was last
	away       atomic.Bool           // the peer cannot be reached: what there is to say goes by mail
	offered    atomic.Bool           // the peer was away when this side offered the session, and has not shown yet that it has it
	lettered   atomic.Bool           // the peer has written letters since it was here last
	trouble    atomic.Pointer[error] // why the session has no channel
	letters    letters
	ways       atomic.Pointer[[]string] // transports to consider moving to
	restored   bool                     // it was there before the restart
	finding    atomic.Bool              // somebody looks it up
	found      atomic.Pointer[Route]    // where it was when it was looked up last
	path       atomic.Pointer[Path]     // of the last channel used
	news       chan struct{}            // whoever is opening a channel should try again at once
	done       chan struct{}            // closed when the session is done

	mu      sync.Mutex
	state   State
	reason  wire.Code // why it was terminated
	history []Event
	notices []Notice
}

// ends are who and how the two sides are since the last signaling.
type ends struct {
	peer       *identity.Certificate
	initiator  bool // this side made the offer
	suite      signal.Suite
	names      Names
	transports []signal.Transport // of the peer
	protocols  []signal.AppProtocol
}

func endsOf(e *signal.Established) *ends {
	return &ends{
		peer: e.Peer, initiator: e.Initiator, suite: e.Suite, transports: e.Transports, protocols: e.Protocols,
		names: Names{e.ID.String(), string(e.Peer.Agent), e.Peer.Address.String(), e.Suite.String()},
	}
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
func newSession(owner *Endpoint, e *signal.Established, now time.Time) (*Session, error) {
	s := owner.build(e, now)
	keys, err := s.newKeys(e, now)
	if err != nil {
		return nil, err
	}
	s.link = newLink(keys)
	s.inbox.keys = keys
	s.streams.Store(s.newStreams(keys))
	return s, nil
}

// build makes a session without a link.
func (e *Endpoint) build(est *signal.Established, opened time.Time) *Session {
	s := &Session{
		opener: est.Initiator,
		id:     est.ID, opened: opened, owner: e, news: make(chan struct{}, 1), done: make(chan struct{}),
		calls: calls{limit: est.Contract.MaxPending},
		inbox: arrivals{limit: est.Contract.MaxPending},
	}
	s.ends.Store(endsOf(est))
	s.path.Store(new(Path))
	s.agree(est.Contract)
	s.mail = s.newMail()
	s.streams.Store(s.newStreams(nil))
	s.counters.used.Store(time.Now().UnixNano())
	return s
}

func (s *Session) newKeys(e *signal.Established, now time.Time) (*seal.Keys, error) {
	return seal.New(seal.Config{
		Session: e.ID, Suite: e.Suite, Initiator: e.Initiator,
		Interval: e.Contract.RekeyInterval, Frames: s.owner.cfg.RekeyFrames, Bytes: s.owner.cfg.RekeyBytes,
	}, &e.Secret, now)
}

// ID returns the session's id.
func (s *Session) ID() signal.ID { return s.id }

// Peer returns the certificate of the agent at the other end.
func (s *Session) Peer() *identity.Certificate { return s.ends.Load().peer }

// Names returns the session's and its peer's names.
func (s *Session) Names() Names { return s.ends.Load().names }

// agree makes c the session's contract.
func (s *Session) agree(c signal.Contract) {
	if rated(c) {
		s.conduct.Store(newConduct(c))
	}
	s.terms.Store(&c)
}

// tighten makes c, to which the peer has agreed, the contract of a session that goes
// on.
func (s *Session) tighten(c signal.Contract) {
	s.agree(c)
	s.calls.bound(c.MaxPending)
	s.inbox.bound(c.MaxPending)
	terms := deliveryTerms(c)
	s.mail.out.Agree(terms)
	s.mail.in.Agree(terms)
}

// Contract returns the terms that both sides agreed to.
func (s *Session) Contract() signal.Contract { return *s.terms.Load() }

// Opener reports whether this side opened the session.
func (s *Session) Opener() bool { return s.opener }

func (s *Session) isInitiator() bool { return s.ends.Load().initiator }

// Path returns how the session reaches the peer, or did last.
func (s *Session) Path() Path { return *s.path.Load() }

// over notes how ch reaches the peer. It keeps a copy: a pointer into a channel
// that is gone would keep all of it in memory.
func (s *Session) over(ch *channel) {
	path := ch.path
	s.path.Store(&path)
}

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
	ev := Event{Session: s.id, Agent: s.Peer().Agent, From: from, To: to, Reason: reason, At: time.Now()}
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
	if len(data) > s.terms.Load().MaxMessageBytes {
		return s.tooLarge(len(data))
	}
	plain := pool.Get(1 + len(data))
	plain[0] = 0 // no header: not a message with a promise
	copy(plain[1:], data)
	return s.write(s.link.opener(), seal.Data, plain)
}

func (s *Session) tooLarge(n int) error {
	return wire.Errorf(wire.TooLarge, "message of %d bytes, the session's limit is %d", n, s.terms.Load().MaxMessageBytes).
		WithHint("raise session.max_message_bytes on both sides, or send less at a time")
}

// message sends m as a frame of type t, as write does.
func (s *Session) message(keys *seal.Keys, t seal.Type, m proto.Message) error {
	plain, err := marshal(m)
	if err != nil {
		return err
	}
	return s.write(keys, t, plain)
}

// marshal serializes m into a buffer of the pool.
func marshal(m proto.Message) ([]byte, error) {
	buf := pool.Get(proto.Size(m))
	b, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(buf[:0], m)
	if err != nil {
		return nil, fmt.Errorf("encode frame: %w", err)
	}
	return b, nil
}

// write sends plain, a buffer of the pool that becomes the link's, as one frame.
// It waits while too much is on its way. That the channel fails is no error: the
// frame goes over the next one. That the session has other keys meanwhile is one:
// the frame belongs to what has ended with the old ones.
func (s *Session) write(keys *seal.Keys, t seal.Type, plain []byte) error {
	s.pace(t, len(plain))
	err := s.put(keys, t, plain)
	for err == errFull {
		<-s.link.vacancy()
		err = s.put(keys, t, plain)
	}
	return err
}

// put is write for those who have their own way to wait: it returns errFull if too
// much is on its way, and plain is the caller's still.
func (s *Session) put(keys *seal.Keys, t seal.Type, plain []byte) error {
	n, failed, err := s.link.send(keys, t, plain, s.crowded())
	switch {
	case err == errFull:
		return err
	case err != nil:
		return wire.Errorf(wire.SessionClosed, "session %s with %s has ended", s.id, s.Peer().Agent)
	case failed != nil:
		s.lost(failed, wire.Unreachable)
	case n == 0:
		s.wake()
	}
	s.counters.used.Store(time.Now().UnixNano())
	s.counters.sent.Add(1)
	s.owner.stats.sent(s.path.Load().Kind, n)
	return nil
}

// offer is write for those who must not wait; it reports whether the frame was
// taken. With bounded it is not if too much is on its way.
func (s *Session) offer(keys *seal.Keys, t seal.Type, m proto.Message, bounded bool) bool {
	plain, err := marshal(m)
	if err != nil {
		return false
	}
	n := len(plain)
	if !s.link.post(keys, t, plain, bounded) {
		return false
	}
	s.sentFrame(n)
	if s.link.current.Load() == nil {
		s.wake()
	}
	return true
}

// crowded reports whether several requests are under way, so that frames come in
// company.
func (s *Session) crowded() bool { return s.calls.len()+s.inbox.len() > 1 }

// tell queues a frame that speaks of channel ch, without waiting.
func (s *Session) tell(ch *channel, t seal.Type, plain []byte) {
	s.counters.sent.Add(1)
	s.link.tell(ch, t, plain)
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
	for s.calls.len()+s.inbox.len()+int(s.answering.Load())+s.mail.in.Busy()+s.streams.Load().Len() > 0 {
		select {
		case <-tick.C:
		case <-s.done:
			return
		case <-ctx.Done():
			return
		}
	}
}

// leave ends what this process has of the session: a persistent one goes on when
// it starts again, the others are closed.
func (s *Session) leave(ctx context.Context) {
	if s.persistent() {
		stopping := wire.Errorf(wire.SessionClosed, "this node is stopping")
		s.calls.refuse(stopping, false)
		s.drain(ctx)
		s.save()
		s.park()
		s.calls.refuse(stopping, true)
		s.mail.out.Close(wire.SessionClosed, time.Now())
		s.mail.in.Close()
		return
	}
	if s.Close(ctx) != nil {
		s.Terminate(wire.SessionClosed)
	}
}

// Terminate ends the session at once and tells the peer why.
func (s *Session) Terminate(reason wire.Code) { s.end(Terminated, reason, true) }

// end moves to a final state and frees all; tell sends the peer a close frame. It
// does nothing if the session has ended already.
func (s *Session) end(to State, reason wire.Code, tell bool) {
	s.endFor(to, reason, tell, nil)
}

// endFor is end with the error of the calls under way and of those to come.
func (s *Session) endFor(to State, reason wire.Code, tell bool, err error) {
	if s.move(to, reason) != nil {
		return
	}
	switch {
	case err != nil:
	case reason != 0:
		err = wire.Errorf(wire.SessionClosed, "session %s with %s was terminated: %w", s.id, s.Peer().Agent, reason)
	default:
		err = wire.Errorf(wire.SessionClosed, "session %s with %s ended", s.id, s.Peer().Agent)
	}
	s.spare(err)
	s.calls.refuse(err, true)
	s.inbox.refuse(true)
	s.streams.Load().Close(or(reason, wire.SessionClosed))
	if ch := s.link.current.Load(); tell && ch != nil {
		if b, merr := proto.Marshal(&sessionpb.Close{Code: uint32(reason)}); merr == nil {
			s.tell(ch, seal.Close, b)
		}
	}
	for _, ch := range s.link.close() {
		s.release(ch, tell, reason)
	}
	s.owner.start(func() {
		s.endDelivery(or(reason, wire.SessionClosed))
		s.conclude()
	})
}

// release ends a channel that the link has given up.
func (s *Session) release(ch *channel, gently bool, reason wire.Code) {
	close(ch.gone)
	s.owner.channels.Add(-1)
	s.finish(ch, gently, reason)
}

// finish closes a channel once all that was queued is written, or resets it.
func (s *Session) finish(ch *channel, gently bool, reason wire.Code) {
	// A peer that does not read must not keep the conduit open.
	force := time.AfterFunc(5*time.Second, func() { ch.conduit.Reset(wire.SessionClosed) })
	s.owner.group.Go(func() {
		defer force.Stop()
		ch.finish()
		if !gently {
			ch.conduit.Reset(or(reason, wire.SessionClosed))
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
	s.owner.cfg.Log.Debug(msg, append(fields, zap.Stringer("session", s.id), zap.String("agent", string(s.Peer().Agent)))...)
}
