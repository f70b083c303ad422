// Package bench measures what OpenMesh costs, against what it stands on and what
// people would use instead, in one run and interleaved: machines are noisy, but
// ratios of neighbours in time are not.
//
//	raw   one long-lived libp2p stream, length known to both ends, same transport
//	grpc  gRPC over TLS 1.3: unary calls; client streaming for bulk
//	mesh  a call between two nodes: resolve, policy, sealed session, handler
//	api   the same call as the command line makes it, over the local API
//
// Further benchmarks are of sessions: what durable delivery costs ([Durable]), idle
// sessions take ([Sessions]), the loss of a transport interrupts ([Failover]) and
// the change of keys disturbs ([Rekey]).
// [Paths] compares the ways that lead to an agent: direct, or over relays.
// [Market] compares negotiations with as many messages, and [Audit] what is recorded
// in the audit log with what is just stored.
//
// Server, client, relays and sellers are processes of their own on the loopback
// interface.
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
	"encoding/json"
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
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"openmesh/node"
	"openmesh/node/handlers"
	"openmesh/node/handlers/capability"
	"openmesh/overlay"
	"openmesh/protocols/identity"
	"openmesh/protocols/session"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

const (
	echoProtocol = "/openmesh-bench/echo/1.0.0"
	sinkProtocol = "/openmesh-bench/sink/1.0.0"

	// realm is a private-use one: its addresses are made at once.
	realm = identity.FirstPrivateRealm

	echoCapability  = "bench/echo"
	countCapability = "bench/count"
	usageCapability = "bench/usage"

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

// Serve runs the server side, or a relay or seller if setup says so, in a fresh home
// until ctx ends; ready is told where it is.
func Serve(ctx context.Context, home string, setup Setup, ready func(Server) error) error {
	if setup.Relay {
		return serveRelay(ctx, home, setup, ready)
	}
	if setup.Market {
		return serveSeller(ctx, home, setup, ready)
	}
	s := Server{}
	group, ctx := errgroup.WithContext(ctx)
	raw, err := serveRaw(setup)
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
	role := "backbone"
	if setup.relayed() { // who serves the directory holds no reservations
		role = "agent"
	}
	n, err := newNode(ctx, home, setup, []string{role}, setup.Relays, func(_ *session.Session, b []byte) { received.Add(int64(len(b))) })
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
		group.Go(func() error { return consume(ctx, n) })
		if err := reserved(ctx, n, setup); err != nil {
			return err
		}
		s.Agent, s.Node = n.Info().Agent, n.Info().Addrs
		return ready(s)
	})
	return group.Wait()
}

// offer gives the node its capabilities.
func offer(n *node.Node, received *atomic.Int64) error {
	echo := func(_ context.Context, r *handlers.Request) (*handlers.Response, error) {
		return &handlers.Response{Body: r.Body, Encoding: r.Encoding}, nil
	}
	count := func(context.Context, *handlers.Request) (*handlers.Response, error) {
		return &handlers.Response{Body: strconv.AppendInt(nil, received.Load(), 10)}, nil
	}
	tell := func(context.Context, *handlers.Request) (*handlers.Response, error) {
		u, err := usageNow()
		if err != nil {
			return nil, err
		}
		b, err := json.Marshal(u)
		return &handlers.Response{Body: b}, err
	}
	var errs []error
	for name, f := range map[string]handlers.HandlerFunc{echoCapability: echo, countCapability: count, usageCapability: tell} {
		errs = append(errs, n.Registry().AddHandler(&capability.Capability{Name: name, Version: "1.0.0"}, f))
	}
	return errors.Join(errs...)
}

// consume reads what comes for the node's inbox, in every session that has one,
// until ctx ends.
func consume(ctx context.Context, n *node.Node) error {
	events := time.NewTicker(50 * time.Millisecond)
	defer events.Stop()
	cursors := map[signal.ID]uint64{}
	for {
		select {
		case <-events.C:
		case <-ctx.Done():
			return nil
		}
		for _, i := range n.Sessions().Sessions(false) {
			if i.Contract.QoS == signal.AtMostOnce {
				continue
			}
			if err := empty(ctx, n, i.ID, cursors); err != nil && ctx.Err() == nil && wire.CodeOf(err) != wire.SessionClosed {
				return fmt.Errorf("read the inbox of session %s: %w", i.ID, err)
			}
		}
	}
}

// empty reads all that a session's inbox has, behind its cursor.
func empty(ctx context.Context, n *node.Node, id signal.ID, cursors map[signal.ID]uint64) error {
	s, _, err := n.Sessions().Find(id.String())
	if s == nil || err != nil {
		return err
	}
	for {
		batch, err := s.Messages(ctx, cursors[id], 1000, false)
		if err != nil || batch.Cursor == cursors[id] {
			return err
		}
		cursors[id] = batch.Cursor
		if err := s.Consume(ctx, batch.Cursor); err != nil {
			return err
		}
	}
}

// newRaw makes a bare libp2p host with the same transports and limits as a
// node's.
func newRaw(setup Setup) (*overlay.Host, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, err
	}
	return overlay.New(overlay.Config{Key: key, Listen: setup.listen(), Log: zap.NewNop()})
}

func serveRaw(setup Setup) (*overlay.Host, error) {
	h, err := newRaw(setup)
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
