package session

import (
	"bytes"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"time"

	pool "github.com/libp2p/go-buffer-pool"
	"go.uber.org/zap"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/session/delivery/inbox"
	"openmesh/protocols/session/delivery/outbox"
	"openmesh/protocols/session/seal"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// mail is how a session delivers messages: what it sends and what it receives,
// with the promise of the contract.
type mail struct {
	out *outbox.Outbox
	in  *inbox.Inbox
}

func deliveryTerms(c signal.Contract) delivery.Terms {
	return delivery.Terms{
		QoS: delivery.QoS(c.QoS), Ordered: c.Ordered, TTL: c.TTL, AckTimeout: c.AckTimeout, MaxPending: c.MaxPending,
		Retry: delivery.Retry(c.Retry), MaxBody: uint32(min(c.MaxMessageBytes, math.MaxUint32)),
	}
}

func (s *Session) newMail() mail {
	terms := deliveryTerms(*s.terms.Load())
	return mail{
		out: outbox.New(outbox.Config{
			Session: s.id, Terms: terms, Store: s.owner.cfg.Store, Transmit: s.transmit, Random: rand.Float64,
			Observe: func(m *delivery.Message, o delivery.Outcome) { s.owner.delivered(s, m, o) },
		}),
		in: inbox.New(inbox.Config{Session: s.id, Terms: terms, Store: s.owner.cfg.Store, Handle: s.deliver, SendAck: s.sendAck}),
	}
}

func (e *Endpoint) delivered(s *Session, m *delivery.Message, o delivery.Outcome) {
	if e.cfg.Observe != nil {
		e.cfg.Observe.MessageOutcome(s, m, o)
	}
}

// Post sends a message with the promise of the contract, and returns its sequence
// once it is accepted: on disk, unless it is to be delivered at most once. See
// [outbox.Outbox.Send].
func (s *Session) Post(ctx context.Context, m *delivery.Message) (uint64, error) {
	if len(m.Body) > s.terms.Load().MaxMessageBytes {
		return 0, s.tooLarge(len(m.Body))
	}
	return s.mail.out.Send(ctx, m, time.Now())
}

// Outcome waits until it is known what became of a message that was posted.
func (s *Session) Outcome(ctx context.Context, sequence uint64) (delivery.Outcome, error) {
	return s.mail.out.Wait(ctx, sequence)
}

// Lookup tells what became of the message posted with an idempotency key; it may
// be pending.
func (s *Session) Lookup(ctx context.Context, key string) (uint64, delivery.Outcome, error) {
	return s.mail.out.Lookup(ctx, key)
}

// Messages returns what the peer sent to nobody in particular, from behind a
// cursor on. See [inbox.Inbox.Read].
func (s *Session) Messages(ctx context.Context, cursor uint64, limit int, wait bool) (inbox.Batch, error) {
	return s.mail.in.Read(ctx, cursor, limit, wait)
}

// Consume forgets the messages up to and including cursor.
func (s *Session) Consume(ctx context.Context, cursor uint64) error {
	return s.mail.in.Consume(ctx, cursor)
}

// transmit sends a message of the outbox, unless too much is on its way already:
// then the outbox is told when there is room again.
func (s *Session) transmit(m *delivery.Message, floor uint64) bool {
	if s.link.current.Load() == nil {
		s.wake()
		return s.postMessage(m, floor)
	}
	if s.conduct.Load() != nil && !s.may(len(m.Body)) {
		return false
	}
	plain := delivery.AppendMessage(pool.Get(len(m.Body) + maxMeta)[:0], m, floor, time.Now())
	if !s.link.post(s.link.opener(), seal.Data, plain, true) {
		s.blocked.Store(true)
		return false
	}
	s.sentFrame(len(plain))
	return true
}

func (s *Session) sendAck(a delivery.Ack) bool {
	if s.link.current.Load() == nil {
		return s.postAck(a)
	}
	plain := delivery.AppendAck(pool.Get(256)[:0], a)
	if !s.link.post(s.link.opener(), seal.Ack, plain, true) {
		return false
	}
	s.sentFrame(len(plain))
	return true
}

// sentFrame accounts for a frame that the link has taken.
func (s *Session) sentFrame(n int) {
	s.counters.used.Store(time.Now().UnixNano())
	s.counters.sent.Add(1)
	s.owner.stats.sent(s.path.Load().Kind, n+seal.Overhead)
}

// room lets the outbox go on if it waited for room.
func (s *Session) room() {
	if s.blocked.Load() && s.blocked.Swap(false) {
		s.mail.out.Due(time.Now())
	}
}

// data takes a data frame: a message, or bytes sent by Send.
func (s *Session) data(plain []byte, now time.Time) error {
	if len(plain) > 0 && plain[0] == 0 {
		if s.owner.cfg.Data != nil {
			s.owner.cfg.Data(s, plain[1:])
		}
		return nil
	}
	m, floor, err := delivery.ParseMessage(plain, now)
	if err != nil {
		return broken{code: wire.Malformed}
	}
	m.Body = bytes.Clone(m.Body)
	s.mail.in.Receive(m, floor, now)
	return nil
}

func (s *Session) ack(plain []byte, now time.Time) error {
	a, err := delivery.ParseAck(plain)
	if err != nil {
		return broken{code: wire.Malformed}
	}
	s.mail.out.Ack(a, now)
	return nil
}

// deliver hands a message to the handler of its capability.
func (s *Session) deliver(m *delivery.Message, done func(delivery.Outcome)) {
	deadline := m.Expires
	if latest := time.Now().Add(s.owner.cfg.MaxTimeout); deadline.After(latest) {
		deadline = latest
	}
	ctx, cancel := context.WithDeadline(s.owner.work, deadline)
	s.owner.workers.do(job{ctx: ctx, cancel: cancel, taken: time.Now(), settle: done, in: &Inbound{
		Session: s, ID: m.Sequence, Message: true, Deadline: deadline, Redelivered: m.Redelivered,
		Request: Request{
			Capability: m.Capability, Version: m.Version, Schema: m.Schema, Encoding: Encoding(m.Encoding), Body: m.Body,
			Traceparent: m.Traceparent, Tracestate: m.Tracestate, CorrelationID: m.CorrelationID, IdempotencyKey: m.Key,
		},
	}})
}

// runDelivery works on one message and settles it.
func (j job) runDelivery() {
	s := j.in.Session
	resp, err := s.handle(j.ctx, j.in)
	if err == nil && resp != nil && resp.Produce != nil {
		resp, err = s.gather(j.ctx, resp)
	}
	switch {
	case err != nil && s.owner.work.Err() != nil:
		return // the node is stopping: who sent it will send it again
	case err == nil && resp == nil:
		err = wire.Internal
	case err == nil && len(resp.Body) > s.terms.Load().MaxMessageBytes:
		err = s.tooLarge(len(resp.Body))
	}
	if err == nil {
		s.owner.stats.served.Add(1)
		j.settle(delivery.Outcome{Status: delivery.Delivered, Encoding: uint8(resp.Encoding), Response: resp.Body})
		return
	}
	s.owner.stats.failed.Add(1)
	o := delivery.Outcome{Status: delivery.Failed, Code: errorCode(err)}
	var e *wire.Error
	if errors.As(err, &e) {
		o.Pointers = e.Pointers[:min(len(e.Pointers), maxPointers)]
	}
	j.settle(o)
}

// outstanding reports whether a message waits to be delivered.
func (s *Session) outstanding() bool { return s.mail.out.Pending() > 0 }

func (s *Session) restoreDelivery(ctx context.Context) error {
	if err := s.mail.out.Restore(ctx, time.Now()); err != nil {
		return err
	}
	return s.mail.in.Restore(ctx)
}

// resumeDelivery sends again what may have been lost with one side's memory, or in
// the mail.
func (s *Session) resumeDelivery(now time.Time) {
	s.mail.in.Resume()
	s.mail.out.Resume(now)
}

// sweepDelivery does what is due for messages.
func (s *Session) sweepDelivery(now time.Time) {
	s.mail.out.Due(now)
	s.mail.in.Due(now)
	if s.offered.Load() {
		s.postInvitation(now)
	}
}

// endDelivery tells all who wait what became of their messages: nothing, if the
// session ended for good; what is durable goes on with the next process
// otherwise.
func (s *Session) endDelivery(code wire.Code) {
	now := time.Now()
	if !s.persistent() {
		s.mail.out.Close(code, now)
	} else { // who waits is to learn that it failed, not only that the session is over
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.mail.out.Fail(ctx, code, now); err != nil {
			s.owner.cfg.Log.Error("pending messages not failed", zap.Stringer("session", s.id), zap.Error(err))
		}
	}
	s.mail.in.Close()
}

// gather makes one JSON array of a response in parts.
func (s *Session) gather(ctx context.Context, r *Response) (*Response, error) {
	body := []byte{'['}
	err := s.produce(ctx, r, func(part []byte) error {
		if r.Encoding == Protobuf {
			return wire.Errorf(wire.Unsupported, "parts in Protobuf make no array")
		}
		if len(body)+len(part) > s.terms.Load().MaxMessageBytes {
			return s.tooLarge(len(body) + len(part))
		}
		if len(body) > 1 {
			body = append(body, ',')
		}
		body = append(body, part...)
		return nil
	})
	return &Response{Encoding: r.Encoding, Body: append(body, ']')}, err
}
