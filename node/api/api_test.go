package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/api/openmesh/v1/openmeshv1connect"
	"openmesh/protocols/wire"
)

// services are small but whole: what is called on them is told by the functions
// that a test sets.
type services struct {
	openmeshv1connect.UnimplementedDirectoryHandler
	openmeshv1connect.UnimplementedKeyHandler
	node
	session
}

type market struct {
	openmeshv1connect.UnimplementedMarketHandler
}

type auditor struct {
	openmeshv1connect.UnimplementedAuditHandler
}

type node struct {
	openmeshv1connect.UnimplementedNodeHandler
	id func(context.Context) (*openmeshv1.IdResponse, error)
}

func (n node) Id(ctx context.Context, _ *openmeshv1.IdRequest) (*openmeshv1.IdResponse, error) {
	return n.id(ctx)
}

// Ping answers as often as it is asked to.
func (n node) Ping(
	_ context.Context, req *openmeshv1.PingRequest, out *connect.ServerStream[openmeshv1.PingResponse],
) error {
	for i := range req.Count {
		if err := out.Send(&openmeshv1.PingResponse{Agent: req.Target, Sequence: i + 1}); err != nil {
			return err
		}
	}
	return wire.Errorf(wire.Unreachable, "ping %s: no more", req.Target)
}

type session struct {
	openmeshv1connect.UnimplementedSessionHandler
	call func(context.Context, *openmeshv1.CallRequest) (*openmeshv1.CallResponse, error)
}

func (s session) Call(ctx context.Context, req *openmeshv1.CallRequest) (*openmeshv1.CallResponse, error) {
	return s.call(ctx, req)
}

