package grpclink

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"
	"sync"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"openmesh/overlay/grpclink/grpclinkpb"
	"openmesh/protocols/wire"
)

// maxLinks bounds the connections that a dialer has.
const maxLinks = 1024

// Dialer makes calls. It has one connection for each address, made when it is
// needed and closed when it has been idle for a while. A proxy in the
// environment (HTTPS_PROXY, NO_PROXY) is used, since networks that let nothing
// else out often have one.
type Dialer struct {
	codec   codec
	hangups sync.WaitGroup

	mu     sync.Mutex
	closed bool
	links  map[string]*link // by host:port
}

// link is a connection and who uses it.
type link struct {
	conn     *grpc.ClientConn
	hostport string
	users    int
	timer    *time.Timer // closes it if it is idle then
}

// NewDialer returns a dialer without connections.
func NewDialer() *Dialer {
	return &Dialer{codec: newCodec(), links: make(map[string]*link)}
}

// Close closes all connections, and with them their streams, and waits until
// what it has started has ended.
func (d *Dialer) Close() {
	d.mu.Lock()
	d.closed = true
	for _, l := range d.links {
		d.drop(l)
		l.conn.Close()
	}
	d.mu.Unlock()
	d.hangups.Wait()
}

// Exchange sends a request to the server at addr and returns its response. An
// error is a [wire.Error] with the code that the server gave, or Unreachable if
// it gave none.
func (d *Dialer) Exchange(ctx context.Context, addr ma.Multiaddr, protocol string, body []byte) ([]byte, error) {
	if len(body) > MaxBody || len(protocol) > maxProtocol {
		return nil, wire.Errorf(wire.TooLarge, "exchange with %s: %d bytes, the limit is %d", addr, len(body), MaxBody)
	}
	l, err := d.acquire(addr)
	if err != nil {
		return nil, fmt.Errorf("exchange with %s: %w", addr, err)
	}
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout)
	defer cancel()
	var out grpclinkpb.ExchangeResponse
	var trailer metadata.MD
	err = l.conn.Invoke(ctx, exchangeMethod, &grpclinkpb.ExchangeRequest{Protocol: protocol, Body: body}, &out, grpc.Trailer(&trailer))
	d.release(l, err)
	if err != nil {
		return nil, wire.Errorf(codeOf(err, trailer), "exchange with %s: %w", addr, err)
	}
	return out.Body, nil
}

// Connect makes sure that there is a connection to the server at addr, and makes
// it if there is none.
func (d *Dialer) Connect(ctx context.Context, addr ma.Multiaddr) error {
	l, err := d.acquire(addr)
	if err == nil {
		err = l.connected(ctx)
		d.release(l, err)
	}
	if err != nil {
		return wire.Errorf(codeOf(err, nil), "connect to %s: %w", addr, err)
	}
	return nil
}

// connected waits until the link's connection is there, or has failed.
func (l *link) connected(ctx context.Context) error {
	l.conn.Connect()
	for {
		state := l.conn.GetState()
		switch state {
		case connectivity.Ready:
			return nil
		case connectivity.TransientFailure, connectivity.Shutdown:
			return status.Error(codes.Unavailable, "no connection")
		case connectivity.Idle: // it was there, and broke
			l.conn.Connect()
		}
		if !l.conn.WaitForStateChange(ctx, state) {
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

// Open opens a stream to the server at addr. ctx bounds the opening alone. It
// does not wait for the server: if that refuses, Read says so.
func (d *Dialer) Open(ctx context.Context, addr ma.Multiaddr) (*Conn, error) {
	l, err := d.acquire(addr)
	if err != nil {
		return nil, fmt.Errorf("open link to %s: %w", addr, err)
	}
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	inTime := context.AfterFunc(ctx, cancel)
	st, err := l.conn.NewStream(own, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, openMethod)
	if !inTime() {
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		d.release(l, err)
		return nil, wire.Errorf(codeOf(err, nil), "open link to %s: %w", addr, err)
	}
	c := &Conn{in: reader{stream: st, trailer: st.Trailer}, out: writer{stream: st, pool: d.codec.pool}, addr: addr}
	c.remote, _ = netip.ParseAddrPort(l.hostport) // or a name
	c.abandon = func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.drop(l)
	}
	c.finish = func(code wire.Code) {
		d.inBackground(func() {
			c.hangUp(code, st, cancel)
			d.release(l, nil)
		})
	}
	return c, nil
}

// inBackground runs f in a goroutine that Close waits for; or here, if the
// connections are closed and it cannot take long.
func (d *Dialer) inBackground(f func()) {
	d.mu.Lock()
	closed := d.closed
	if !closed {
		d.hangups.Go(f)
	}
	d.mu.Unlock()
	if closed {
		f()
	}
}

// acquire returns the connection to addr; each call is followed by one of
// release.
func (d *Dialer) acquire(addr ma.Multiaddr) (*link, error) {
	hostport, err := HostPort(addr)
	if err != nil {
		return nil, wire.Errorf(wire.InvalidArgument, "%w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, wire.Errorf(wire.Cancelled, "the dialer is closed")
	}
	l := d.links[hostport]
	if l == nil {
		if len(d.links) >= maxLinks && !d.dropIdle() {
			return nil, wire.Errorf(wire.ResourceExhausted, "%d connections are in use", maxLinks)
		}
		if l, err = d.connect(hostport); err != nil {
			return nil, err
		}
		d.links[hostport] = l
	}
	l.users++
	return l, nil
}

// release ends a use. A connection that failed is not used again: gRPC would
// wait before it tries anew, which is for the caller to decide.
func (d *Dialer) release(l *link, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l.users--
	if status.Code(err) == codes.Unavailable {
		d.drop(l)
	}
	if l.users > 0 {
		return
	}
	if d.links[l.hostport] != l {
		l.conn.Close()
		return
	}
	l.timer.Reset(dialerIdle)
}

// connect makes a link; gRPC connects when the first call is made.
func (d *Dialer) connect(hostport string) (*link, error) {
	conn, err := grpc.NewClient("passthrough:///"+hostport,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			MinVersion:         tls.VersionTLS13,
			InsecureSkipVerify: true, // what is carried authenticates the peer: see the package comment
		})),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(d.codec), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithMaxHeaderListSize(maxHeader),
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(connWindow),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: defaultKeepalive, Timeout: defaultKeepalive}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: handshakeTimeout}),
		grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(), grpc.WithIdleTimeout(0),
	)
	if err != nil {
		return nil, wire.Errorf(wire.InvalidArgument, "connect to %s: %w", hostport, err)
	}
	l := &link{conn: conn, hostport: hostport}
	l.timer = time.AfterFunc(dialerIdle, func() { d.expire(l) })
	return l, nil
}

// expire closes a link that has been idle.
func (d *Dialer) expire(l *link) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l.users == 0 && d.links[l.hostport] == l {
		d.drop(l)
		l.conn.Close()
	}
}

// dropIdle closes one link that nobody uses, and reports whether there was one;
// d.mu is held.
func (d *Dialer) dropIdle() bool {
	for _, l := range d.links {
		if l.users == 0 {
			d.drop(l)
			l.conn.Close()
			return true
		}
	}
	return false
}

// drop forgets a link, which those who use it still may; d.mu is held.
func (d *Dialer) drop(l *link) {
	l.timer.Stop()
	if d.links[l.hostport] == l {
		delete(d.links, l.hostport)
	}
}
