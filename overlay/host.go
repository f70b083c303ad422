// Package overlay makes the libp2p host of a node: transports, security, limits
// and the ways around NATs, sized for a mesh of agents.
//
//	transports  TCP, QUIC v1, WebSocket, WebTransport, WebRTC; circuit relay v2.
//	            libp2p keeps to the connection that it has to a peer; [Host.Dial]
//	            makes one over another transport beside it
//	security    TLS 1.3 (hybrid X25519MLKEM768), then Noise
//	limits      connections in all (hard), watermarks (soft), per peer, per IP;
//	            libp2p's default of 8 connections per IP would keep a site behind
//	            one NAT, or a rack of containers, from joining
//	NAT         UPnP/NAT-PMP, observed addresses, hole punching, reservations at
//	            the relays that are configured, advertised as circuit addresses
//	            (libp2p's AutoRelay does not advertise private relays)
package overlay

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	trimmer "github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	"github.com/libp2p/go-libp2p/x/rate"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Config is what a [Host] needs.
type Config struct {
	Key      crypto.PrivKey // Ed25519
	Listen   []ma.Multiaddr
	Announce []ma.Multiaddr // instead of the addresses found; may be empty

	// Relays returns the relays to hold reservations at, anew at each attempt;
	// nil for none.
	Relays func() []peer.AddrInfo

	PortMapping bool // UPnP and NAT-PMP
	HolePunch   bool
	Public      bool // known to be reachable: backbone nodes and relays

	Relay RelayLimits // zero: not a relay

	MaxConnections int // hard limit; default 1024
	Low, High      int // trimming starts above High and stops at Low; default 160, 320

	Gater connmgr.ConnectionGater // who may connect; nil for everybody

	Metrics prometheus.Registerer // libp2p's own metrics; nil for none
	Log     *zap.Logger

	// Options come last and override: tests put a simulated network here.
	Options []libp2p.Option
}

// RelayLimits are the quotas of a relay. A circuit has no limit of duration or
// volume of its own, so that a session of hours can use it.
type RelayLimits struct {
	Reservations    int
	Circuits        int
	CircuitsPerPeer int
}

// Host is a running libp2p host.
type Host struct {
	host.Host
	cfg          Config
	circuits     *circuits
	relay        *relay.Relay
	reachability atomic.Int32 // network.Reachability
	punched      *punched
	swarm        *swarm.Swarm
	handover     *handover
	turns        turns
}

// New starts a host: it listens when New returns. Close ends it.
func New(cfg Config) (*Host, error) {
	cfg.MaxConnections = orDefault(cfg.MaxConnections, 1024)
	cfg.Low, cfg.High = orDefault(cfg.Low, 160), orDefault(cfg.High, 320)
	h := &Host{cfg: cfg, circuits: newCircuits(), punched: &punched{peers: make(map[peer.ID]struct{})},
		handover: newHandover(), turns: turns{taken: make(map[turn]chan struct{})}}
	options, err := h.options()
	if err != nil {
		return nil, fmt.Errorf("start host: %w", err)
	}
	if h.Host, err = libp2p.New(options...); err != nil {
		return nil, fmt.Errorf("start host: %w", err)
	}
	if err := h.extend(); err != nil {
		h.Host.Close()
		return nil, fmt.Errorf("start host: %w", err)
	}
	return h, nil
}

// extend adds what libp2p's own host does not have.
func (h *Host) extend() (err error) {
	var ok bool
	if h.swarm, ok = h.Network().(*swarm.Swarm); !ok {
		return fmt.Errorf("the network is a %T, not libp2p's swarm", h.Network())
	}
	if err := h.handover.attach(h.swarm); err != nil {
		return fmt.Errorf("hand connections over: %w", err)
	}
	if h.cfg.Relay == (RelayLimits{}) {
		return nil
	}
	if h.relay, err = relay.New(h.Host, relay.WithResources(h.cfg.Relay.resources()), relay.WithInfiniteLimits()); err != nil {
		return fmt.Errorf("relay: %w", err)
	}
	return nil
}

func orDefault(n, def int) int {
	if n == 0 {
		return def
	}
	return n
}

