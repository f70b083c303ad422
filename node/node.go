// Package node makes a node of its parts and runs it. It is the only package
// that sees them all.
//
//	cmd ─▶ api ─▶ node ─┬─▶ directory ─▶ overlay ─▶ libp2p     who offers what, where
//	                    ├─▶ session ──▶ signal ──┘             sealed work between agents
//	                    ├─▶ handlers                           the work itself
//	                    └─▶ policy, observe, keys, config
package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"openmesh/node/api"
	"openmesh/node/audit"
	"openmesh/node/automation"
	"openmesh/node/catalog"
	"openmesh/node/config"
	"openmesh/node/handlers"
	"openmesh/node/handlers/capability"
	"openmesh/node/keys"
	"openmesh/node/market"
	"openmesh/node/observe"
	"openmesh/node/schemas"
	"openmesh/node/store"
	"openmesh/node/store/letters"
	"openmesh/overlay"
	"openmesh/overlay/directory"
	"openmesh/overlay/grpclink"
	"openmesh/overlay/topic"
	"openmesh/policy"
	"openmesh/protocols/forward"
	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox"
	"openmesh/protocols/market/document"
	"openmesh/protocols/session"
	"openmesh/protocols/wire"
)

// Config is what a [Node] needs.
type Config struct {
	Home    string // folder of identity, capabilities, token and socket
	Config  *config.Config
	Keys    *keys.Keys
	Log     *zap.Logger
	Version string // of the program

	// Data takes the messages that other agents send outside of calls, for
	// programs that embed a node; the bytes are valid during the call. Nil drops
	// them.
	Data func(from *session.Session, message []byte)

	// Deals are the market contracts that work is done under. Nil: those of this
	// node's own market.
	Deals Deals

	// HostOptions override the libp2p host's: a simulated network, in tests.
	HostOptions []libp2p.Option
}

// Node is one agent on the mesh.
type Node struct {
	cfg      Config
	settings *config.Config
	log      *zap.Logger
	circles  policy.Circles
	verifier *identity.Verifier
	metrics  *observe.Metrics
	tracer   *observe.Tracer
	alerts   *observe.Alerts
	registry *handlers.Registry
	store    *capability.Store
	load     load
	events   *events
	seen     *certificates
	praised  *limiter

	translations *schemas.Registry
	schemas      map[string][]string // versions that the configuration names

	deals      Deals // what work is done under
	automation *automation.Automation
	multicasts *multicasts
	relays     *relays
	post       *post
	setbacks   setbacks
	renew      chan struct{} // there is something new to announce

	// Made by Run, before ready is closed.
	host      *overlay.Host
	database  *store.Store
	dialer    *grpclink.Dialer
	links     *grpclink.Server // nil: no gRPC listener
	forwards  *forward.Server
	mailboxes *mailbox.Server // nil: this node keeps none
	audit     *audit.Log
	catalog   *catalog.Catalog
	market    *market.Engine
	asking    asking // for schemas of details
	gossip    *topic.Gossip
	letters   *letters.Store // of mailboxes
	directory *directory.Directory
	sessions  *session.Endpoint
	api       *api.Server
	started   time.Time

	ready chan struct{}
}

// Info is what a node tells once it is ready.
type Info struct {
	Agent   string
	Address string
	Peer    string
	Addrs   []string // full multiaddrs
	API     string   // first address of the local API
}

