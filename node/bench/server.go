// Package bench measures what OpenMesh costs, against what it stands on and what
// people would use instead, in one run and interleaved: machines are noisy, but
// ratios of neighbours in time are not.
//
//	raw   one long-lived libp2p stream, length known to both ends, same transport
//	grpc  gRPC over TLS 1.3: unary calls; client streaming for bulk
//	mesh  a call between two nodes: resolve, policy, sealed session, handler
//	api   the same call as the command line makes it, over the local API
//
// Server and client are processes of their own on the loopback interface.
package bench

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"openmesh/node"
	"openmesh/node/config"
	"openmesh/node/handlers"
	"openmesh/node/handlers/capability"
	"openmesh/node/keys"
	"openmesh/overlay"
	"openmesh/protocols/identity"
	"openmesh/protocols/session"
)

const (
	echoProtocol = "/openmesh-bench/echo/1.0.0"
	sinkProtocol = "/openmesh-bench/sink/1.0.0"

	// realm is a private-use one: its addresses are made at once.
	realm = identity.FirstPrivateRealm

	echoCapability  = "bench/echo"
	countCapability = "bench/count"

	// PayloadSize is the size of a request and of its response, in bytes.
	PayloadSize = 256
	// ChunkSize is the size of one write or message of bulk, in bytes.
	ChunkSize = 64 << 10
)

// Server is where a server process can be reached.
type Server struct {
	Agent string   `json:"agent"`
	Node  []string `json:"node"` // multiaddrs
	Raw   []string `json:"raw"`
	GRPC  string   `json:"grpc"` // host:port
	Cert  []byte   `json:"cert"` // DER, of the gRPC server
}

// Serve runs the server side in a fresh home until ctx ends; ready is told where
// it is.
func Serve(ctx context.Context, home, transport string, ready func(Server) error) error {
	s := Server{}
	group, ctx := errgroup.WithContext(ctx)
	raw, err := serveRaw(transport)
	if err != nil {
		return err
	}
	defer raw.Close()
	s.Raw = raw.Addresses()
	g, l, err := serveGRPC(&s)
	if err != nil {
		return err
	}
	group.Go(func() error { return g.Serve(l) })
	group.Go(func() error { <-ctx.Done(); g.Stop(); return nil })

	var received atomic.Int64
	n, err := newNode(ctx, home, transport, []string{"backbone"}, nil, func(_ *session.Session, b []byte) { received.Add(int64(len(b))) })
	if err != nil {
		return err
	}
	if err := offer(n, &received); err != nil {
		return err
	}
	group.Go(func() error { return n.Run(ctx) })
	group.Go(func() error {
		select {
		case <-n.Ready():
		case <-ctx.Done():
			return nil
		}
		s.Agent, s.Node = n.Info().Agent, n.Info().Addrs
		return ready(s)
	})
	return group.Wait()
}

func offer(n *node.Node, received *atomic.Int64) error {
	echo := func(_ context.Context, r *handlers.Request) (*handlers.Response, error) {
		return &handlers.Response{Body: r.Body, Encoding: r.Encoding}, nil
	}
	count := func(context.Context, *handlers.Request) (*handlers.Response, error) {
		return &handlers.Response{Body: strconv.AppendInt(nil, received.Load(), 10)}, nil
	}
	return errors.Join(
		n.Registry().AddHandler(&capability.Capability{Name: echoCapability, Version: "1.0.0"}, handlers.HandlerFunc(echo)),
		n.Registry().AddHandler(&capability.Capability{Name: countCapability, Version: "1.0.0"}, handlers.HandlerFunc(count)))
}

// newNode makes a node with an identity of its own in home, on loopback.
func newNode(ctx context.Context, home, transport string, roles, bootstrap []string, data func(*session.Session, []byte)) (*node.Node, error) {
	k, err := keys.Init(ctx, home, keys.InitOptions{Realm: realm, Passphrase: []byte(rand.Text()), Now: time.Now()})
	if err != nil {
		return nil, err
	}
	c, err := config.Load(home, nil, nil)
	if err != nil {
		return nil, err
	}
	c.Node.Realm, c.Node.Roles = uint16(realm), roles
	c.Networking.Listen, c.Networking.Bootstrap = []ma.Multiaddr{listenAddr(transport)}, bootstrap
	c.Networking.NATStrategy = "none"
	c.Observability.MetricsPort = 0
	c.API.Listen = []string{"unix:" + home + "/api.sock"}
	c.Signal.RatePerPeer, c.Signal.RateTotal = 1000, 1000
	return node.New(node.Config{Home: home, Config: c, Keys: k, Log: zap.NewNop(), Version: "bench", Data: data})
}

func listenAddr(transport string) ma.Multiaddr {
	if transport == "tcp" {
		return ma.StringCast("/ip4/127.0.0.1/tcp/0")
	}
	return ma.StringCast("/ip4/127.0.0.1/udp/0/quic-v1")
}

// newRaw makes a bare libp2p host with the same transports and limits as a
// node's.
func newRaw(transport string) (*overlay.Host, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, err
	}
	return overlay.New(overlay.Config{Key: key, Listen: []ma.Multiaddr{listenAddr(transport)}, Log: zap.NewNop()})
}

func serveRaw(transport string) (*overlay.Host, error) {
	h, err := newRaw(transport)
	if err != nil {
		return nil, err
	}
	h.SetStreamHandler(echoProtocol, func(st network.Stream) {
		buf := make([]byte, PayloadSize)
		for {
			if _, err := io.ReadFull(st, buf); err != nil {
				st.Reset()
				return
			}
			if _, err := st.Write(buf); err != nil {
				return
			}
		}
	})
	h.SetStreamHandler(sinkProtocol, func(st network.Stream) {
		n, err := io.CopyBuffer(io.Discard, onlyReader{st}, make([]byte, ChunkSize))
		if err == nil {
			st.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
		}
		st.Close()
	})
	return h, nil
}

// onlyReader hides what would let io.CopyBuffer go past the buffer.
type onlyReader struct{ io.Reader }

// The gRPC service, by hand: two methods on well-known messages.
const (
	grpcService = "openmesh.bench.Bench"
	grpcEcho    = "/" + grpcService + "/Echo"
	grpcSink    = "/" + grpcService + "/Sink"
)

func serveGRPC(s *Server) (*grpc.Server, net.Listener, error) {
	cert, err := selfSigned()
	if err != nil {
		return nil, nil, err
	}
	s.Cert = cert.Certificate[0]
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	s.GRPC = l.Addr().String()
	g := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&cert)))
	g.RegisterService(&grpc.ServiceDesc{
		ServiceName: grpcService, HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Echo", Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			m := new(wrapperspb.BytesValue)
			return m, decode(m)
		}}},
		Streams: []grpc.StreamDesc{{StreamName: "Sink", ClientStreams: true, Handler: sink}},
	}, struct{}{})
	return g, l, nil
}

func sink(_ any, st grpc.ServerStream) error {
	total := int64(0)
	for {
		m := new(wrapperspb.BytesValue)
		err := st.RecvMsg(m)
		if errors.Is(err, io.EOF) {
			return st.SendMsg(wrapperspb.Int64(total))
		}
		if err != nil {
			return err
		}
		total += int64(len(m.Value))
	}
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "openmesh bench"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
