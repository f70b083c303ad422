package session

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// While the other side of a persistent session cannot be reached, what the
// session has to say goes by mail: each message in a letter of its own, answers
// together. A letter is no transmission that counts: the outbox keeps the message
// until it knows the outcome, and sends all that has none again as soon as the two
// meet. So a letter may get lost, come twice or too late, and nothing is.
//
//	sender                       mailbox                      recipient
//	unreachable for mailAfter
//	Letter{message 7} ─────────────▶ stored
//	                                    └──── it comes back ────▶ handler
//	  reachable:      ◀──────────── resumes the session ─────────── │
//	  else:  mailbox of the sender ◀─────── Letter{ack 7, answer} ──┘
//
// A session can begin that way too. It stays offered until the two have met.

// Mail leaves letters for agents that cannot be reached.
type Mail interface {
	// Deposit leaves l for the agent with certificate to, or a newer one of its own,
	// and returns once it is kept.
	Deposit(ctx context.Context, to *identity.Certificate, l *Letter) error
}

// Letter is what one side of a session says by mail.
type Letter struct {
	Payload []byte // a sessionpb.Letter
	Expires time.Time

	sequence uint64 // of its message; 0: it has none
}

const (
	mailAfter   = 2 * time.Second // of attempts to reach the peer
	maxLetters  = 64              // of a session that wait to be deposited
	depositTime = 30 * time.Second
	maxDeposit  = time.Minute // between attempts to deposit a letter
)

// letters are those of one session that are on their way to a mailbox.
type letters struct {
	mu     sync.Mutex
	queue  []*Letter
	busy   bool            // somebody deposits
	posted map[uint64]bool // messages for the mail, and whether it has them; 0: the invitation
}

// turnToMail has the session talk by mail from now on, until it has a channel.
func (s *Session) turnToMail() {
	if s.owner.cfg.Mail == nil || s.through != nil || s.link.current.Load() != nil || s.away.Swap(true) {
		return
	}
	if s.link.current.Load() != nil { // since just now
		s.away.Store(false)
		return
	}
	s.log("peer is away: mail instead")
	now := time.Now()
	s.mail.out.Due(now)
	s.mail.in.Due(now)
}

// postInvitation offers the session by mail, if no message does.
func (s *Session) postInvitation(now time.Time) {
	if s.away.Load() && !s.outstanding() {
		s.enclose(0, now.Add(s.terms.Load().TTL), &sessionpb.Letter{})
	}
}

// turnFromMail ends that: the peer is here.
func (s *Session) turnFromMail() (was bool) {
	if !s.away.Swap(false) {
		return false
	}
	s.letters.mu.Lock()
	s.letters.queue, s.letters.posted = nil, nil
	s.letters.mu.Unlock()
	s.lettered.Store(false)
	return true
}

// postMessage puts a message of the outbox into the mail, and reports whether it is
// there: if not, the outbox is told when it may be.
func (s *Session) postMessage(m *delivery.Message, floor uint64) bool {
	switch {
	case !s.away.Load():
		return false
	case m.Sequence == 0:
		return true // the floor goes with the next one
	}
	s.letters.mu.Lock()
	there, begun := s.letters.posted[m.Sequence]
	s.letters.mu.Unlock()
	if begun {
		return there
	}
	s.blocked.Store(true)
	frame := delivery.AppendMessage(nil, m, floor, time.Now())
	s.enclose(m.Sequence, m.Expires, &sessionpb.Letter{Messages: [][]byte{frame}})
	return false
}

// postAck puts an ack into the mail. That a message is being worked on is no news
// by then. Nor is that an attempt had no effect: the letter is kept and comes again.
func (s *Session) postAck(a delivery.Ack) bool {
	if !s.away.Load() {
		return false
	}
	a.Working = nil
	if s.terms.Load().QoS != signal.AtMostOnce {
		a.Failed = slices.DeleteFunc(slices.Clone(a.Failed), func(f delivery.Failure) bool { return f.Code.Retry() })
	}
	if len(a.Delivered)+len(a.Failed)+len(a.Responses) == 0 {
		return true
	}
	frame := delivery.AppendAck(nil, a)
	return s.enclose(0, time.Now().Add(s.terms.Load().TTL), &sessionpb.Letter{Acks: [][]byte{frame}})
}

// enclose queues one letter, unless it was before; sequence is that of its message, if
// it has one. It reports false if too many wait.
func (s *Session) enclose(sequence uint64, expires time.Time, m *sessionpb.Letter) bool {
	l := &s.letters
	l.mu.Lock()
	defer l.mu.Unlock()
	unique := sequence > 0 || len(m.Acks) == 0
	if _, ok := l.posted[sequence]; ok && unique {
		return true
	}
	if len(l.queue) >= maxLetters {
		return false
	}
	if l.posted == nil {
		l.posted = make(map[uint64]bool)
	}
	if unique {
		l.posted[sequence] = false
	}
	m.Session, m.Written = s.id[:], time.Now().UnixMilli()
	if s.offered.Load() {
		m.Invitation = s.invitation()
	}
	payload, err := proto.Marshal(m)
	if err != nil {
		panic(err) // bytes, numbers and checked names always marshal
	}
	l.queue = append(l.queue, &Letter{Payload: payload, Expires: expires, sequence: sequence})
	if !l.busy {
		l.busy = s.owner.start(s.deposit)
	}
	return true
}

