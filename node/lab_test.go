package node_test

import (
	"context"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"openmesh/node"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/config"
	"openmesh/node/handlers"
	"openmesh/node/handlers/capability"
	"openmesh/node/keys"
	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/session"
	"openmesh/protocols/signal"
)

const lab = identity.FirstPrivateRealm

// running is a real node on loopback, with what it logs from info level on.
type running struct {
	*node.Node
	logs *observer.ObservedLogs
	keys *keys.Keys
	home string
	stop func() // in order; also at the end of the test
}

// start runs a node until the test ends: a backbone, unless bootstrap nodes are
// given.
func start(t *testing.T, bootstrap ...*running) *running {
	t.Helper()
	flags := map[string]string{"node.roles": "backbone"}
	if len(bootstrap) > 0 {
		flags["node.roles"] = "agent"
		flags["networking.bootstrap"] = bootstrap[0].Info().Addrs[0]
	}
	return startAs(t, flags)
}

// patience is how long tests wait at most for what comes about soon, unless the machine
// is busy.
const patience = 2 * time.Minute

// startAs runs a new node with these flags.
func startAs(t *testing.T, flags map[string]string) *running {
	t.Helper()
	home := t.TempDir()
	k, err := keys.Init(t.Context(), home, keys.InitOptions{Realm: lab, Passphrase: []byte("a passphrase"), Now: time.Now()})
	check(t, err)
	return startIn(t, home, k, flags, nil)
}

// startIn runs a node of a home that is there; ready, if not nil, is done before it
// runs.
func startIn(t *testing.T, home string, k *keys.Keys, flags map[string]string, ready func(*running)) *running {
	t.Helper()
	return startWith(t, node.Config{Home: home, Keys: k}, flags, ready)
}

// startWith is startIn for more than home and keys.
func startWith(t *testing.T, c node.Config, flags map[string]string, ready func(*running)) *running {
	t.Helper()
	all := map[string]string{
		"node.realm":                 "64512",
		"networking.listen":          "/ip4/127.0.0.1/tcp/0",
		"api.listen":                 "unix:api.sock",
		"observability.metrics_port": "0",
	}
	maps.Copy(all, flags)
	var err error
	c.Config, err = config.Load(c.Home, nil, all)
	check(t, err)
	core, logs := observer.New(zapcore.InfoLevel)
	c.Log, c.Version = zap.New(core), "test"
	r := &running{logs: logs, keys: c.Keys, home: c.Home}
	r.Node, err = node.New(c)
	check(t, err)
	if ready != nil {
		ready(r)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			check(t, <-ended)
		})
	}
	t.Cleanup(r.stop)
	select {
	case <-r.Ready():
	case err := <-ended:
		t.Fatalf("node ended: %v; it logged %v", err, logs.All())
	}
	return r
}

// offerEcho adds a capability that answers what it is asked.
func (r *running) offerEcho(t *testing.T) {
	t.Helper()
	echo := handlers.HandlerFunc(func(_ context.Context, req *handlers.Request) (*handlers.Response, error) {
		return &handlers.Response{Body: req.Body, Encoding: req.Encoding}, nil
	})
	check(t, r.Registry().AddHandler(&capability.Capability{Name: "test/echo", Version: "1.0.0"}, echo))
}

// call asks agent to for its echo.
func (r *running) call(ctx context.Context, to *running) error {
	_, err := r.Call(ctx, &openmeshv1.CallRequest{
		Target: string(to.keys.Agent), Capability: "test/echo", TimeoutMs: uint32(patience.Milliseconds()),
		Body: &openmeshv1.CallRequest_Json{Json: `{"n":1}`},
	})
	return err
}

// finds waits until r finds another agent: that may not have announced itself yet.
func (r *running) finds(t *testing.T, other *running) {
	t.Helper()
	r.awaitMailboxes(t, other, 0)
}

// info is where r is.
func (r *running) info(t *testing.T) peer.AddrInfo {
	t.Helper()
	var addrs []ma.Multiaddr
	for _, s := range r.Info().Addrs {
		a, err := ma.NewMultiaddr(s)
		check(t, err)
		addrs = append(addrs, a)
	}
	infos, err := peer.AddrInfosFromP2pAddrs(addrs...)
	check(t, err)
	return infos[0]
}

// rawHost is a libp2p host without any of our limits.
func rawHost(t *testing.T, listen string, key crypto.PrivKey) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.Identity(key), libp2p.ListenAddrStrings(listen), libp2p.DisableRelay(),
		libp2p.ResourceManager(&network.NullResourceManager{}), libp2p.DisableMetrics())
	check(t, err)
	t.Cleanup(func() { h.Close() })
	return h
}

// stranger is an agent with a raw host, connected to a node.
type stranger struct {
	*protocoltest.Agent
	host host.Host
}

func newStranger(t *testing.T, listen string, to *running) *stranger {
	t.Helper()
	a := protocoltest.NewAgent(t, lab, time.Now())
	s := &stranger{a, rawHost(t, listen, a.Host)}
	check(t, s.host.Connect(t.Context(), to.info(t)))
	return s
}

func (s *stranger) signaling() signal.Config {
	return signal.Config{
		Local:    func() signal.Local { return signal.Local{Certificate: s.Certificate, Key: s.Host} },
		Verifier: identity.NewVerifier(lab, time.Now),
		Terms:    terms,
		Timeout:  patience,
		Log:      zap.NewNop(),
	}
}

func terms() signal.Terms {
	return signal.Terms{Suites: signal.Suites(), Contract: signal.DefaultContract()}
}

// endpoint makes the stranger an honest one, until the test ends.
func (s *stranger) endpoint(t *testing.T) *session.Endpoint {
	e := session.New(session.Config{Host: s.host, Signal: s.signaling(), Log: zap.NewNop()})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); e.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
	return e
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
