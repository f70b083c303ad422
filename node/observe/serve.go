package observe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
)

// ServerConfig is what a [Server] serves, and where.
type ServerConfig struct {
	Listener net.Listener // closed when Run returns
	Metrics  *Metrics
	Ready    func() error // nil while the node is ready; the error's text is shown to anyone
	Log      *zap.Logger
}

// Server is the HTTP server for those who watch the node:
//
//	/metrics   Prometheus text format
//	/healthz   200 while the process runs
//	/readyz    200 while the node is ready to serve, else 503 and why
//
// It asks for no credentials and gives away no secrets; bind it to where the
// watchers are.
type Server struct {
	cfg  ServerConfig
	http http.Server
}

// NewServer makes a server; [Server.Run] serves.
func NewServer(cfg ServerConfig) *Server {
	s := &Server{cfg: cfg}
	log, err := zap.NewStdLogAt(cfg.Log, zap.DebugLevel) // what clients do wrong
	if err != nil {
		panic(err) // that level is always there
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Metrics.registry, promhttp.HandlerOpts{
		ErrorLog: log, MaxRequestsInFlight: 8, Timeout: 10 * time.Second,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", s.ready)
	s.http = http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          log,
	}
	return s
}

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	if err := s.cfg.Ready(); err != nil {
		http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// Run serves until ctx ends, gives requests in progress two seconds, and
// returns nil then.
func (s *Server) Run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(s.cfg.Listener) }()
	select {
	case err := <-served:
		s.http.Close()
		return fmt.Errorf("serve metrics on %s: %w", s.cfg.Listener.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := s.http.Shutdown(grace); err != nil {
		s.http.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics on %s: %w", s.cfg.Listener.Addr(), err)
	}
	return nil
}
