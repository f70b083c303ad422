package handlers

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"openmesh/node/handlers/capability"
	"openmesh/protocols/wire"
)

// command returns a handler that is this test's binary; see child.
func command(t *testing.T, cfg Config, mode string, env map[string]string) *execHandler {
	t.Helper()
	own := maps.Clone(env)
	if own == nil {
		own = map[string]string{}
	}
	own["CHILD"] = mode
	h, err := New(cfg).newExec(&capability.Exec{Command: []string{self(t)}, Dir: t.TempDir(), Env: own})
	if err != nil {
		t.Fatal(err)
	}
	h.grace = 20 * time.Millisecond
	return h
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExec(t *testing.T) {
	t.Parallel()
	ambient := map[string]string{"PATH": "/bin", "HOME": "/h", "LANG": "C", "TZ": "UTC", "OPENMESH_PASSPHRASE": "hunter2", "TOKEN": "t0"}
	cfg := Config{Getenv: func(n string) (string, bool) { v, ok := ambient[n]; return v, ok }}
	h := command(t, cfg, "echo", map[string]string{"KEY": "x-${TOKEN}"})
	deadline := time.Now().Add(time.Minute)
	ctx, cancel := context.WithDeadline(t.Context(), deadline)
	defer cancel()
	resp, err := h.Handle(ctx, call())
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Env  map[string]string
		Body map[string]string
	}
	if err := json.Unmarshal(resp.Body, &got); err != nil {
		t.Fatal(err)
	}
	for name := range got.Env {
		if name == "PWD" || name == "GOCOVERDIR" || name == "GORACE" {
			delete(got.Env, name) // of package os/exec and of the go command
		}
	}
	want := map[string]string{
		"PATH": "/bin", "HOME": "/h", "LANG": "C", "TZ": "UTC", "CHILD": "echo", "KEY": "x-t0",
		"MESH_CALLER_AGENT": "did:key:z6Mk", "MESH_CALLER_ADDRESS": "0:A91F.0000.7C2E", "MESH_SESSION": "s1",
		"MESH_REQUEST": "r1", "MESH_IDEMPOTENCY_KEY": "k1", "MESH_TRACEPARENT": "00-11-22-01",
		"TRACEPARENT": "00-11-22-01", "TRACESTATE": "a=b", "MESH_CORRELATION_ID": "c1", "MESH_CAPABILITY": "fx",
		"MESH_REDELIVERED": "true", "MESH_DEADLINE": deadline.UTC().Format(time.RFC3339Nano),
	}
	if diff := cmp.Diff(want, got.Env); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got.Body["pair"] != "EURUSD" {
		t.Errorf("body %v", got.Body)
	}
}

func TestExecAnswers(t *testing.T) {
	t.Parallel()
	for mode, want := range map[string]wire.Code{
		"fail": wire.HandlerFailed, "flood": wire.InvalidResponse, "garbage": wire.InvalidResponse, "silent": 0,
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			core, logs := observer.New(zap.DebugLevel)
			cfg := Config{MaxResponse: 100_000, Log: zap.New(core)}
			r := New(cfg)
			h := command(t, cfg, mode, nil)
			h.grace = 0 // what it wrote is read however late that is
			if err := r.AddHandler(&capability.Capability{Name: "fx", Version: "1.0.0"}, h); err != nil {
				t.Fatal(err)
			}
			resp, err := r.Serve(t.Context(), call())
			if want != 0 {
				wantCode(t, err, want)
			} else if err != nil || string(resp.Body) != "null" {
				t.Errorf("%+v, %v", resp, err)
			}
			if mode != "fail" {
				return
			}
			end, _ := logs.All()[0].ContextMap()["end"].(string)
			if len(end) != 4<<10 || !strings.Contains(end, "x the end\n") || strings.Contains(err.Error(), "the end") {
				t.Errorf("logged %d bytes, error %v", len(end), err)
			}
		})
	}
}

