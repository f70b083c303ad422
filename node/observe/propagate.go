package observe

import (
	"context"

	"go.opentelemetry.io/otel/propagation"
)

// The bounds of a trace context from a peer, in bytes. A traceparent of today
// has 55, a later version may have more; a tracestate of 512 must be passed on
// (W3C Trace Context §3.3.1.5), and no more is.
const (
	MaxTraceparent = 128
	MaxTracestate  = 512
)

// Inject returns the trace context of ctx as it travels to another node (W3C
// Trace Context, level 1). Both are empty if ctx is in no trace.
func Inject(ctx context.Context) (traceparent, tracestate string) {
	var c carrier
	propagation.TraceContext{}.Inject(ctx, &c)
	return c.traceparent, c.tracestate
}

// Extract returns ctx within the trace that came from another node. What is
// malformed or over its bound is ignored: a trace is never worth a request.
func Extract(ctx context.Context, traceparent, tracestate string) context.Context {
	if traceparent == "" || len(traceparent) > MaxTraceparent {
		return ctx
	}
	if len(tracestate) > MaxTracestate {
		tracestate = ""
	}
	return propagation.TraceContext{}.Extract(ctx, &carrier{traceparent, tracestate})
}

// carrier is a propagation.TextMapCarrier without a map.
type carrier struct{ traceparent, tracestate string }

func (c *carrier) field(key string) *string {
	if key == "tracestate" {
		return &c.tracestate
	}
	return &c.traceparent
}

func (c *carrier) Get(key string) string { return *c.field(key) }
func (c *carrier) Set(key, value string) { *c.field(key) = value }
func (c *carrier) Keys() []string        { return []string{"traceparent", "tracestate"} }
