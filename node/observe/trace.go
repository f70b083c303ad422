package observe

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"openmesh/protocols/wire"
)

// TracingConfig says who makes the spans. Where they go is for the standard
// OTEL_ variables.
type TracingConfig struct {
	Service  string // service.name, unless OTEL_SERVICE_NAME says otherwise
	Version  string // service.version
	Instance string // service.instance.id, such as the agent id
	Log      *zap.Logger
}

// A Tracer makes spans. Without a place to send them it records nothing, but
// still gives each trace an id and passes the ids of others on, so that logs of
// several nodes can be matched. Safe for concurrent use.
type Tracer struct {
	provider *sdktrace.TracerProvider // nil if nothing is recorded
	tracer   trace.Tracer
}

// Tracing makes a tracer as the OpenTelemetry environment variables say
// (OpenTelemetry specification, "Environment Variable Specification"):
//
//	OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, OTEL_EXPORTER_OTLP_ENDPOINT   none: nothing is recorded
//	OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, OTEL_EXPORTER_OTLP_PROTOCOL   http/protobuf (default) or grpc
//	OTEL_TRACES_EXPORTER                                              otlp (default) or none
//	OTEL_SDK_DISABLED                                                 true: nothing is recorded
//
// The SDK and its exporters honour the rest: OTEL_TRACES_SAMPLER, headers,
// certificates, batching, resource attributes. Errors: wire.InvalidArgument.
func Tracing(ctx context.Context, c TracingConfig) (*Tracer, error) {
	wanted, err := tracesWanted()
	if err != nil || !wanted {
		return &Tracer{}, err
	}
	exporter, err := newExporter(ctx)
	if err != nil {
		return nil, err
	}
	res, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithAttributes(
			attribute.String("service.name", c.Service),
			attribute.String("service.version", c.Version),
			attribute.String("service.instance.id", c.Instance),
		),
		resource.WithFromEnv(), // last, so that it wins
	)
	if err != nil {
		return nil, wire.Errorf(wire.InvalidArgument, "describe this node to the trace collector: %w", err).
			WithHint("check OTEL_RESOURCE_ATTRIBUTES")
	}
	p := sdktrace.NewTracerProvider(sdktrace.WithResource(res), sdktrace.WithBatcher(loggedExporter{exporter, c.Log}))
	return &Tracer{provider: p, tracer: p.Tracer("openmesh", trace.WithInstrumentationVersion(c.Version))}, nil
}

func tracesWanted() (bool, error) {
	switch exporter := os.Getenv("OTEL_TRACES_EXPORTER"); exporter {
	case "", "otlp":
	case "none":
		return false, nil
	default:
		return false, wire.Errorf(wire.InvalidArgument, "OTEL_TRACES_EXPORTER %.40q: want otlp or none", exporter)
	}
	return otlpSetting("ENDPOINT") != "" && !strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true"), nil
}

// otlpSetting reads a variable that may be set for traces alone.
func otlpSetting(name string) string {
	if v := os.Getenv("OTEL_EXPORTER_OTLP_TRACES_" + name); v != "" {
		return v
	}
	return os.Getenv("OTEL_EXPORTER_OTLP_" + name)
}

func newExporter(ctx context.Context) (exporter sdktrace.SpanExporter, err error) {
	switch protocol := otlpSetting("PROTOCOL"); protocol {
	case "", "http/protobuf":
		exporter, err = otlptracehttp.New(ctx)
	case "grpc":
		exporter, err = otlptracegrpc.New(ctx)
	default:
		return nil, wire.Errorf(wire.InvalidArgument, "OTEL_EXPORTER_OTLP_PROTOCOL %.40q: want http/protobuf or grpc", protocol)
	}
	if err != nil {
		return nil, fmt.Errorf("make trace exporter: %w", err)
	}
	return exporter, nil
}

// loggedExporter reports failures to the node's log; the SDK would report them
// to a handler of the whole process.
type loggedExporter struct {
	sdktrace.SpanExporter
	log *zap.Logger
}

func (e loggedExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	if err := e.SpanExporter.ExportSpans(ctx, spans); err != nil {
		e.log.Warn("traces not exported", zap.Int("spans", len(spans)), zap.Error(err))
	}
	return nil
}

// Enabled reports whether spans are recorded. Where it is false, computing
// attributes is wasted work.
func (t *Tracer) Enabled() bool { return t.provider != nil }

// Start begins a span within the trace of ctx, or a new trace. The caller ends
// the span. If nothing is recorded the trace of ctx is kept as it is, so that
// this node is invisible between two that do record; a new trace is then
// marked as not recorded, which asks no other node to record it.
func (t *Tracer) Start(ctx context.Context, name string, opts ...trace.SpanStartOption) (context.Context, trace.Span) {
	if t.Enabled() {
		return t.tracer.Start(ctx, name, opts...)
	}
	if !trace.SpanContextFromContext(ctx).IsValid() {
		ctx = trace.ContextWithSpanContext(ctx, newSpanContext())
	}
	return ctx, trace.SpanFromContext(ctx)
}

// newSpanContext makes ids, which need to be unique but not secret.
func newSpanContext() (sc trace.SpanContext) {
	for !sc.IsValid() {
		var c trace.SpanContextConfig
		binary.NativeEndian.PutUint64(c.TraceID[:], rand.Uint64())
		binary.NativeEndian.PutUint64(c.TraceID[8:], rand.Uint64())
		binary.NativeEndian.PutUint64(c.SpanID[:], rand.Uint64())
		sc = trace.NewSpanContext(c)
	}
	return sc
}

// Shutdown sends what is still to be sent, and ends the tracer.
func (t *Tracer) Shutdown(ctx context.Context) error {
	if t.provider == nil {
		return nil
	}
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("flush traces: %w", err)
	}
	return nil
}
