package grpclink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/tap"

	"openmesh/overlay/grpclink/grpclinkpb"
	"openmesh/protocols/wire"
)

// Config is what a [Server] needs.
type Config struct {
	Listen []string // host:port; port 0 is any free one

	// Exchange answers requests, by protocol id. The context ends with the call;
	// of an error the peer learns the [wire.Code].
	Exchange map[string]func(ctx context.Context, from netip.AddrPort, body []byte) ([]byte, error)

	// Accept serves a stream, in a goroutine of its own. When it returns, the
	// stream ends, and with it what is still read or written elsewhere. Nothing
	// is known of the peer but its IP address, and it may never say a word: Reset
	// it if it does not within the time it has to introduce itself.
	Accept func(*Conn)

	MaxConns          int // connections; default 256
	MaxConnsPerIP     int // of one IPv4 address or IPv6 /56; default 32
	MaxStreams        int // streams in all; default 1024
	MaxStreamsPerConn int // default 256
	ExchangeRate      int // exchanges a second of one IP, four times as many at once; default 50

	Keepalive time.Duration // between pings, and for their answer; default 10 s, at least 1 s
	Log       *zap.Logger
}

// Server takes calls. Make it with [New], then Listen, then Run.
type Server struct {
	cfg     Config
	grpc    *grpc.Server
	door    *door
	crowd   *crowd
	codec   codec
	streams atomic.Int64

	listeners []net.Listener
	addrs     []ma.Multiaddr
}

// New returns a server that does not listen yet.
func New(cfg Config) (*Server, error) {
	for _, d := range []struct {
		n   *int
		def int
	}{{&cfg.MaxConns, 256}, {&cfg.MaxConnsPerIP, 32}, {&cfg.MaxStreams, 1024}, {&cfg.MaxStreamsPerConn, 256}, {&cfg.ExchangeRate, 50}} {
		if *d.n == 0 {
			*d.n = d.def
		}
	}
	if cfg.Keepalive == 0 {
		cfg.Keepalive = defaultKeepalive
	}
	cert, err := ephemeral()
	if err != nil {
		return nil, fmt.Errorf("gRPC server: %w", err)
	}
	s := &Server{cfg: cfg, codec: newCodec(), crowd: &crowd{
		perSite: cfg.MaxConnsPerIP, all: cfg.MaxConns, connects: 8, exchanges: rate.Limit(cfg.ExchangeRate),
		sites: make(map[netip.Prefix]*site),
	}}
	s.door = newDoor(cert, s.crowd, cfg.Log)
	s.grpc = grpc.NewServer(s.options()...)
	s.grpc.RegisterService(s.describe(), s)
	return s, nil
}

func (s *Server) options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.Creds(insecure.NewCredentials()), // the door has done TLS
		grpc.ForceServerCodecV2(s.codec),
		grpc.InTapHandle(cancellable),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.MaxConcurrentStreams(uint32(s.cfg.MaxStreamsPerConn)),
		grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(connWindow),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: s.cfg.Keepalive, Timeout: s.cfg.Keepalive, MaxConnectionIdle: serverIdle}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
		grpc.WaitForHandlers(true),
	}
}

// describe is the service of link.proto.
func (s *Server) describe() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: service, HandlerType: (*any)(nil), Metadata: "grpclinkpb/link.proto",
		Methods: []grpc.MethodDesc{{MethodName: "Exchange", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			out, err := s.exchange(ctx, decode)
			if err != nil {
				trailer, status := statusOf(err)
				grpc.SetTrailer(ctx, trailer)
				return nil, status
			}
			return &grpclinkpb.ExchangeResponse{Body: out}, nil
		}}},
		Streams: []grpc.StreamDesc{{StreamName: "Open", ClientStreams: true, ServerStreams: true, Handler: func(_ any, st grpc.ServerStream) error {
			return s.open(st)
		}}},
	}
}

// cancelKey is where the context of a call has the function that cancels it.
type cancelKey struct{}

