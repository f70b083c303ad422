package session_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	mathrand "math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"go.uber.org/zap"

	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/session"
	"openmesh/protocols/session/delivery/deliverytest"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// wires is a network of conduits without libp2p under them, which may lose,
// reorder and record frames and be cut by transport.
type wires struct {
	latency time.Duration
	loss    float64       // share of frames that vanish on a conduit that lives
	jitter  time.Duration // by which frames overtake each other

	mu    sync.Mutex
	nodes map[peer.ID]*wired
	ends  map[*wireEnd]bool
	down  map[string]bool // transports that pass nothing
	relay map[string]bool // transports that lead through a relay
	tape  [][]byte        // frames sent, if recording
	tapes bool
}

// wired is a node of the network.
type wired struct {
	*session.Endpoint
	agent *protocoltest.Agent
	net   *wires
	cfg   session.Config
	kill  func() // as a crash would
	data  chan []byte
}

func newWires(latency time.Duration) *wires {
	return &wires{latency: latency, nodes: map[peer.ID]*wired{}, ends: map[*wireEnd]bool{}, down: map[string]bool{}}
}

// noHost is a host whose streams nobody uses.
type noHost struct{}

func (noHost) SetStreamHandler(protocol.ID, network.StreamHandler) {}
func (noHost) RemoveStreamHandler(protocol.ID)                     {}
func (noHost) NewStream(context.Context, peer.ID, ...protocol.ID) (network.Stream, error) {
	return nil, errors.New("there are no streams")
}

// node makes a node with a new identity.
func (w *wires) node(t *testing.T, change func(*session.Config)) *wired {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	n := &wired{agent: protocoltest.NewAgentFor(t, identity.FirstPrivateRealm, time.Now(), 50*24*time.Hour, key), net: w, data: make(chan []byte, 1<<16)}
	contract := signal.DefaultContract()
	contract.Keepalive = 10 * time.Second
	n.cfg = session.Config{
		Host: noHost{}, Network: wireNetwork{w, n},
		Signal: signal.Config{
			Local:    func() signal.Local { return signal.Local{Certificate: n.agent.Certificate, Key: n.agent.Host} },
			Verifier: identity.NewVerifier(identity.FirstPrivateRealm, time.Now),
			Terms:    func() signal.Terms { return signal.Terms{Suites: signal.Suites(), Contract: contract} },
			Timeout:  5 * time.Second,
			Log:      zap.NewNop(),
		},
		Handler: func(_ context.Context, in *session.Inbound) (*session.Response, error) {
			return &session.Response{Encoding: in.Encoding, Body: in.Body}, nil
		},
		Data:        func(_ *session.Session, b []byte) { n.data <- bytes.Clone(b) },
		MaxChannels: 1 << 16, IdleTimeout: 48 * time.Hour,
		Log: zap.NewNop(),
	}
	if change != nil {
		change(&n.cfg)
	}
	n.start(t)
	return n
}

// start runs the node's endpoint: at first, or after a crash.
func (n *wired) start(t *testing.T) {
	e := session.New(n.cfg)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		e.Run(ctx)
	}()
	n.net.mu.Lock()
	n.Endpoint, n.net.nodes[n.agent.Certificate.Peer] = e, n
	n.net.mu.Unlock()
	var once sync.Once
	n.kill = func() {
		once.Do(func() {
			n.net.unplug(n.agent.Certificate.Peer)
			stop()
			<-ended
		})
	}
	t.Cleanup(func() { n.kill() })
	synctest.Wait()
}

// crash ends the node as SIGKILL would, and starts it again with what its store
// had committed.
func (n *wired) crash(t *testing.T) {
	n.net.unplug(n.agent.Certificate.Peer)
	n.cfg.Store = n.cfg.Store.(*deliverytest.Store).Crash()
	n.kill()
	n.start(t)
}

// keep gives a node a store, and lets it agree to any delivery.
func keep(c *session.Config) {
	c.Store = deliverytest.NewStore()
	terms := c.Signal.Terms()
	terms.Contract.QoS, terms.Contract.Persistent = signal.ExactlyOnce, true
	terms.Contract.AckTimeout = 2 * time.Second
	c.Signal.Terms = func() signal.Terms { return terms }
	c.Contract.QoS = signal.AtMostOnce
}

