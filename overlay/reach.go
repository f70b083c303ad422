package overlay

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/host/autonat"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"

	"openmesh/overlay/nat"
)

// Standing is where a host stands in the network: see package nat.
type Standing = nat.Standing

// reachability are libp2p's options. A public host judges for others, for all of a
// site behind one NAT. Of any other host libp2p is told that nothing is known, since
// it would begin to ask only after 15 s and again after 90: newAutoNAT asks instead.
func reachability(public bool) []libp2p.Option {
	if !public {
		return []libp2p.Option{func(cfg *libp2p.Config) error {
			unknown := network.ReachabilityUnknown
			cfg.AutoNATConfig.ForceReachability = &unknown
			return nil
		}}
	}
	return []libp2p.Option{
		libp2p.ForceReachabilityPublic(), libp2p.EnableNATService(),
		libp2p.AutoNATServiceRateLimit(0, 100, time.Minute),
		libp2p.UDPBlackHoleSuccessCounter(nil), // else a few hosts without UDP make it refuse to judge
	}
}

// newAutoNAT asks public hosts to dial back (AutoNAT v1), at once.
func (h *Host) newAutoNAT() (autonat.AutoNAT, error) {
	return autonat.New(h.Host, autonat.UsingAddresses(h.reach.Claims), autonat.WithoutStartupDelay(),
		autonat.WithSchedule(10*time.Second, 5*time.Minute))
}

// Standing says where this host stands, and what would help.
func (h *Host) Standing() Standing {
	relays := 0
	k := h.keeper.Load()
	if k != nil {
		relays = len(k.Held())
	}
	return h.reach.Standing(relays, k != nil)
}

// Reachability returns public, private or unknown, as others have judged it.
func (h *Host) Reachability() string { return string(h.Standing().Reachability) }

// needsRelays reports whether reservations are worth holding: unless strangers have
// been seen to reach this host over each network that it listens on, and on TCP 443,
// which is all that some networks let out. A public host has them only at relays that
// it is told of: some peers may be where only these are reached.
func (h *Host) needsRelays() bool {
	switch {
	case h.cfg.Relays == nil && h.cfg.FindRelays == nil:
		return false
	case h.cfg.Public:
		return h.cfg.Relays != nil && len(h.cfg.Relays()) > 0
	}
	s := h.Standing()
	tcp, udp := h.reach.Ports()
	everywhere := (len(udp) == 0 || len(s.UDP.Reachable) > 0) && slices.Contains(tcp, 443) &&
		slices.ContainsFunc(s.TCP.Reachable, func(a string) bool { return strings.HasSuffix(a, "/tcp/443") })
	return s.Reachability != nat.Public || !everywhere
}

// rejudge is how often the evidence is weighed without news: time is part of it.
const rejudge = 2 * time.Second

// observe collects evidence until ctx ends, and acts when the verdict changes.
func (h *Host) observe(ctx context.Context) error {
	sub, err := h.EventBus().Subscribe([]any{
		new(event.EvtLocalReachabilityChanged), new(event.EvtHostReachableAddrsChanged),
		new(event.EvtPeerIdentificationCompleted), new(event.EvtLocalAddressesUpdated),
	}, eventbus.BufSize(256))
	if err != nil {
		return fmt.Errorf("observe reachability: %w", err)
	}
	defer sub.Close()
	conns := &network.NotifyBundle{ConnectedF: h.connected, DisconnectedF: h.disconnected}
	h.Network().Notify(conns)
	defer h.Network().StopNotify(conns)
	tick := time.NewTicker(rejudge)
	defer tick.Stop()
	before, own := h.Standing(), h.reach.Own()
	for {
		select {
		case ev := <-sub.Out():
			h.learn(ev)
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if now := h.reach.Own(); !slices.Equal(now, own) {
			own = now
			h.networkChanged()
		}
		before = h.judge(before)
	}
}

func (h *Host) learn(ev any) {
	switch ev := ev.(type) {
	case event.EvtLocalReachabilityChanged:
		h.reach.DialledBack(ev.Reachability)
	case event.EvtHostReachableAddrsChanged:
		h.reach.Confirmed(ev)
		h.readdress()
	case event.EvtPeerIdentificationCompleted:
		if ev.ObservedAddr != nil && ev.Conn != nil && h.reach.Note(ev.Conn, ev.ObservedAddr, slices.Contains(h.Relays(), ev.Peer)) {
			h.networkChanged()
		}
	}
}

// connected doubts a direct connection when the peer makes a circuit beside it: it
// would not need one.
func (h *Host) connected(n network.Network, c network.Conn) {
	k := h.keeper.Load()
	if k == nil || !IsCircuit(c.RemoteMultiaddr()) || c.Stat().Direction != network.DirInbound {
		return
	}
	if len(n.ConnsToPeer(c.RemotePeer())) > 1 {
		k.Doubt(c.RemotePeer())
	}
}

func (h *Host) disconnected(_ network.Network, c network.Conn) {
	h.reach.Forget(c)
	if slices.Contains(h.Relays(), c.RemotePeer()) {
		h.stirs.all()
	}
}

// judge acts on a new verdict. A host that nobody reaches does not judge others: its
// firewall might be what it finds.
func (h *Host) judge(before Standing) Standing {
	now := h.Standing()
	if now.Reachability == before.Reachability && now.Kind == before.Kind {
		return now
	}
	h.cfg.Log.Info("reachability changed", zap.String("reachability", string(now.Reachability)), zap.String("nat", now.Kind))
	if now.Reachability == nat.Private {
		h.RemoveStreamHandler(autonatv2.DialProtocol)
	}
	h.readdress()
	return now
}

// networkChanged tries anew what the old network did not allow.
func (h *Host) networkChanged() {
	if h.puncher != nil {
		h.puncher.Kick()
	}
	h.CheckRelays()
}

// readdress has libp2p compute the addresses anew, and tell peers, now rather than
// within five seconds; and the keeper look whether relays are needed.
func (h *Host) readdress() {
	k := h.keeper.Load()
	if k == nil {
		h.refresh.Emit(event.EvtAutoRelayAddrsUpdated{})
		return
	}
	h.refresh.Emit(event.EvtAutoRelayAddrsUpdated{RelayAddrs: k.Addrs()})
	k.Wake()
	h.stirs.all()
}

// advertised is libp2p's AddrsFactory.
func (h *Host) advertised(found []ma.Multiaddr) []ma.Multiaddr {
	direct := h.cfg.Announce
	if len(direct) == 0 {
		direct = h.reach.LeadHere(found)
	}
	if k := h.keeper.Load(); k != nil {
		direct = slices.Concat(direct, k.Addrs())
	}
	return direct
}