func (h *Host) options() ([]libp2p.Option, error) {
	limits, err := h.cfg.resourceManager()
	if err != nil {
		return nil, err
	}
	connections, err := trimmer.NewConnManager(h.cfg.Low, h.cfg.High, trimmer.WithGracePeriod(30*time.Second))
	if err != nil {
		return nil, fmt.Errorf("connection manager: %w", err)
	}
	options := []libp2p.Option{
		libp2p.Identity(h.cfg.Key),
		libp2p.ListenAddrs(h.cfg.listenAddrs()...),
		libp2p.ResourceManager(limits),
		libp2p.ConnectionManager(connections),
		libp2p.AddrsFactory(h.advertised),
		libp2p.UserAgent("openmesh"),
		libp2p.EnableAutoNATv2(),
	}
	options = append(options, transports()...)
	if h.cfg.Gater != nil {
		options = append(options, libp2p.ConnectionGater(h.cfg.Gater))
	}
	if h.cfg.PortMapping {
		options = append(options, libp2p.NATPortMap())
	}
	if h.cfg.HolePunch {
		options = append(options, libp2p.EnableHolePunching(holepunch.WithTracer(h.punched)))
	}
	if h.cfg.Public {
		options = append(options, libp2p.ForceReachabilityPublic(), libp2p.EnableNATService())
	}
	if h.cfg.Metrics != nil {
		options = append(options, libp2p.PrometheusRegisterer(h.cfg.Metrics))
	} else {
		options = append(options, libp2p.DisableMetrics())
	}
	return append(options, h.cfg.Options...), nil
}

// perIP is how many connections one IPv4 address or IPv6 /56 may have: many
// agents share one behind a NAT. perPeer bounds those of one peer, streamsPerPeer
// its streams.
const (
	perIP          = 256
	perPeer        = 16
	streamsPerPeer = 1024
)

func (c Config) resourceManager() (network.ResourceManager, error) {
	defaults := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&defaults)
	conns := rcmgr.LimitVal(c.MaxConnections)
	streams := 16 * conns
	limits := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{
			Conns: conns, ConnsInbound: conns, ConnsOutbound: conns, FD: conns,
			Streams: streams, StreamsInbound: streams, StreamsOutbound: streams,
		},
		Transient: rcmgr.ResourceLimits{Conns: conns / 4, ConnsInbound: conns / 4, ConnsOutbound: conns / 4},
		PeerDefault: rcmgr.ResourceLimits{
			Conns: perPeer, ConnsInbound: perPeer, ConnsOutbound: perPeer, FD: perPeer,
			Streams: 2 * streamsPerPeer, StreamsInbound: streamsPerPeer, StreamsOutbound: streamsPerPeer,
		},
		// Two agents may have many sessions, each with a stream.
		ProtocolPeerDefault: rcmgr.ResourceLimits{Streams: 2 * streamsPerPeer, StreamsInbound: streamsPerPeer, StreamsOutbound: streamsPerPeer},
		ServicePeerDefault:  rcmgr.ResourceLimits{Streams: 2 * streamsPerPeer, StreamsInbound: streamsPerPeer, StreamsOutbound: streamsPerPeer},
	}.Build(defaults.AutoScale())
	subnets := func(prefix int) []rcmgr.ConnLimitPerSubnet {
		return []rcmgr.ConnLimitPerSubnet{{PrefixLength: prefix, ConnCount: min(perIP, c.MaxConnections)}}
	}
	options := []rcmgr.Option{
		rcmgr.WithLimitPerSubnet(subnets(32), subnets(56)),
		rcmgr.WithConnRateLimiters(newConnectionRate()),
	}
	if c.Metrics == nil {
		options = append(options, rcmgr.WithMetricsDisabled())
	}
	rm, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits), options...)
	if err != nil {
		return nil, fmt.Errorf("resource manager: %w", err)
	}
	return rm, nil
}

