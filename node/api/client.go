package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"

	"openmesh/node/api/openmesh/v1/openmeshv1connect"
	"openmesh/protocols/wire"
)

const (
	tokenFileName = "api.token"

	dialTimeout = 3 * time.Second // all on one machine
)

// Client speaks to the daemon of one home. Its errors are [wire.Error]. The
// trace in a call's context goes along as its traceparent.
type Client struct {
	Node      openmeshv1connect.NodeClient
	Directory openmeshv1connect.DirectoryClient
	Session   openmeshv1connect.SessionClient
	Market    openmeshv1connect.MarketClient
	Audit     openmeshv1connect.AuditClient
	Key       openmeshv1connect.KeyClient

	addr      string
	transport *http.Transport
}

// Dial finds the daemon of a home and connects to it. Without one the error
// wraps [ErrNotRunning].
func Dial(home string) (*Client, error) {
	home, err := filepath.Abs(home)
	if err != nil {
		return nil, fmt.Errorf("find the daemon of %s: %w", home, err)
	}
	addrs, err := readAddrs(home)
	if err != nil {
		return nil, fmt.Errorf("find the daemon of %s: %w", home, err)
	}
	for _, addr := range addrs {
		var client *Client
		if client, err = dial(home, addr); err == nil {
			return client, nil
		}
		// A socket that nobody listens on tells that the daemon is gone. Whoever
		// has its TCP port now must not get the token.
		if gone(err) {
			break
		}
	}
	if !gone(err) {
		return nil, fmt.Errorf("connect to the daemon of %s: %w", home, err)
	}
	return nil, &wire.Error{
		Code: wire.Unreachable, Message: "no daemon is running for " + home,
		Hint: "start it with: openmesh run", Err: ErrNotRunning,
	}
}

func dial(home, addr string) (*Client, error) {
	interceptor := &clientInterceptor{}
	if !strings.HasPrefix(addr, unixPrefix) {
		token, err := readToken(filepath.Join(home, tokenFileName))
		if err != nil {
			// Not wrapped: a missing token is not a missing daemon.
			return nil, wire.Errorf(wire.Unauthenticated, "read api token: %v", err).
				WithHint("run as the user who runs the daemon")
		}
		interceptor.token = token
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	c := &Client{addr: addr, transport: &http.Transport{
		Protocols:   protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialAddr(ctx, addr) },
	}}
	probe, err := dialAddr(context.Background(), addr)
	if err != nil {
		return nil, err
	}
	probe.Close()
	base := "http://localhost"
	if interceptor.token != "" {
		base = "http://" + addr
	}
	c.connect(base, connect.WithInterceptors(interceptor))
	return c, nil
}

func (c *Client) connect(base string, option connect.ClientOption) {
	caller := &http.Client{Transport: c.transport}
	c.Node = openmeshv1connect.NewNodeClient(caller, base, option)
	c.Directory = openmeshv1connect.NewDirectoryClient(caller, base, option)
	c.Session = openmeshv1connect.NewSessionClient(caller, base, option)
	c.Market = openmeshv1connect.NewMarketClient(caller, base, option)
	c.Audit = openmeshv1connect.NewAuditClient(caller, base, option)
	c.Key = openmeshv1connect.NewKeyClient(caller, base, option)
}

// Addr is where the daemon was found: unix:PATH or host:port.
func (c *Client) Addr() string { return c.addr }

// Close closes the connection. Calls in progress end with an error.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

func dialAddr(ctx context.Context, addr string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: dialTimeout}
	if path, ok := strings.CutPrefix(addr, unixPrefix); ok {
		return dialUnix(ctx, dialer, path)
	}
	return dialer.DialContext(ctx, "tcp", addr)
}

func dialUnix(ctx context.Context, dialer *net.Dialer, path string) (conn net.Conn, err error) {
	err = withShort(path, func(short string) error {
		conn, err = dialer.DialContext(ctx, "unix", short)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no socket %s: %w", path, err)
	}
	return conn, err
}
