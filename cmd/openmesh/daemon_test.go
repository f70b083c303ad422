package main

import (
	"bytes"
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"go.opentelemetry.io/otel/trace"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/api/openmesh/v1/openmeshv1connect"
	"openmesh/protocols/wire"
)

// mesh answers over a real local API what the commands ask; what it answers is
// chosen to be awkward to print.
type mesh struct {
	openmeshv1connect.UnimplementedKeyHandler
	openmeshv1connect.UnimplementedDirectoryHandler
	meshNode
	meshSession
}

type meshNode struct {
	openmeshv1connect.UnimplementedNodeHandler
}

type meshSession struct {
	openmeshv1connect.UnimplementedSessionHandler
}

type meshMarket struct {
	openmeshv1connect.UnimplementedMarketHandler
}

type meshAudit struct {
	openmeshv1connect.UnimplementedAuditHandler
}

const (
	testAgent = "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK"
	exact     = `{"rate": 1.10000000000000000001, "id": 12345678901234567890, "html": "<&>"}`
)

func (meshNode) Peers(context.Context, *openmeshv1.PeersRequest) (*openmeshv1.PeersResponse, error) {
	return &openmeshv1.PeersResponse{}, nil
}

func (meshNode) Ping(
	_ context.Context, req *openmeshv1.PingRequest, out *connect.ServerStream[openmeshv1.PingResponse],
) error {
	for i := range req.Count {
		res := &openmeshv1.PingResponse{
			Address: "0:A91F.0000.7C2E", Sequence: i + 1, RttMs: float64(i+1) / 4,
			Path: &openmeshv1.Path{Kind: "direct", Transport: "quic-v1"},
		}
		if err := out.Send(res); err != nil {
			return err
		}
	}
	return nil
}

// Discover finds an agent that tries to colour the terminal.
func (mesh) Discover(_ context.Context, req *openmeshv1.DiscoverRequest) (*openmeshv1.DiscoverResponse, error) {
	if req.Capability == "nothing" {
		return &openmeshv1.DiscoverResponse{}, nil
	}
	return &openmeshv1.DiscoverResponse{Results: []*openmeshv1.DiscoverResult{{
		Agent: testAgent, Address: "0:A91F.0000.7C2E", Name: req.Capability, Version: "1.4.0", Region: "eu\x1b[31m",
		LatencyMs: req.MaxLatencyMs, Reachability: "direct", UptimePct: 99.95, Trust: 0.5, Tags: req.Tags,
	}}}, nil
}

// Call answers to "fine", fails with the code that the target names, and tells
// the trace it is in.
func (meshSession) Call(ctx context.Context, req *openmeshv1.CallRequest) (*openmeshv1.CallResponse, error) {
	if code, ok := wire.ParseCode(req.Target); ok {
		err := wire.Errorf(code, "call %s failed", req.Target).WithHint("a hint")
		err.Pointers = []string{"/pair"}
		return nil, err
	}
	body := exact
	if req.Target == "echo" {
		body = req.GetJson()
	}
	span := trace.SpanContextFromContext(ctx)
	return &openmeshv1.CallResponse{
		Body: &openmeshv1.CallResponse_Json{Json: body}, Agent: testAgent, Address: "0:A91F.0000.7C2E", Attempts: 1,
		Path: &openmeshv1.Path{Kind: "direct", Transport: "quic-v1"}, Trace: span.TraceID().String(),
		ElapsedMs: float64(req.TimeoutMs),
	}, nil
}