func (s *Session) invitation() *sessionpb.Invitation {
	terms := s.owner.cfg.Signal.Terms()
	c := s.Contract()
	m := &sessionpb.Invitation{Contract: c.Marshal()}
	for _, p := range terms.Protocols {
		m.Protocols = append(m.Protocols, &sessionpb.InvitationProtocol{Name: p.Name, Versions: p.Versions})
	}
	for _, t := range terms.Transports {
		m.Addrs = append(m.Addrs, t.Addrs...)
	}
	m.Addrs = m.Addrs[:min(len(m.Addrs), maxReached)]
	return m
}

// deposit takes letters to the mailbox, one after the other, until none is left.
func (s *Session) deposit() {
	wait := backoff.NewExponentialBackOff()
	wait.MaxInterval = maxDeposit
	for {
		l, ok := s.letters.first()
		if !ok {
			s.room()
			return
		}
		ctx, cancel := context.WithTimeout(s.owner.work, depositTime)
		err := s.owner.cfg.Mail.Deposit(ctx, s.Peer(), l)
		cancel()
		if err == nil || !time.Now().Before(l.Expires) {
			wait.Reset()
			if s.letters.done(l) && err == nil && s.away.Load() {
				s.path.Store(&Path{Kind: "mailbox", Transport: "mailbox"})
			}
			s.room()
			continue
		}
		s.log("letter not deposited", zap.Error(err))
		if !s.pause(wait.NextBackOff()) {
			s.letters.stop()
			return
		}
	}
}

// first returns the next letter, or ends the work on them.
func (l *letters) first() (*Letter, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		l.busy = false
		return nil, false
	}
	return l.queue[0], true
}

// done removes a letter, and reports whether it was still there.
func (l *letters) done(d *Letter) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 || l.queue[0] != d {
		return false
	}
	l.queue = slices.Delete(l.queue, 0, 1)
	if _, ok := l.posted[d.sequence]; ok {
		l.posted[d.sequence] = true
	}
	return true
}

func (l *letters) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy = false
}

// invite makes a session that the other side, which is away, has not agreed to. It
// takes messages at once.
func (e *Endpoint) invite(t Target, terms signal.Terms, exclusive bool) (*Session, error) {
	est := &signal.Established{Peer: t.Mailbox, Initiator: true, Contract: terms.Contract, At: time.Now()}
	rand.Read(est.ID[:])
	est.Transports = remember(nil, t.Route)
	s := e.build(est, est.At)
	s.exclusive, s.link = exclusive, newLink(nil)
	s.offered.Store(true)
	s.astray.Store(true)
	if err := e.commence(s, nil); err != nil {
		return nil, err
	}
	s.turnToMail()
	s.wake()
	return s, nil
}

// TakeLetter takes in what agent from said by mail, and returns soon. done hears,
// once and from any goroutine, what became of that: nil once it is on disk or done
// with, so that nobody needs to keep the letter; an error with a code that may be
// tried again ([wire.Code.Retry]), if it should be kept and come again; any other, if
// it is of no use.
func (e *Endpoint) TakeLetter(ctx context.Context, from *identity.Certificate, payload []byte, done func(error)) {
	select {
	case <-e.restored:
	case <-ctx.Done():
		done(fmt.Errorf("%w: %w", wire.Unreachable, ctx.Err()))
		return
	}
	m := new(sessionpb.Letter)
	if err := proto.Unmarshal(payload, m); err != nil || len(m.Session) != len(signal.ID{}) {
		done(wire.Errorf(wire.Malformed, "letter from %s", from.Agent))
		return
	}
	s, err := e.addressee(ctx, from, m)
	if err != nil {
		done(err)
		return
	}
	s.readLetter(m, time.Now(), done)
}

// addressee finds the session that a letter is of; an invitation may begin it. Once
// the session has a later key of its peer's, a letter under a former one is of no use:
// that may have been stolen, and an honest sender still has what it said.
func (e *Endpoint) addressee(ctx context.Context, from *identity.Certificate, m *sessionpb.Letter) (*Session, error) {
	id := signal.ID(m.Session)
	s := e.session(id)
	switch {
	case s != nil && (s.Peer().Agent != from.Agent || !s.persistent()):
		return nil, wire.Errorf(wire.NotFound, "session %s with %s", id, from.Agent)
	case s != nil && from.Version < s.Peer().Version:
		return nil, wire.Errorf(wire.KeySuperseded, "a letter under key version %d of %s, which has version %d", from.Version, from.Agent, s.Peer().Version)
	case s != nil:
		return s, nil
	case m.Invitation == nil || e.cfg.Store == nil || e.hadEnded(id):
		return nil, wire.Errorf(wire.NotFound, "session %s with %s", id, from.Agent)
	}
	return e.beginByMail(ctx, id, from, m.Invitation)
}

