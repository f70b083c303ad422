package session

import (
	"context"
	"errors"
	"fmt"
	"time"

	pool "github.com/libp2p/go-buffer-pool"
	"go.uber.org/zap"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/session/seal"
	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/wire"
)

// Encoding is the form of a body. Values are on the wire: append only.
type Encoding uint8

// The encodings.
const (
	JSON     Encoding = 1
	Protobuf Encoding = 2
)

// Request is a request to a capability.
type Request struct {
	Capability     string
	Version        string // semantic version range that the caller accepts; empty: any
	Schema         string // name@vVERSION of the body's schema, if it was said
	Encoding       Encoding
	Body           []byte
	Traceparent    string // W3C trace context
	Tracestate     string
	CorrelationID  string
	IdempotencyKey string

	// Deadline, if not zero, ends the call as that of its context would, within a
	// second. It costs no timer, which matters for small calls.
	Deadline time.Time
}

// Response is the answer to a request: a body, or parts that come bit by bit.
type Response struct {
	Encoding Encoding
	Body     []byte

	// Produce, if set by a handler, is called to send the parts in place of a body:
	// exactly once, even if nobody takes them any more. Send waits while the other
	// side does not read, and fails once it has given up. An error ends the response,
	// and its code and pointers are what the other side learns after the parts.
	Produce func(ctx context.Context, send func(part []byte) error) error

	// Parts are what the answering side produces, if it answered so. Whoever called
	// reads them to the end or closes them.
	Parts *Parts
}

// Inbound is a request as it reaches the answering side.
type Inbound struct {
	Request
	Session  *Session
	ID       uint64
	Deadline time.Time // until when the caller waits

	// Message says that the request was posted as a message, of which ID is the
	// sequence: it comes once, or again as it was.
	Message bool

	// Redelivered says that the request may have been worked on before, and the
	// answer was lost with one side's memory.
	Redelivered bool
}

// Handler answers requests of the other side. Its error's wire.Code, and the
// pointers of a wire.Error, are what the caller learns. The context ends when
// the caller gives up, the deadline passes or the session ends.
type Handler func(context.Context, *Inbound) (*Response, error)

// Call sends a request and waits for its response until ctx ends. It returns the
// request's id within the session, or 0 with an error if the other side cannot have
// seen the request. Errors carry what the other side answered, or
// wire.DeadlineExceeded, wire.Cancelled, wire.SessionClosed, wire.TooLarge or
// wire.ResourceExhausted.
func (s *Session) Call(ctx context.Context, r *Request) (*Response, uint64, error) {
	if len(r.Body) > s.terms.Load().MaxMessageBytes {
		return nil, 0, s.tooLarge(len(r.Body))
	}
	if meta := len(r.Capability) + len(r.Version) + len(r.Traceparent) + len(r.Tracestate) + len(r.CorrelationID) + len(r.IdempotencyKey); meta > maxMeta-128 {
		return nil, 0, wire.Errorf(wire.TooLarge, "%d bytes of names, trace context and keys go with the request, the limit is %d", meta, maxMeta-128)
	}
	keys := s.link.opener() // before the call begins: either it goes under them, or their end ends it
	id, ch, err := s.calls.begin(r.Deadline)
	if err != nil {
		return nil, 0, err
	}
	plain, err := marshal(&sessionpb.Request{
		Id: id, Capability: r.Capability, Version: r.Version, Timeout: remaining(ctx, r.Deadline), Encoding: sessionpb.Encoding(r.Encoding),
		Traceparent: r.Traceparent, Tracestate: r.Tracestate, CorrelationId: r.CorrelationID, IdempotencyKey: r.IdempotencyKey,
		Body: r.Body,
	})
	if err != nil {
		s.calls.abandon(id)
		return nil, 0, err
	}
	s.pace(seal.Request, len(plain))
	if err = s.put(keys, seal.Request, plain); err == errFull {
		return s.callLater(ctx, keys, id, ch, plain)
	}
	return s.answered(ctx, id, ch, err)
}

// answered returns what becomes of call id, whose request was sent, or was not for err.
func (s *Session) answered(ctx context.Context, id uint64, ch chan result, err error) (*Response, uint64, error) {
	if err != nil {
		s.calls.abandon(id)
		return nil, 0, err
	}
	select {
	case res := <-ch:
		s.calls.reuse(ch)
		if res.unsent {
			id = 0
		}
		return res.response, id, res.err
	case <-ctx.Done():
		return nil, id, s.giveUp(ctx, id)
	}
}