func (n *wired) target() session.Target {
	return session.Target{Agent: n.agent.Agent, Route: session.Route{Peer: n.agent.Certificate.Peer}}
}

func (n *wired) open(t *testing.T, to *wired, w session.Want) *session.Session {
	t.Helper()
	s, err := n.Open(t.Context(), to.target(), w)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * n.net.oneWay()) // now the other side has it too
	return s
}

// unplug takes a node off the network: nothing comes from it any more, and its
// conduits break.
func (w *wires) unplug(p peer.ID) {
	w.mu.Lock()
	delete(w.nodes, p)
	var broken []*wireEnd
	for end := range w.ends {
		if end.owner == p || end.remote == p {
			broken = append(broken, end)
		}
	}
	w.mu.Unlock()
	for _, end := range broken {
		end.shut(wire.Unreachable)
	}
}

// silence lets a transport pass nothing from now on, without a word.
func (w *wires) silence(transport string, down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down[transport] = down
}

// slow changes how long a frame is under way.
func (w *wires) slow(latency time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.latency = latency
}

func (w *wires) oneWay() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.latency
}

// blackOut breaks every conduit and lets no transport pass anything, or ends that.
func (w *wires) blackOut(down bool) {
	for _, name := range transports {
		w.silence(name, down)
		if down {
			w.snap(name)
		}
	}
}

// disturb lets frames get lost and overtake each other from now on.
func (w *wires) disturb(loss float64, jitter time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.loss, w.jitter = loss, jitter
}

// snap breaks every conduit of a transport.
func (w *wires) snap(transport string) {
	w.mu.Lock()
	var broken []*wireEnd
	for end := range w.ends {
		if end.path.Transport == transport {
			broken = append(broken, end)
		}
	}
	w.mu.Unlock()
	for _, end := range broken {
		end.shut(wire.Unreachable)
	}
}

// wireNetwork is the network as one node sees it.
type wireNetwork struct {
	net *wires
	own *wired
}

// transports are tried in this order.
var transports = []string{"quic-v1", "tcp", "ws"}

func (n wireNetwork) Offer() []signal.Transport {
	var ts []signal.Transport
	for _, name := range transports {
		ts = append(ts, signal.Transport{Name: name})
	}
	return ts
}

// find is what runs at a node now.
func (n wireNetwork) find(p peer.ID) (*session.Endpoint, error) {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	to := n.net.nodes[p]
	if to == nil || n.net.nodes[n.own.agent.Certificate.Peer] != n.own {
		return nil, wire.Errorf(wire.Unreachable, "%s is not there", p)
	}
	return to.Endpoint, nil
}

func (n wireNetwork) Signal(ctx context.Context, r session.Route, offer []byte) ([]byte, bool, error) {
	to, err := n.find(r.Peer)
	if err != nil {
		return nil, false, err
	}
	time.Sleep(2 * n.net.oneWay())
	reply, err := to.Exchange(string(n.own.agent.Agent), offer)
	return reply, true, err
}

func (n wireNetwork) Dial(ctx context.Context, r session.Route) (session.Conduit, error) {
	to, err := n.find(r.Peer)
	if err != nil {
		return nil, err
	}
	time.Sleep(2 * n.net.oneWay())
	if now, err := n.find(r.Peer); err != nil || now != to {
		return nil, wire.Errorf(wire.Unreachable, "%s has gone", r.Peer)
	}
	for _, name := range transports {
		n.net.mu.Lock()
		down := n.net.down[name]
		n.net.mu.Unlock()
		if down || r.Transport != "" && r.Transport != name {
			continue
		}
		a, b := n.net.pair(name, n.own.agent.Certificate.Peer, r.Peer)
		go to.Accept(b)
		return a, nil
	}
	return nil, wire.Errorf(wire.Unreachable, "no transport to %s", r.Peer)
}

// wireEnd is one end of a conduit.
type wireEnd struct {
	net           *wires
	path          session.Path
	owner, remote peer.ID
	far           *wireEnd

	mu     sync.Mutex
	ready  *sync.Cond
	in     bytes.Buffer
	sent   int    // frames written
	part   []byte // of a frame, written so far
	line   [][]byte
	order  sync.Mutex // of those that arrive
	eof    bool
	broken error
}

