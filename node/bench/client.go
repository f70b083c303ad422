package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/bench/load"
	"openmesh/overlay"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// payload is the body of every request: JSON of PayloadSize bytes.
var payload = []byte(`"` + strings.Repeat("x", PayloadSize-2) + `"`)

// client is the asking side: one of each kind, connected to a server.
type client struct {
	server Server
	raw    *overlay.Host
	rawTo  peer.ID
	grpc   *grpc.ClientConn
	node   *member
	agent  identity.AgentID
	nodeTo peer.ID
	api    *api.Client
}

func newClient(ctx context.Context, home string, setup Setup, s Server) (*client, error) {
	c := &client{server: s, agent: identity.AgentID(s.Agent)}
	if err := c.connect(ctx, home, setup); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *client) connect(ctx context.Context, home string, setup Setup) (err error) {
	if c.raw, err = newRaw(setup); err != nil {
		return err
	}
	to, err := peer.AddrInfoFromString(c.server.Raw[0])
	if err != nil {
		return err
	}
	c.rawTo = to.ID
	c.raw.Peerstore().AddAddrs(to.ID, to.Addrs, peerstore.PermanentAddrTTL)
	if c.grpc, err = c.dialGRPC(); err != nil {
		return err
	}
	nodeTo, err := peer.AddrInfoFromString(c.server.Node[0])
	if err != nil {
		return err
	}
	c.nodeTo = nodeTo.ID
	if c.node, err = join(ctx, home, setup, c.server.Node); err != nil {
		return err
	}
	if c.api, err = api.Dial(home); err != nil {
		return err
	}
	return c.meshCall(ctx)
}

func (c *client) close() {
	if c.node != nil {
		c.node.leave()
	}
	if c.raw != nil {
		c.raw.Close()
	}
	if c.grpc != nil {
		c.grpc.Close()
	}
	if c.api != nil {
		c.api.Close()
	}
}

func (c *client) dialGRPC() (*grpc.ClientConn, error) {
	cert, err := x509.ParseCertificate(c.server.Cert)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return grpc.NewClient(c.server.GRPC, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13})))
}

func (c *client) echoWorker(ctx context.Context) (load.Worker, error) {
	trip, end, err := c.echoStream(ctx)
	return load.Worker{Do: trip, End: end}, err
}

// echoStream returns a function that makes one round trip on a stream of its own.
func (c *client) echoStream(ctx context.Context) (trip func(context.Context) error, end func(), err error) {
	st, err := c.raw.NewStream(ctx, c.rawTo, echoProtocol)
	if err != nil {
		return nil, nil, err
	}
	buf := make([]byte, PayloadSize)
	return func(context.Context) error {
		if _, err := st.Write(payload); err != nil {
			return err
		}
		_, err := io.ReadFull(st, buf)
		return err
	}, func() { st.Close() }, nil
}

func (c *client) grpcCall(ctx context.Context) error { return invoke(ctx, c.grpc) }

func invoke(ctx context.Context, cc *grpc.ClientConn) error {
	out := new(wrapperspb.BytesValue)
	if err := cc.Invoke(ctx, grpcEcho, wrapperspb.Bytes(payload), out); err != nil {
		return err
	}
	return sameSize(len(out.Value))
}

func sameSize(n int) error {
	if n != PayloadSize {
		return fmt.Errorf("echo of %d bytes, sent %d", n, PayloadSize)
	}
	return nil
}

func (c *client) request() *openmeshv1.CallRequest {
	return &openmeshv1.CallRequest{
		Target: c.server.Agent, Capability: echoCapability, Body: &openmeshv1.CallRequest_Json{Json: string(payload)},
	}
}

func (c *client) meshCall(ctx context.Context) error {
	resp, err := c.node.Call(ctx, c.request())
	if err != nil {
		return err
	}
	return sameSize(len(resp.GetJson()))
}

func (c *client) apiCall(ctx context.Context) error {
	resp, err := c.api.Session.Call(ctx, c.request())
	if err != nil {
		return err
	}
	return sameSize(len(resp.GetJson()))
}

// rawBulk sends total bytes and returns when the server has counted them.
func (c *client) rawBulk(ctx context.Context, total int) error {
	st, err := c.raw.NewStream(ctx, c.rawTo, sinkProtocol)
	if err != nil {
		return err
	}
	defer st.Close()
	chunk := make([]byte, ChunkSize)
	for sent := 0; sent < total; sent += ChunkSize {
		if _, err := st.Write(chunk); err != nil {
			return err
		}
	}
	if err := st.CloseWrite(); err != nil {
		return err
	}
	var count [8]byte
	if _, err := io.ReadFull(st, count[:]); err != nil {
		return err
	}
	return counted(int64(binary.BigEndian.Uint64(count[:])), total)
}

func counted(got int64, want int) error {
	if got != int64(want) {
		return fmt.Errorf("%d of %d bytes arrived", got, want)
	}
	return nil
}

func (c *client) grpcBulk(ctx context.Context, total int) error {
	st, err := c.grpc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, grpcSink)
	if err != nil {
		return err
	}
	m := wrapperspb.Bytes(make([]byte, ChunkSize))
	for sent := 0; sent < total; sent += ChunkSize {
		if err := st.SendMsg(m); err != nil {
			return err
		}
	}
	if err := st.CloseSend(); err != nil {
		return err
	}
	out := new(wrapperspb.Int64Value)
	if err := st.RecvMsg(out); err != nil {
		return err
	}
	return counted(out.Value, total)
}

// meshBulk sends total bytes in the session that calls use.
func (c *client) meshBulk(ctx context.Context, total int) error {
	s := c.node.Sessions().Session(c.agent)
	if s == nil {
		return wire.SessionClosed
	}
	return bulk(ctx, s, total)
}

// The set-ups: each ends with the first answer.

func (c *client) rawSetup(ctx context.Context) error {
	if err := c.raw.Network().ClosePeer(c.rawTo); err != nil {
		return err
	}
	trip, end, err := c.echoStream(ctx)
	if err != nil {
		return err
	}
	defer end()
	return trip(ctx)
}

func (c *client) grpcSetup(ctx context.Context) error {
	cc, err := c.dialGRPC()
	if err != nil {
		return err
	}
	defer cc.Close()
	return invoke(ctx, cc)
}

// meshWarm needs a session on the connection that is there.
func (c *client) meshWarm(ctx context.Context) error {
	if s := c.node.Sessions().Session(c.agent); s != nil {
		s.Terminate(wire.Cancelled)
	}
	return c.meshCall(ctx)
}

// meshCold needs a connection too.
func (c *client) meshCold(ctx context.Context) error {
	if s := c.node.Sessions().Session(c.agent); s != nil {
		s.Terminate(wire.Cancelled)
	}
	if err := c.node.Host().Network().ClosePeer(c.nodeTo); err != nil {
		return err
	}
	return c.meshCall(ctx)
}

// discover asks the directory for a name that was never asked for.
func (c *client) discover(ctx context.Context, i int) error {
	_, err := c.api.Directory.Discover(ctx, &openmeshv1.DiscoverRequest{Capability: "bench/echo", Version: fmt.Sprintf(">=0.0.%d", i)})
	return err
}
