package node

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"

	"openmesh/overlay"
	"openmesh/overlay/directory"
	"openmesh/overlay/relay"
	"openmesh/protocols/descriptor"
	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// What a relay does for others, each a capability in the directory under this
// name. Names under services are the mesh's own: no agent offers work there.
const (
	services       = "openmesh"
	serviceCircuit = services + "/circuit"
	serviceForward = services + "/forward"
	serviceMailbox = services + "/mailbox"
	serviceVersion = "1.0.0"
)

// relayInfo is a relay that this node knows.
type relayInfo struct {
	certificate *identity.Certificate
	addrs       []ma.Multiaddr
	services    []string // of those above
	load        float64
	latency     time.Duration // 0: not measured
	configured  bool
	seen        time.Time
}

// relays is what this node knows of relays: those of the configuration, and those
// that the directory finds. Safe for concurrent use.
type relays struct {
	mu    sync.Mutex
	known map[peer.ID]relayInfo
}

// How often relays are looked for.
const (
	firstLook  = time.Second // doubling until one is known
	relaysEach = time.Minute
	forgetWith = 3 * relaysEach // a relay that was not found for so long is forgotten
	maxRelays  = 64             // known at a time
)

func newRelays() *relays { return &relays{known: make(map[peer.ID]relayInfo)} }

// with lists the relays that have a service: those of the configuration first, then
// the near and little-loaded ones.
func (r *relays) with(service string) []relayInfo {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []relayInfo
	for i := range maps.Values(r.known) {
		if slices.Contains(i.services, service) {
			list = append(list, i)
		}
	}
	slices.SortFunc(list, func(a, b relayInfo) int {
		if a.configured != b.configured {
			if a.configured {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.cost(), b.cost()), cmp.Compare(a.certificate.Peer, b.certificate.Peer))
	})
	return list
}

// all lists them, by peer id.
func (r *relays) all() []relayInfo {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.SortedFunc(maps.Values(r.known), func(a, b relayInfo) int { return cmp.Compare(a.certificate.Peer, b.certificate.Peer) })
}

// cost is what using a relay costs: a full one counts as half a second away.
func (i relayInfo) cost() time.Duration {
	return cmp.Or(i.latency, time.Second) + time.Duration(i.load*float64(500*time.Millisecond))
}

func (r *relays) of(p peer.ID) (relayInfo, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i, ok := r.known[p]
	return i, ok
}

func (r *relays) put(i relayInfo) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := i.certificate.Peer
	if _, ok := r.known[p]; ok || len(r.known) < maxRelays {
		r.known[p] = i
	}
}

// forget drops relays that were last found before t, and returns how many are left.
func (r *relays) forget(t time.Time) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.known, func(_ peer.ID, i relayInfo) bool { return i.seen.Before(t) })
	return len(r.known)
}

// watchRelays keeps the list of relays until ctx ends.
func (n *Node) watchRelays(ctx context.Context) {
	wait := firstLook
	for ctx.Err() == nil {
		n.lookForRelays(ctx)
		if n.relays.forget(time.Now().Add(-forgetWith)) > 0 {
			wait = relaysEach
		} else {
			wait = min(2*wait, relaysEach)
		}
		if sleep(ctx, wait) != nil {
			return
		}
	}
}

// lookForRelays asks the relays of the configuration what they do, and the
// directory for others.
func (n *Node) lookForRelays(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, relaysEach/2)
	defer cancel()
	var all sync.WaitGroup
	defer all.Wait()
	configured := n.peersOf(n.settings.Networking.Relays)()
	for _, info := range configured[:min(len(configured), maxRelays)] {
		if info.ID != n.host.ID() {
			all.Go(func() { n.askRelay(ctx, info) })
		}
	}
	res, err := n.directory.Discover(ctx, directory.Query{Capability: services, Limit: 3 * maxRelays})
	if err != nil {
		n.log.Debug("relays not looked up", zap.Error(err))
		return
	}
	for _, row := range res.Rows {
		if row.Peer == n.host.ID() {
			continue
		}
		i, known := n.relays.of(row.Peer)
		d := row.Descriptor
		n.relays.put(relayInfo{
			certificate: d.Certificate, services: servicesOf(d), load: row.Load, latency: row.Latency, seen: time.Now(),
			addrs: directAddrs(n.host.Peerstore().Addrs(row.Peer)), configured: known && i.configured,
		})
	}
}