// newConnectionRate lets a site join at once, and slows down one that keeps
// connecting: perIP at first, then eight a second.
func newConnectionRate() *rate.Limiter {
	limit := rate.Limit{RPS: 8, Burst: perIP}
	return &rate.Limiter{SubnetRateLimiter: rate.SubnetLimiter{
		IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: limit}},
		IPv6SubnetLimits: []rate.SubnetLimit{{PrefixLength: 56, Limit: limit}},
		GracePeriod:      time.Minute,
	}}
}

func (l RelayLimits) resources() relay.Resources {
	r := relay.DefaultResources()
	r.Limit = nil
	r.MaxReservations = l.Reservations
	r.MaxReservationsPerIP, r.MaxReservationsPerASN = l.Reservations, l.Reservations
	r.MaxCircuits = l.CircuitsPerPeer
	r.BufferSize = 16 << 10
	return r
}

// advertised is libp2p's AddrsFactory.
func (h *Host) advertised(found []ma.Multiaddr) []ma.Multiaddr {
	direct := found
	if len(h.cfg.Announce) > 0 {
		direct = h.cfg.Announce
	}
	return slices.Concat(direct, h.circuits.addrs())
}

// Run keeps what a host needs to be reached until ctx ends; then it closes the
// host.
func (h *Host) Run(ctx context.Context) error {
	sub, err := h.EventBus().Subscribe(new(event.EvtLocalReachabilityChanged), eventbus.BufSize(16))
	if err != nil {
		return fmt.Errorf("run host: %w", err)
	}
	defer sub.Close()
	var all sync.WaitGroup
	if h.cfg.Relays != nil {
		all.Go(func() { h.circuits.run(ctx, h.Host, h.cfg.Relays, h.cfg.Log) })
	}
	for {
		select {
		case ev := <-sub.Out():
			r := ev.(event.EvtLocalReachabilityChanged).Reachability
			h.reachability.Store(int32(r))
			h.cfg.Log.Info("reachability changed", zap.Stringer("reachability", r))
		case <-ctx.Done():
			all.Wait()
			return h.close()
		}
	}
}

func (h *Host) close() error {
	if h.relay != nil {
		h.relay.Close()
	}
	if err := h.Host.Close(); err != nil {
		return fmt.Errorf("close host: %w", err)
	}
	return nil
}

// Reachability returns public, private or unknown, as others have judged it.
func (h *Host) Reachability() string {
	if h.cfg.Public {
		return "public"
	}
	switch network.Reachability(h.reachability.Load()) {
	case network.ReachabilityPublic:
		return "public"
	case network.ReachabilityPrivate:
		return "private"
	}
	return "unknown"
}

// Reach says how peer p is connected: direct, holepunched or relayed; "" if it is
// not.
func (h *Host) Reach(p peer.ID) string {
	reach := ""
	for _, c := range h.Network().ConnsToPeer(p) {
		if !IsCircuit(c.RemoteMultiaddr()) {
			if h.Punched(p) {
				return "holepunched"
			}
			return "direct"
		}
		reach = "relayed"
	}
	return reach
}

// Punched reports whether a hole was punched to peer p.
func (h *Host) Punched(p peer.ID) bool { return h.punched.has(p) }

// IsCircuit reports whether a is an address through a relay.
func IsCircuit(a ma.Multiaddr) bool {
	_, err := a.ValueForProtocol(ma.P_CIRCUIT)
	return err == nil
}

// Addresses returns the host's addresses in full, with /p2p/.
func (h *Host) Addresses() []string {
	as := []string{}
	for _, a := range h.Addrs() {
		as = append(as, a.String()+"/p2p/"+h.ID().String())
	}
	return as
}

// punched remembers the peers to which a hole was punched.
type punched struct {
	mu    sync.Mutex
	peers map[peer.ID]struct{}
}

// maxPunched bounds the memory; beyond it connections count as plainly direct.
const maxPunched = 4096

// Trace is called by libp2p's hole punching service.
func (p *punched) Trace(ev *holepunch.Event) {
	end, ok := ev.Evt.(*holepunch.EndHolePunchEvt)
	if !ok || !end.Success {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.peers) < maxPunched {
		p.peers[ev.Remote] = struct{}{}
	}
}

func (p *punched) has(id peer.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.peers[id]
	return ok
}
