//go:build linux

package netlab_test

import (
	"fmt"
	"testing"
	"time"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/overlay/overlaytest/netlab"
)

var grpcEnv = map[string]string{
	"OPENMESH_NETWORKING_KEEPALIVE_INTERVAL": "1s",
	"OPENMESH_NETWORKING_GRPC_LISTEN":        fmt.Sprintf("0.0.0.0:%d", netlab.GRPCPort),
}

func onlyGRPC(f *netlab.Firewall) { f.OnlyTCP(netlab.GRPCPort) }

// Where b's network lets nothing but a's gRPC port through, no directory either, b
// reaches a by its address, and calls and messages go both ways over that.
func TestOnlyGRPC(t *testing.T) {
	t.Parallel()
	m := newDaemons(t, grpcEnv, onlyGRPC)
	client := dial(t, m.b)
	s := m.open(t, client, &openmeshv1.OpenSessionRequest{Via: m.url(), Transport: "grpc", Qos: "exactly-once"})
	if len(s.Channels) == 0 || s.Channels[0].Transport != "grpc" {
		t.Errorf("the session runs over %v, want grpc", s.Channels)
	}
	resp, err := client.Session.Call(t.Context(), &openmeshv1.CallRequest{
		Target: m.a.Ready.Agent, Capability: capability, TimeoutMs: patience, Body: &openmeshv1.CallRequest_Json{Json: `{"n": 1}`},
	})
	if err != nil {
		t.Fatalf("call: %v", err)
	}
	if err := isNumber(resp.GetJson(), 1); err != nil || resp.Path.Transport != "grpc" {
		t.Errorf("the call went over %s: %v", resp.Path.Transport, err)
	}
	m.sendBack(t, s.Session, 0, 20)
	receive(t, client, s.Session, 0, 20)
}

// Durable messages over gRPC alone arrive once each though either side is killed
// and comes back meanwhile, and so do those of the side that nobody can reach.
func TestOnlyGRPCRestart(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		restart func(m *mesh)
	}{
		{"listener", func(m *mesh) { m.a.Kill(); m.a.Restart() }},
		{"dialer", func(m *mesh) { m.b.Kill(); m.b.Restart() }},
		{"both", func(m *mesh) { m.a.Kill(); m.b.Kill(); m.b.Restart(); m.a.Restart() }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newDaemons(t, grpcEnv, onlyGRPC)
			client := dial(t, m.b)
			s := m.open(t, client, &openmeshv1.OpenSessionRequest{Via: m.url(), Qos: "exactly-once"})
			post(t, client, s.Session, 0, 100)
			m.postBack(t, s.Session, 0, 20)
			test.restart(m)
			restarted := time.Now()
			client = dial(t, m.b)
			post(t, client, s.Session, 100, 200)
			m.sendBack(t, s.Session, 20, 40)
			receive(t, client, s.Session, 0, 40)
			m.work.await(200, 40*time.Second)
			t.Logf("all was there %s after the restart", time.Since(restarted).Round(100*time.Millisecond))
			if missing, twice := m.work.faults(200); len(missing)+len(twice) > 0 {
				t.Errorf("lost %v, worked on more than once %v", missing, twice)
			}
			for n := range 200 {
				delivered(t, client, s.Session, n)
			}
		})
	}
}

// A session that began over QUIC goes on over gRPC when everything else is cut.
func TestFailsOverToGRPC(t *testing.T) {
	t.Parallel()
	for _, load := range []load{steady, durable, bulk} {
		t.Run(load.name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, grpcEnv, nil)
			traffic := m.start(t, load)
			traffic.until(t, "quic-v1", 20*time.Second)
			onlyGRPC(m.b.Host.Firewall())
			gap := traffic.until(t, "grpc", 30*time.Second)
			t.Logf("all but gRPC cut: %s without a sign of life", gap.Round(time.Millisecond))
			if gap > 2*time.Second {
				t.Errorf("all but gRPC cut: %s without a sign of life, want at most two keepalives", gap)
			}
			traffic.end(t)
		})
	}
}

// url is where a takes sessions over gRPC.
func (m *mesh) url() string { return fmt.Sprintf("https://%s:%d", m.a.Host.Addr, netlab.GRPCPort) }

// post has b accept numbers from…to-1 as messages for a.
func post(t *testing.T, client *api.Client, session string, from, to int) {
	t.Helper()
	for n := from; n < to; n++ {
		send(t, client, &openmeshv1.SendRequest{Session: session, Capability: capability, Key: key(n), Body: jsonNumber(n)})
	}
}

// postBack has a accept numbers as messages for b that no handler takes; sendBack
// also waits until b has them.
func (m *mesh) postBack(t *testing.T, session string, from, to int) {
	t.Helper()
	m.back(t, session, from, to, 0)
}

func (m *mesh) sendBack(t *testing.T, session string, from, to int) {
	t.Helper()
	m.back(t, session, from, to, patience)
}

func (m *mesh) back(t *testing.T, session string, from, to int, wait uint32) {
	t.Helper()
	client := dial(t, m.a)
	for n := from; n < to; n++ {
		d := send(t, client, &openmeshv1.SendRequest{Session: session, Key: key(n), WaitMs: wait, Body: jsonNumber(n)})
		if wait > 0 && d.Status != "delivered" {
			t.Fatalf("a's message %d is %s %s", n, d.Status, d.Code)
		}
	}
}

func send(t *testing.T, client *api.Client, r *openmeshv1.SendRequest) *openmeshv1.Delivery {
	t.Helper()
	resp, err := client.Session.Send(t.Context(), r)
	if err != nil {
		t.Fatalf("send %s: %v", r.Key, err)
	}
	return resp.Deliveries[0]
}

func key(n int) string { return fmt.Sprint("number ", n) }

func jsonNumber(n int) *openmeshv1.SendRequest_Json {
	return &openmeshv1.SendRequest_Json{Json: fmt.Sprintf(`{"n": %d}`, n)}
}

// receive checks that the inbox of a session has numbers from…to-1, once each.
func receive(t *testing.T, client *api.Client, session string, from, to int) {
	t.Helper()
	seen := make(map[string]int)
	for cursor := uint64(0); len(seen) < to-from; {
		batch, err := client.Session.Receive(t.Context(), &openmeshv1.ReceiveRequest{Session: session, Cursor: cursor, WaitMs: patience})
		if err != nil {
			t.Fatal(err)
		}
		if len(batch.Messages) == 0 {
			t.Fatalf("%d of %d messages came", len(seen), to-from)
		}
		for _, message := range batch.Messages {
			seen[message.Key]++
		}
		cursor = batch.Cursor
	}
	for n := from; n < to; n++ {
		if seen[key(n)] != 1 {
			t.Errorf("message %d came %d times", n, seen[key(n)])
		}
	}
}

// delivered checks that number n was delivered and answered.
func delivered(t *testing.T, client *api.Client, session string, n int) {
	t.Helper()
	d, err := client.Session.Outcome(t.Context(), &openmeshv1.OutcomeRequest{Session: session, Key: key(n), WaitMs: patience})
	if err != nil {
		t.Fatalf("number %d: %v", n, err)
	}
	if err := isNumber(d.GetJson(), n); err != nil || d.Status != "delivered" {
		t.Errorf("number %d is %s: %v", n, d.Status, err)
	}
}