// askRelay asks a relay of the configuration for its descriptor.
func (n *Node) askRelay(ctx context.Context, info peer.AddrInfo) {
	if err := n.host.Connect(ctx, info); err != nil {
		n.log.Debug("relay out of reach", zap.Stringer("relay", info.ID), zap.Error(err))
		return
	}
	d, err := descriptor.Fetch(ctx, n.host, info.ID, n.cfg.Keys.Certificate.Raw, n.verifier)
	if err != nil {
		n.log.Debug("relay has no descriptor", zap.Stringer("relay", info.ID), zap.Error(err))
		return
	}
	n.seen.add(d.Certificate)
	n.relays.put(relayInfo{
		certificate: d.Certificate, addrs: info.Addrs, services: servicesOf(d), load: d.Body.Load,
		latency: n.host.Peerstore().LatencyEWMA(info.ID), configured: true, seen: time.Now(),
	})
}

func servicesOf(d *descriptor.Descriptor) (names []string) {
	for _, c := range d.Body.Capabilities {
		if strings.HasPrefix(c.Name, services+"/") {
			names = append(names, c.Name)
		}
	}
	return names
}

func directAddrs(addrs []ma.Multiaddr) []ma.Multiaddr {
	return slices.DeleteFunc(addrs, overlay.IsCircuit)
}

// circuitRelays are relays to hold reservations at, if those of the configuration do
// not suffice.
func (n *Node) circuitRelays(context.Context) []overlay.RelayCandidate {
	var found []overlay.RelayCandidate
	for _, i := range n.relays.with(serviceCircuit) {
		found = append(found, overlay.RelayCandidate{AddrInfo: peer.AddrInfo{ID: i.certificate.Peer, Addrs: i.addrs}, Load: i.load})
	}
	return found
}

// isRelay reports whether this node does service for others.
func (n *Node) isRelay(service string) bool {
	return slices.Contains(n.settings.Node.Roles, "relay") &&
		slices.Contains(n.settings.Relay.Services, strings.TrimPrefix(service, services+"/"))
}

// serviceMessages are the capabilities that this node has as a relay.
func (n *Node) serviceMessages() (list []*descriptorpb.Capability) {
	for _, name := range []string{serviceCircuit, serviceForward, serviceMailbox} {
		if n.isRelay(name) {
			list = append(list, &descriptorpb.Capability{Name: name, Version: serviceVersion, Visibility: "public"})
		}
	}
	return list
}

// reserved refuses names of capabilities that are the mesh's own.
func reserved(name string) error {
	if descriptor.Covers(services, name) {
		return wire.Errorf(wire.InvalidArgument, "capability %s: names under %s/ are the mesh's own", name, services).WithHint("choose another name")
	}
	return nil
}

// relayConfig are the quotas of this node as a relay of circuits.
func (n *Node) relayConfig() *relay.Config {
	r := n.settings.Relay
	return &relay.Config{
		Reservations: r.MaxReservations, Circuits: r.MaxCircuits, CircuitsPerPeer: r.MaxCircuitsPerPeer,
		Rate: relay.Rate{BytesPerSecond: int64(r.ByteRate)}, RatePerPeer: relay.Rate{BytesPerSecond: int64(r.ByteRatePerPeer)},
		DailyBytesPerPeer: int64(r.DailyBytesPerPeer), Idle: r.IdleTimeout, Log: n.log.Named("relay"),
	}
}

// httpsPort is what networks let through that let little else out.
const httpsPort = 443

// relayListen is where a relay listens: unless the configuration says where, also on
// the port of HTTPS, for TCP and WebSocket, if this program may and nobody else does.
func (n *Node) relayListen() []ma.Multiaddr {
	listen := n.settings.Networking.Listen
	if n.settings.Set("networking.listen") {
		return listen
	}
	for _, ip := range []string{"/ip4/0.0.0.0", "/ip6/::"} {
		for _, rest := range []string{"", "/ws"} {
			listen = append(listen, ma.StringCast(fmt.Sprintf("%s/tcp/%d%s", ip, httpsPort, rest)))
		}
	}
	return listen
}
