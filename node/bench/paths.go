package bench

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/sync/errgroup"

	"openmesh/node"
	"openmesh/overlay"
	"openmesh/protocols/identity"
	"openmesh/protocols/session"
)

// PathRelays is how many relays [Paths] needs.
const PathRelays = 3

// Names of ways to an agent.
const (
	direct  = "direct"
	circuit = "circuit"
)

func forwarded(relays int) string { return fmt.Sprintf("forwarded, %d", relays) }

// Paths measures calls and bulk in a session over each way that leads to an agent.
func Paths(ctx context.Context, cfg Config) (*Report, error) {
	start := time.Now()
	cfg.defaults()
	if len(cfg.Relays) < PathRelays {
		return nil, fmt.Errorf("%d relays, want %d", len(cfg.Relays), PathRelays)
	}
	m, err := join(ctx, cfg.Home, cfg.Setup, cfg.Relays[0].Node)
	if err != nil {
		return nil, err
	}
	defer m.leave()
	r := cfg.report("paths",
		"relays are processes of their own; each way is a session of its own between the same two agents, pinned to it: direct is one connection; circuit goes through a relay by circuit relay v2; forwarded, N goes over a chain of N forwarding relays",
		fmt.Sprintf("request and response have %d bytes; bulk sends messages of %d KiB one way, %d MiB in all, and ends when the receiver has counted all bytes", PayloadSize, ChunkSize>>10, cfg.Bulk>>20),
		"all processes share the CPUs of one machine, so what relays cost in CPU shows in bulk as if all stood on the same machine; the network's own latency, which each relay adds to, is none here")
	p := paths{member: m, cfg: cfg}
	ways, err := p.open(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.fill(ctx, cfg, p.workloads(ways)); err != nil {
		return nil, err
	}
	r.compare(pathComparisons(ways[1:]))
	r.ElapsedS = time.Since(start).Seconds()
	return r, nil
}

// paths is the asking side of [Paths].
type paths struct {
	*member
	cfg Config
}

// pathWay is a session over one way.
type pathWay struct {
	name    string
	session *session.Session
}

// open opens a session over each way; direct is the first.
func (p paths) open(ctx context.Context) (ways []pathWay, err error) {
	at, plain, circuits, err := p.places()
	if err != nil {
		return nil, err
	}
	transport := overlay.TransportOf(plain[0])
	first, err := p.openOver(ctx, direct, direct, 0, session.Route{Peer: at, Transport: transport, Addrs: plain})
	if err != nil {
		return nil, err
	}
	ways = append(ways, first)
	relayed, err := p.openOver(ctx, circuit, "relayed", 0, session.Route{Peer: at, Transport: overlay.Circuit, Addrs: circuits})
	if err != nil {
		return nil, err
	}
	ways = append(ways, relayed)
	var chain session.Chain
	for i, relay := range p.cfg.Relays[:PathRelays] {
		chain = append(slices.Clone(chain), identity.AgentID(relay.Agent))
		route := session.Route{Peer: at, Through: []session.Chain{chain}, Target: first.session.Peer()}
		w, err := p.openOver(ctx, forwarded(i+1), "forwarded", i+1, route)
		if err != nil {
			return nil, err
		}
		ways = append(ways, w)
	}
	return ways, nil
}

// openOver opens a session over a way, and checks that it is of the kind, with so
// many hops.
func (p paths) openOver(ctx context.Context, name, kind string, hops int, r session.Route) (pathWay, error) {
	s, err := p.Sessions().Open(ctx, session.Target{Agent: identity.AgentID(p.cfg.Server.Agent), Route: r}, session.Want{Exclusive: true})
	if err != nil {
		return pathWay{}, fmt.Errorf("open a session, %s: %w", name, err)
	}
	if at := s.Path(); at.Kind != kind || len(strings.Fields(at.Hops)) != hops {
		return pathWay{}, fmt.Errorf("open a session, %s: it is %s over %q", name, at.Kind, at.Hops)
	}
	return pathWay{name, s}, nil
}

// places are the addresses of the server: its own and those through relays.
func (p paths) places() (id peer.ID, plain, circuits []ma.Multiaddr, err error) {
	for _, text := range p.cfg.Server.Node {
		at, err := peer.AddrInfoFromString(text)
		if err != nil {
			return "", nil, nil, err
		}
		id = at.ID
		if overlay.IsCircuit(at.Addrs[0]) {
			circuits = append(circuits, at.Addrs[0])
		} else {
			plain = append(plain, at.Addrs[0])
		}
	}
	if plain == nil || circuits == nil {
		return "", nil, nil, fmt.Errorf("the server is to have addresses of its own and through relays: %v", p.cfg.Server.Node)
	}
	return id, plain, circuits, nil
}

func (p paths) workloads(ways []pathWay) []workload {
	var calls, sends []way
	for _, w := range ways {
		calls = append(calls, way{name: w.name, do: func(ctx context.Context) error { return call(ctx, w.session) }})
		sends = append(sends, way{name: w.name, do: func(ctx context.Context) error { return bulk(ctx, w.session, p.cfg.Bulk) }})
	}
	return []workload{
		{name: sequential, unit: "calls/s", concurrency: 1, ways: calls},
		{name: concurrent, unit: "calls/s", concurrency: 16, ways: calls},
		{name: "bulk", unit: "MB/s", concurrency: 1, operations: 1, size: p.cfg.Bulk, ways: sends},
	}
}

// pathComparisons compare each way with the direct one.
func pathComparisons(ways []pathWay) (cs []comparison) {
	for _, w := range ways {
		cs = append(cs,
			comparison{"call p50, " + w.name + " / direct", sequential, w.name, direct, p50, limit{}},
			comparison{"call p99, " + w.name + " / direct", sequential, w.name, direct, p99, limit{}},
			comparison{"bulk, " + w.name + " / direct", "bulk", w.name, direct, perSecond, limit{}})
	}
	return cs
}

// serveRelay runs a relay. One that knows no other relay serves the directory too.
func serveRelay(ctx context.Context, home string, setup Setup, ready func(Server) error) error {
	roles, bootstrap := []string{"relay"}, setup.Relays
	if len(setup.Relays) == 0 {
		roles = append(roles, "backbone")
	}
	n, err := newNode(ctx, home, setup, roles, bootstrap, nil)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.Run(ctx) })
	group.Go(func() error {
		select {
		case <-n.Ready():
			return ready(Server{Agent: n.Info().Agent, Node: n.Info().Addrs})
		case <-ctx.Done():
			return nil
		}
	})
	return group.Wait()
}

// reserved waits until the node can be reached through a relay, if there are any.
func reserved(ctx context.Context, n *node.Node, setup Setup) error {
	if !setup.relayed() {
		return nil
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !slices.ContainsFunc(n.Host().Addrs(), overlay.IsCircuit) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil // the node has ended, and says why
		}
	}
	return nil
}