func TestExecNotThere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []string{"./none", "no-such-command-anywhere", plain, dir} {
		h, err := New(Config{}).newExec(&capability.Exec{Command: []string{cmd}, Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		_, err = h.Handle(t.Context(), call())
		wantCode(t, err, wire.HandlerUnavailable)
	}
	_, err := New(Config{Getenv: func(string) (string, bool) { return "", false }}).newExec(&capability.Exec{Env: map[string]string{"A": "${TOKEN}"}})
	if err == nil {
		t.Error("built without its variable")
	}
}

// pipe is a named pipe that a child tells its life by.
func pipe(t *testing.T) (path string, opened func() *os.File) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, func() *os.File {
		f, err := os.Open(path) // returns once the child has opened it too
		if err != nil {
			t.Error(err)
			return nil
		}
		up := make([]byte, 2)
		if _, err := io.ReadFull(f, up); err != nil {
			t.Error(err)
		}
		return f
	}
}

// ended waits until all that had the pipe open are dead.
func (tp testPipe) ended(t *testing.T) {
	t.Helper()
	if rest, err := io.ReadAll(tp.File); err != nil || len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
	tp.Close()
}

type testPipe struct{ *os.File }

func TestExecIsKilled(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"block", "stubborn"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			path, opened := pipe(t)
			h := command(t, Config{}, mode, map[string]string{"PIPE": path})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			failed := make(chan error, 1)
			go func() {
				_, err := h.Handle(ctx, call())
				failed <- err
			}()
			p := testPipe{opened()}
			cancel()
			wantCode(t, <-failed, wire.Cancelled)
			p.ended(t)
		})
	}
}

// overdue is a context whose deadline passes when the test says so.
type overdue struct {
	context.Context
	done chan struct{}
}

func (c overdue) Done() <-chan struct{} { return c.done }

func (c overdue) Err() error {
	select {
	case <-c.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

func TestExecDeadline(t *testing.T) {
	t.Parallel()
	path, opened := pipe(t)
	h := command(t, Config{}, "block", map[string]string{"PIPE": path})
	ctx := overdue{t.Context(), make(chan struct{})}
	failed := make(chan error, 1)
	go func() {
		_, err := h.Handle(ctx, call())
		failed <- err
	}()
	p := testPipe{opened()}
	close(ctx.done)
	wantCode(t, <-failed, wire.DeadlineExceeded)
	p.ended(t)
}

// TestExecOrphan: the command ends well, but leaves a process behind that
// holds on to the output.
func TestExecOrphan(t *testing.T) {
	t.Parallel()
	path, opened := pipe(t)
	h := command(t, Config{}, "orphan", map[string]string{"PIPE": path})
	h.grace = 3 * time.Second // for the orphan to come up
	got := make(chan *os.File, 1)
	go func() { got <- opened() }()
	resp, err := h.Handle(t.Context(), call())
	if err != nil || string(resp.Body) != "{}" {
		t.Errorf("%+v, %v", resp, err)
	}
	testPipe{<-got}.ended(t)
}

func TestExecConcurrency(t *testing.T) {
	t.Parallel()
	path, opened := pipe(t)
	h := command(t, Config{MaxProcesses: 1}, "block", map[string]string{"PIPE": path})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		_, err := h.Handle(ctx, call())
		failed <- err
	}()
	p := testPipe{opened()} // the one slot is taken
	short, done := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer done()
	_, err := h.Handle(short, call())
	wantCode(t, err, wire.DeadlineExceeded)
	if !strings.Contains(err.Error(), "free process") {
		t.Errorf("it ran: %v", err)
	}
	cancel()
	wantCode(t, <-failed, wire.Cancelled)
	p.ended(t)
}

func TestTail(t *testing.T) {
	t.Parallel()
	w := &tail{limit: 4}
	for _, s := range []string{"ab", "c", "defghij", "", "kl"} {
		if n, err := w.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
	}
	if string(w.b) != "ijkl" {
		t.Errorf("%s", w.b)
	}
}
