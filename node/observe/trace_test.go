package observe

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/wire"
)

// These tests set environment variables, so they are not parallel.

// newTracer makes a tracer in an environment of just vars.
func newTracer(t *testing.T, vars map[string]string) (*Tracer, error) {
	t.Helper()
	for _, name := range []string{
		"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL",
		"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED", "OTEL_TRACES_SAMPLER", "OTEL_RESOURCE_ATTRIBUTES",
	} {
		t.Setenv(name, vars[name])
	}
	return Tracing(t.Context(), TracingConfig{Service: "openmesh", Version: "1.2.3", Instance: "did:key:z6Mk", Log: zap.NewNop()})
}

// collector takes OTLP over HTTP and over gRPC.
type collector struct {
	coltrace.UnimplementedTraceServiceServer
	got chan *coltrace.ExportTraceServiceRequest
}

func newCollector() *collector {
	return &collector{got: make(chan *coltrace.ExportTraceServiceRequest, 16)}
}

func (c *collector) Export(_ context.Context, req *coltrace.ExportTraceServiceRequest) (*coltrace.ExportTraceServiceResponse, error) {
	c.got <- req
	return &coltrace.ExportTraceServiceResponse{}, nil
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var req coltrace.ExportTraceServiceRequest
	if err != nil || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" || proto.Unmarshal(body, &req) != nil {
		http.Error(w, "not OTLP", http.StatusBadRequest)
		return
	}
	c.got <- &req
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// spans returns what was collected, by name, and the resource's attributes.
func (c *collector) spans() (spans map[string]*tracepb.Span, resource map[string]string) {
	close(c.got)
	spans, resource = make(map[string]*tracepb.Span), make(map[string]string)
	for req := range c.got {
		for _, rs := range req.ResourceSpans {
			for _, a := range rs.Resource.Attributes {
				resource[a.Key] = a.Value.GetStringValue()
			}
			for _, ss := range rs.ScopeSpans {
				for _, s := range ss.Spans {
					spans[s.Name] = s
				}
			}
		}
	}
	return spans, resource
}

// A call over two nodes is one trace: the callee's span is a child of the
// caller's, though only a traceparent went between them.
func TestTraceReachesCollector(t *testing.T) {
	for _, tc := range []struct {
		protocol string
		serve    func(*testing.T, *collector) (endpoint string)
	}{
		{"", serveHTTP}, {"http/protobuf", serveHTTP}, {"grpc", serveGRPC},
	} {
		t.Run("protocol "+tc.protocol, func(t *testing.T) {
			c := newCollector()
			tracer, err := newTracer(t, map[string]string{
				"OTEL_EXPORTER_OTLP_ENDPOINT": tc.serve(t, c),
				"OTEL_EXPORTER_OTLP_PROTOCOL": tc.protocol,
				"OTEL_RESOURCE_ATTRIBUTES":    "deployment.environment=lab",
			})
			check(t, err)
			if !tracer.Enabled() {
				t.Fatal("not enabled")
			}
			ctx, call := tracer.Start(t.Context(), "call", trace.WithSpanKind(trace.SpanKindClient))
			there := Extract(context.Background(), first(Inject(ctx)), "")
			_, handle := tracer.Start(there, "handle", trace.WithAttributes(attribute.String("capability", "finance/fx")))
			handle.End()
			call.End()
			check(t, tracer.Shutdown(t.Context()))

			spans, resource := c.spans()
			parent, child := spans["call"], spans["handle"]
			if parent == nil || child == nil {
				t.Fatalf("collected %v", spans)
			}
			if hex.EncodeToString(child.ParentSpanId) != hex.EncodeToString(parent.SpanId) || hex.EncodeToString(child.TraceId) != hex.EncodeToString(parent.TraceId) {
				t.Errorf("child %x of %x in trace %x, want %x in %x", child.SpanId, child.ParentSpanId, child.TraceId, parent.SpanId, parent.TraceId)
			}
			if got := call.SpanContext().TraceID(); got != trace.TraceID(parent.TraceId) || len(parent.ParentSpanId) != 0 {
				t.Errorf("trace %s was collected as %x with parent %x", got, parent.TraceId, parent.ParentSpanId)
			}
			if resource["service.name"] != "openmesh" || resource["service.version"] != "1.2.3" || resource["service.instance.id"] != "did:key:z6Mk" || resource["deployment.environment"] != "lab" {
				t.Errorf("resource %v", resource)
			}
		})
	}
}

func first(a, _ string) string { return a }

func serveHTTP(t *testing.T, c *collector) string {
	s := httptest.NewServer(c)
	t.Cleanup(s.Close)
	return s.URL
}

func serveGRPC(t *testing.T, c *collector) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	s := grpc.NewServer()
	coltrace.RegisterTraceServiceServer(s, c)
	go s.Serve(ln)
	t.Cleanup(s.Stop)
	return "http://" + ln.Addr().String()
}

