// Package overlay makes the libp2p host of a node: transports, security, limits
// and the ways around NATs, sized for a mesh of agents.
//
//	transports  TCP and WebSocket (on one port, if they are given one), QUIC v1,
//	            WebTransport, WebRTC; circuit relay v2. libp2p keeps to the
//	            connection that it has to a peer; [Host.Dial] makes one over
//	            another transport, or through another relay, beside it
//	security    TLS 1.3 (hybrid X25519MLKEM768), then Noise
//	limits      connections in all (hard), watermarks (soft), per peer, per IP;
//	            libp2p's default of 8 connections per IP would keep a site behind
//	            one NAT, or a rack of containers, from joining
//	NAT         UPnP/NAT-PMP; where this host stands ([Host.Standing]); reservations
//	            at two relays, watched; circuits replaced by direct connections
//
// Addresses are advertised only if they lead here: on a host that is not public
// those that others confirmed, those of its own network, and circuits.
package overlay

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/autonat"
	trimmer "github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"openmesh/overlay/circuit"
	"openmesh/overlay/punch"
	"openmesh/overlay/reach"
	"openmesh/overlay/relay"
	"openmesh/overlay/reserve"
)

// Config is what a [Host] needs.
type Config struct {
	Key      crypto.PrivKey // Ed25519
	Listen   []ma.Multiaddr
	Announce []ma.Multiaddr // instead of the addresses found; may be empty

	// Relays returns the relays to hold reservations at, anew at each attempt;
	// FindRelays gives others when those do not suffice. Either may be nil.
	Relays     func() []peer.AddrInfo
	FindRelays func(context.Context) []RelayCandidate
	RelayCheck time.Duration // between pings of the relays in use; default 5 s
	NoCircuits bool          // neither dial nor accept through relays

	PortMapping bool          // UPnP and NAT-PMP
	HolePunch   bool          // replace circuits by direct connections
	Upgraded    func(peer.ID) // a peer that had circuits only has a direct connection; must not block; may be nil
	Public      bool          // known to be reachable: backbone nodes and relays

	Relay *relay.Config // nil: not a relay

	MaxConnections int // hard limit; default 1024
	Low, High      int // trimming starts above High and stops at Low; default 160, 320

	Gater connmgr.ConnectionGater // who may connect; nil for everybody

	Metrics prometheus.Registerer // libp2p's own metrics; nil for none
	Log     *zap.Logger

	// Options come last and override: tests put a simulated network here.
	Options []libp2p.Option
}

// RelayCandidate is a relay that may be used, and its load in [0,1].
type RelayCandidate = reserve.Candidate

// Host is a running libp2p host.
type Host struct {
	host.Host
	cfg      Config
	keeper   atomic.Pointer[reserve.Keeper] // of reservations; nil without circuits, and while starting
	puncher  *punch.Puncher                 // nil if holes are not punched
	relay    *relay.Relay
	autonat  autonat.AutoNAT // nil on a public host
	refresh  event.Emitter   // has libp2p compute the addresses anew
	reach    *reach.Collector
	swarm    *swarm.Swarm
	upgrader *upgraderTap
	handover *handover
	turns    turns
	stirs    stirs
}

