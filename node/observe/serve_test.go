package observe

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/zap"
)

func TestServer(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	ready := make(chan error, 1)
	s := NewServer(ServerConfig{Listener: ln, Metrics: NewMetrics("1.2.3"), Log: zap.NewNop(), Ready: func() error { return <-ready }})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()

	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(method, path string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+ln.Addr().String()+path, nil)
		check(t, err)
		resp, err := client.Do(req)
		check(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		check(t, err)
		return resp.StatusCode, string(body)
	}
	for _, tc := range []struct {
		method, path string
		ready        error
		status       int
		body         string
	}{
		{"GET", "/healthz", nil, 200, "ok\n"},
		{"GET", "/readyz", nil, 200, "ok\n"},
		{"GET", "/readyz", errors.New("no peers"), 503, "not ready: no peers\n"},
		{"GET", "/metrics", nil, 200, `openmesh_build_info{go_version=`},
		{"GET", "/", nil, 404, ""},
		{"POST", "/metrics", nil, 405, ""},
	} {
		if tc.path == "/readyz" {
			ready <- tc.ready
		}
		if status, body := get(tc.method, tc.path); status != tc.status || !strings.Contains(body, tc.body) {
			t.Errorf("%s %s: %d %.200s", tc.method, tc.path, status, body)
		}
	}
	cancel()
	check(t, <-done)
	if _, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		t.Error("still listening after Run")
	}
}

func TestServerWithoutListenerFails(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	ln.Close()
	s := NewServer(ServerConfig{Listener: ln, Metrics: NewMetrics(""), Log: zap.NewNop()})
	if err := s.Run(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run = %v", err)
	}
}
