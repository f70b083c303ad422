package session_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"go.uber.org/zap"

	"openmesh/overlay/overlaytest"
	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/session"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

const rtt = 2 * overlaytest.Latency

// node is a host with an identity and an endpoint.
type node struct {
	*session.Endpoint
	host  host.Host
	agent *protocoltest.Agent
	stop  context.CancelFunc
	ended chan struct{}
	setup atomic.Pointer[error] // of the last session
	data  chan []byte

	// For handlers that tell the test something, or wait for it. They are made
	// inside the bubble.
	told chan error
	gate chan struct{}
}

// handler answers for node n.
type handler func(n *node, ctx context.Context, in *session.Inbound) (*session.Response, error)

func (n *node) SessionSetup(_ bool, _ time.Duration, err error) { n.setup.Store(&err) }
func (n *node) SessionEvent(session.Event)                      {}
func (n *node) MessageOutcome(*session.Session, *delivery.Message, delivery.Outcome) {
}

// start runs an endpoint on h; change may alter its configuration.
func start(t *testing.T, h host.Host, handle handler, change func(*session.Config)) *node {
	t.Helper()
	n := &node{
		host: h, agent: protocoltest.NewAgentAt(t, identity.FirstPrivateRealm, time.Now(), h.Peerstore().PrivKey(h.ID())),
		ended: make(chan struct{}), data: make(chan []byte, 16), told: make(chan error, 16), gate: make(chan struct{}),
	}
	cfg := session.Config{
		Host: h,
		Signal: signal.Config{
			Local:    func() signal.Local { return signal.Local{Certificate: n.agent.Certificate, Key: n.agent.Host} },
			Verifier: identity.NewVerifier(identity.FirstPrivateRealm, time.Now),
			Terms:    func() signal.Terms { return signal.Terms{Suites: signal.Suites(), Contract: signal.DefaultContract()} },
			Timeout:  5 * time.Second,
			Log:      zap.NewNop(),
		},
		Handler: func(ctx context.Context, in *session.Inbound) (*session.Response, error) { return handle(n, ctx, in) },
		Data:    func(_ *session.Session, b []byte) { n.data <- bytes.Clone(b) },
		Observe: n,
		Log:     zap.NewNop(),
	}
	if change != nil {
		change(&cfg)
	}
	n.Endpoint = session.New(cfg)
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	go func() {
		defer close(n.ended)
		n.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-n.ended
	})
	synctest.Wait()
	return n
}

