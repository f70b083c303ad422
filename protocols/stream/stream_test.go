package stream_test

import (
	"context"
	"errors"
	"fmt"

	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"openmesh/overlay/overlaytest"
	"openmesh/protocols/stream"
	"openmesh/protocols/wire"
)

const id = "/test/1.0.0"

var limits = stream.Limits{Request: 8, Response: 8, Time: 5 * time.Second}

func TestCall(t *testing.T) {
	for _, tc := range []struct {
		name    string
		handler stream.Handler
		req     string
		want    string
		err     error
	}{
		{name: "echo", handler: echo, req: "hello", want: "hello"},
		{name: "request too large", handler: echo, req: "123456789", err: wire.TooLarge},
		{name: "denied", handler: fails(fmt.Errorf("no such peer: %w", wire.Denied)), err: wire.Denied},
		{name: "plain error is internal", handler: fails(errors.New("disk full")), err: wire.Internal},
		{name: "panic is internal", handler: panics, err: wire.Internal},
		{name: "slow handler", handler: hangs, err: wire.Unreachable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			overlaytest.Run(t, func(t *testing.T) {
				client, server := pair(t, tc.handler)
				got, err := stream.Call(t.Context(), client, server.ID(), id, []byte(tc.req), limits)
				if !errors.Is(err, tc.err) || string(got) != tc.want {
					t.Errorf("Call = %q, %v; want %q, %v", got, err, tc.want, tc.err)
				}
			})
		})
	}
}

// A connection that ends under a call, at whichever end, is no answer: it may be tried
// again.
func TestConnectionLost(t *testing.T) {
	for name, end := range map[string]func(client, server host.Host) error{
		"here":  func(client, server host.Host) error { return client.Network().ClosePeer(server.ID()) },
		"there": func(client, server host.Host) error { return server.Network().ClosePeer(client.ID()) },
	} {
		t.Run(name, func(t *testing.T) {
			overlaytest.Run(t, func(t *testing.T) {
				asked := make(chan struct{})
				client, server := pair(t, func(ctx context.Context, p peer.ID, req []byte) ([]byte, error) {
					close(asked)
					return hangs(ctx, p, req)
				})
				go func() {
					<-asked
					if err := end(client, server); err != nil {
						t.Error(err)
					}
				}()
				start := time.Now()
				_, err := stream.Call(t.Context(), client, server.ID(), id, nil, limits)
				if !errors.Is(err, wire.Unreachable) || time.Since(start) >= limits.Time {
					t.Errorf("after %v: %v", time.Since(start), err)
				}
			})
		})
	}
}

// A peer that sends half a request and stops costs the server limits.Time and
// no more.
func TestSlowloris(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		client, server := pair(t, echo)
		st, err := client.NewStream(t.Context(), server.ID(), id)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		st.Write([]byte{8, 'x'})
		if _, err := st.Read(make([]byte, 1)); err == nil {
			t.Error("Read succeeded; want a reset")
		}
		if d := time.Since(start); d > limits.Time+time.Second {
			t.Errorf("server held the stream for %v, limit is %v", d, limits.Time)
		}
	})
}

func pair(t *testing.T, h stream.Handler) (client, server host.Host) {
	t.Helper()
	hosts := overlaytest.Hosts(t, 2)
	s := &stream.Server{Protocol: id, Service: "test", Limits: limits, Handler: h, Log: zap.NewNop()}
	go s.Run(t.Context(), hosts[1])
	synctest.Wait() // until Run has registered its handler
	return hosts[0], hosts[1]
}

func echo(_ context.Context, _ peer.ID, req []byte) ([]byte, error) { return req, nil }

func panics(context.Context, peer.ID, []byte) ([]byte, error) { panic("bug") }

func hangs(ctx context.Context, _ peer.ID, _ []byte) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func fails(err error) stream.Handler {
	return func(context.Context, peer.ID, []byte) ([]byte, error) { return nil, err }
}