// New returns a node that is not running, with the capabilities of its home.
func New(cfg Config) (*Node, error) {
	circles, err := parseCircles(cfg.Config.Policy.Circles)
	if err != nil {
		return nil, err
	}
	named, err := parseSchemas(cfg.Config.Session.Schemas)
	if err != nil {
		return nil, err
	}
	realm := cfg.Keys.Address.Realm
	if configured := identity.Realm(cfg.Config.Node.Realm); configured != realm {
		return nil, realmMismatch(configured, realm)
	}
	n := &Node{
		cfg: cfg, settings: cfg.Config, log: cfg.Log, circles: circles,
		verifier: identity.NewVerifier(realm, time.Now),
		metrics:  observe.NewMetrics(cfg.Version),
		store:    capability.NewStore(filepath.Join(cfg.Home, "capabilities")),
		load:     load{capacity: int64(4 * runtime.GOMAXPROCS(0))},
		events:   newEvents(),
		seen:     newCertificates(),
		praised:  newLimiter(time.Second),

		translations: schemas.Open(filepath.Join(cfg.Home, schemas.Folder), cfg.Log),
		schemas:      named,

		deals:      cfg.Deals,
		multicasts: newMulticasts(),
		relays:     newRelays(),
		renew:      make(chan struct{}, 1),
		ready:      make(chan struct{}),
	}
	if err := n.translations.Add(document.Translation(), "of this program"); err != nil && wire.CodeOf(err) != wire.AlreadyExists {
		return nil, err
	}
	n.post = newPost(n)
	n.registry = handlers.New(handlers.Config{
		Lenient:           cfg.Config.Capabilities.Validation == "lenient",
		CorrelationHeader: cfg.Config.Observability.CorrelationHeader,
		MaxResponse:       cfg.Config.Session.MaxMessageBytes,
		MaxCapabilities:   cfg.Config.Capabilities.Max,
		OnInvalid:         n.invalid,
		Log:               cfg.Log,
	})
	n.alerts = observe.NewAlerts(observe.AlertsConfig{
		Thresholds:  thresholds(cfg.Config.Observability.AlertThresholds),
		Metrics:     n.metrics,
		Log:         cfg.Log,
		Partitioned: n.partitioned,
	})
	n.loadCapabilities()
	n.loadAutomation()
	return n, nil
}

func (n *Node) loadCapabilities() {
	stored, problems := n.store.Load()
	for _, err := range problems {
		n.log.Error("capability not loaded", zap.Error(err))
	}
	for _, c := range stored {
		err := reserved(c.Name)
		if err == nil {
			err = n.registry.Add(c)
		}
		if err != nil {
			n.log.Error("capability not loaded", zap.String("capability", c.Name), zap.Error(err))
		}
	}
}

// Registry is the set of capabilities, for programs that embed a node and its
// handlers.
func (n *Node) Registry() *handlers.Registry { return n.registry }

// Sessions is the node's session endpoint. It is there once the node is ready.
func (n *Node) Sessions() *session.Endpoint { return n.sessions }

// Host is the node's libp2p host. It is there once the node is ready.
func (n *Node) Host() *overlay.Host { return n.host }

// Directory is the node's view of the directory. It is there once the node is ready.
func (n *Node) Directory() *directory.Directory { return n.directory }

// Ready is closed once the node serves.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Info tells who and where the node is, once it is ready.
func (n *Node) Info() Info {
	return Info{
		Agent: string(n.cfg.Keys.Agent), Address: n.cfg.Keys.Address.String(), Peer: n.cfg.Keys.Peer.String(),
		Addrs: n.host.Addresses(), API: n.api.Addrs()[0],
	}
}

