package session_test

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/session"
	"openmesh/protocols/signal"
)

func benchHosts(b *testing.B) (host.Host, host.Host) {
	var hs []host.Host
	for range 2 {
		h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/udp/0/quic-v1"), libp2p.DisableMetrics())
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { h.Close() })
		hs = append(hs, h)
	}
	if err := hs[0].Connect(b.Context(), peer.AddrInfo{ID: hs[1].ID(), Addrs: hs[1].Addrs()}); err != nil {
		b.Fatal(err)
	}
	return hs[0], hs[1]
}

func BenchmarkRaw(b *testing.B) {
	x, y := benchHosts(b)
	y.SetStreamHandler("/e", func(st network.Stream) {
		buf := make([]byte, 256)
		for {
			if _, err := io.ReadFull(st, buf); err != nil {
				return
			}
			st.Write(buf)
		}
	})
	st, err := x.NewStream(b.Context(), y.ID(), "/e")
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 256)
	for b.Loop() {
		st.Write(buf)
		io.ReadFull(st, buf)
	}
}

func benchEndpoint(b *testing.B, h host.Host) (*session.Endpoint, *protocoltest.Agent) {
	a := protocoltest.NewAgentAt(b, identity.FirstPrivateRealm, time.Now(), h.Peerstore().PrivKey(h.ID()))
	e := session.New(session.Config{
		Host: h,
		Signal: signal.Config{
			Local:    func() signal.Local { return signal.Local{Certificate: a.Certificate, Key: a.Host} },
			Verifier: identity.NewVerifier(identity.FirstPrivateRealm, time.Now),
			Terms:    func() signal.Terms { return signal.Terms{Suites: signal.Suites(), Contract: signal.DefaultContract()} },
			Timeout:  5 * time.Second, Log: zap.NewNop(),
		},
		Handler: func(_ context.Context, in *session.Inbound) (*session.Response, error) {
			return &session.Response{Encoding: in.Encoding, Body: in.Body}, nil
		},
		Log: zap.NewNop(),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { e.Run(ctx); close(done) }()
	b.Cleanup(func() { cancel(); <-done })
	time.Sleep(50 * time.Millisecond)
	return e, a
}

func BenchmarkCall(b *testing.B) {
	x, y := benchHosts(b)
	ex, _ := benchEndpoint(b, x)
	_, ay := benchEndpoint(b, y)
	s, err := ex.Open(b.Context(), session.Target{Agent: ay.Agent, Route: session.Route{Peer: y.ID()}}, session.Want{})
	if err != nil {
		b.Fatal(err)
	}
	body := make([]byte, 256)
	ctx, cancel := context.WithTimeout(b.Context(), time.Hour)
	defer cancel()
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := s.Call(ctx, &session.Request{Capability: "bench/echo", Encoding: session.JSON, Body: body}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCall16(b *testing.B) {
	x, y := benchHosts(b)
	ex, _ := benchEndpoint(b, x)
	_, ay := benchEndpoint(b, y)
	s, err := ex.Open(b.Context(), session.Target{Agent: ay.Agent, Route: session.Route{Peer: y.ID()}}, session.Want{})
	if err != nil {
		b.Fatal(err)
	}
	body := make([]byte, 256)
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, _, err := s.Call(b.Context(), &session.Request{Capability: "bench/echo", Encoding: session.JSON, Body: body}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