// home runs a local API in a new home.
func home(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	server, err := api.New(api.Config{
		Services:  api.Services{Node: mesh{}.meshNode, Directory: mesh{}, Session: mesh{}.meshSession, Market: meshMarket{}, Audit: meshAudit{}, Key: mesh{}},
		Listen:    []string{"unix:" + filepath.Join(dir, "api.sock")},
		TokenFile: filepath.Join(dir, "api.token"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return dir
}

// outcome is what a command left.
type outcome struct {
	code     int
	out, err string
}

func execute(t *testing.T, home, in string, args ...string) outcome {
	t.Helper()
	var out, errs bytes.Buffer
	p := newProgram(strings.NewReader(in), &out, &errs, []string{"OPENMESH_HOME=" + home})
	code := p.execute(t.Context(), args)
	return outcome{code, out.String(), errs.String()}
}

func TestCommands(t *testing.T) {
	t.Parallel()
	dir := home(t)
	const dim = "0:A91F.0000.7C2E, direct over quic-v1, -\n"
	for _, tc := range []struct {
		name string
		args string
		in   string
		want outcome
	}{
		{"no peers", "--json peers", "", outcome{0, `{"peers":[]}` + "\n", ""}},
		{"ping", "ping x -c 2", "", outcome{0, "0:A91F.0000.7C2E: seq=1 time=0.25 ms path=direct/quic-v1\n" +
			"0:A91F.0000.7C2E: seq=2 time=0.5 ms path=direct/quic-v1\n2 answers, min/avg/max 0.25/0.38/0.5 ms\n", ""}},
		{"ping as JSON", "ping x --count 1 --json", "", outcome{0, `{"agent":"","address":"0:A91F.0000.7C2E","sequence":1,` +
			`"rtt_ms":0.25,"path":{"kind":"direct","transport":"quic-v1","hops":[]}}` + "\n", ""}},
		{"hostile text", "discover a/b --max-latency 50ms", "", outcome{0,
			"ADDRESS\tAGENT\tNAME\tVERSION\tLATENCY\tLOAD\tUPTIME\tTRUST\tREGION\tREACHABILITY\tAGE\n" +
				"0:A91F.0000.7C2E\t" + testAgent + "\ta/b\t1.4.0\t50 ms\t0 %\t100 %\t0.5\teu\\u001b[31m\tdirect\t0s\n", ""}},
		{"nothing found", "discover nothing", "", outcome{0, "", "no agent that offers nothing was found\n"}},
		{"nothing found as JSON", "--json discover nothing", "", outcome{0, `{"results":[],"elapsed_ms":0,"cached":false}` + "\n", ""}},
		{"call", "call fine", "", outcome{0, "{\n  \"rate\": 1.10000000000000000001,\n  \"id\": 12345678901234567890,\n  \"html\": \"<&>\"\n}\n", dim}},
		{"call with data of standard input", "call echo -", "[1]", outcome{0, "[\n  1\n]\n", dim}},
		{"standard input only if asked", "call echo", "not JSON", outcome{0, "{}\n", dim}},
		{"data that looks like a flag", "call echo -- -1", "", outcome{0, "-1\n", dim}},
		{"completion", "__complete call finance/", "", outcome{0, "finance\n:4\n", "Completion ended with directive: ShellCompDirectiveNoFileComp\n"}},
		{"deadline", "call echo 1 --timeout 2s", "", outcome{0, "1\n", strings.Replace(dim, ", -\n", ", 2000 ms\n", 1)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if got := execute(t, dir, tc.in, strings.Fields(tc.args)...); got != tc.want {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
		})
	}
}

func TestCallJSON(t *testing.T) {
	t.Parallel()
	got := execute(t, home(t), "", "--json", "call", "fine")
	if got.code != 0 || got.err != "" || strings.Count(got.out, "\n") != 1 {
		t.Fatalf("got %+v", got)
	}
	if want := `{"response":` + strings.ReplaceAll(exact, " ", "") + `,`; !strings.HasPrefix(got.out, want) {
		t.Errorf("the response was changed: %s", got.out)
	}
	var doc struct {
		Trace string
		Path  struct{ Hops []string }
	}
	if err := json.Unmarshal([]byte(got.out), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Path.Hops == nil {
		t.Errorf("hops are null: %s", got.out)
	}
	if id, err := trace.TraceIDFromHex(doc.Trace); err != nil || !id.IsValid() {
		t.Errorf("the daemon saw trace %q", doc.Trace)
	}
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	dir := home(t)
	want := map[wire.Code]int{
		wire.InvalidArgument: 2, wire.NotFound: 4, wire.DeadlineExceeded: 6,
		wire.Denied: 5, wire.PolicyViolation: 5, wire.TrustRevoked: 5, wire.Unauthenticated: 5,
		wire.KeyExpired: 5, wire.KeySuperseded: 5, wire.KeyRevoked: 5,
	}
	for _, code := range wire.Codes() {
		exit, ok := want[code]
		if !ok {
			exit = 1
		}
		got := execute(t, dir, "", "call", code.String(), "--json")
		failed := `{"error":{"code":"` + code.String() + `","message":"call ` + code.String() + ` failed","hint":"a hint","pointers":["/pair"]}}` + "\n"
		if got != (outcome{exit, "", failed}) {
			t.Errorf("%s: got %+v, want exit code %d and %s", code, got, exit, failed)
		}
	}
	got := execute(t, dir, "", "call", "denied")
	if want := "error: call denied failed\n  at /pair\nhint: a hint\n"; got.err != want || got.out != "" {
		t.Errorf("for people: %+v, want %q", got, want)
	}
}

func TestInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out, errs bytes.Buffer
	p := newProgram(strings.NewReader(""), &out, &errs, []string{"OPENMESH_HOME=" + home(t)})
	if code := p.execute(ctx, []string{"call", "fine", "--json"}); code != exitFailed || !strings.Contains(errs.String(), `"cancelled"`) {
		t.Errorf("exit code %d, %s", code, &errs)
	}
}
