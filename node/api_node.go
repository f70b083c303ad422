package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	ma "github.com/multiformats/go-multiaddr"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/overlay/directory"
	"openmesh/protocols/descriptor"
	"openmesh/protocols/identity"
	"openmesh/protocols/session"
	"openmesh/protocols/wire"
)

// nodeAPI serves openmesh.v1.Node.
type nodeAPI struct{ *Node }

func (n nodeAPI) Id(context.Context, *openmeshv1.IdRequest) (*openmeshv1.IdResponse, error) {
	k := n.cfg.Keys
	return &openmeshv1.IdResponse{
		Agent: string(k.Agent), Address: k.Address.String(), Realm: uint32(k.Address.Realm), Peer: k.Peer.String(),
		KeyVersion: k.Certificate.Version, NotAfter: k.Certificate.NotAfter.Format(time.RFC3339),
		Roles: n.settings.Node.Roles, Addrs: n.host.Addresses(),
	}, nil
}

func (n nodeAPI) Status(context.Context, *openmeshv1.StatusRequest) (*openmeshv1.StatusResponse, error) {
	states := map[string]uint32{}
	for _, s := range n.sessions.Sessions(false) {
		states[s.State.String()]++
	}
	overview := n.alerts.Current()
	dir := n.directory.Status()
	resp := &openmeshv1.StatusResponse{
		Agent: string(n.cfg.Keys.Agent), Address: n.cfg.Keys.Address.String(), Peer: n.cfg.Keys.Peer.String(),
		Name: n.settings.Node.ID, Roles: n.settings.Node.Roles, Addrs: n.host.Addresses(),
		Version: n.cfg.Version, UptimeS: time.Since(n.started).Seconds(), Reachability: n.host.Reachability(),
		Peers: uint32(len(n.host.Network().Peers())), Sessions: states,
		RelayUsagePct: overview.RelayUsagePct, TunnelFailureRate: overview.TunnelFailureRate,
		Directory: &openmeshv1.DirectoryStatus{TableSize: uint32(dir.Servers), Partitioned: n.partitioned()},
	}
	resp.Standing = n.standingMessage()
	for _, a := range overview.Alerts {
		resp.Alerts = append(resp.Alerts, &openmeshv1.Alert{
			Name: a.Name, Value: a.Value, Threshold: a.Threshold, Since: a.Since.Format(time.RFC3339),
		})
	}
	return resp, nil
}

// introduce is how long Peers waits for peers to say which agents they are.
const introduce = time.Second

func (n nodeAPI) Peers(ctx context.Context, _ *openmeshv1.PeersRequest) (*openmeshv1.PeersResponse, error) {
	n.introduce(ctx)
	resp := &openmeshv1.PeersResponse{Peers: []*openmeshv1.Peer{}}
	for _, c := range n.host.Network().Conns() {
		resp.Peers = append(resp.Peers, n.peerMessage(c))
	}
	slices.SortFunc(resp.Peers, func(a, b *openmeshv1.Peer) int {
		return slices.Compare([]string{a.Peer, a.Addr}, []string{b.Peer, b.Addr})
	})
	return resp, nil
}

func (n nodeAPI) peerMessage(c network.Conn) *openmeshv1.Peer {
	path := session.PathOf(c)
	m := &openmeshv1.Peer{
		Peer: c.RemotePeer().String(), Addr: path.Addr, Transport: path.Transport, Relayed: path.Kind == "relayed",
		LatencyMs: millis(n.host.Peerstore().LatencyEWMA(c.RemotePeer())), Direction: "outbound",
	}
	if c.Stat().Direction == network.DirInbound {
		m.Direction = "inbound"
	}
	if cert := n.seen.of(c.RemotePeer()); cert != nil {
		m.Agent, m.Address = string(cert.Agent), cert.Address.String()
	}
	return m
}

// introduce asks connected peers that are not known yet which agents they are.
func (n nodeAPI) introduce(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, introduce)
	defer cancel()
	slots := make(chan struct{}, 16)
	var asked sync.WaitGroup
	for _, p := range n.host.Network().Peers() {
		if n.seen.of(p) != nil {
			continue
		}
		asked.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			n.certificateOf(ctx, p)
		})
	}
	asked.Wait()
}

// certificateOf returns the certificate of a connected peer, or nil.
func (n *Node) certificateOf(ctx context.Context, p peer.ID) *identity.Certificate {
	if c := n.seen.of(p); c != nil {
		return c
	}
	d, err := descriptor.Fetch(ctx, n.host, p, n.cfg.Keys.Certificate.Raw, n.verifier)
	if err != nil {
		return nil
	}
	n.seen.add(d.Certificate)
	return d.Certificate
}