func (e *Endpoint) beginByMail(ctx context.Context, id signal.ID, from *identity.Certificate, m *sessionpb.Invitation) (*Session, error) {
	offered, err := signal.ParseContract(m.Contract)
	if err != nil {
		return nil, err
	}
	if e.cfg.Signal.Allow != nil {
		if err := e.cfg.Signal.Allow(from); err != nil {
			return nil, err
		}
	}
	if err := e.cfg.Signal.MayBegin(ctx, from, offered); wire.CodeOf(err) == wire.Internal && err != nil {
		return nil, fmt.Errorf("%w: %w", wire.ResourceExhausted, err) // it may go the next time
	} else if err != nil {
		return nil, err
	}
	var protocols []signal.AppProtocol
	for _, p := range m.Protocols {
		protocols = append(protocols, signal.AppProtocol{Name: p.GetName(), Versions: p.GetVersions()})
	}
	est := &signal.Established{ID: id, Peer: from, At: time.Now()}
	if est.Contract, est.Protocols, err = e.cfg.Signal.Terms().Agree(offered, protocols); err != nil {
		return nil, err
	}
	if !est.Contract.Persistent {
		return nil, wire.Errorf(wire.Unsupported, "session %s by mail that is not persistent", id)
	}
	est.Transports = []signal.Transport{{Addrs: m.Addrs[:min(len(m.Addrs), maxReached)]}}
	s := e.build(est, est.At)
	s.link = newLink(nil)
	s.astray.Store(true)
	if err := e.commence(s, nil); wire.CodeOf(err) == wire.Internal && err != nil {
		return nil, fmt.Errorf("%w: %w", wire.ResourceExhausted, err) // the store's
	} else if err != nil {
		return nil, err
	}
	s.move(Active, 0)
	s.move(Migrating, 0)
	return s, nil
}

// readLetter takes in messages and acks, and tries to reach the sender.
func (s *Session) readLetter(m *sessionpb.Letter, now time.Time, done func(error)) {
	written := time.UnixMilli(m.Written)
	if written.After(now) {
		written = now // its clock is ahead
	}
	s.counters.used.Store(now.UnixNano())
	s.lettered.Store(true)
	all := &parts{left: 1, done: done} // the one for this function
	err := s.readMessages(m.Messages, written, now, all)
	if err == nil {
		err = s.readAcks(m.Acks, now)
	}
	all.settled(err)
	if err == nil {
		s.wake()
	}
}

func (s *Session) readMessages(messages [][]byte, written, now time.Time, all *parts) error {
	for _, b := range messages {
		message, floor, err := delivery.ParseMessage(b, written)
		if err != nil {
			return err
		}
		if message.Expires.After(now) && len(message.Body) <= s.terms.Load().MaxMessageBytes {
			message.Accepted = now
			message.Redelivered = message.Redelivered || s.mayHaveCome(written)
			all.add()
			s.mail.in.Keep(message, floor, now, all.settled)
		}
	}
	return nil
}

// mayHaveCome reports whether a handler of a former process may have had a message of
// a letter that was written then: who kept the letter cannot know.
func (s *Session) mayHaveCome(written time.Time) bool {
	return s.restored && written.Before(s.owner.began.Add(identity.ClockSkew))
}

func (s *Session) readAcks(acks [][]byte, now time.Time) error {
	for _, b := range acks {
		a, err := delivery.ParseAck(b)
		if err != nil {
			return err
		}
		if err := s.mail.out.Recall(s.owner.work, a.Highest()); err != nil {
			return fmt.Errorf("%w: %w", wire.ResourceExhausted, err)
		}
		s.mail.out.Ack(a, now)
	}
	return nil
}

// parts are the parts of a letter. Once all are settled, done hears the error of one,
// if any has one.
type parts struct {
	mu   sync.Mutex
	left int
	err  error
	done func(error)
}

func (p *parts) add() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left++
}

func (p *parts) settled(err error) {
	p.mu.Lock()
	p.left--
	p.err = cmp.Or(p.err, err)
	left, err := p.left, p.err
	p.mu.Unlock()
	if left == 0 {
		p.done(err)
	}
}

// owes reports whether a letter is to be answered.
func (s *Session) owes() bool { return s.lettered.Load() && s.mail.in.Owes() }

// hadEnded reports whether the session was there and is over.
func (e *Endpoint) hadEnded(id signal.ID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.ContainsFunc(e.ended, func(i Info) bool { return i.ID == id }) ||
		slices.ContainsFunc(e.outlived, func(o outlived) bool { return o.id == id })
}
