package node

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/overlay/nat"
	"openmesh/overlay/relay"
)

func (n nodeAPI) Relays(ctx context.Context, _ *openmeshv1.RelaysRequest) (*openmeshv1.RelaysResponse, error) {
	resp := &openmeshv1.RelaysResponse{Relays: []*openmeshv1.Relay{}}
	held := n.host.Relays()
	for _, i := range n.relays.all() {
		p := i.certificate.Peer
		m := &openmeshv1.Relay{
			Peer: p.String(), Agent: string(i.certificate.Agent), Address: i.certificate.Address.String(), Addrs: []string{},
			Load: i.load, LatencyMs: millis(i.latency), Configured: i.configured,
			Reserved: slices.Contains(held, p), Mailbox: n.post.has(p),
		}
		for _, a := range i.addrs {
			m.Addrs = append(m.Addrs, a.String())
		}
		for _, s := range i.services {
			m.Services = append(m.Services, strings.TrimPrefix(s, services+"/"))
		}
		resp.Relays = append(resp.Relays, m)
	}
	if !slices.Contains(n.settings.Node.Roles, "relay") {
		return resp, nil
	}
	n.introduce(ctx)
	var err error
	resp.Usage, err = n.usageMessage(ctx)
	return resp, err
}

// relayUsage is what this node carries over circuits; nothing if it is no relay.
func (n *Node) relayUsage() relay.Usage {
	if r := n.host.Relay(); r != nil {
		return r.Usage()
	}
	return relay.Usage{}
}

func (n nodeAPI) usageMessage(ctx context.Context) (*openmeshv1.RelayUsage, error) {
	c, f := n.relayUsage(), n.forwards.Usage()
	m := &openmeshv1.RelayUsage{
		Reservations: uint32(c.Reservations), Circuits: uint32(c.Circuits), Forwards: uint32(f.Circuits),
		CircuitBytes: float64(c.Bytes), ForwardBytes: float64(f.Bytes), Refusals: refusals(c.Refusals),
	}
	clients := make(map[peer.ID]*openmeshv1.RelayClient)
	client := func(p peer.ID) *openmeshv1.RelayClient {
		if clients[p] == nil {
			clients[p] = &openmeshv1.RelayClient{Peer: p.String()}
			if cert := n.seen.of(p); cert != nil {
				clients[p].Agent, clients[p].Address = string(cert.Agent), cert.Address.String()
			}
			m.Clients = append(m.Clients, clients[p])
		}
		return clients[p]
	}
	for _, u := range c.Peers {
		k := client(u.Peer)
		k.Circuits, k.Sent, k.Received, k.Refusals = uint32(u.Circuits), float64(u.Sent), float64(u.Received), refusals(u.Refusals)
		if !u.Reserved.IsZero() {
			k.ReservedUntil = u.Reserved.UTC().Format(time.RFC3339)
		}
	}
	for p, u := range f.Peers {
		k := client(p)
		k.Forwards, k.ForwardBytes = uint32(u.Circuits), float64(u.Bytes)
	}
	slices.SortStableFunc(m.Clients, func(a, b *openmeshv1.RelayClient) int {
		return int(b.Sent + b.Received + b.ForwardBytes - a.Sent - a.Received - a.ForwardBytes)
	})
	if n.letters == nil {
		return m, nil
	}
	held, err := n.letters.Usage(ctx)
	m.Mailboxes, m.Letters, m.LetterBytes = uint32(held.Recipients), uint32(held.Letters), float64(held.Bytes)
	return m, err
}

func refusals(by map[relay.Reason]uint64) map[string]uint32 {
	m := make(map[string]uint32, len(by))
	for why, n := range by {
		m[why.String()] = uint32(n)
	}
	return m
}

// standingMessage is where this node stands behind NATs and firewalls.
func (n *Node) standingMessage() *openmeshv1.Standing {
	s, p := n.host.Standing(), n.host.Punches()
	m := &openmeshv1.Standing{
		Nat: s.Kind, Help: s.Help, Tcp: reachMessage(s.TCP), Udp: reachMessage(s.UDP),
		HolePunches: &openmeshv1.HolePunches{Attempts: float64(p.Attempts), Successes: float64(p.Successes), Failures: float64(p.Failures)},
	}
	for _, r := range n.host.Relays() {
		m.Relays = append(m.Relays, r.String())
	}
	return m
}

func reachMessage(t nat.Transport) *openmeshv1.Reach {
	return &openmeshv1.Reach{Reachable: t.Reachable, Observed: t.Observed, Blocked: t.Blocked}
}