func (n *node) open(t *testing.T, to *node) *session.Session {
	t.Helper()
	s, err := n.Open(t.Context(), session.Target{Agent: to.agent.Agent, Route: session.Route{Peer: to.host.ID()}}, session.Want{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func echo(_ *node, _ context.Context, in *session.Inbound) (*session.Response, error) {
	return &session.Response{Encoding: in.Encoding, Body: in.Body}, nil
}

func request(body string) *session.Request {
	return &session.Request{Capability: "test/echo", Encoding: session.JSON, Body: []byte(body)}
}

// pair runs f with two connected nodes, the second with the given handler;
// change alters both configurations.
func pair(t *testing.T, handle handler, change func(*session.Config), f func(t *testing.T, a, b *node)) {
	t.Helper()
	overlaytest.Run(t, func(t *testing.T) {
		hosts := overlaytest.Hosts(t, 2)
		a, b := start(t, hosts[0], echo, change), start(t, hosts[1], handle, change)
		time.Sleep(time.Second) // virtual: identify has ended
		f(t, a, b)
	})
}

// On a connection that is there, a new session's first request has its response
// after two round trips, every further one after one.
func TestWarmCallTakesTwoRoundTrips(t *testing.T) {
	pair(t, echo, nil, func(t *testing.T, a, b *node) {
		for i, want := range []float64{2, 1} {
			begin := time.Now()
			resp, _, err := a.open(t, b).Call(t.Context(), request("hello"))
			if err != nil || string(resp.Body) != "hello" {
				t.Fatalf("Call = %v, %v", resp, err)
			}
			if trips := float64(time.Since(begin)) / float64(rtt); trips > want+0.5 {
				t.Errorf("call %d took %.2f round trips, want %v", i, trips, want)
			}
		}
	})
}

// Without even a connection, QUIC, identify, signaling and the request together
// take five round trips at most.
func TestColdCallTakesFiveRoundTrips(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		hosts := overlaytest.Hosts(t, 2)
		a, b := start(t, hosts[0], echo, nil), start(t, hosts[1], echo, nil)
		for _, c := range hosts[0].Network().Conns() {
			c.Close()
		}
		for _, h := range hosts { // as if they had never met
			for _, p := range h.Peerstore().Peers() {
				if p != h.ID() {
					h.Peerstore().RemovePeer(p)
				}
			}
		}
		time.Sleep(time.Second)
		hosts[0].Peerstore().AddAddrs(b.host.ID(), b.host.Addrs(), time.Hour)
		begin := time.Now()
		resp, _, err := a.open(t, b).Call(t.Context(), request("hello"))
		if err != nil || string(resp.Body) != "hello" {
			t.Fatalf("Call = %v, %v", resp, err)
		}
		trips := float64(time.Since(begin)) / float64(rtt)
		t.Logf("cold call: %.2f round trips", trips)
		if trips > 5.3 {
			t.Errorf("cold call took %.2f round trips", trips)
		}
	})
}

// Both ends may ask in one session; a session serves both directions.
func TestSessionServesBothDirections(t *testing.T) {
	pair(t, echo, nil, func(t *testing.T, a, b *node) {
		s := a.open(t, b)
		if _, _, err := s.Call(t.Context(), request("x")); err != nil {
			t.Fatal(err)
		}
		back := b.open(t, a)
		if back.ID() != s.ID() {
			t.Errorf("b opened session %s, there was %s", back.ID(), s.ID())
		}
		if resp, _, err := back.Call(t.Context(), request("back")); err != nil || string(resp.Body) != "back" {
			t.Errorf("Call = %v, %v", resp, err)
		}
	})
}

func TestHandlerOutcomes(t *testing.T) {
	for _, tc := range []struct {
		name    string
		handler handler
		want    wire.Code
		ptrs    int
	}{
		{"code", func(*node, context.Context, *session.Inbound) (*session.Response, error) {
			return nil, wire.Errorf(wire.HandlerUnavailable, "secret detail")
		}, wire.HandlerUnavailable, 0},
		{"pointers", func(*node, context.Context, *session.Inbound) (*session.Response, error) {
			return nil, &wire.Error{Code: wire.InvalidRequest, Pointers: []string{"/pair"}}
		}, wire.InvalidRequest, 1},
		{"plain error", func(*node, context.Context, *session.Inbound) (*session.Response, error) {
			return nil, errors.New("secret")
		}, wire.Internal, 0},
		{"panic", func(*node, context.Context, *session.Inbound) (*session.Response, error) { panic("bug") }, wire.Internal, 0},
		{"nothing", func(*node, context.Context, *session.Inbound) (*session.Response, error) { return nil, nil }, wire.Internal, 0},
		{"oversize response", func(*node, context.Context, *session.Inbound) (*session.Response, error) {
			return &session.Response{Body: make([]byte, 4<<20+1)}, nil
		}, wire.TooLarge, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pair(t, tc.handler, nil, func(t *testing.T, a, b *node) {
				_, _, err := a.open(t, b).Call(t.Context(), request("x"))
				var e *wire.Error
				if wire.CodeOf(err) != tc.want || !errors.As(err, &e) || len(e.Pointers) != tc.ptrs || bytes.Contains([]byte(err.Error()), []byte("secret")) {
					t.Errorf("Call = %v, want %s with %d pointers and no detail", err, tc.want, tc.ptrs)
				}
				if resp, _, err := b.open(t, a).Call(t.Context(), request("still there")); err != nil {
					t.Errorf("session after it: %v, %v", resp, err)
				}
			})
		})
	}
}

