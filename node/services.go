package node

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"

	"openmesh/node/api"
	"openmesh/node/config"
	"openmesh/node/handlers/capability"
	"openmesh/node/observe"
	"openmesh/node/schemas"
	"openmesh/overlay/directory"
	"openmesh/overlay/directory/kad"
	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/schema/translate"
	"openmesh/protocols/session"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

func (n *Node) directoryConfig() directory.Config {
	s := n.settings
	mode := kad.Auto
	if slices.Contains(s.Node.Roles, "backbone") {
		mode = kad.Server
	}
	return directory.Config{
		Host: n.host, Key: n.cfg.Keys.Host, Certificate: n.cfg.Keys.Certificate, Verifier: n.verifier, Mode: mode,
		Bootstrap:       n.peersOf(s.Networking.Bootstrap),
		RegistrationTTL: s.Discovery.RegistrationTTL, CacheTTL: s.Discovery.CacheTTL, ProbeInterval: s.Discovery.ProbeInterval,
		ExperienceFile: filepath.Join(n.cfg.Home, "experience.json"),
		Circles:        func() []string { return n.circles.Of(n.cfg.Keys.Agent) },
		Member:         n.circles.Has,
		Load:           n.busy,
		Reach:          n.reach,
		Observer:       directoryObserver{n.metrics},
		Log:            n.log.Named("directory"),
	}
}

type directoryObserver struct{ metrics *observe.Metrics }

func (o directoryObserver) Observe(kind string, took time.Duration, outcome string) {
	var err error
	if c, ok := wire.ParseCode(outcome); ok {
		err = c
	}
	o.metrics.DirectoryLookup(kind, took, err)
}

func (n *Node) sessionConfig() session.Config {
	s := n.settings
	local := signal.Local{Certificate: n.cfg.Keys.Certificate, Key: n.cfg.Keys.Host}
	terms := signal.Terms{Suites: signal.Suites(), Contract: n.contract()}
	terms.Contract.QoS, terms.Contract.Persistent = signal.ExactlyOnce, true // what others may ask for
	terms.Choose = translate.Choose
	return session.Config{
		Host:    n.host,
		Network: ways{n, n.dialer},
		Signal: signal.Config{
			Local:    func() signal.Local { return local },
			Verifier: n.verifier,
			Terms:    func() signal.Terms { t := terms; t.Protocols, _ = n.protocols(); return t },
			Admit:    n.admitWork,
			Record:   n.signalRecorder(),
			Timeout:  s.Networking.HandshakeTimeout,
			PerPeer:  s.Signal.RatePerPeer, Total: s.Signal.RateTotal,
			Log: n.log.Named("signal"),
		},
		Contract:    n.contract(),
		Store:       n.database,
		Mail:        n.post,
		Find:        n.find,
		Handler:     n.serve,
		Data:        n.cfg.Data,
		Path:        n.pathOf,
		Abandon:     n.host.Abandon,
		MaxChannels: s.Networking.MaxTunnels,
		MaxSessions: s.Session.MaxSessions,
		MaxPerAgent: s.Session.MaxPerAgent,
		IdleTimeout: s.Session.IdleTimeout,
		ParkAfter:   s.Session.ParkAfter,
		Retention:   s.Session.Retention,
		Observe:     sessionObserver{n},
		Log:         n.log.Named("session"),
	}
}

// contract are the terms of a session that this node offers by itself.
func (n *Node) contract() signal.Contract {
	s := n.settings.Session
	qos, err := signal.ParseQoS(s.QoS)
	if err != nil {
		qos = signal.AtMostOnce // the configuration allows no other value
	}
	return signal.Contract{
		QoS: qos, Ordered: s.Ordered, Persistent: s.Persistent || qos > signal.AtMostOnce,
		TTL: s.TTL, AckTimeout: s.AckTimeout, Keepalive: n.settings.Networking.KeepaliveInterval, RekeyInterval: s.RekeyInterval,
		MaxMessageBytes: s.MaxMessageBytes, MaxPending: s.MaxPending, MessageRate: s.MessageRate, ByteRate: s.ByteRate,
		Retry: signal.Retry{
			Max: s.Retry.Max, Initial: s.Retry.Initial, Multiplier: s.Retry.Multiplier,
			MaxInterval: s.Retry.MaxInterval, Jitter: s.Retry.Jitter,
		},
	}
}

