package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/proto"
)

// lab is a folder with homes and the processes that run on them.
type lab struct {
	t   *testing.T
	dir string
	env []string
}

func newLab(t *testing.T, env ...string) *lab {
	l := &lab{t: t, dir: t.TempDir(), env: append([]string{"PATH=" + os.Getenv("PATH")}, env...)}
	for name, value := range loopback(l.dir) {
		l.env = append(l.env, name+"="+value)
	}
	return l
}

// run runs a command and returns its standard output.
func (l *lab) run(home string, args ...string) []byte {
	l.t.Helper()
	cmd := exec.Command("openmesh", append([]string{"--json", "--home", filepath.Join(l.dir, home)}, args...)...)
	cmd.Env = l.env
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		l.t.Fatalf("%s: %v: %s", args, err, &errs)
	}
	return out.Bytes()
}

// start makes a home and runs its daemon until the test ends.
func (l *lab) start(name string, flags ...string) *daemon {
	l.t.Helper()
	l.run(name, "init")
	d, err := startDaemon(filepath.Join(l.dir, name), l.env, flags...)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(d.crash)
	return d
}

func (l *lab) backbone() *daemon {
	return l.start("backbone", "--role", "backbone", "--addrs-file", filepath.Join(l.dir, "backbone.addrs"))
}

// patience is how long tests wait at most for what comes about soon, unless the machine
// is busy.
const patience = 3 * time.Minute

// eventually waits until check holds.
func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !check() {
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %s", patience, what)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// collector is an OTLP receiver.
type collector struct {
	*httptest.Server
	mu    sync.Mutex
	spans map[string]tracedSpan // by span id
}

type tracedSpan struct {
	trace, parent, name string
	by                  string // service and instance
}

func newCollector(t *testing.T) *collector {
	c := &collector{spans: map[string]tracedSpan{}}
	c.Server = httptest.NewServer(c)
	t.Cleanup(c.Close)
	return c
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var req collectorpb.ExportTraceServiceRequest
	if err != nil || r.URL.Path != "/v1/traces" || proto.Unmarshal(body, &req) != nil {
		http.Error(w, "want an ExportTraceServiceRequest", http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, group := range req.ResourceSpans {
		by := attribute(group.Resource.Attributes, "service.name") + " " + attribute(group.Resource.Attributes, "service.instance.id")
		for _, scope := range group.ScopeSpans {
			for _, s := range scope.Spans {
				c.spans[hex.EncodeToString(s.SpanId)] = tracedSpan{
					trace: hex.EncodeToString(s.TraceId), parent: hex.EncodeToString(s.ParentSpanId), name: s.Name, by: strings.TrimSpace(by),
				}
			}
		}
	}
}

func attribute(all []*commonpb.KeyValue, key string) string {
	for _, a := range all {
		if a.Key == key {
			return a.Value.GetStringValue()
		}
	}
	return ""
}

// lineage returns the span and its ancestors, and whether all are there.
func (c *collector) lineage(id string) (spans []tracedSpan, whole bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id != "" {
		s, ok := c.spans[id]
		if !ok {
			return spans, false
		}
		spans, id = append(spans, s), s.parent
	}
	return spans, true
}

// One call is one trace: each span of the callee's hangs under the caller's, the
// caller's under the command's, and the handler is given the end of that line.
func TestOneTrace(t *testing.T) {
	t.Parallel()
	spans, work := newCollector(t), newHandlerServer(`{"done":true}`, 0)
	t.Cleanup(work.unplug)
	l := newLab(t, "OTEL_EXPORTER_OTLP_ENDPOINT="+spans.URL, "OTEL_BSP_SCHEDULE_DELAY=50")
	l.backbone()
	callee, caller := l.start("callee"), l.start("caller")
	file := filepath.Join(l.dir, "work.yaml")
	if err := os.WriteFile(file, []byte("name: work\nversion: 1.0.0\nhandler: {http: {url: "+work.URL+"}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.run("callee", "capability", "add", file)
	eventually(t, "work is not discovered", func() bool {
		return strings.Contains(string(l.run("caller", "discover", "work")), callee.ready.Agent)
	})
	var answer struct{ Trace string }
	if err := json.Unmarshal(l.run("caller", "call", "work"), &answer); err != nil {
		t.Fatal(err)
	}
	heard := work.requests()
	if len(heard) != 1 {
		t.Fatalf("the handler heard %d requests", len(heard))
	}
	parts := strings.Split(heard[0].Header["traceparent"], "-")
	if len(parts) != 4 || parts[1] != answer.Trace {
		t.Fatalf("traceparent %v, the command says trace %q", parts, answer.Trace)
	}
	var line []tracedSpan
	eventually(t, "the trace has gaps", func() (whole bool) {
		line, whole = spans.lineage(parts[2])
		return whole
	})
	var who []string
	for _, s := range line {
		if s.trace != answer.Trace {
			t.Errorf("span %q is in trace %s, want %s", s.name, s.trace, answer.Trace)
		}
		who = append(who, s.by)
	}
	want := []string{"openmesh " + callee.ready.Agent, "openmesh " + caller.ready.Agent, "openmesh-cli"}
	if got := slices.Compact(who); !slices.Equal(got, want) {
		t.Errorf("from the handler to the command: %q, want %q", got, want)
	}
}

// What watches a node asks it for its health over HTTP, on the API's port and on
// that of the metrics.
func TestHealthAndMetrics(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	port := freePort(t)
	alone := l.start("alone", "--metrics-port", port)
	metrics := "http://127.0.0.1:" + port
	api := "http://" + alone.ready.API
	status := func(url string) int {
		code, _ := get(t, url)
		return code
	}
	for _, server := range []string{metrics, api} {
		if got := status(server + "/healthz"); got != 200 {
			t.Errorf("%s/healthz: %d", server, got)
		}
	}
	// No directory server is there, so this node is of no use yet.
	eventually(t, "a node alone is ready", func() bool { return status(metrics+"/readyz") == 503 && status(api+"/readyz") == 503 })
	l.backbone()
	eventually(t, "a node with a backbone is not ready", func() bool { return status(metrics+"/readyz") == 200 && status(api+"/readyz") == 200 })

	l.run("alone", "discover", "nothing")
	var text string
	eventually(t, "the metrics do not tell", func() bool { // they are sampled
		_, text = get(t, metrics+"/metrics")
		return strings.Contains(text, "\nopenmesh_directory_partitioned 0") && strings.Contains(text, "\nopenmesh_directory_lookup_seconds_count{")
	})
	for _, family := range []string{
		"openmesh_sessions", "openmesh_session_setup_seconds", "openmesh_messages_total", "openmesh_bytes_total",
		"openmesh_relay_usage_ratio", "openmesh_tunnel_failures_total", "openmesh_directory_lookup_seconds",
		"openmesh_directory_partitioned", "openmesh_key_expiry_timestamp_seconds", "libp2p_swarm_connections_opened_total",
	} {
		if !strings.Contains(text, "\n# TYPE "+family+" ") {
			t.Errorf("no metric %s", family)
		}
	}
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	status, text, err := fetch(req)
	if err != nil {
		t.Fatal(err)
	}
	return status, string(text)
}

// freePort returns a TCP port that was free a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(nil)
	defer s.Close()
	return s.URL[strings.LastIndexByte(s.URL, ':')+1:]
}
