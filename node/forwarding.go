package node

import (
	"bufio"
	"context"
	"crypto/hpke"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"openmesh/overlay"
	"openmesh/protocols/forward"
	"openmesh/protocols/identity"
	"openmesh/protocols/session"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// newForwarding returns this node's part in forwarded paths: as their target, and as
// a relay if it is one.
func (n *Node) newForwarding() *forward.Server {
	s := n.settings.Relay
	c := forward.Config{
		Keys:   func() []hpke.PrivateKey { return []hpke.PrivateKey{n.cfg.Keys.Mailbox} },
		Accept: map[protocol.ID]func(*forward.Conn){signal.Protocol: n.answerForwarded, session.Protocol: n.acceptForwarded},
		Relay:  n.isRelay(serviceForward), Dialer: hopDialer{n.host, true},
		Circuits: s.MaxForwards, PerPeer: s.MaxForwardsPerPeer, Idle: s.IdleTimeout,
		Quota: n.forwardQuota,
		Log:   n.log.Named("forward"),
	}
	if r := n.host.Relay(); r != nil {
		c.Pacer = r
	}
	return forward.NewServer(c)
}

// forwardQuota is how many paths a neighbour may have: a relay asks for many agents. One
// of the configuration always may; one that only says that it is a relay, as anybody
// can, while few others want paths.
func (n *Node) forwardQuota(p peer.ID) forward.Quota {
	s := n.settings.Relay
	q := forward.Quota{Circuits: s.MaxForwardsPerPeer}
	if i, ok := n.relays.of(p); ok && slices.Contains(i.services, serviceForward) {
		q.Spare = max(s.MaxForwardsPerPeer, s.MaxForwards/4)
		if i.configured {
			q.Circuits = q.Spare
		}
	}
	return q
}

// answerForwarded answers one offer that came over relays. Nothing tells who made it
// before it has been read; the last relay stands for its sources' rate.
func (n *Node) answerForwarded(c *forward.Conn) {
	if err := n.answerOver(c); err != nil {
		n.log.Debug("forwarded offer not answered", zap.Error(err))
		c.Reset(wire.CodeOf(err))
	}
}

func (n *Node) answerOver(c *forward.Conn) error {
	if err := c.SetDeadline(time.Now().Add(n.settings.Networking.HandshakeTimeout)); err != nil {
		return err
	}
	offer, err := wire.ReadFrame(bufio.NewReader(c), signal.MaxMessage)
	if err != nil {
		return err
	}
	reply, err := n.sessions.Exchange("forward "+string(c.Hops()[0]), offer)
	if err != nil {
		return err
	}
	if _, err := c.Write(wire.AppendFrame(nil, reply)); err != nil {
		return err
	}
	return c.Close()
}

// acceptForwarded takes a channel of a session that came over relays.
func (n *Node) acceptForwarded(c *forward.Conn) {
	conduit := newForwarded(c)
	n.sessions.Accept(conduit)
	<-conduit.ended
}

// forwarded makes a forwarded circuit a conduit.
type forwarded struct {
	*forward.Conn
	path  session.Path
	once  sync.Once
	ended chan struct{} // closed when this side needs it no more
}

func newForwarded(c *forward.Conn) *forwarded {
	var hops []string
	for _, h := range c.Hops() {
		hops = append(hops, h.String())
	}
	path := session.Path{Kind: "forwarded", Transport: overlay.TransportOfConn(c.Neighbour()), Hops: strings.Join(hops, " ")}
	return &forwarded{Conn: c, path: path, ended: make(chan struct{})}
}

func (f *forwarded) Path() session.Path { return f.path }

func (f *forwarded) end() { f.once.Do(func() { close(f.ended) }) }

// Close ends writing; what the other side still says is read for a moment.
func (f *forwarded) Close() error {
	time.AfterFunc(2*time.Second, f.end)
	return f.Conn.CloseWrite()
}

func (f *forwarded) Reset(code wire.Code) {
	f.Conn.Reset(code)
	f.end()
}

func (f *forwarded) Abandon() {
	f.Conn.Abandon()
	f.end()
}

// hopDialer opens streams to the hops of forwarded paths. Others choose what a relay
// dials: one that is on the internet dials nothing on networks of its own.
type hopDialer struct {
	host   *overlay.Host
	others bool // it is for others
}

func (d hopDialer) NewStream(ctx context.Context, p peer.ID, addrs []ma.Multiaddr, id protocol.ID) (network.Stream, error) {
	if d.others && slices.ContainsFunc(d.host.Addrs(), manet.IsPublicAddr) {
		addrs = slices.DeleteFunc(slices.Clone(addrs), func(a ma.Multiaddr) bool { return !manet.IsPublicAddr(a) })
	}
	d.host.Peerstore().AddAddrs(p, addrs, peerstore.TempAddrTTL)
	c, err := d.host.Dial(ctx, p, overlay.Route{})
	if err != nil {
		return nil, err
	}
	return d.host.OpenStream(ctx, c, id)
}

// forward opens a circuit over the first of the route's chains that works; those that
// failed a moment ago come last. The error tells of each what failed.
func (w ways) forward(ctx context.Context, r session.Route, inner protocol.ID) (*forward.Conn, error) {
	var errs []error
	for _, chain := range w.n.setbacks.order(r.Through, time.Now()) {
		c, err := w.forwardOver(ctx, chain, r.Target, inner)
		if !errors.Is(ctx.Err(), context.Canceled) {
			w.n.setbacks.note(chain, err, time.Now())
		}
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) == 1 {
		return nil, errs[0]
	}
	return nil, wire.Errorf(wire.Unreachable, "none of %d chains of relays works: %w", len(r.Through), errors.Join(errs...))
}

func (w ways) forwardOver(ctx context.Context, chain session.Chain, target *identity.Certificate, inner protocol.ID) (*forward.Conn, error) {
	p := forward.Path{Hops: make([]forward.Hop, len(chain))}
	var lookups errgroup.Group
	for i, a := range chain {
		lookups.Go(func() (err error) {
			if p.Hops[i], err = w.n.hop(ctx, a); err != nil {
				return fmt.Errorf("forwarding relay %s: %w", a, err)
			}
			return nil
		})
	}
	lookups.Go(func() error {
		p.Target = forward.HopOf(target, w.n.placeOf(ctx, target.Agent))
		return nil
	})
	if err := lookups.Wait(); err != nil {
		return nil, err
	}
	return forward.Dial(ctx, hopDialer{w.n.host, false}, p, inner)
}

// hop finds a relay by its agent id.
func (n *Node) hop(ctx context.Context, a identity.AgentID) (forward.Hop, error) {
	for _, i := range n.relays.with(serviceForward) {
		if i.certificate.Agent == a {
			return forward.HopOf(i.certificate, i.addrs), nil
		}
	}
	found, err := n.resolve(ctx, string(a))
	if err != nil {
		return forward.Hop{}, err
	}
	return forward.HopOf(found.Certificate, found.Peer.Addrs), nil
}

// placeOf are the addresses of the agent behind the last relay.
func (n *Node) placeOf(ctx context.Context, a identity.AgentID) []ma.Multiaddr {
	found, err := n.resolve(ctx, string(a))
	if err != nil {
		return nil // the last relay may know
	}
	return found.Peer.Addrs
}

// signalForwarded makes an exchange over relays. Only the target can have answered.
func (w ways) signalForwarded(ctx context.Context, r session.Route, offer []byte) ([]byte, error) {
	c, err := w.forward(ctx, r, signal.Protocol)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	release := context.AfterFunc(ctx, func() { c.Reset(wire.Cancelled) })
	defer release()
	if _, err := c.Write(wire.AppendFrame(nil, offer)); err != nil {
		return nil, fmt.Errorf("offer over relays: %w", err)
	}
	reply, err := wire.ReadFrame(bufio.NewReader(c), signal.MaxMessage)
	if err != nil {
		return nil, fmt.Errorf("answer over relays: %w", err)
	}
	return reply, nil
}

// chains reads lists of relays, each separated by commas: agent ids, addresses, or
// names of peers.
func (n *Node) chains(ctx context.Context, through []string) (chains []session.Chain, err error) {
	if len(through) > maxChains {
		return nil, wire.Errorf(wire.InvalidArgument, "%d chains of relays, at most %d", len(through), maxChains)
	}
	for _, list := range through {
		var c session.Chain
		for name := range strings.SplitSeq(list, ",") {
			a, err := n.resolve(ctx, strings.TrimSpace(name))
			if err != nil {
				return nil, fmt.Errorf("forwarding relay %s: %w", name, err)
			}
			c = append(c, a.ID)
		}
		if most := n.settings.Relay.MaxHops; len(c) > most {
			return nil, wire.Errorf(wire.InvalidArgument, "a chain of %d relays, at most %d", len(c), most).WithHint("see relay.max_hops")
		}
		chains = append(chains, c)
	}
	return chains, nil
}

// maxChains bounds the chains that one session may try.
const maxChains = 8