type sessionObserver struct{ n *Node }

func (o sessionObserver) SessionSetup(initiator bool, took time.Duration, err error) {
	if initiator {
		o.n.metrics.SessionSetup(took, err)
	}
}

func (o sessionObserver) SessionEvent(ev session.Event) {
	from := ev.From.String()
	if ev.From == session.Offered {
		from = "" // it was not counted yet
	}
	o.n.metrics.SessionMoved(from, ev.To.String())
	o.n.events.publish(ev)
	o.n.noteState(ev)
}

// MessageOutcome counts what became of a message.
func (o sessionObserver) MessageOutcome(s *session.Session, _ *delivery.Message, out delivery.Outcome) {
	outcome := observe.Delivered
	switch out.Status {
	case delivery.Failed:
		outcome = observe.Failed
	case delivery.Expired:
		outcome = observe.Expired
	}
	o.n.metrics.Message(observe.Out, observe.QoS(s.Contract().QoS-1), outcome)
}

func (n *Node) newAPI() (*api.Server, error) {
	return api.New(api.Config{
		Services:  api.Services{Node: nodeAPI{n}, Directory: directoryAPI{n}, Session: sessionAPI{n}, Market: marketAPI{n}, Audit: auditAPI{n}, Key: keyAPI{n}},
		Listen:    n.settings.API.Listen,
		TokenFile: filepath.Join(n.cfg.Home, "api.token"),
		Ready:     n.readiness,
		Log:       n.log.Named("api"),
		Tracer:    n.tracer,
		MaxBody:   2*n.settings.Session.MaxMessageBytes + 1<<20, // JSON may escape
	})
}

// readiness says why the node is not ready, if it is not.
func (n *Node) readiness() error {
	if err := n.cfg.Keys.Certificate.Valid(time.Now()); err != nil {
		return err
	}
	if n.partitioned() {
		return fmt.Errorf("no directory server is in reach")
	}
	return nil
}

// partitioned reports whether the directory is out of reach. A backbone node is
// part of it.
func (n *Node) partitioned() bool {
	select {
	case <-n.ready:
	default:
		return false
	}
	return !slices.Contains(n.settings.Node.Roles, "backbone") && n.directory.Status().Partitioned()
}

// metricsServer returns the server of Prometheus metrics, or nil if it is off.
func (n *Node) metricsServer() (*observe.Server, error) {
	o := n.settings.Observability
	if o.MetricsPort == 0 {
		return nil, nil
	}
	addr := net.JoinHostPort(o.MetricsHost, strconv.Itoa(o.MetricsPort))
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, wire.Errorf(wire.AlreadyExists, "serve metrics: %w", err).
			WithHint("set observability.metrics_port to a free port, or to 0 to turn it off")
	}
	return observe.NewServer(observe.ServerConfig{Listener: l, Metrics: n.metrics, Ready: n.readiness, Log: n.log}), nil
}

func thresholds(t config.AlertThresholds) observe.Thresholds {
	return observe.Thresholds{
		RelayUsagePct: t.RelayUsagePct, TunnelFailureRate: t.TunnelFailureRate,
		RegistryPartition: time.Duration(t.RegistryPartitionMS) * time.Millisecond,
	}
}

// announce tells the directory what this agent offers, now and at each change.
func (n *Node) announce(ctx context.Context) {
	for {
		changed := n.registry.Changed()
		n.checkOffered()
		if err := n.directory.Announce(n.profile()); err != nil {
			n.log.Error("capabilities not announced", zap.Error(err))
		}
		select {
		case <-changed:
		case <-n.renew:
		case <-ctx.Done():
			return
		}
	}
}

