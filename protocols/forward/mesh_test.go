package forward

import (
	"bytes"
	"context"
	"crypto/hpke"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	libhost "github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"

	"openmesh/overlay/overlaytest"
	"openmesh/protocols/wire"
)

const (
	echoProtocol = protocol.ID("/echo/1")
	oneWay       = 20 * time.Millisecond
)

// node is a host that forwards, with all that it sees on record.
type node struct {
	host
	libhost.Host
	server *Server
	stop   func() // ends Run and waits for it

	mu    sync.Mutex
	conns []*Conn // that it accepted

	views []*view
	bend  func(b []byte) []byte // what a hostile relay makes of what it reads
}

// view is one stream of a node.
type view struct {
	remote    peer.ID
	read, had bytes.Buffer // of had: what it wrote
}

// mesh is a network of nodes; the first is the source.
type mesh struct {
	t     *testing.T
	net   *overlaytest.Net
	nodes []*node
}

func newMesh(t *testing.T, n int, change func(i int, c *Config)) *mesh {
	t.Helper()
	m := &mesh{t: t, net: overlaytest.NewNet(t, oneWay)}
	for i := range n {
		h := m.net.Host()
		nd := &node{host: newHostAt(t, h.ID(), h.Addrs()...), Host: h, stop: func() {}}
		m.nodes = append(m.nodes, nd)
		cfg := Config{
			Keys:   func() []hpke.PrivateKey { return []hpke.PrivateKey{nd.private} },
			Accept: map[protocol.ID]func(*Conn){echoProtocol: nd.echo},
			Relay:  true, Dialer: nd, Log: zap.NewNop(),
		}
		if change != nil {
			change(i, &cfg)
		}
		nd.server = NewServer(cfg)
		if i > 0 {
			nd.run(t)
		}
	}
	return m
}

func (n *node) run(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.server.Run(ctx, n) }()
	n.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		n.stop = func() {}
	}
	synctest.Wait() // until it has registered its handler
	t.Cleanup(func() { n.stop() })
}

// echo sends back what comes, until the end.
func (n *node) echo(c *Conn) {
	n.mu.Lock()
	n.conns = append(n.conns, c)
	n.mu.Unlock()
	if _, err := io.Copy(c, c); err != nil {
		c.Reset(wire.CodeOf(err))
	}
	c.Close()
}

// NewStream and SetStreamHandler record what passes.
func (n *node) NewStream(ctx context.Context, p peer.ID, addrs []ma.Multiaddr, id protocol.ID) (network.Stream, error) {
	n.Peerstore().AddAddrs(p, addrs, peerstore.TempAddrTTL)
	st, err := n.Host.NewStream(ctx, p, id)
	if err != nil {
		return nil, err
	}
	return n.tap(st), nil
}

func (n *node) SetStreamHandler(id protocol.ID, h network.StreamHandler) {
	n.Host.SetStreamHandler(id, func(st network.Stream) { h(n.tap(st)) })
}

func (n *node) tap(st network.Stream) network.Stream {
	v := &view{remote: st.Conn().RemotePeer()}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.views = append(n.views, v)
	return &tapped{st, n, v}
}

type tapped struct {
	network.Stream
	node *node
	view *view
}

func (s *tapped) Read(b []byte) (int, error) {
	n, err := s.Stream.Read(b)
	s.node.mu.Lock()
	defer s.node.mu.Unlock()
	s.view.read.Write(b[:n])
	if s.node.bend != nil {
		n = copy(b, s.node.bend(b[:n]))
	}
	return n, err
}

func (s *tapped) Write(b []byte) (int, error) {
	s.node.mu.Lock()
	s.view.had.Write(b)
	s.node.mu.Unlock()
	return s.Stream.Write(b)
}

// path is over the nodes after the source; the last of n is the target.
func (m *mesh) path(n int) Path {
	var p Path
	for _, nd := range m.nodes[1:n] {
		p.Hops = append(p.Hops, nd.Hop)
	}
	p.Target = m.nodes[n].Hop
	return p
}

func (m *mesh) dial(p Path) (*Conn, error) { return Dial(m.t.Context(), m.nodes[0], p, echoProtocol) }

// mustDial opens a circuit to the last node over all between, and checks that it echoes.
func (m *mesh) mustDial() *Conn {
	m.t.Helper()
	c, err := m.dial(m.path(len(m.nodes) - 1))
	check(m.t, err)
	m.exchange(c, "hello")
	return c
}

func (m *mesh) exchange(c *Conn, text string) {
	m.t.Helper()
	_, err := c.Write([]byte(text))
	check(m.t, err)
	got := make([]byte, len(text))
	_, err = io.ReadFull(c, got)
	check(m.t, err)
	if string(got) != text {
		m.t.Fatalf("echo of %q is %q", text, got)
	}
}

// wantFault checks the code of an error, the place of the hop it names, and who told.
func wantFault(t *testing.T, err error, code wire.Code, place, by int) {
	t.Helper()
	var f *Fault
	if !errors.As(err, &f) || f.Code != code || f.Place != place || f.By != by {
		t.Errorf("%v; want %s at %d, told by %d", err, code, place, by)
	}
}

// wantNoCircuits checks that the relays and the target carry nothing, once all that
// is on the way has arrived.
func (m *mesh) wantNoCircuits() {
	m.t.Helper()
	time.Sleep(time.Second)
	synctest.Wait()
	for i, n := range m.nodes[1:] {
		if u := n.server.Usage(); u.Circuits != 0 {
			m.t.Errorf("node %d still has %d circuits", i+1, u.Circuits)
		}
	}
}
