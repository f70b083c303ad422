// Package api is the daemon's local API: the server inside the daemon and the
// client that the command line is built on. What it offers is defined in
// openmesh/v1/*.proto; this package is the door.
//
// On the wire it is Connect: gRPC, gRPC-Web and plain HTTP with JSON, over
// HTTP/1.1 and cleartext HTTP/2, on every listener.
//
//	request ─ known procedure? ─ Host ─ Origin ─ token ─ size ─ trace ─ handler
//	              (access.go)      └── TCP only ──┘                  (guard.go)
//
//	unix:PATH    who may open the file (mode 0600) may call
//	host:port    who shows the token of $HOME/api.token may call; Host and
//	             Origin are checked so that no web page can (DNS rebinding)
//	/healthz     200 while the process serves; no credentials
//	/readyz      200 once the node is ready, else 503 and why; no credentials
//
// A client finds the daemon of a home by $HOME/api.addr: one address a line,
// unix sockets first, there while the daemon serves.
package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"connectrpc.com/connect"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"openmesh/node/api/openmesh/v1/openmeshv1connect"
)

const (
	defaultMaxBody = 16 << 20 // bytes of one request
	defaultGrace   = 10 * time.Second

	headerTimeout = 10 * time.Second // for a request's header
	bodyTimeout   = 30 * time.Second // for a request's body
	idleTimeout   = 2 * time.Minute  // between requests
	maxHeader     = 64 << 10         // bytes
)

// Services are what the server offers: one implementation per service of
// openmesh.v1. All must be set.
type Services struct {
	Node      openmeshv1connect.NodeHandler
	Directory openmeshv1connect.DirectoryHandler
	Session   openmeshv1connect.SessionHandler
	Market    openmeshv1connect.MarketHandler
	Audit     openmeshv1connect.AuditHandler
	Key       openmeshv1connect.KeyHandler
}

// Config is what a [Server] is made of. Services, Listen and TokenFile are
// required.
type Config struct {
	Services  Services
	Listen    []string      // host:port (port 0: any free one) or unix:PATH
	TokenFile string        // bearer token for TCP; made if missing
	AddrFile  string        // where clients look; default api.addr beside TokenFile
	Ready     func() error  // why the node is not ready; nil: always ready
	Log       *zap.Logger   // nil: none
	Tracer    Tracer        // for one server span per call; nil: none
	MaxBody   int           // bytes of one request; default 16 MiB
	Grace     time.Duration // calls in progress get this long at the end; default 10 s
}

// Tracer makes spans, as a trace.Tracer does.
type Tracer interface {
	Start(ctx context.Context, name string, opts ...trace.SpanStartOption) (context.Context, trace.Span)
}

// Server serves the local API.
type Server struct {
	cfg       Config
	http      *http.Server
	listeners []listener
	token     string
	ending    chan struct{}  // closed when streams should end
	calls     sync.WaitGroup // calls in progress
}

// New returns a server that does not listen yet.
func New(cfg Config) (*Server, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("make local api: %w", err)
	}
	s := &Server{cfg: cfg, ending: make(chan struct{})}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s.http = &http.Server{
		Handler:           s.handler(),
		Protocols:         protocols,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          zap.NewStdLog(cfg.Log),
	}
	return s, nil
}

