package handlers

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"openmesh/protocols/wire"
)

// server offers a capability whose handler is f.
func server(t *testing.T, cfg Config, fields string, f http.HandlerFunc) *Registry {
	t.Helper()
	s := httptest.NewServer(f)
	r := New(cfg)
	t.Cleanup(func() { r.Close(); s.Close() })
	offer(t, r, `http: {url: "`+s.URL+`/price"`+fields+`}`)
	return r
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	deadline := time.Now().Add(time.Minute).Truncate(time.Microsecond)
	var got http.Header
	var body, path, host string
	r := server(t, Config{CorrelationHeader: "x-corr", Getenv: func(string) (string, bool) { return "s3cret", true }},
		`, headers: {authorization: "Bearer ${TOKEN}", host: fx.example}`,
		func(w http.ResponseWriter, hr *http.Request) {
			b, _ := io.ReadAll(hr.Body)
			got, body, path, host = hr.Header.Clone(), string(b), hr.Method+" "+hr.URL.Path, hr.Host
			_, _ = io.WriteString(w, `{"rate":"1.1"}`)
		})
	req := call()
	req.Deadline = deadline
	resp, err := r.Serve(t.Context(), req)
	if err != nil || string(resp.Body) != `{"rate":"1.1"}` || resp.Encoding != 1 {
		t.Fatalf("%+v, %v", resp, err)
	}
	if body != string(req.Body) || path != "POST /price" || host != "fx.example" {
		t.Errorf("%s with %s to %s", path, body, host)
	}
	for name := range got {
		if name == "User-Agent" || name == "Content-Length" || name == "Accept-Encoding" {
			got.Del(name)
		}
	}
	want := http.Header{}
	for name, value := range map[string]string{
		"authorization": "Bearer s3cret", "content-type": "application/json", "accept": "application/json, application/x-ndjson, text/event-stream",
		"x-corr": "c1", "traceparent": "00-11-22-01", "tracestate": "a=b",
		"x-mesh-caller-agent": "did:key:z6Mk", "x-mesh-caller-address": "0:A91F.0000.7C2E", "x-mesh-session": "s1",
		"x-mesh-request": "r1", "x-mesh-idempotency-key": "k1", "x-mesh-capability": "fx",
		"x-mesh-redelivered": "true", "x-mesh-deadline": deadline.UTC().Format(time.RFC3339Nano),
	} {
		want.Set(name, value)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestHTTPAnswers(t *testing.T) {
	t.Parallel()
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no: hunter2", code) }
	}
	for name, tc := range map[string]struct {
		handler http.HandlerFunc
		want    wire.Code
	}{
		"bad gateway": {status(502), wire.HandlerUnavailable},
		"unavailable": {status(503), wire.HandlerUnavailable},
		"timeout":     {status(504), wire.HandlerUnavailable},
		"error":       {status(500), wire.HandlerFailed},
		"refused":     {status(403), wire.HandlerFailed},
		"redirect": {func(w http.ResponseWriter, hr *http.Request) {
			http.Redirect(w, hr, "/x", http.StatusTemporaryRedirect)
		}, wire.HandlerFailed},
		"not JSON": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, wire.InvalidResponse},
		"too long": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `"`+strings.Repeat("x", 2000)+`"`)
		}, wire.InvalidResponse},
		"cut short": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "9")
			_, _ = io.WriteString(w, "{}")
		}, wire.HandlerFailed},
		"reset": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, wire.HandlerFailed},
		"empty": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }, 0},
		"just so long": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `"`+strings.Repeat("x", 998)+`"`)
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			core, logs := observer.New(zap.InfoLevel)
			r := server(t, Config{MaxResponse: 1000, Log: zap.New(core)}, "", tc.handler)
			_, err := r.Serve(t.Context(), call())
			if tc.want == 0 && err != nil || tc.want != 0 && wire.CodeOf(err) != tc.want {
				t.Errorf("got %v, want %s", err, tc.want)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") || logs.Len() > 0 {
				t.Errorf("what the handler said is in %q or %v", err, logs.All())
			}
		})
	}
}

func TestHTTPNotThere(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	l.Close()
	for name, url := range map[string]string{"refused": "http://" + closed, "no such name": "http://nowhere.invalid/"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := New(Config{})
			offer(t, r, `http: {url: "`+url+`"}`)
			_, err := r.Serve(t.Context(), call())
			wantCode(t, err, wire.HandlerUnavailable)
		})
	}
}

// TestHTTPClosedAtOnce: a connection that ends before an answer may have
// carried the request, so the caller must not be told that it had no effect.
func TestHTTPClosedAtOnce(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = http.ReadRequest(bufio.NewReader(conn))
		conn.Close()
	}()
	r := New(Config{})
	offer(t, r, `http: {url: "http://`+l.Addr().String()+`"}`)
	_, err = r.Serve(t.Context(), call())
	wantCode(t, err, wire.HandlerFailed)
}

func TestHTTPEnds(t *testing.T) {
	t.Parallel()
	arrived := make(chan struct{}, 1)
	r := server(t, Config{}, "", func(_ http.ResponseWriter, hr *http.Request) {
		_, _ = io.Copy(io.Discard, hr.Body) // or the server does not see the client go
		arrived <- struct{}{}
		<-hr.Context().Done()
	})
	cancelled, cancel := context.WithCancel(t.Context())
	defer cancel()
	late := overdue{t.Context(), make(chan struct{})}
	for _, tc := range []struct {
		ctx  context.Context
		end  func()
		want wire.Code
	}{
		{cancelled, cancel, wire.Cancelled},
		{late, func() { close(late.done) }, wire.DeadlineExceeded},
	} {
		go func() { <-arrived; tc.end() }()
		_, err := r.Serve(tc.ctx, call())
		wantCode(t, err, tc.want)
	}
	expired := call()
	expired.Deadline = time.Now().Add(-time.Second)
	_, err := r.Serve(t.Context(), expired)
	wantCode(t, err, wire.DeadlineExceeded)
}