// Watch tells that it began, and ends with its context.
func (s session) Watch(
	ctx context.Context, _ *openmeshv1.WatchSessionsRequest, out *connect.ServerStream[openmeshv1.SessionEvent],
) error {
	if err := out.Send(&openmeshv1.SessionEvent{To: "active"}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// daemon is a server that runs in a home.
type daemon struct {
	home  string
	addrs []string
	stop  func() error
}

// start runs a server on a socket and a port of a new home until the test ends.
func start(t *testing.T, s services, change func(*api.Config)) *daemon {
	t.Helper()
	home := t.TempDir()
	cfg := api.Config{
		Services:  api.Services{Node: s.node, Directory: s, Session: s.session, Market: market{}, Audit: auditor{}, Key: s},
		Listen:    []string{"127.0.0.1:0", "unix:" + filepath.Join(home, "api.sock")},
		TokenFile: filepath.Join(home, "api.token"),
	}
	if change != nil {
		change(&cfg)
	}
	server, err := api.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	d := &daemon{home: home, addrs: server.Addrs()}
	d.stop = func() error {
		cancel()
		err := <-ended
		ended <- err
		return err
	}
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	d.serving(t)
	return d
}

// serving returns once the server has told where it is.
func (d *daemon) serving(t *testing.T) {
	t.Helper()
	res, err := http.Get("http://" + d.addrs[0] + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
}

func (d *daemon) dial(t *testing.T) *api.Client {
	t.Helper()
	c, err := api.Dial(d.home)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func (d *daemon) token(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(d.home, "api.token"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// post does what curl does.
func (d *daemon) post(t *testing.T, path, body string, change func(*http.Request)) (int, string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, "http://"+d.addrs[0]+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+d.token(t))
	if change != nil {
		change(req)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

func identified() services {
	return services{node: node{id: func(context.Context) (*openmeshv1.IdResponse, error) {
		return &openmeshv1.IdResponse{Agent: "did:key:z6Mk", KeyVersion: 7}, nil
	}}}
}

const idPath = openmeshv1connect.NodeIdProcedure

func TestGuard(t *testing.T) {
	t.Parallel()
	d := start(t, identified(), nil)
	_, port, err := net.SplitHostPort(d.addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	host := func(name string) func(*http.Request) { return func(r *http.Request) { r.Host = name } }
	for _, tc := range []struct {
		name   string
		path   string
		change func(*http.Request)
		status int
		code   string
	}{
		{name: "with the token", status: 200},
		{name: "no token", change: func(r *http.Request) { r.Header.Del("Authorization") }, status: 401, code: "unauthenticated"},
		{name: "wrong token", change: header("Authorization", "Bearer "+strings.Repeat("0", 64)), status: 401, code: "unauthenticated"},
		{name: "no scheme", change: header("Authorization", d.token(t)), status: 401, code: "unauthenticated"},
		{name: "localhost", change: host("localhost:" + port), status: 200},
		{name: "without a port", change: host("127.0.0.1"), status: 200},
		{name: "another loopback address", change: host("[::1]:" + port), status: 200},
		{name: "a rebound name", change: host("evil.example:" + port), status: 403, code: "permission_denied"},
		{name: "an address that is not ours", change: host("192.0.2.1:" + port), status: 403, code: "permission_denied"},
		{name: "same origin", change: header("Origin", "http://"+d.addrs[0]), status: 200},
		{name: "another origin", change: header("Origin", "https://evil.example"), status: 403, code: "permission_denied"},
		{name: "origin of a file", change: header("Origin", "null"), status: 403, code: "permission_denied"},
		{name: "unknown procedure", path: "/openmesh.v1.Node/Nothing", status: 501, code: "unimplemented"},
		{name: "unknown service", path: "/grpc.reflection.v1.ServerReflection/Info", status: 501, code: "unimplemented"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			path := idPath
			if tc.path != "" {
				path = tc.path
			}
			status, body := d.post(t, path, "{}", tc.change)
			var failed struct{ Code string }
			if err := json.Unmarshal([]byte(body), &failed); err != nil {
				t.Fatalf("%v: %s", err, body)
			}
			if status != tc.status || failed.Code != tc.code {
				t.Errorf("got %d %q, want %d %q: %s", status, failed.Code, tc.status, tc.code, body)
			}
		})
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	starting := errors.New("the directory is not joined yet")
	ready := make(chan error, 1)
	d := start(t, identified(), func(c *api.Config) { c.Ready = func() error { return <-ready } })
	for _, tc := range []struct {
		path   string
		ready  error
		status int
		body   string
	}{
		{path: "/healthz", status: 200, body: "ok\n"},
		{path: "/readyz", ready: starting, status: 503, body: starting.Error() + "\n"},
		{path: "/readyz", status: 200, body: "ok\n"},
	} {
		if tc.path == "/readyz" {
			ready <- tc.ready
		}
		res, err := http.Get("http://" + d.addrs[0] + tc.path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != tc.status || string(body) != tc.body {
			t.Errorf("%s = %d %q, want %d %q", tc.path, res.StatusCode, body, tc.status, tc.body)
		}
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	s := identified()
	s.session.call = func(_ context.Context, req *openmeshv1.CallRequest) (*openmeshv1.CallResponse, error) {
		return &openmeshv1.CallResponse{Agent: req.Target, Request: req.IdempotencyKey}, nil
	}
	d := start(t, s, nil)
	const id = `{"agent":"did:key:z6Mk","address":"","realm":0,"peer":"","key_version":7,"not_after":"","roles":[],"addrs":[]}`
	const called = `{"agent":"a","address":"","session":"","request":"k","attempts":0,"suite":"","elapsed_ms":0,"trace":"","capability":"","warnings":[],"parts":0}`
	for _, tc := range []struct {
		name, path, body, contentType string
		status                        int
		want                          string // the whole body, or part of it for an error
	}{
		{name: "all fields", path: idPath, body: "{}", status: 200, want: id},
		{name: "with charset", path: idPath, body: "{}", contentType: "application/json; charset=utf-8", status: 200, want: id},
		{name: "no body", path: idPath, status: 200, want: id},
		{name: "snake case", path: openmeshv1connect.SessionCallProcedure, body: `{"target":"a","idempotency_key":"k"}`, status: 200, want: called},
		{name: "camel case", path: openmeshv1connect.SessionCallProcedure, body: `{"target":"a","idempotencyKey":"k"}`, status: 200, want: called},
		{name: "misspelt", path: openmeshv1connect.SessionCallProcedure, body: `{"min_trsut":1}`, status: 400, want: `"min_trsut"`},
		{name: "not JSON", path: idPath, body: "{", status: 400, want: "invalid_argument"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			status, body := d.post(t, tc.path, tc.body, func(r *http.Request) {
				if tc.contentType != "" {
					r.Header.Set("Content-Type", tc.contentType)
				}
			})
			if status != tc.status || body != tc.want && (status == 200 || !strings.Contains(body, strings.ReplaceAll(tc.want, `"`, `\"`))) {
				t.Errorf("got %d %s\nwant %d %s", status, body, tc.status, tc.want)
			}
		})
	}
}

func TestTooLarge(t *testing.T) {
	t.Parallel()
	d := start(t, identified(), func(c *api.Config) { c.MaxBody = 64 })
	status, body := d.post(t, idPath, `{"x":"`+strings.Repeat("x", 64)+`"}`, nil)
	if status != http.StatusTooManyRequests || !strings.Contains(body, "resource_exhausted") {
		t.Errorf("got %d %s", status, body)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	refused := wire.Errorf(wire.InvalidRequest, "the request breaks the schema").WithHint("see pair")
	refused.Pointers = []string{"/pair"}
	for _, tc := range []struct {
		name string
		err  error
		http int
		want wire.Error
	}{
		{"whole", refused, 400, wire.Error{Code: wire.InvalidRequest, Message: "the request breaks the schema", Hint: "see pair", Pointers: []string{"/pair"}}},
		{"wrapped", fmt.Errorf("call: %w", wire.Errorf(wire.NotFound, "no agent").WithHint("wait")), 404, wire.Error{Code: wire.NotFound, Message: "call: not_found: no agent", Hint: "wait"}},
		{"bare code", wire.Denied, 403, wire.Error{Code: wire.Denied, Message: "denied"}},
		{"trust", wire.TrustRevoked, 403, wire.Error{Code: wire.TrustRevoked, Message: "trust_revoked"}},
		{"busy", wire.ResourceExhausted, 429, wire.Error{Code: wire.ResourceExhausted, Message: "resource_exhausted"}},
		{"handler", wire.HandlerUnavailable, 503, wire.Error{Code: wire.HandlerUnavailable, Message: "handler_unavailable"}},
		{"deadline", context.DeadlineExceeded, 504, wire.Error{Code: wire.DeadlineExceeded, Message: "context deadline exceeded"}},
		{"plain", errors.New("disk full"), 500, wire.Error{Code: wire.Internal, Message: "disk full"}},
		{"connect's own", connect.NewError(connect.CodeUnimplemented, errors.New("later")), 501, wire.Error{Code: wire.Unsupported, Message: "unimplemented: later"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var s services
			s.node.id = func(context.Context) (*openmeshv1.IdResponse, error) { return nil, tc.err }
			d := start(t, s, nil)
			if status, body := d.post(t, idPath, "{}", nil); status != tc.http || !strings.Contains(body, "openmesh.v1.Error") {
				t.Errorf("over HTTP: %d %s, want %d with an openmesh.v1.Error", status, body, tc.http)
			}
			_, err := d.dial(t).Node.Id(t.Context(), &openmeshv1.IdRequest{})
			var got *wire.Error
			if !errors.As(err, &got) {
				t.Fatalf("got %T %v", err, err)
			}
			if fmt.Sprint(*got) != fmt.Sprint(tc.want) {
				t.Errorf("got %+v, want %+v", *got, tc.want)
			}
		})
	}
}

// Every code must survive the way through the API, whatever Connect calls it.
func TestEveryCode(t *testing.T) {
	t.Parallel()
	next := make(chan wire.Code, 1)
	var s services
	s.node.id = func(context.Context) (*openmeshv1.IdResponse, error) { return nil, <-next }
	c := start(t, s, nil).dial(t)
	for _, code := range wire.Codes() {
		next <- code
		if _, err := c.Node.Id(t.Context(), &openmeshv1.IdRequest{}); wire.CodeOf(err) != code {
			t.Errorf("%s came back as %v", code, err)
		}
	}
}

func TestPanic(t *testing.T) {
	t.Parallel()
	var s services
	s.node.id = func(context.Context) (*openmeshv1.IdResponse, error) { panic("secret") }
	c := start(t, s, nil).dial(t)
	for range 2 { // the server survives it
		_, err := c.Node.Id(t.Context(), &openmeshv1.IdRequest{})
		if wire.CodeOf(err) != wire.Internal || strings.Contains(err.Error(), "secret") {
			t.Errorf("got %v", err)
		}
	}
}

func TestStream(t *testing.T) {
	t.Parallel()
	d := start(t, identified(), nil)
	stream, err := d.dial(t).Node.Ping(t.Context(), &openmeshv1.PingRequest{Target: "a", Count: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	var n uint32
	for stream.Receive() {
		if n++; stream.Msg().Sequence != n {
			t.Errorf("ping %d has sequence %d", n, stream.Msg().Sequence)
		}
	}
	if n != 3 || wire.CodeOf(stream.Err()) != wire.Unreachable {
		t.Errorf("%d pings, then %v", n, stream.Err())
	}
}

// gRPC and Connect, HTTP/1.1 and HTTP/2: one port takes them all.
func TestProtocols(t *testing.T) {
	t.Parallel()
	d := start(t, identified(), nil)
	h2 := new(http.Protocols)
	h2.SetUnencryptedHTTP2(true)
	for name, tc := range map[string]struct {
		transport *http.Transport
		options   []connect.ClientOption
	}{
		"connect over HTTP/1.1":  {transport: &http.Transport{}},
		"connect over HTTP/2":    {transport: &http.Transport{Protocols: h2}},
		"gRPC":                   {transport: &http.Transport{Protocols: h2}, options: []connect.ClientOption{connect.WithGRPC()}},
		"gRPC-Web over HTTP/1.1": {transport: &http.Transport{}, options: []connect.ClientOption{connect.WithGRPCWeb()}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			defer tc.transport.CloseIdleConnections()
			for _, token := range []string{d.token(t), ""} {
				c := openmeshv1connect.NewNodeClient(&http.Client{Transport: bearer{tc.transport, token}}, "http://"+d.addrs[0], tc.options...)
				_, err := c.Id(t.Context(), &openmeshv1.IdRequest{})
				if token == "" && connect.CodeOf(err) != connect.CodeUnauthenticated || token != "" && err != nil {
					t.Errorf("with token %t: %v", token != "", err)
				}
			}
		})
	}
}

type bearer struct {
	http.RoundTripper
	token string
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	if b.token != "" {
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.RoundTripper.RoundTrip(r)
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	s := identified()
	whole := api.Services{Node: s.node, Directory: s, Session: s.session, Market: market{}, Audit: auditor{}, Key: s}
	for name, cfg := range map[string]api.Config{
		"a service is missing": {Listen: []string{"127.0.0.1:0"}, TokenFile: "t"},
		"nothing to listen on": {Services: whole, TokenFile: "t"},
		"no token file":        {Services: whole, Listen: []string{"127.0.0.1:0"}},
	} {
		if _, err := api.New(cfg); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("New = %v, want %q", err, name)
		}
	}
}

func TestMarshalJSON(t *testing.T) {
	t.Parallel()
	got, err := api.MarshalJSON(&openmeshv1.ListSessionsResponse{Sessions: []*openmeshv1.SessionInfo{{Session: "s"}}})
	if err != nil || bytes.Contains(got, []byte("null")) || bytes.Contains(got, []byte(" ")) {
		t.Errorf("MarshalJSON = %s, %v", got, err)
	}
}