// cancellable gives each call a context that its handler can cancel, which is
// the one way to interrupt its own Read and Write; and an exchange its deadline,
// before the request is read. (It is gRPC's tap, which is marked experimental, as
// are the buffers that the codec uses.)
func cancellable(ctx context.Context, info *tap.Info) (context.Context, error) {
	var cancel context.CancelFunc
	if info.FullMethodName == openMethod {
		ctx, cancel = context.WithCancel(ctx)
	} else {
		ctx, cancel = context.WithTimeout(ctx, exchangeTimeout)
	}
	return context.WithValue(ctx, cancelKey{}, cancel), nil
}

// Listen opens the configured addresses.
func (s *Server) Listen() error {
	for _, hostport := range s.cfg.Listen {
		l, err := net.Listen("tcp", hostport)
		if err != nil {
			s.Close()
			return &wire.Error{Code: wire.InvalidArgument, Message: fmt.Sprintf("listen for gRPC on %s: %v", hostport, err), Err: err,
				Hint: "another program may have the port: change networking.grpc_listen"}
		}
		s.listeners = append(s.listeners, l)
		addrs, err := addrsOf(l)
		if err != nil {
			s.Close()
			return fmt.Errorf("listen for gRPC on %s: %w", hostport, err)
		}
		s.addrs = append(s.addrs, addrs...)
	}
	return nil
}

// Addrs returns where the server listens, /ip4/…/tcp/…/tls/http; for all
// interfaces, each of them.
func (s *Server) Addrs() []ma.Multiaddr { return s.addrs }

// Run serves until ctx ends; then it ends all calls, and returns when their
// handlers have.
func (s *Server) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for _, l := range s.listeners {
		all.Go(func() { s.door.run(l) })
	}
	stop := context.AfterFunc(ctx, s.grpc.Stop)
	defer stop()
	err := s.grpc.Serve(s.door)
	s.Close()
	all.Wait()
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve gRPC: %w", err)
	}
	return nil
}

// Close ends what Listen began, if Run was not called, or makes Run return.
func (s *Server) Close() {
	s.door.Close()
	for _, l := range s.listeners {
		l.Close()
	}
	s.grpc.Stop()
}

// exchange answers one request.
func (s *Server) exchange(ctx context.Context, decode func(any) error) ([]byte, error) {
	defer ctx.Value(cancelKey{}).(context.CancelFunc)()
	from := remoteOf(ctx)
	if !s.crowd.exchange(from.Addr(), time.Now()) {
		return nil, wire.ResourceExhausted
	}
	var in grpclinkpb.ExchangeRequest
	switch err := decode(&in); {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, wire.Malformed
	case len(in.Body) > MaxBody || len(in.Protocol) > maxProtocol:
		return nil, wire.TooLarge
	}
	answer, ok := s.cfg.Exchange[in.Protocol]
	if !ok {
		return nil, wire.Unsupported
	}
	out, err := answer(ctx, from, in.Body)
	if err == nil && len(out) > MaxBody {
		err = errors.New("the response is too large")
	}
	if err != nil {
		s.cfg.Log.Debug("grpc: exchange failed", zap.String("protocol", in.Protocol), zap.Stringer("ip", from.Addr()), zap.Error(err))
	}
	return out, err
}

// open serves one stream.
func (s *Server) open(st grpc.ServerStream) error {
	defer s.streams.Add(-1)
	if s.streams.Add(1) > int64(s.cfg.MaxStreams) || s.cfg.Accept == nil {
		trailer, status := statusOf(wire.ResourceExhausted)
		st.SetTrailer(trailer)
		return status
	}
	cancel := st.Context().Value(cancelKey{}).(context.CancelFunc)
	from := remoteOf(st.Context())
	c := &Conn{
		in: reader{stream: st}, out: writer{stream: st, pool: s.codec.pool},
		remote: from, addr: remoteAddr(from),
		// gRPC ends a call whose RecvMsg or SendMsg is interrupted by itself: what
		// the peer is to learn must be there before.
		finish: func(code wire.Code) {
			st.SetTrailer(trailerOf(code))
			cancel()
		},
	}
	st.SendHeader(nil) // the client keeps what it sends until it hears something
	s.cfg.Accept(c)
	c.Close()
	c.in.leave()
	c.out.leave()
	return nil // the trailer says what it is
}

func remoteOf(ctx context.Context) netip.AddrPort {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return netip.AddrPort{}
	}
	return addrPort(p.Addr)
}