// callLater is the rest of a call for whose request there is no room yet: it waits
// no longer than the call may take.
func (s *Session) callLater(ctx context.Context, keys *seal.Keys, id uint64, ch chan result, plain []byte) (*Response, uint64, error) {
	s.calls.hold(id, true)
	for {
		select {
		case <-s.link.vacancy():
		case res := <-ch:
			pool.Put(plain)
			s.calls.reuse(ch)
			return nil, 0, res.err
		case <-ctx.Done():
			pool.Put(plain)
			return nil, id, s.giveUp(ctx, id)
		}
		if err := s.put(keys, seal.Request, plain); err != errFull {
			s.calls.hold(id, false)
			return s.answered(ctx, id, ch, err)
		}
	}
}

// spare fails, with err, the calls whose request the other side cannot have seen, as it
// is about to be lost with the session or its keys.
func (s *Session) spare(err error) {
	for _, plain := range s.link.withdraw(seal.Request) {
		m := new(sessionpb.Request)
		if unmarshal(plain, m) == nil {
			s.calls.finish(m.Id, result{err: err, unsent: true})
		}
	}
}

// remaining is how long ctx has until its deadline or the other, in milliseconds;
// 0 if there is none.
func remaining(ctx context.Context, other time.Time) uint32 {
	d, ok := ctx.Deadline()
	if !ok || !other.IsZero() && other.Before(d) {
		d = other
	}
	if d.IsZero() {
		return 0
	}
	return uint32(min(max(time.Until(d).Milliseconds(), 1), 1<<31))
}

// giveUp abandons call id and tells the other side to stop, if it has the request.
func (s *Session) giveUp(ctx context.Context, id uint64) error {
	sent := s.calls.abandon(id)
	code := wire.Cancelled
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		code = wire.DeadlineExceeded
	}
	if sent {
		s.cancel(id, code)
	}
	if code == wire.DeadlineExceeded {
		return s.late()
	}
	return wire.Errorf(code, "call to %s was cancelled", s.Peer().Agent)
}

func (s *Session) late() error {
	if err := s.trouble.Load(); err != nil {
		return wire.Errorf(wire.DeadlineExceeded, "no way to %s within the deadline: %w", s.Peer().Agent, *err)
	}
	return wire.Errorf(wire.DeadlineExceeded, "no answer from %s within the deadline", s.Peer().Agent).
		WithHint("the agent may still be working; a longer --timeout waits for it")
}

// expire ends what is past its deadline, both ways.
func (s *Session) expire(now time.Time) {
	s.inbox.expire(now)
	for id, sent := range s.calls.overdue(now) {
		s.calls.finish(id, result{err: s.late()})
		if sent {
			s.cancel(id, wire.DeadlineExceeded)
		}
	}
}

// cancel tells the other side to stop work on request id. It takes room beyond what
// there is, but no more than the requests that were sent.
func (s *Session) cancel(id uint64, code wire.Code) {
	s.offer(s.link.opener(), seal.Error, &sessionpb.Error{Id: id, Code: uint32(code), Cancel: true}, false)
}

// deadlined is a context whose deadline the sweep enforces: a timer for each
// request costs more than many requests do.
type deadlined struct {
	context.Context
	deadline time.Time
}

func (d *deadlined) Deadline() (time.Time, bool) { return d.deadline, true }

func (d *deadlined) Err() error {
	err := d.Context.Err()
	if err != nil && !time.Now().Before(d.deadline) {
		return context.DeadlineExceeded
	}
	return err
}

// job is a request on its way to a worker.
type job struct {
	in     *Inbound
	ctx    context.Context
	cancel context.CancelFunc
	taken  time.Time
	settle func(delivery.Outcome) // of a message; nil for a request
	keys   *seal.Keys             // under which a request came, and its answer goes
}

