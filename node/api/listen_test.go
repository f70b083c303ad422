package api_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/wire"
)

func TestUnixSocketMode(t *testing.T) {
	t.Parallel()
	d := start(t, identified(), nil)
	for _, name := range []string{"api.sock", "api.token", "api.addr"} {
		info, err := os.Lstat(filepath.Join(d.home, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
	left, err := filepath.Glob(filepath.Join(d.home, ".*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if c := d.dial(t); c.Addr() != "unix:"+filepath.Join(d.home, "api.sock") {
		t.Errorf("the client chose %s", c.Addr())
	}
}

func TestLongSocketPath(t *testing.T) {
	t.Parallel()
	long := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	d := start(t, identified(), func(c *api.Config) {
		c.Listen = append(c.Listen, "unix:"+filepath.Join(long, "api.sock"))
		c.AddrFile = filepath.Join(long, "api.addr")
	})
	d.home = long
	if err := os.WriteFile(filepath.Join(long, "api.addr"), []byte(d.addrs[2]+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.dial(t).Node.Id(t.Context(), &openmeshv1.IdRequest{}); err != nil {
		t.Error(err)
	}
}

// listenOn tries to listen on a socket of a new server.
func listenOn(t *testing.T, addr string) error {
	t.Helper()
	s := identified()
	server, err := api.New(api.Config{
		Services:  api.Services{Node: s.node, Directory: s, Session: s.session, Market: market{}, Audit: auditor{}, Key: s},
		Listen:    []string{addr},
		TokenFile: filepath.Join(t.TempDir(), "api.token"),
	})
	if err != nil {
		t.Fatal(err)
	}
	err = server.Listen()
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	return err
}

func TestListen(t *testing.T) {
	t.Parallel()
	d := start(t, identified(), nil)
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, addr, want string
		code             wire.Code
	}{
		{name: "new socket", addr: "unix:" + filepath.Join(dir, "new")},
		{name: "stale socket", addr: "unix:" + stale},
		{name: "living daemon", addr: d.addrs[1], want: "another daemon answers", code: wire.AlreadyExists},
		{name: "not a socket", addr: "unix:" + file, want: "is not a socket", code: wire.AlreadyExists},
		{name: "no folder", addr: "unix:" + filepath.Join(dir, "none", "s"), want: "no such file"},
		{name: "port in use", addr: d.addrs[0], want: "in use", code: wire.AlreadyExists},
		{name: "nonsense", addr: "nonsense", want: "missing port", code: wire.InvalidArgument},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := listenOn(t, tc.addr)
			if tc.want == "" && err == nil {
				return
			}
			if err == nil || tc.want == "" || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("Listen = %v, want %q", err, tc.want)
			}
			if tc.code != 0 && wire.CodeOf(err) != tc.code {
				t.Errorf("code %v, want %v", wire.CodeOf(err), tc.code)
			}
		})
	}
	if _, err := d.dial(t).Node.Id(t.Context(), &openmeshv1.IdRequest{}); err != nil {
		t.Errorf("the living daemon no longer answers: %v", err)
	}
}

func TestTokenFile(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		mode os.FileMode
		text string
		want string
	}{
		"readable by others": {0o644, strings.Repeat("a", 64), "other users"},
		"empty":              {0o600, "", "shorter"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "api.token")
			if err := os.WriteFile(path, []byte(tc.text), tc.mode); err != nil {
				t.Fatal(err)
			}
			s := identified()
			server, err := api.New(api.Config{
				Services: api.Services{Node: s.node, Directory: s, Session: s.session, Market: market{}, Audit: auditor{}, Key: s},
				Listen:   []string{"127.0.0.1:0"}, TokenFile: path,
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := server.Run(t.Context()); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Run = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestDialNotRunning(t *testing.T) {
	t.Parallel()
	port, err := net.Listen("tcp", "127.0.0.1:0") // some other program
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	for name, addrs := range map[string]string{
		"never ran":         "",
		"crashed":           "unix:SOCK\n" + port.Addr().String() + "\n",
		"crashed, TCP only": "127.0.0.1:1\n",
	} {
		home := t.TempDir()
		if addrs != "" {
			addrs = strings.ReplaceAll(addrs, "SOCK", filepath.Join(home, "api.sock"))
			for file, text := range map[string]string{"api.addr": addrs, "api.token": strings.Repeat("a", 64)} {
				if err := os.WriteFile(filepath.Join(home, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		_, err := api.Dial(home)
		var failed *wire.Error
		if !errors.Is(err, api.ErrNotRunning) || !errors.As(err, &failed) || failed.Hint != "start it with: openmesh run" {
			t.Errorf("%s: Dial = %v", name, err)
		}
	}
}

func TestDialOverTCP(t *testing.T) {
	t.Parallel()
	d := start(t, identified(), func(c *api.Config) { c.Listen = []string{"127.0.0.1:0"} })
	c := d.dial(t)
	if c.Addr() != d.addrs[0] {
		t.Errorf("Addr = %s, want %s", c.Addr(), d.addrs[0])
	}
	if _, err := c.Node.Id(t.Context(), &openmeshv1.IdRequest{}); err != nil {
		t.Error(err)
	}
}

// The daemon's span is a child of the caller's, and the handler runs in it.
func TestTrace(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewSpanRecorder()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("api")
	inside := make(chan trace.SpanContext, 1)
	var s services
	s.node.id = func(ctx context.Context) (*openmeshv1.IdResponse, error) {
		inside <- trace.SpanContextFromContext(ctx)
		return nil, wire.Denied
	}
	d := start(t, s, func(c *api.Config) { c.Tracer = tracer })
	caller := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled})
	_, err := d.dial(t).Node.Id(trace.ContextWithSpanContext(t.Context(), caller), &openmeshv1.IdRequest{})
	if wire.CodeOf(err) != wire.Denied {
		t.Fatal(err)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	ended := spans.Ended()
	if len(ended) != 1 {
		t.Fatalf("%d spans", len(ended))
	}
	span := ended[0]
	if span.Name() != "openmesh.v1.Node/Id" || span.SpanKind() != trace.SpanKindServer || span.Status().Description != "denied" {
		t.Errorf("span %q, %v, %v", span.Name(), span.SpanKind(), span.Status())
	}
	if span.Parent().SpanID() != caller.SpanID() || span.SpanContext().TraceID() != caller.TraceID() {
		t.Errorf("parent %v, want %v", span.Parent(), caller)
	}
	if got := <-inside; !got.Equal(span.SpanContext()) {
		t.Errorf("the handler ran in %v", got)
	}
}

// Every procedure must be in the access table: an unknown one answers
// unimplemented before its handler is asked, and these must not.
func TestAccessTable(t *testing.T) {
	t.Parallel()
	var procedures int
	protoregistry.GlobalFiles.RangeFilesByPackage("openmesh.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			methods := f.Services().Get(i).Methods()
			for j := range methods.Len() {
				procedures++
				m := methods.Get(j)
				name := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
				if class, ok := api.Access(name); !ok || class == "unknown" {
					t.Errorf("%s has no access class", name)
				}
			}
		}
		return true
	})
	if procedures < 19 {
		t.Errorf("only %d procedures are registered", procedures)
	}
	if _, ok := api.Access("/openmesh.v1.Node/Nothing"); ok {
		t.Error("an unknown procedure has a class")
	}
}