// New starts a host: it listens when New returns. Close ends it.
func New(cfg Config) (*Host, error) {
	cfg.MaxConnections = orDefault(cfg.MaxConnections, 1024)
	cfg.Low, cfg.High = orDefault(cfg.Low, 160), orDefault(cfg.High, 320)
	h := &Host{cfg: cfg, reach: reach.New(cfg.Public), upgrader: &upgraderTap{key: cfg.Key},
		handover: newHandover(), turns: turns{taken: make(map[turn]chan struct{})}, stirs: newStirs()}
	options, err := h.options()
	if err != nil {
		return nil, fmt.Errorf("start host: %w", err)
	}
	if h.Host, err = libp2p.New(options...); err != nil {
		return nil, fmt.Errorf("start host: %w", err)
	}
	if err := h.extend(); err != nil {
		h.close()
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
	h.reach.Attach(h.Host, h.swarm)
	if h.refresh, err = h.EventBus().Emitter(new(event.EvtAutoRelayAddrsUpdated)); err != nil {
		return fmt.Errorf("refresh addresses: %w", err)
	}
	if !h.cfg.Public {
		if h.autonat, err = h.newAutoNAT(); err != nil {
			return fmt.Errorf("reachability: %w", err)
		}
	}
	if err := h.addCircuits(); err != nil {
		return fmt.Errorf("circuits: %w", err)
	}
	if h.cfg.Relay != nil {
		h.relay, err = relay.New(h.Host, *h.cfg.Relay)
	}
	return err
}

// addCircuits adds the ways through relays, and out of them.
func (h *Host) addCircuits() error {
	if h.cfg.NoCircuits {
		return nil
	}
	if err := circuit.Attach(h.Host, h.upgrader.Upgrader); err != nil {
		return err
	}
	h.keeper.Store(reserve.New(reserve.Config{
		Host: h.Host, Configured: h.cfg.Relays, Find: h.cfg.FindRelays, Every: h.cfg.RelayCheck,
		Needed: h.needsRelays, Changed: h.readdress, Open: h.OpenStream, Log: h.cfg.Log,
	}))
	if !h.cfg.HolePunch {
		return nil
	}
	ids, ok := h.Host.(interface{ IDService() identify.IDService })
	if !ok {
		return fmt.Errorf("a %T has no identify service", h.Host)
	}
	h.puncher = punch.New(punch.Config{
		Host: h.Host, IDs: ids.IDService(), Addrs: h.reach.Holes, Dial: h.dialBeside,
		Upgraded: h.cfg.Upgraded, Metrics: h.cfg.Metrics, Log: h.cfg.Log,
	})
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
		libp2p.DisableRelay(), // for ours
		libp2p.SwarmOpts(swarm.WithDialRanker(h.rank)),
		libp2p.ShareTCPListener(),
		libp2p.Transport(h.upgrader.tap),
	}
	options = append(options, h.transports()...)
	if h.cfg.Gater != nil {
		options = append(options, libp2p.ConnectionGater(h.cfg.Gater))
	}
	if h.cfg.PortMapping {
		options = append(options, libp2p.NATPortMap())
	}
	options = append(options, reachability(h.cfg.Public)...)
	if h.cfg.Metrics != nil {
		options = append(options, libp2p.PrometheusRegisterer(h.cfg.Metrics))
	} else {
		options = append(options, libp2p.DisableMetrics())
	}
	return append(options, h.cfg.Options...), nil
}

// Run keeps what a host needs to be reached until ctx ends; then it closes the
// host.
func (h *Host) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return h.observe(ctx) })
	if k := h.keeper.Load(); k != nil {
		group.Go(func() error { return k.Run(ctx) })
	}
	if h.puncher != nil {
		group.Go(func() error { return h.puncher.Run(ctx) })
		if !h.cfg.Public {
			group.Go(func() error { return h.tryBoth(ctx) })
		}
	}
	if err := group.Wait(); err != nil {
		return errors.Join(fmt.Errorf("run host: %w", err), h.close())
	}
	return h.close()
}

// Close ends a host that does not run; one that runs is ended by its context.
func (h *Host) Close() error { return h.close() }

func (h *Host) close() error {
	if h.relay != nil {
		h.relay.Close()
	}
	if h.autonat != nil {
		h.autonat.Close()
	}
	if h.refresh != nil {
		h.refresh.Close()
	}
	if err := h.Host.Close(); err != nil {
		return fmt.Errorf("close host: %w", err)
	}
	return nil
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
func (h *Host) Punched(p peer.ID) bool { return h.puncher != nil && h.puncher.Punched(p) }

// Punch replaces the circuits to peer p by a direct connection now, rather than
// when it is time: see [punch.Puncher.Punch].
func (h *Host) Punch(ctx context.Context, p peer.ID) error {
	if h.puncher == nil {
		return errors.New("holes are not punched: networking.nat_strategy does not say so")
	}
	return h.puncher.Punch(ctx, p)
}

// Punches returns how many holes this host tried to punch.
func (h *Host) Punches() punch.Counts {
	if h.puncher == nil {
		return punch.Counts{}
	}
	return h.puncher.Counts()
}

// CheckRelays pings the relays in use now, rather than when it is time: something
// that goes through them may be dead. It does not wait.
func (h *Host) CheckRelays() {
	if k := h.keeper.Load(); k != nil {
		k.Check()
	}
}

// Relay is what this host relays for others; nil if it is no relay.
func (h *Host) Relay() *relay.Relay { return h.relay }

// RelayLoad is how near it is to its quotas, 0 to 1.
func (h *Host) RelayLoad() float64 {
	if h.relay == nil {
		return 0
	}
	return h.relay.Load()
}

// Relays returns the relays at which this host holds reservations.
func (h *Host) Relays() []peer.ID {
	if k := h.keeper.Load(); k != nil {
		return k.Held()
	}
	return nil
}

// IsCircuit reports whether a is an address through a relay.
func IsCircuit(a ma.Multiaddr) bool { return circuit.Is(a) }

// RelayOf returns the relay of an address through one; "" of any other address.
func RelayOf(a ma.Multiaddr) peer.ID { return circuit.Relay(a) }

// Addresses returns the host's addresses in full, with /p2p/.
func (h *Host) Addresses() []string {
	as := []string{}
	for _, a := range h.Addrs() {
		as = append(as, a.String()+"/p2p/"+h.ID().String())
	}
	return as
}
