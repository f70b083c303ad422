package main

import (
	"context"
	"crypto/rand"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"openmesh/node/api"
	"openmesh/node/observe"
)

// timeToFlush is how long a command may take longer for its span to be sent.
const timeToFlush = 2 * time.Second

// startTrace begins the trace that a command's work is in: the daemon and all
// agents that take part hang their spans under it. The command's own span is
// sent only where the environment names a collector. end ends it with the
// command's outcome.
func (p *program) startTrace(ctx context.Context, command string) (_ context.Context, end func(error), err error) {
	tracer, err := observe.Tracing(ctx, observe.TracingConfig{
		Service: "openmesh-cli", Version: thisRelease().Version, Log: zap.NewNop(),
	})
	if err != nil {
		return nil, nil, err
	}
	if !tracer.Enabled() {
		return trace.ContextWithSpanContext(ctx, newSpanContext()), func(error) {}, nil
	}
	ctx, span := tracer.Start(ctx, command, trace.WithSpanKind(trace.SpanKindClient))
	return ctx, func(err error) {
		if err != nil {
			span.SetStatus(codes.Error, api.Describe(err).Code)
		}
		span.End()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeToFlush)
		defer cancel()
		_ = tracer.Shutdown(ctx) // a collector that does not answer is no failure of the command
	}, nil
}

// newSpanContext is the root of a trace that this program does not record
// itself. It is marked as sampled: whether the daemon records is for the daemon
// to say.
func newSpanContext() trace.SpanContext {
	config := trace.SpanContextConfig{TraceFlags: trace.FlagsSampled}
	rand.Read(config.TraceID[:]) // never fails (crypto/rand)
	rand.Read(config.SpanID[:])
	return trace.NewSpanContext(config)
}