func TestTracingEnvironment(t *testing.T) {
	const url = "http://127.0.0.1:1"
	for _, tc := range []struct {
		name    string
		vars    map[string]string
		enabled bool
		want    error
	}{
		{"nothing set", nil, false, nil},
		{"endpoint", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url}, true, nil},
		{"endpoint for traces", map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": url}, true, nil},
		{"disabled", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_SDK_DISABLED": "TRUE"}, false, nil},
		{"no exporter", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_TRACES_EXPORTER": "none"}, false, nil},
		{"unknown exporter", map[string]string{"OTEL_TRACES_EXPORTER": "zipkin"}, false, wire.InvalidArgument},
		{"unknown protocol", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, false, wire.InvalidArgument},
		{"protocol for traces wins", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "carrier pigeon"}, false, wire.InvalidArgument},
		{"bad resource", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_RESOURCE_ATTRIBUTES": "novalue"}, false, wire.InvalidArgument},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tracer, err := newTracer(t, tc.vars)
			if !errors.Is(err, tc.want) || err == nil && tracer.Enabled() != tc.enabled {
				t.Errorf("Tracing = %+v, %v", tracer, err)
			}
			if err == nil {
				check(t, tracer.Shutdown(t.Context()))
			}
		})
	}
}

func TestSamplerIsHonoured(t *testing.T) {
	c := newCollector()
	tracer, err := newTracer(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": serveHTTP(t, c), "OTEL_TRACES_SAMPLER": "always_off"})
	check(t, err)
	_, span := tracer.Start(t.Context(), "unseen")
	span.End()
	check(t, tracer.Shutdown(t.Context()))
	if spans, _ := c.spans(); len(spans) != 0 || !span.SpanContext().IsValid() {
		t.Errorf("collected %v", spans)
	}
}

// A collector that is down costs a log line, not a call.
func TestCollectorDownIsLogged(t *testing.T) {
	log, _, buf := newLogger(t, LogConfig{})
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "100")
	tracer, err := Tracing(t.Context(), TracingConfig{Log: log})
	check(t, err)
	_, span := tracer.Start(t.Context(), "lost")
	span.End()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	check(t, tracer.Shutdown(ctx))
	if !strings.Contains(buf.String(), "traces not exported") {
		t.Errorf("logged %q", buf)
	}
}

// A node that records nothing starts traces, and leaves those of others alone.
func TestTracerWithoutCollector(t *testing.T) {
	tracer, err := newTracer(t, nil)
	check(t, err)
	a, span := tracer.Start(t.Context(), "root")
	b, _ := tracer.Start(t.Context(), "another root")
	child, _ := tracer.Start(a, "child")
	span.End()
	idA, idB := trace.SpanContextFromContext(a), trace.SpanContextFromContext(b)
	if !idA.IsValid() || idA.TraceID() == idB.TraceID() || idA.IsSampled() || span.IsRecording() || !span.SpanContext().Equal(idA) {
		t.Errorf("roots %v and %v", idA, idB)
	}
	if !trace.SpanContextFromContext(child).Equal(idA) {
		t.Error("the child is in another trace")
	}
	const parent, state = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "vendor=1"
	ctx, _ := tracer.Start(Extract(t.Context(), parent, state), "hop")
	if p, s := Inject(ctx); p != parent || s != state {
		t.Errorf("passed on %q, %q", p, s)
	}
}

func TestExtract(t *testing.T) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for _, tc := range []struct {
		parent, state         string
		wantParent, wantState string
	}{
		{parent, "", parent, ""},
		{parent, "a=1,b=2", parent, "a=1,b=2"},
		{parent, "not a state", parent, ""},
		{parent, "a=" + strings.Repeat("x", MaxTracestate), parent, ""},
		{"", "a=1", "", ""},
		{"00-00000000000000000000000000000000-b7ad6b7169203331-01", "", "", ""},
		{"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", "", "", ""},
		{"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "", "", ""},
		{parent + "-more", "", "", ""},
		{"cc" + parent[2:] + "-more", "", parent, ""},
		{"cc" + parent[2:] + "-" + strings.Repeat("x", MaxTraceparent), "", "", ""},
		{strings.ToUpper(parent), "", "", ""},
		{"nonsense", "", "", ""},
	} {
		if p, s := Inject(Extract(t.Context(), tc.parent, tc.state)); p != tc.wantParent || s != tc.wantState {
			t.Errorf("%.70q, %.20q became %q, %q; want %q, %q", tc.parent, tc.state, p, s, tc.wantParent, tc.wantState)
		}
	}
}

func TestPropagationAllocatesLittle(t *testing.T) {
	ctx := t.Context()
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	if n := testing.AllocsPerRun(100, func() { Extract(ctx, parent, "") }); n > 6 {
		t.Errorf("Extract: %v allocations", n)
	}
	in := Extract(ctx, parent, "")
	if n := testing.AllocsPerRun(100, func() { Inject(in) }); n > 3 {
		t.Errorf("Inject: %v allocations", n)
	}
}

func FuzzExtract(f *testing.F) {
	f.Add("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "a=1")
	f.Add("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03-x", "")
	f.Fuzz(func(t *testing.T, parent, state string) {
		p, s := Inject(Extract(t.Context(), parent, state))
		if len(p) != 0 && len(p) != 55 || len(s) > MaxTracestate {
			t.Errorf("%q, %q became %q, %q", parent, state, p, s)
		}
		if p2, s2 := Inject(Extract(t.Context(), p, s)); p2 != p || s2 != s {
			t.Errorf("%q, %q is not stable: %q, %q", p, s, p2, s2)
		}
	})
}
