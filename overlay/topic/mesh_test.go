package topic

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"openmesh/overlay/overlaytest"
	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
)

const realm = identity.FirstPrivateRealm

// mesh is some nodes on a simulated network, not connected by themselves.
type mesh struct {
	t   *testing.T
	net *overlaytest.Net
}

func newMesh(t *testing.T) *mesh { return &mesh{t, overlaytest.NewNet(t, 20*time.Millisecond)} }

// node is an agent that takes part in topics.
type node struct {
	*protocoltest.Agent
	*Gossip
	t       *testing.T
	host    host.Host
	metrics *prometheus.Registry
	stop    func() // ends Run and waits for it

	mu    sync.Mutex
	heard []string
}

func (m *mesh) node(change ...func(*Config)) *node {
	a := protocoltest.NewAgent(m.t, realm, time.Now())
	return start(m.t, a, m.net.Host(libp2p.Identity(a.Host)), change...)
}

func (m *mesh) backbone() *node { return m.node(func(c *Config) { c.Relay = true }) }

// start runs a node on a host.
func start(t *testing.T, a *protocoltest.Agent, h host.Host, change ...func(*Config)) *node {
	t.Helper()
	metrics := prometheus.NewRegistry()
	c := Config{
		Host: h, Realm: realm, Key: a.Host, Certificate: a.Certificate,
		Verify: identity.NewVerifier(realm, time.Now).Verify, Metrics: metrics, Log: zap.NewNop(),
	}
	for _, f := range change {
		f(&c)
	}
	g, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	n := &node{Agent: a, Gossip: g, t: t, host: h, metrics: metrics, stop: sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})}
	t.Cleanup(n.stop)
	return n
}

// listen writes down what n hears on a topic.
func (n *node) listen(topic string) *Subscription {
	n.t.Helper()
	s, err := n.Subscribe(topic, func(_ identity.AgentID, payload []byte) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.heard = append(n.heard, string(payload))
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return s
}

// hears checks what n has heard since the last time, in any order.
func (n *node) hears(what string, want ...string) {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	slices.Sort(n.heard)
	if !slices.Equal(n.heard, want) {
		n.t.Errorf("%s: heard %.200q, want %q", what, n.heard, want)
	}
	n.heard = nil
}

func (n *node) say(topic, what string) {
	n.t.Helper()
	if err := n.Publish(n.t.Context(), topic, []byte(what), time.Hour); err != nil {
		n.t.Fatal(err)
	}
}

// in reports whether n takes part in a topic.
func (n *node) in(topic string) bool {
	n.Gossip.mu.Lock()
	defer n.Gossip.mu.Unlock()
	t := n.topics[topic]
	return t != nil && t.topic != nil
}

// count returns how many messages had an outcome at n.
func (n *node) count(o outcome) int {
	n.t.Helper()
	families, err := n.metrics.Gather()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, m := range families[0].GetMetric() {
		if m.GetLabel()[0].GetValue() == string(o) {
			return int(m.GetCounter().GetValue())
		}
	}
	n.t.Fatalf("no metric for %s", o)
	return 0
}

func (m *mesh) connect(a host.Host, others ...host.Host) {
	m.t.Helper()
	for _, b := range others {
		if err := a.Connect(m.t.Context(), overlaytest.Info(b)); err != nil {
			m.t.Fatal(err)
		}
	}
}

// liar is a peer that sends whatever it likes on a topic.
func (m *mesh) liar(topic string, victims ...host.Host) func(data []byte) {
	m.t.Helper()
	h := m.net.Host()
	ctx, cancel := context.WithCancel(context.Background())
	m.t.Cleanup(cancel)
	ps, err := pubsub.NewGossipSub(ctx, h, pubsub.WithMessageSignaturePolicy(pubsub.StrictNoSign), pubsub.WithNoAuthor(),
		pubsub.WithMessageIdFn(id), pubsub.WithFloodPublish(true))
	if err != nil {
		m.t.Fatal(err)
	}
	t, err := ps.Join(topic)
	if err != nil {
		m.t.Fatal(err)
	}
	m.connect(h, victims...)
	return func(data []byte) {
		m.t.Helper()
		if err := t.Publish(ctx, data); err != nil {
			m.t.Fatal(err)
		}
	}
}

func name(t *testing.T, prefix string) string {
	t.Helper()
	s, err := Capability(realm, prefix)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func wait(d time.Duration) { <-time.After(d) }

func numbered(prefix string, n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf("%s%03d", prefix, i))
	}
	return all
}