func (n nodeAPI) Ping(ctx context.Context, r *openmeshv1.PingRequest, out *connect.ServerStream[openmeshv1.PingResponse]) error {
	count, interval := orDefault(r.Count, 4), time.Duration(orDefault(r.IntervalMs, 1000))*time.Millisecond
	if count > 1000 {
		return wire.Errorf(wire.InvalidArgument, "ping: count %d: want 1 to 1000", count)
	}
	to, err := n.locate(ctx, r.Target)
	if err != nil {
		return fmt.Errorf("ping %s: %w", r.Target, err)
	}
	if to.peer.ID == n.host.ID() {
		return wire.Errorf(wire.InvalidArgument, "ping: %s is this node itself", r.Target)
	}
	if err := n.host.Connect(ctx, to.peer); err != nil {
		return unreachable(r.Target, err)
	}
	for i := range count {
		if i > 0 && sleep(ctx, interval) != nil {
			return ctx.Err()
		}
		if err := n.pingOnce(ctx, to, i+1, out); err != nil {
			return err
		}
	}
	return nil
}

func (n nodeAPI) pingOnce(ctx context.Context, to candidate, sequence uint32, out *connect.ServerStream[openmeshv1.PingResponse]) error {
	ctx, cancel := context.WithTimeout(ctx, n.settings.Networking.HandshakeTimeout)
	defer cancel()
	res := <-ping.Ping(ctx, n.host, to.peer.ID)
	if err := errors.Join(res.Error, ctx.Err()); err != nil {
		return unreachable(string(to.agent), err)
	}
	m := &openmeshv1.PingResponse{
		Agent: string(to.agent), Address: to.address.String(), Sequence: sequence, RttMs: float64(res.RTT.Nanoseconds()) / 1e6,
	}
	if conns := n.host.Network().ConnsToPeer(to.peer.ID); len(conns) > 0 {
		m.Path = pathMessage(n.pathOf(conns[0]))
	}
	return out.Send(m)
}

func unreachable(target string, err error) error {
	return wire.Errorf(wire.Unreachable, "no way to %s: %w", target, err).
		WithHint("it may be offline, or behind a NAT without a relay; see: openmesh doctor")
}

// locate finds the best agent for a target of any kind.
func (n *Node) locate(ctx context.Context, target string) (candidate, error) {
	name, version, err := splitVersion(target, "")
	if err != nil {
		return candidate{}, err
	}
	if isCapability(name) {
		res, err := n.directory.Discover(ctx, directory.Query{Capability: name, Version: version, Limit: 1})
		if err != nil {
			return candidate{}, err
		}
		if len(res.Rows) == 0 {
			return candidate{}, wire.Errorf(wire.NotFound, "no agent in reach offers %s", target)
		}
		row := res.Rows[0]
		return candidate{agent: row.Agent, address: row.Address, peer: n.host.Peerstore().PeerInfo(row.Peer), capability: row.Name}, nil
	}
	a, err := n.resolve(ctx, target)
	return candidateAt(a, ""), err
}

func (n nodeAPI) Connect(ctx context.Context, r *openmeshv1.ConnectRequest) (*openmeshv1.ConnectResponse, error) {
	start := time.Now()
	to, err := n.connectTarget(ctx, r.Target)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if err := n.host.Connect(ctx, to); err != nil {
		return nil, unreachable(r.Target, err)
	}
	conns := n.host.Network().ConnsToPeer(to.ID)
	if len(conns) == 0 {
		return nil, unreachable(r.Target, network.ErrNoConn)
	}
	path := session.PathOf(conns[0])
	resp := &openmeshv1.ConnectResponse{
		Peer: to.ID.String(), Addr: path.Addr, Transport: path.Transport, ElapsedMs: millis(time.Since(start)),
	}
	ctx, cancel := context.WithTimeout(ctx, introduce)
	defer cancel()
	if cert := n.certificateOf(ctx, to.ID); cert != nil {
		resp.Agent, resp.Address = string(cert.Agent), cert.Address.String()
	}
	return resp, nil
}

func (n nodeAPI) connectTarget(ctx context.Context, target string) (peer.AddrInfo, error) {
	if a, err := ma.NewMultiaddr(target); err == nil {
		info, err := peer.AddrInfoFromP2pAddr(a)
		if err != nil {
			return peer.AddrInfo{}, wire.Errorf(wire.InvalidArgument, "multiaddr %s: %w", target, err).WithHint("it must end in /p2p/ and a peer id")
		}
		return *info, nil
	}
	a, err := n.resolve(ctx, target)
	return a.Peer, err
}