func (c *Config) complete() error {
	switch {
	case c.Services.Node == nil || c.Services.Directory == nil || c.Services.Session == nil || c.Services.Market == nil || c.Services.Audit == nil ||
		c.Services.Key == nil:
		return errors.New("a service is missing")
	case len(c.Listen) == 0:
		return errors.New("nothing to listen on")
	case c.TokenFile == "":
		return errors.New("no token file")
	}
	if c.AddrFile == "" {
		c.AddrFile = filepath.Join(filepath.Dir(c.TokenFile), addrFileName)
	}
	if c.Ready == nil {
		c.Ready = func() error { return nil }
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	if c.Tracer == nil {
		c.Tracer = noop.NewTracerProvider().Tracer("")
	}
	if c.MaxBody == 0 {
		c.MaxBody = defaultMaxBody
	}
	if c.Grace == 0 {
		c.Grace = defaultGrace
	}
	return nil
}

// handler is all that the server answers.
func (s *Server) handler() http.Handler {
	options := connect.WithHandlerOptions(
		connect.WithInterceptors(&serverInterceptor{s}),
		connect.WithReadMaxBytes(s.cfg.MaxBody),
		connect.WithCodec(jsonCodec{"json"}),
		connect.WithCodec(jsonCodec{"json; charset=utf-8"}),
	)
	rpc := http.NewServeMux()
	rpc.Handle(openmeshv1connect.NewNodeHandler(s.cfg.Services.Node, options))
	rpc.Handle(openmeshv1connect.NewDirectoryHandler(s.cfg.Services.Directory, options))
	rpc.Handle(openmeshv1connect.NewSessionHandler(s.cfg.Services.Session, options))
	rpc.Handle(openmeshv1connect.NewMarketHandler(s.cfg.Services.Market, options))
	rpc.Handle(openmeshv1connect.NewAuditHandler(s.cfg.Services.Audit, options))
	rpc.Handle(openmeshv1connect.NewKeyHandler(s.cfg.Services.Key, options))

	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.cfg.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.Handle("/", s.guard(bounded(rpc, s.cfg.MaxBody)))
	return mux
}

// Listen opens all listeners and the token, so that the addresses are known
// before anything is served. Connections wait until Run. On error nothing
// stays open.
func (s *Server) Listen() error {
	token, err := openToken(s.cfg.TokenFile)
	if err != nil {
		return fmt.Errorf("open api token %s: %w", s.cfg.TokenFile, err)
	}
	s.token = token
	for _, addr := range s.cfg.Listen {
		l, err := listen(addr)
		if err != nil {
			return errors.Join(fmt.Errorf("listen for the local api on %s: %w", addr, err), s.Close())
		}
		s.listeners = append(s.listeners, l)
	}
	return nil
}

// Addrs are the addresses that a client on this machine can dial, in the order
// of Config.Listen: unix:PATH or host:port with the real port.
func (s *Server) Addrs() []string {
	addrs := make([]string, len(s.listeners))
	for i, l := range s.listeners {
		addrs[i] = l.dialable
	}
	return addrs
}

// Close closes the listeners of a server that was not run.
func (s *Server) Close() error {
	var errs []error
	for _, l := range s.listeners {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Run serves until ctx ends: then streams end, calls in progress have
// Config.Grace to finish, and the rest is cut. It opens the listeners if
// [Server.Listen] has not. A server runs once.
func (s *Server) Run(ctx context.Context) error {
	if s.listeners == nil {
		if err := s.Listen(); err != nil {
			return err
		}
	}
	defer s.Close()
	remove, err := writeAddrs(s.cfg.AddrFile, s.Addrs())
	if err != nil {
		return fmt.Errorf("write api addresses %s: %w", s.cfg.AddrFile, err)
	}
	defer remove()

	group, ctx := errgroup.WithContext(ctx)
	for _, l := range s.listeners {
		group.Go(func() error {
			if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve local api on %s: %w", l.dialable, err)
			}
			return nil
		})
	}
	group.Go(func() error {
		<-ctx.Done()
		return s.shutdown(context.WithoutCancel(ctx))
	})
	err = group.Wait()
	s.calls.Wait()
	return err
}

// shutdown lets calls finish within the grace period and cuts the others.
func (s *Server) shutdown(ctx context.Context) error {
	close(s.ending)
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Grace)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		s.cfg.Log.Warn("local api calls were cut at shutdown", zap.Duration("grace", s.cfg.Grace))
		return s.http.Close()
	}
	return err
}

// untilEnding derives a context that also ends when the server does.
func (s *Server) untilEnding(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		select {
		case <-s.ending:
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}
