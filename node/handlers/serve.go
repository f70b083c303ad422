package handlers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/Masterminds/semver/v3"
	"go.uber.org/zap"

	"openmesh/node/handlers/capability"
	"openmesh/protocols/schema"
	"openmesh/protocols/wire"
)

// Serve answers req with the capability that it names. Every error has a
// [wire.Code]: [wire.NotFound], [wire.Unsupported] (no such version),
// [wire.Malformed] (a version range that is none), [wire.InvalidRequest] and
// [wire.InvalidResponse] with pointers, [wire.HandlerUnavailable],
// [wire.HandlerFailed], [wire.DeadlineExceeded], [wire.Cancelled], or what the
// handler says. The response is in the encoding of the request, or else in JSON
// if the capability's response has no Protobuf schema. Of a response in parts
// each part is, and the same errors can come after some of them.
func (r *Registry) Serve(ctx context.Context, req *Request) (*Response, error) {
	e, ok := (*r.entries.Load())[req.Capability]
	if !ok {
		return nil, wire.Errorf(wire.NotFound, "no capability %.*q here", capability.MaxName, req.Capability)
	}
	if err := e.accepts(req.Version); err != nil {
		return nil, err
	}
	in, err := r.admit(e, req)
	if err != nil {
		return nil, err
	}
	deadline := e.deadline(req)
	ctx, cancel := limit(ctx, deadline)
	resp, err := r.handle(ctx, e, in)
	if err == nil && resp != nil && resp.Produce != nil {
		return r.parts(e, resp, req.Encoding, deadline, cancel), nil // which cancels
	}
	defer cancel()
	if err != nil {
		return nil, failure(ctx, err)
	}
	return r.answer(e, resp, req.Encoding)
}

// parts is a response in parts, each of which is checked and converted as a
// response by itself. It calls release at its end.
func (r *Registry) parts(e *entry, resp *Response, want schema.Encoding, deadline time.Time, release func()) *Response {
	out := &Response{Encoding: e.encoding(want)}
	out.Produce = func(ctx context.Context, send func([]byte) error) error {
		defer release()
		ctx, cancel := limit(ctx, deadline)
		defer cancel()
		var stopped error // what the handler may not hide
		err := r.produce(ctx, e, resp, func(body []byte) error {
			if stopped != nil {
				return stopped
			}
			part, err := r.answer(e, &Response{Body: body, Encoding: resp.Encoding}, want)
			if err == nil {
				err = send(part.Body)
			}
			stopped = err
			return err
		})
		if err = cmp.Or(stopped, err); err != nil {
			return failure(ctx, err)
		}
		return nil
	}
	return out
}

// rangeCheck is a version range and whether an entry is in it.
type rangeCheck struct {
	text string
	err  *wire.Error
}

// accepts checks the caller's version range. The last one is remembered, since
// callers mostly ask for the same.
func (e *entry) accepts(text string) error {
	if text == "" {
		return nil
	}
	last := e.lastRange.Load()
	if last == nil || last.text != text {
		last = &rangeCheck{text, e.checkRange(text)}
		e.lastRange.Store(last)
	}
	if last.err != nil {
		return last.err
	}
	return nil
}

func (e *entry) checkRange(text string) *wire.Error {
	const longest = 128
	if len(text) > longest {
		return wire.Errorf(wire.Malformed, "a version range of more than %d bytes", longest)
	}
	want, err := semver.NewConstraint(text)
	if err != nil {
		return wire.Errorf(wire.Malformed, "version range %q: %w", text, err)
	}
	if !want.Check(e.version) {
		return wire.Errorf(wire.Unsupported, "%s is at version %s here, not %q", e.capability.Name, e.version, text)
	}
	return nil
}

// admit checks the request and returns it as JSON.
func (r *Registry) admit(e *entry, req *Request) (*Request, error) {
	body, err := r.check(e, wire.InvalidRequest, e.request, req.Body, orJSON(req.Encoding), schema.JSON)
	if err != nil {
		return nil, err
	}
	in := *req
	in.Body, in.Encoding = body, schema.JSON
	return &in, nil
}

// answer checks the response and returns it in the caller's encoding.
func (r *Registry) answer(e *entry, resp *Response, want schema.Encoding) (*Response, error) {
	if resp == nil {
		resp = &Response{Body: []byte("null")}
	}
	if len(resp.Body) > r.cfg.MaxResponse {
		return nil, tooLong(r.cfg.MaxResponse)
	}
	want = e.encoding(want)
	body, err := r.check(e, wire.InvalidResponse, e.response, resp.Body, orJSON(resp.Encoding), want)
	if err != nil {
		return nil, err
	}
	return &Response{Body: body, Encoding: want}, nil
}

// encoding is that of responses to a caller who wants another one or the same.
func (e *entry) encoding(want schema.Encoding) schema.Encoding {
	if !e.response.IsProto() {
		return schema.JSON
	}
	return orJSON(want)
}

func orJSON(enc schema.Encoding) schema.Encoding {
	if enc == 0 {
		return schema.JSON
	}
	return enc
}

// check validates body and converts it. When lenient, a body passes that breaks
// its schema but can be decoded and need not be converted.
func (r *Registry) check(e *entry, code wire.Code, s *schema.Schema, body []byte, from, to schema.Encoding) ([]byte, error) {
	out, err := s.Convert(body, from, to)
	if err == nil {
		return out, nil
	}
	bad := &wire.Error{Code: code, Message: e.capability.Name + ": " + err.Error(), Err: err}
	if inv, ok := errors.AsType[*schema.Invalid](err); ok {
		bad.Pointers = inv.Pointers
	}
	r.cfg.OnInvalid(e.capability.Name, bad)
	if r.cfg.Lenient && from == to && !errors.Is(err, schema.ErrMalformed) {
		return body, nil
	}
	return nil, bad
}

// deadline is when the handler's timeout passes, or the request's if sooner.
func (e *entry) deadline(req *Request) time.Time {
	deadline := time.Now().Add(e.capability.Timeout())
	if !req.Deadline.IsZero() && req.Deadline.Before(deadline) {
		deadline = req.Deadline
	}
	return deadline
}

// limit gives ctx a deadline, unless it has a sooner one.
func limit(ctx context.Context, deadline time.Time) (context.Context, context.CancelFunc) {
	if d, ok := ctx.Deadline(); ok && !deadline.Before(d) {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, deadline)
}

// handle calls the handler.
func (r *Registry) handle(ctx context.Context, e *entry, req *Request) (resp *Response, err error) {
	defer r.recovered(e, &err)
	if ctx.Err() != nil {
		return nil, ended(ctx, "before the handler was called")
	}
	return e.handler.Handle(ctx, req)
}

func (r *Registry) produce(ctx context.Context, e *entry, resp *Response, send func([]byte) error) (err error) {
	defer r.recovered(e, &err)
	return resp.Produce(ctx, send)
}

// recovered makes an error of a handler's panic, which must not take the node
// with it; to be deferred.
func (r *Registry) recovered(e *entry, err *error) {
	if p := recover(); p != nil {
		r.cfg.Log.Error("handler panicked", zap.String("capability", e.capability.Name), zap.ByteString("stack", debug.Stack()))
		*err = wire.Errorf(wire.HandlerFailed, "handler of %s panicked", e.capability.Name)
	}
}

// failure gives a handler's error a code, if it has none.
func failure(ctx context.Context, err error) error {
	if _, ok := errors.AsType[wire.Code](err); ok {
		return err
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return ended(ctx, "handle the request")
	}
	return &wire.Error{Code: wire.HandlerFailed, Message: fmt.Sprintf("handle the request: %v", err), Err: err}
}