// take accepts a request of the other side, or refuses it: then the job is zero.
// The error ends the session: the peer asks for more than it may and does not even
// take the refusals.
func (s *Session) take(keys *seal.Keys, m *sessionpb.Request) (job, error) {
	in := &Inbound{
		Session: s, ID: m.Id,
		Request: Request{
			Capability: m.Capability, Version: m.Version, Encoding: Encoding(m.Encoding), Body: m.Body,
			Traceparent: m.Traceparent, Tracestate: m.Tracestate, CorrelationID: m.CorrelationId, IdempotencyKey: m.IdempotencyKey,
		},
	}
	timeout := time.Duration(m.Timeout) * time.Millisecond
	if timeout == 0 || timeout > s.owner.cfg.MaxTimeout {
		timeout = s.owner.cfg.MaxTimeout
	}
	now := time.Now()
	in.Deadline = now.Add(timeout)
	ctx, cancel := context.WithCancel(s.owner.work)
	if err := s.admit(m.Id, working{cancel, in.Deadline, in, keys}); err != nil {
		cancel()
		s.owner.stats.refused.Add(1)
		if !s.offer(keys, seal.Error, failure(m.Id, err), true) {
			return job{}, broken{code: wire.ResourceExhausted}
		}
		return job{}, nil
	}
	return job{in: in, ctx: &deadlined{ctx, in.Deadline}, cancel: cancel, taken: now, keys: keys}, nil
}

// admit registers request id, or says with which code it is refused. Answers that
// wait to be written count too: a peer that does not take them gets no more.
func (s *Session) admit(id uint64, w working) error {
	if int(s.answering.Load()) >= s.terms.Load().MaxPending || s.answers.Load() >= maxInHand {
		return wire.ResourceExhausted
	}
	return s.inbox.add(id, w)
}

// run answers one request.
func (j job) run() {
	s := j.in.Session
	defer j.cancel()
	if j.settle != nil {
		j.runDelivery()
		return
	}
	resp, err := s.handle(j.ctx, j.in)
	if err == nil && resp != nil && resp.Produce != nil {
		if err = j.respond(j.ctx, resp); err == nil {
			s.inbox.remove(j.in)
			return
		}
	}
	s.quick.Store(time.Since(j.taken) < quickLimit)
	// The answer is under way until it is written; the request's place is free
	// before that, for who has the answer may send the next one.
	s.answering.Add(1)
	defer s.answering.Add(-1)
	if !s.inbox.remove(j.in) {
		return
	}
	if err == nil && resp == nil {
		err = wire.Internal
	}
	if err == nil && len(resp.Body) > s.terms.Load().MaxMessageBytes {
		err = s.tooLarge(len(resp.Body))
	}
	if err != nil {
		s.owner.stats.failed.Add(1)
		if err := s.message(j.keys, seal.Error, failure(j.in.ID, err)); err != nil {
			s.log("error not sent", zap.Error(err))
		}
		return
	}
	s.owner.stats.served.Add(1)
	s.answers.Add(int64(len(resp.Body)))
	defer s.answers.Add(-int64(len(resp.Body)))
	if err := s.message(j.keys, seal.Response, &sessionpb.Response{Id: j.in.ID, Encoding: sessionpb.Encoding(resp.Encoding), Body: resp.Body}); err != nil {
		s.log("response not sent", zap.Error(err))
	}
}

func (s *Session) handle(ctx context.Context, in *Inbound) (resp *Response, err error) {
	defer s.recovered(&err)
	return s.owner.cfg.Handler(ctx, in)
}

// recovered makes an error of a handler's panic; to be deferred.
func (s *Session) recovered(err *error) {
	if v := recover(); v != nil {
		*err = fmt.Errorf("panic: %v", v)
		s.owner.cfg.Log.Error("request handler panicked", zap.Any("panic", v), zap.Stack("stack"))
	}
}

// maxPointers bounds the JSON pointers of an error frame.
const maxPointers = 16

// failure tells the other side that its request failed. Only the code and the
// pointers travel; the rest is for our log.
func failure(id uint64, err error) *sessionpb.Error {
	m := &sessionpb.Error{Id: id, Code: uint32(errorCode(err))}
	var e *wire.Error
	if errors.As(err, &e) {
		m.Pointers = e.Pointers[:min(len(e.Pointers), maxPointers)]
	}
	return m
}

func errorCode(err error) wire.Code {
	var c wire.Code
	switch {
	case errors.As(err, &c):
		return c
	case errors.Is(err, context.DeadlineExceeded):
		return wire.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return wire.Cancelled
	}
	return wire.Internal
}

// failed is the error of a call that the other side answered with m.
func (s *Session) failed(m *sessionpb.Error) error {
	code := wire.Code(m.Code)
	if !code.Known() {
		code = wire.Internal
	}
	e := wire.Errorf(code, "%s answered %s", s.Peer().Agent, code)
	e.Pointers = m.Pointers[:min(len(m.Pointers), maxPointers)]
	return e
}