// A deadline ends the call at the caller and the work at the handler, and only
// that call.
func TestDeadlineAndCancellationReachTheHandler(t *testing.T) {
	handler := func(n *node, ctx context.Context, in *session.Inbound) (*session.Response, error) {
		if string(in.Body) == "wait" {
			<-ctx.Done()
			n.told <- ctx.Err()
			return nil, ctx.Err()
		}
		return echo(n, ctx, in)
	}
	pair(t, handler, nil, func(t *testing.T, a, b *node) {
		s := a.open(t, b)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, _, err := s.Call(ctx, request("wait")); wire.CodeOf(err) != wire.DeadlineExceeded {
			t.Errorf("past the deadline: %v", err)
		}
		<-b.told
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, _, err := s.Call(ctx, request("wait")); wire.CodeOf(err) != wire.Cancelled {
			t.Errorf("cancelled: %v", err)
		}
		if cause := <-b.told; !errors.Is(cause, context.Canceled) {
			t.Errorf("handler's context ended by %v", cause)
		}
		coarse, begin := request("wait"), time.Now()
		coarse.Deadline = begin.Add(time.Minute)
		if _, _, err := s.Call(t.Context(), coarse); wire.CodeOf(err) != wire.DeadlineExceeded || time.Since(begin) < time.Minute || time.Since(begin) > 62*time.Second {
			t.Errorf("past the request's own deadline: %v after %v", err, time.Since(begin))
		}
		if err := <-b.told; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("handler's context ended by %v", err)
		}
		if _, _, err := s.Call(t.Context(), request("next")); err != nil {
			t.Errorf("next call: %v", err)
		}
	})
}

// Work that takes longer than keepalive and idle time is not disturbed.
func TestLongWorkKeepsItsSession(t *testing.T) {
	handler := func(n *node, ctx context.Context, in *session.Inbound) (*session.Response, error) {
		time.Sleep(time.Hour)
		return echo(n, ctx, in)
	}
	pair(t, handler, nil, func(t *testing.T, a, b *node) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
		defer cancel()
		if resp, _, err := a.open(t, b).Call(ctx, request("x")); err != nil {
			t.Errorf("Call = %v, %v", resp, err)
		}
	})
}

func TestPendingRequestsAreBounded(t *testing.T) {
	handler := func(n *node, ctx context.Context, in *session.Inbound) (*session.Response, error) {
		<-n.gate
		return echo(n, ctx, in)
	}
	tight := func(c *session.Config) {
		c.Signal.Terms = func() signal.Terms {
			contract := signal.DefaultContract()
			contract.MaxPending = 3
			return signal.Terms{Suites: signal.Suites(), Contract: contract}
		}
	}
	pair(t, handler, tight, func(t *testing.T, a, b *node) {
		s := a.open(t, b)
		errs := make(chan error, 4)
		for range 4 {
			go func() {
				_, _, err := s.Call(t.Context(), request("x"))
				errs <- err
			}()
		}
		if err := <-errs; wire.CodeOf(err) != wire.ResourceExhausted {
			t.Errorf("fourth call: %v", err)
		}
		close(b.gate)
		for range 3 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
}

// Past max_tunnels a further session is refused on either side, and the ones
// there go on.
func TestChannelsAreBounded(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		hosts := overlaytest.Hosts(t, 4)
		server := start(t, hosts[0], echo, func(c *session.Config) { c.MaxChannels = 2 })
		var clients []*node
		for _, h := range hosts[1:] {
			clients = append(clients, start(t, h, echo, nil))
		}
		time.Sleep(time.Second)
		for i, c := range clients {
			s, err := c.Open(t.Context(), session.Target{Agent: server.agent.Agent, Route: session.Route{Peer: server.host.ID()}}, session.Want{})
			if err == nil {
				_, _, err = s.Call(t.Context(), request("x"))
			}
			if i < 2 && err != nil || i == 2 && wire.CodeOf(err) != wire.ResourceExhausted {
				t.Errorf("client %d: %v", i, err)
			}
		}
		if _, err := server.Open(t.Context(), session.Target{Agent: clients[2].agent.Agent, Route: session.Route{Peer: clients[2].host.ID()}}, session.Want{}); !errors.Is(err, wire.ResourceExhausted) {
			t.Errorf("opened by the full node: %v", err)
		}
		if _, _, err := clients[0].open(t, server).Call(t.Context(), request("x")); err != nil {
			t.Errorf("first session: %v", err)
		}
		clients[0].open(t, server).Close(t.Context())
		time.Sleep(time.Second)
		if _, _, err := clients[2].open(t, server).Call(t.Context(), request("x")); err != nil {
			t.Errorf("after one has closed: %v", err)
		}
	})
}