// announceAgain has the directory learn what has changed besides capabilities.
func (n *Node) announceAgain() {
	select {
	case n.renew <- struct{}{}:
	default:
	}
}

func (n *Node) profile() directory.Profile {
	p := directory.Profile{
		Region: n.settings.Node.Region, Jurisdictions: n.settings.Node.Jurisdictions, Domain: n.settings.Node.Domain,
		AgentVersion: "openmesh/" + n.cfg.Version, Mailboxes: n.post.boxNames(), Capabilities: n.serviceMessages(),
	}
	for _, c := range n.registry.List() {
		p.Capabilities = append(p.Capabilities, n.capabilityMessage(c))
	}
	return p
}

func (n *Node) capabilityMessage(c *capability.Capability) *descriptorpb.Capability {
	m := &descriptorpb.Capability{
		Name: c.Name, Version: c.Version, Domain: c.Domain, Tags: c.Tags, Visibility: orDefault(c.Visibility, "public"),
		Request: schemaMessage(c.Request), Response: schemaMessage(c.Response),
		Transports: []string{"quic-v1", "tcp", "ws"}, Qos: c.QoS,
	}
	if len(m.Qos) == 0 {
		m.Qos = []string{signal.AtMostOnce.String(), signal.AtLeastOnce.String(), signal.ExactlyOnce.String()}
	}
	for _, p := range c.Protocols {
		m.Protocols = append(m.Protocols, &descriptorpb.Protocol{Name: p.Name, Versions: p.Versions})
	}
	if versions := n.answered(c.Name, c.Version); len(versions) > 1 {
		m.Protocols = append(m.Protocols, &descriptorpb.Protocol{Name: schemas.RequestSchema(c.Name), Versions: versions})
	}
	if c.ContractRequired {
		m.Contract = "required"
	}
	if c.Price != nil {
		m.Price = &descriptorpb.Price{Amount: c.Price.Amount, Currency: c.Price.Currency, Unit: c.Price.Unit}
	}
	return m
}

func schemaMessage(s capability.Schema) *descriptorpb.Schema {
	if s.JSON == nil && s.Message == "" {
		return nil
	}
	return &descriptorpb.Schema{JsonSchema: string(s.JSON), Message: s.Message, DescriptorSet: s.DescriptorSet}
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// meter carries the totals that the session layer counts over to the metrics.
func (n *Node) meter(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	paths := map[string]observe.Path{"direct": observe.Direct, "holepunched": observe.HolePunched, "relayed": observe.Relayed, "forwarded": observe.Forwarded}
	last := session.Stats{Sent: map[string]uint64{}, Received: map[string]uint64{}}
	n.metrics.KeyExpiry(n.cfg.Keys.Certificate.NotAfter)
	for {
		now := n.sessions.Stats()
		for kind, path := range paths {
			n.metrics.Bytes(observe.Out, path, int(now.Sent[kind]-last.Sent[kind]))
			n.metrics.Bytes(observe.In, path, int(now.Received[kind]-last.Received[kind]))
		}
		last = now
		n.metrics.SessionPaths(now.Paths)
		n.meterRoutes()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// meterRoutes does so for how agents are reached.
func (n *Node) meterRoutes() {
	punches := n.host.Punches()
	n.metrics.HolePunches(punches.Attempts, punches.Successes, punches.Failures)
	circuits, forwards := n.relayUsage(), n.forwards.Usage()
	n.metrics.Relay(circuits.Reservations, circuits.Circuits, forwards.Circuits, circuits.Bytes, forwards.Bytes)
}

// invalid hears of requests and responses that break their schema.
func (n *Node) invalid(name string, err *wire.Error) {
	n.metrics.SchemaWarning()
	n.log.Warn("schema violated", zap.String("capability", name), zap.String("code", err.Code.String()),
		zap.Strings("pointers", err.Pointers))
}