func (w *wires) pair(transport string, from, to peer.ID) (*wireEnd, *wireEnd) {
	path := session.Path{Kind: "direct", Transport: transport, Addr: "/" + transport}
	if w.relay[transport] {
		path.Kind = "relayed"
	}
	a := &wireEnd{net: w, path: path, owner: from, remote: to}
	b := &wireEnd{net: w, path: path, owner: to, remote: from, far: a}
	a.far = b
	a.ready, b.ready = sync.NewCond(&a.mu), sync.NewCond(&b.mu)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ends[a], w.ends[b] = true, true
	return a, b
}

func (e *wireEnd) Read(b []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for e.in.Len() == 0 && !e.eof && e.broken == nil {
		e.ready.Wait()
	}
	switch {
	case e.broken != nil:
		return 0, e.broken
	case e.in.Len() > 0:
		return e.in.Read(b)
	}
	return 0, io.EOF
}

// Write sends the frames that b completes, each by itself. The first two of a
// channel, which begin it, are never lost.
func (e *wireEnd) Write(b []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.broken != nil {
		return 0, e.broken
	}
	e.part = append(e.part, b...)
	for {
		n, size := binary.Uvarint(e.part)
		if size <= 0 || len(e.part) < size+int(n) {
			return len(b), nil
		}
		e.deliver(bytes.Clone(e.part[:size+int(n)]))
		e.part = e.part[size+int(n):]
	}
}

func (e *wireEnd) deliver(frame []byte) {
	w := e.net
	w.mu.Lock()
	lost := w.down[e.path.Transport] || e.sent >= 2 && mathrand.Float64() < w.loss
	delay, inOrder := w.latency, w.jitter == 0 || e.sent < 2
	if !inOrder {
		delay += time.Duration(mathrand.Int64N(int64(w.jitter)))
	}
	if w.tapes {
		_, size := binary.Uvarint(frame)
		w.tape = append(w.tape, frame[size:])
	}
	w.mu.Unlock()
	e.sent++
	switch {
	case lost:
	case inOrder: // timers of one instant fire in any order
		e.line = append(e.line, frame)
		time.AfterFunc(delay, e.next)
	default:
		time.AfterFunc(delay, func() { e.far.take(frame) })
	}
}

// next lets the oldest frame under way arrive.
func (e *wireEnd) next() {
	e.order.Lock()
	defer e.order.Unlock()
	e.mu.Lock()
	frame := e.line[0]
	e.line = e.line[1:]
	e.mu.Unlock()
	e.far.take(frame)
}

func (e *wireEnd) take(frame []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.in.Write(frame)
	e.eof = e.eof || frame == nil
	e.ready.Broadcast()
}

func (e *wireEnd) Close() error {
	e.net.mu.Lock()
	down := e.net.down[e.path.Transport]
	e.net.mu.Unlock()
	if !down {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.line = append(e.line, nil) // behind all that was written
		time.AfterFunc(e.net.oneWay(), e.next)
	}
	return nil
}

// shut ends this end at once.
func (e *wireEnd) shut(err error) {
	e.mu.Lock()
	if e.broken == nil {
		e.broken = err
	}
	e.ready.Broadcast()
	e.mu.Unlock()
	e.net.mu.Lock()
	delete(e.net.ends, e)
	e.net.mu.Unlock()
}

func (e *wireEnd) Reset(c wire.Code) {
	e.shut(io.ErrClosedPipe)
	e.net.mu.Lock()
	down := e.net.down[e.path.Transport]
	e.net.mu.Unlock()
	if !down {
		time.AfterFunc(e.net.oneWay(), func() { e.far.shut(c) })
	}
}

func (e *wireEnd) Abandon()           { e.shut(io.ErrClosedPipe) }
func (e *wireEnd) Reserve(int) error  { return nil }
func (e *wireEnd) Release(int)        {}
func (e *wireEnd) Path() session.Path { return e.path }
func (e *wireEnd) Peer() peer.ID      { return e.remote }