// Run runs the node until ctx ends; then it lets work in progress end, withdraws
// from the directory and returns nil. A node runs once.
func (n *Node) Run(ctx context.Context) (err error) {
	if err := n.cfg.Keys.Certificate.Valid(time.Now()); err != nil {
		return expiredKey(err)
	}
	unlock, err := lockHome(n.cfg.Home)
	if err != nil {
		return err
	}
	defer unlock()
	for _, sentence := range n.settings.Unbuilt() {
		n.log.Warn(sentence)
	}
	if !n.settings.Networking.RelayFallback {
		n.log.Warn("networking.relay_fallback is false: this node and agents behind NATs or firewalls may not reach each other")
	}
	if err := n.startTracing(ctx); err != nil {
		return err
	}
	defer n.stopTracing()
	n.database, err = store.Open(ctx, store.Config{
		URL: n.settings.Storage.URL, Path: filepath.Join(n.cfg.Home, "openmesh.db"), Owner: string(n.cfg.Keys.Agent), Log: n.log.Named("store"),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.database.Close()) }()
	if n.audit, err = audit.Open(ctx, n.auditConfig()); err != nil {
		return err
	}
	if err := n.loadMulticasts(ctx); err != nil {
		return err
	}
	if err := n.build(); err != nil {
		return err
	}
	n.started = time.Now()

	// The host outlives what stands on it, so that it can say goodbye.
	hostCtx, stopHost := context.WithCancel(context.WithoutCancel(ctx))
	hostDone := make(chan error, 1)
	go func() { hostDone <- n.host.Run(hostCtx) }()
	err = n.runServices(ctx)
	n.post.depositor.Close()
	stopHost()
	err = errors.Join(err, <-hostDone)
	n.registry.Close()
	n.log.Info("node stopped")
	return err
}

// runServices runs all that stands on the host until ctx ends or one fails.
func (n *Node) runServices(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	metrics, err := n.metricsServer()
	if err != nil {
		n.api.Close()
		return err
	}
	if metrics != nil {
		group.Go(func() error { return metrics.Run(ctx) })
	}
	group.Go(func() error { return n.directory.Run(ctx) })
	group.Go(func() error { return n.sessions.Run(ctx) })
	group.Go(func() error { return n.watchWays(ctx) })
	defer n.dialer.Close()
	group.Go(func() error { return n.alerts.Run(ctx) })
	group.Go(func() error { n.announce(ctx); return nil })
	group.Go(func() error { n.meter(ctx); return nil })
	group.Go(func() error { n.watchRelays(ctx); return nil })
	group.Go(func() error { return n.forwards.Run(ctx, n.host) })
	group.Go(func() error { return n.audit.Run(ctx) })
	group.Go(func() error { return n.gossip.Run(ctx) })
	group.Go(func() error { n.listen(ctx); return nil })
	if n.mailboxes != nil {
		group.Go(func() error { n.mailboxes.Run(ctx, n.host); return nil })
	}
	if n.settings.Mailbox.Replicas > 0 && slices.Contains(n.settings.Node.Roles, "agent") {
		group.Go(func() error { return n.post.collect(ctx) })
	}
	select {
	case <-n.sessions.Restored(): // else peers and the API would be told that there are none
	case <-ctx.Done():
	}
	if n.links != nil {
		group.Go(func() error { return n.links.Run(ctx) })
	}
	group.Go(func() error { return n.market.Run(ctx) })
	group.Go(func() error { return n.api.Run(ctx) })
	if ctx.Err() != nil {
		return group.Wait()
	}
	info := n.Info()
	n.log.Info("node ready", zap.String("agent", info.Agent), zap.String("address", info.Address),
		zap.Strings("addrs", info.Addrs), zap.Strings("api", n.api.Addrs()), zap.String("version", n.cfg.Version))
	close(n.ready)
	return group.Wait()
}

// build makes the parts that listen.
func (n *Node) build() (err error) {
	if n.host, err = overlay.New(n.hostConfig()); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			n.host.Close()
		}
	}()
	if n.directory, err = directory.New(n.directoryConfig()); err != nil {
		return err
	}
	if n.gossip, err = topic.New(n.topicConfig()); err != nil {
		return err
	}
	if n.catalog, err = catalog.New(n.catalogConfig()); err != nil {
		return err
	}
	n.market = n.newMarket()
	if n.deals == nil {
		n.deals = deals{n}
	}
	n.dialer = grpclink.NewDialer()
	n.sessions = session.New(n.sessionConfig())
	n.forwards, n.mailboxes = n.newForwarding(), n.newMailboxes()
	if n.links, err = n.newLinks(); err != nil {
		return err
	}
	if n.links != nil {
		if err = n.links.Listen(); err != nil {
			return err
		}
	}
	if n.api, err = n.newAPI(); err != nil {
		return err
	}
	return n.api.Listen()
}