func TestUnusedSessionIsClosedOnBothSides(t *testing.T) {
	pair(t, echo, nil, func(t *testing.T, a, b *node) {
		s := a.open(t, b)
		s.Call(t.Context(), request("x"))
		time.Sleep(11 * time.Minute)
		for _, n := range []*node{a, b} {
			if left, all := n.Sessions(false), n.Sessions(true); len(left) != 0 || len(all) != 1 || all[0].State != session.Closed {
				t.Errorf("left %v, all %v", left, all)
			}
		}
		if n := a.Stats().Channels + b.Stats().Channels; n != 0 {
			t.Errorf("%d channels left", n)
		}
	})
}

// A peer that vanishes without a word is found dead by keepalive; when it does not
// come back, calls end.
func TestDeadPeerIsFound(t *testing.T) {
	block := func(_ *node, ctx context.Context, _ *session.Inbound) (*session.Response, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	pair(t, block, nil, func(t *testing.T, a, b *node) {
		s := a.open(t, b)
		time.AfterFunc(time.Second, func() { b.host.Close() })
		begin := time.Now()
		_, _, err := s.Call(t.Context(), request("x"))
		if wire.CodeOf(err) != wire.SessionClosed || time.Since(begin) > 3*time.Minute {
			t.Errorf("Call = %v after %v", err, time.Since(begin))
		}
	})
}

// Run's end lets a request end, refuses new ones and tells the peer, who can open
// a new session when the node is back.
func TestShutdownDrains(t *testing.T) {
	slow := func(n *node, ctx context.Context, in *session.Inbound) (*session.Response, error) {
		close(n.gate)
		time.Sleep(2 * time.Second)
		return echo(n, ctx, in)
	}
	pair(t, slow, nil, func(t *testing.T, a, b *node) {
		s := a.open(t, b)
		got := make(chan error)
		go func() {
			_, _, err := s.Call(t.Context(), request("x"))
			got <- err
		}()
		<-b.gate
		b.stop()
		time.Sleep(time.Second)
		if _, _, err := s.Call(t.Context(), request("late")); !wire.CodeOf(err).Retry() {
			t.Errorf("call during drain: %v", err)
		}
		if err := <-got; err != nil {
			t.Errorf("call under way: %v", err)
		}
		<-b.ended
		<-s.Done()
		if i := a.Sessions(true)[0]; i.State != session.Closed {
			t.Errorf("the peer sees %s (%s)", i.State, i.Reason)
		}
	})
}

func TestTerminateSaysWhy(t *testing.T) {
	pair(t, echo, nil, func(t *testing.T, a, b *node) {
		s := a.open(t, b)
		s.Call(t.Context(), request("x"))
		b.Session(a.agent.Agent).Terminate(wire.PolicyViolation)
		<-s.Done()
		if i := a.Sessions(true)[0]; i.State != session.Terminated || i.Reason != wire.PolicyViolation {
			t.Errorf("the peer sees %s (%s)", i.State, i.Reason)
		}
		if _, _, err := s.Call(t.Context(), request("x")); wire.CodeOf(err) != wire.SessionClosed {
			t.Errorf("call afterwards: %v", err)
		}
	})
}

// A key that expires, or is superseded, ends the sessions it set up.
func TestSessionEndsWithItsKey(t *testing.T) {
	pair(t, echo, func(c *session.Config) { c.IdleTimeout = 48 * time.Hour }, func(t *testing.T, a, b *node) {
		a.open(t, b).Call(t.Context(), request("x"))
		time.Sleep(13 * time.Hour)
		if i := b.Sessions(true)[0]; i.State != session.Terminated && i.State != session.Closed {
			t.Errorf("session with an expired key is %s", i.State)
		}
		if _, err := a.Open(t.Context(), session.Target{Agent: b.agent.Agent, Route: session.Route{Peer: b.host.ID()}}, session.Want{}); !errors.Is(err, wire.KeyExpired) {
			t.Errorf("Open with an expired key: %v", err)
		}
	})
}

func TestPolicyRefusesASession(t *testing.T) {
	deny := func(c *session.Config) {
		c.Signal.Allow = func(*identity.Certificate) error { return wire.Errorf(wire.Denied, "not on the list") }
	}
	pair(t, echo, deny, func(t *testing.T, a, b *node) {
		if _, err := a.Open(t.Context(), session.Target{Agent: b.agent.Agent, Route: session.Route{Peer: b.host.ID()}}, session.Want{}); !errors.Is(err, wire.Denied) {
			t.Errorf("Open = %v", err)
		}
	})
}

// An agent id that the peer does not prove gets no session, whoever asks.
func TestWrongAgentGetsNoSession(t *testing.T) {
	pair(t, echo, nil, func(t *testing.T, a, b *node) {
		other := protocoltest.NewAgent(t, identity.FirstPrivateRealm, time.Now())
		if _, err := a.Open(t.Context(), session.Target{Agent: other.Agent, Route: session.Route{Peer: b.host.ID()}}, session.Want{}); !errors.Is(err, wire.Unauthenticated) {
			t.Errorf("Open = %v", err)
		}
	})
}

func TestConcurrentOpensShareOneSession(t *testing.T) {
	pair(t, echo, nil, func(t *testing.T, a, b *node) {
		ids := make(chan string, 50)
		for i := range 50 {
			go func() {
				s, err := a.Open(t.Context(), session.Target{Agent: b.agent.Agent, Route: session.Route{Peer: b.host.ID()}}, session.Want{})
				if err != nil {
					ids <- err.Error()
					return
				}
				body := fmt.Sprint(i)
				if resp, _, err := s.Call(t.Context(), request(body)); err != nil || string(resp.Body) != body {
					t.Errorf("call %d = %v, %v", i, resp, err)
				}
				ids <- s.ID().String()
			}()
		}
		first := <-ids
		for range 49 {
			if id := <-ids; id != first {
				t.Errorf("sessions %s and %s", first, id)
			}
		}
		streams := 0
		for _, c := range a.host.Network().ConnsToPeer(b.host.ID()) {
			for _, st := range c.GetStreams() {
				if st.Protocol() == session.Protocol {
					streams++
				}
			}
		}
		if streams != 1 {
			t.Errorf("%d session streams, want 1", streams)
		}
	})
}

func TestSendDelivers(t *testing.T) {
	pair(t, echo, nil, func(t *testing.T, a, b *node) {
		s := a.open(t, b)
		big := bytes.Repeat([]byte("0123456789abcdef"), 1<<14) // 256 KiB
		for _, m := range [][]byte{[]byte("one"), big, {}} {
			if err := s.Send(m); err != nil {
				t.Fatal(err)
			}
			if got := <-b.data; !bytes.Equal(got, m) {
				t.Errorf("got %d bytes, sent %d", len(got), len(m))
			}
		}
		if err := s.Send(make([]byte, 4<<20+1)); wire.CodeOf(err) != wire.TooLarge {
			t.Errorf("oversize: %v", err)
		}
	})
}

func TestKeepaliveMeasuresTheRoundTrip(t *testing.T) {
	pair(t, echo, nil, func(t *testing.T, a, b *node) {
		a.open(t, b)
		time.Sleep(110 * time.Second)
		i := a.Sessions(false)[0]
		if i.Channels[0].RTT < rtt || i.Channels[0].RTT > rtt+rtt/5 || i.Channels[0].Loss != 0 {
			t.Errorf("rtt %v, loss %v; the network's rtt is %v", i.Channels[0].RTT, i.Channels[0].Loss, rtt)
		}
	})
}

// After quick requests one may run on the reading goroutine. If that one turns
// out to be slow, the session does not wait for it.
func TestSlowRequestAfterQuickOnes(t *testing.T) {
	handle := func(n *node, ctx context.Context, in *session.Inbound) (*session.Response, error) {
		if string(in.Body) == "wait" {
			<-n.gate
		}
		return echo(n, ctx, in)
	}
	pair(t, handle, nil, func(t *testing.T, a, b *node) {
		s := a.open(t, b)
		quick := func() {
			t.Helper()
			begin := time.Now()
			if _, _, err := s.Call(t.Context(), request("quick")); err != nil || time.Since(begin) > 2*rtt {
				t.Errorf("quick call: %v after %v", err, time.Since(begin))
			}
		}
		for range 3 {
			quick()
		}
		slow := make(chan error)
		for range 2 {
			go func() {
				_, _, err := s.Call(t.Context(), request("wait"))
				slow <- err
			}()
			time.Sleep(time.Second)
			quick()
			quick()
		}
		close(b.gate)
		for range 2 {
			if err := <-slow; err != nil {
				t.Errorf("slow call: %v", err)
			}
		}
		quick()
	})
}
