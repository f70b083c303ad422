package directory_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"go.uber.org/zap"

	"openmesh/overlay/directory"
	"openmesh/overlay/directory/kad"
	"openmesh/overlay/overlaytest"
	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
)

const (
	realm   = identity.FirstPrivateRealm
	latency = 50 * time.Millisecond
	rtt     = 2 * latency
)

// mesh is some nodes on a simulated network.
type mesh struct {
	t   *testing.T
	net *overlaytest.Net

	mu      sync.Mutex
	servers []peer.AddrInfo // the bootstrap list
}

func (m *mesh) bootstrap() []peer.AddrInfo {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.servers)
}

func (m *mesh) list(servers ...peer.AddrInfo) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.servers = servers
}

// node is an agent with its host and directory.
type node struct {
	*protocoltest.Agent
	*directory.Directory
	host host.Host
	stop func() // ends Run and waits for it
}

func newMesh(t *testing.T) *mesh { return &mesh{t: t, net: overlaytest.NewNet(t, latency)} }

// backbone adds n directory servers.
func (m *mesh) backbone(n int) (all []*node) {
	for range n {
		s := m.node(func(c *directory.Config) { c.Mode = kad.Server })
		m.list(append(m.bootstrap(), overlaytest.Info(s.host))...)
		all = append(all, s)
	}
	return all
}

// node adds a client, or what change makes of it.
func (m *mesh) node(change ...func(*directory.Config)) *node {
	return m.nodeOf(protocoltest.NewAgent(m.t, realm, time.Now()), change...)
}

func (m *mesh) nodeOf(a *protocoltest.Agent, change ...func(*directory.Config)) *node {
	m.t.Helper()
	cm, err := connmgr.NewConnManager(50, 100)
	if err != nil {
		m.t.Fatal(err)
	}
	h := m.net.Host(libp2p.Identity(a.Host), libp2p.ConnectionManager(cm))
	cfg := directory.Config{
		Host: h, Key: a.Host, Certificate: a.Certificate,
		Verifier:  identity.NewVerifier(realm, time.Now),
		Bootstrap: m.bootstrap,
		Log:       zap.NewNop(),
	}
	for _, f := range change {
		f(&cfg)
	}
	d, err := directory.New(cfg)
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := d.Run(ctx); err != nil {
			m.t.Errorf("Run: %v", err)
		}
	}()
	n := &node{Agent: a, Directory: d, host: h, stop: func() { cancel(); <-done }}
	m.t.Cleanup(n.stop)
	return n
}

func capability(name, version string, change ...func(*descriptorpb.Capability)) *descriptorpb.Capability {
	c := &descriptorpb.Capability{Name: name, Version: version}
	for _, f := range change {
		f(c)
	}
	return c
}

func (n *node) offer(t *testing.T, cs ...*descriptorpb.Capability) {
	t.Helper()
	if err := n.Announce(directory.Profile{Capabilities: cs, Region: "eu-central"}); err != nil {
		t.Fatal(err)
	}
}

// find returns agent/name@version of what n discovers.
func (n *node) find(t *testing.T, q directory.Query) []string {
	t.Helper()
	res, err := n.Discover(t.Context(), q)
	if err != nil {
		t.Fatalf("Discover(%+v): %v", q, err)
	}
	return labels(res.Rows)
}

func labels(rows []directory.Row) []string {
	var out []string
	for _, r := range rows {
		out = append(out, fmt.Sprintf("%s/%s@%s", r.Agent, r.Name, r.Version))
	}
	return out
}

func (n *node) label(name, version string) string {
	return fmt.Sprintf("%s/%s@%s", n.Agent.Agent, name, version)
}