func (n *Node) hostConfig() overlay.Config {
	s := n.settings
	backbone, relay := slices.Contains(s.Node.Roles, "backbone"), slices.Contains(s.Node.Roles, "relay")
	c := overlay.Config{
		Key: n.cfg.Keys.Host, Listen: s.Networking.Listen, Announce: s.Networking.Announce,
		PortMapping:    s.Networking.NATStrategy == "stun-holepunch-relay" && !backbone && !relay && !loopbackOnly(s.Networking.Listen),
		HolePunch:      s.Networking.NATStrategy == "stun-holepunch-relay" || s.Networking.NATStrategy == "holepunch-relay",
		Public:         backbone || relay,
		MaxConnections: s.Networking.MaxConnections, Low: s.Networking.ConnectionsLow, High: s.Networking.ConnectionsHigh,
		Metrics: prometheus.WrapRegistererWithPrefix("", n.metrics.Registry()),
		Log:     n.log, Options: n.cfg.HostOptions,
	}
	if c.NoCircuits = !n.circuitsAllowed(); !c.NoCircuits && !relay {
		c.Relays, c.FindRelays = n.peersOf(s.Networking.Relays), n.circuitRelays
	}
	c.Upgraded = n.upgraded
	if relay {
		c.Listen = n.relayListen()
	}
	if n.isRelay(serviceCircuit) {
		c.Relay = n.relayConfig()
	}
	return c
}

// circuitsAllowed reports whether connections may go through relays.
func (n *Node) circuitsAllowed() bool {
	return n.settings.Networking.RelayFallback && n.settings.Networking.NATStrategy != "none"
}

// upgraded hears that a peer has a direct connection now besides circuits: sessions
// with it move there.
func (n *Node) upgraded(p peer.ID) { go n.sessions.Upgrade(p, n.host.Transports(p)) }

func (n *Node) startTracing(ctx context.Context) (err error) {
	if n.settings.Observability.Tracing != "opentelemetry" {
		n.tracer = new(observe.Tracer)
		return nil
	}
	n.tracer, err = observe.Tracing(ctx, observe.TracingConfig{
		Service: "openmesh", Version: n.cfg.Version, Instance: string(n.cfg.Keys.Agent), Log: n.log,
	})
	if err != nil {
		return fmt.Errorf("start tracing: %w", err)
	}
	return nil
}

func (n *Node) stopTracing() {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if err := n.tracer.Shutdown(ctx); err != nil {
		n.log.Warn("traces not flushed", zap.Error(err))
	}
}

// load is how busy this node is with requests of others.
type load struct {
	working  atomic.Int64
	capacity int64
}

// busy is how busy this node is: with requests, or with carrying others' traffic.
func (n *Node) busy() float64 { return max(n.load.value(), n.host.RelayLoad()) }

// value is 0 when idle, 0.5 at four requests per CPU, and nears 1.
func (l *load) value() float64 {
	w := l.working.Load()
	return float64(w) / float64(w+l.capacity)
}

// events passes session events on to those who watch.
type events struct {
	mu       sync.Mutex
	watchers map[chan session.Event]struct{}
}

func newEvents() *events { return &events{watchers: make(map[chan session.Event]struct{})} }

// watch returns a channel of events from now on; a watcher that falls more than
// its buffer behind misses some.
func (e *events) watch() (events <-chan session.Event, stop func()) {
	ch := make(chan session.Event, 256)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.watchers[ch] = struct{}{}
	return ch, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.watchers, ch)
	}
}

func (e *events) publish(ev session.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for ch := range e.watchers {
		select {
		case ch <- ev:
		default:
		}
	}
}
