// Package handlers serves what an agent offers to others: capabilities, each
// with schemas and with a handler that does the work.
//
//	peer ── session ──► Registry.Serve
//	                      │ find by name, check the version range
//	                      │ request fits its schema, is JSON now
//	                      ▼
//	                    Handler: HTTP POST, child process, application
//	                      │      that pulls (Broker), or Go function
//	                      ▼
//	                    response fits its schema, in the caller's encoding;
//	                    of a response in parts, each part does
//
// Capabilities come from files, which package capability reads and keeps. What
// a handler says of itself when it fails stays here: only codes and pointers
// travel to the caller.
package handlers

import (
	"context"
	"errors"
	"strings"
	"time"

	"openmesh/protocols/schema"
	"openmesh/protocols/wire"
)

// Request is one call of a capability.
type Request struct {
	Capability string
	Version    string // semantic version range that the caller accepts; empty: any
	Body       []byte
	Encoding   schema.Encoding // of Body; 0 is JSON
	Schema     string          // name@vVERSION of Body's schema, if the caller named it

	// CallerAgent and CallerAddress are proven, by the session's handshake.
	CallerAgent    string
	CallerAddress  string
	Session        string
	RequestID      string
	IdempotencyKey string // the same for each repetition of one message
	Traceparent    string // W3C trace context
	Tracestate     string
	CorrelationID  string
	Contract       string    // id of the market contract that the work is done under; empty: none
	Deadline       time.Time // zero: the handler's timeout alone counts
	Redelivered    bool      // the handler may have seen this message before
}

// Response answers a [Request]: with a body, or in parts.
type Response struct {
	Body     []byte
	Encoding schema.Encoding // 0 is JSON

	// Produce, if set, sends parts in place of a body, as they come to be. Whoever
	// has the response calls it, exactly once, even if nobody wants the parts any
	// more. Send waits while the caller does not read, and fails once it has given
	// up; Produce returns soon after that, or after ctx ends. Its error ends the
	// response. What [Handler.Handle] was given as context lives until Produce
	// returns, and the request's deadline and the handler's timeout hold for all of
	// the response.
	Produce func(ctx context.Context, send func(part []byte) error) error
}

// Handler does a capability's work. Requests that reach it fit the schema and
// are JSON. An error's [wire.Code] is what the caller learns; one without a code
// is [wire.HandlerFailed]. Handle returns soon after ctx ends. It may be called
// by many goroutines, and must not change the request.
type Handler interface {
	Handle(ctx context.Context, req *Request) (*Response, error)
}

// HandlerFunc is a Go function as a [Handler].
type HandlerFunc func(ctx context.Context, req *Request) (*Response, error)

// Handle calls f.
func (f HandlerFunc) Handle(ctx context.Context, req *Request) (*Response, error) {
	return f(ctx, req)
}

// ended says how ctx ended what was being done.
func ended(ctx context.Context, doing string) *wire.Error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return wire.Errorf(wire.DeadlineExceeded, "%s: %w", doing, ctx.Err())
	}
	return wire.Errorf(wire.Cancelled, "%s: %w", doing, context.Canceled)
}

// fact is one thing that a handler is told besides the body, under the name
// of an HTTP header and of an environment variable.
type fact struct{ header, env, value string }

// facts lists what a handler is told of req, whose deadline is that of ctx.
// Much of it is the caller's text: what could not stand in a header is left out.
func facts(ctx context.Context, req *Request, correlation string) []fact {
	deadline, redelivered := "", ""
	if d, ok := ctx.Deadline(); ok {
		deadline = d.UTC().Format(time.RFC3339Nano)
	}
	if req.Redelivered {
		redelivered = "true"
	}
	all := []fact{
		{correlation, "MESH_CORRELATION_ID", req.CorrelationID},
		{"traceparent", "MESH_TRACEPARENT", req.Traceparent},
		{"", "TRACEPARENT", req.Traceparent}, // what OpenTelemetry's tools look for
		{"tracestate", "TRACESTATE", req.Tracestate},
		{"x-mesh-caller-agent", "MESH_CALLER_AGENT", req.CallerAgent},
		{"x-mesh-caller-address", "MESH_CALLER_ADDRESS", req.CallerAddress},
		{"x-mesh-session", "MESH_SESSION", req.Session},
		{"x-mesh-request", "MESH_REQUEST", req.RequestID},
		{"x-mesh-idempotency-key", "MESH_IDEMPOTENCY_KEY", req.IdempotencyKey},
		{"x-mesh-capability", "MESH_CAPABILITY", req.Capability},
		{"x-mesh-schema", "MESH_SCHEMA", req.Schema},
		{"x-mesh-contract", "MESH_CONTRACT", req.Contract},
		{"x-mesh-deadline", "MESH_DEADLINE", deadline},
		{"x-mesh-redelivered", "MESH_REDELIVERED", redelivered},
	}
	told := all[:0]
	for _, f := range all {
		if f.value != "" && presentable(f.value) {
			told = append(told, f)
		}
	}
	return told
}

// presentable reports whether s is short printable ASCII.
func presentable(s string) bool {
	const longest = 1024
	return len(s) <= longest && !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' })
}

// emptyIsNull makes JSON of an answer without a body.
func emptyIsNull(body []byte) []byte {
	if len(body) == 0 {
		return []byte("null")
	}
	return body
}
