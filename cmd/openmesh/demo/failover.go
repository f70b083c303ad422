package demo

import (
	"context"
	"fmt"
	"net"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"openmesh/cmd/openmesh/demo/router"
	openmeshv1 "openmesh/node/api/openmesh/v1"
)

// maxGap is how long the session may need to go on. It promises twice the
// keepalive; the rest is for a machine that is busy with other things.
const maxGap = 5 * soonKeepalive

// failover: two agents that know each other only by what stands in front of them,
// a router of this process each, talk over QUIC, until both routers drop all
// datagrams and tell nobody. The session goes on over TCP.
//
//	west ──► [router of east] ──► east, whose handler is the desk
//	west ◄── [router of west] ◄── east
func (m *mesh) failover(ctx context.Context, s *Step) error {
	p, err := m.openPair(ctx)
	if err != nil {
		return err
	}
	if err := m.failoverOf(ctx, s, p); err != nil {
		return err // the pair's logs are wanted now; it is cleared in the end
	}
	for _, n := range p.nodes() {
		if err := m.market.gone.Add(ctx, party(n)); err != nil {
			return err
		}
	}
	m.pair = nil
	return p.close(ctx)
}

func (m *mesh) failoverOf(ctx context.Context, s *Step, p *pair) error {
	r, err := m.openSeries(ctx, p.west, p.east, &openmeshv1.OpenSessionRequest{
		Qos: "exactly-once", KeepaliveMs: uint32(soonKeepalive.Milliseconds()), AckTimeoutMs: uint32(soonAckTimeout.Milliseconds()),
		Transport: "quic-v1",
	})
	if err != nil {
		return err
	}
	before, err := p.ends(ctx, r.session, "quic-v1")
	if err != nil {
		return err
	}
	cut, err := r.interrupt(ctx, p.drop)
	if err != nil {
		return err
	}
	after, err := p.ends(ctx, r.session, "tcp")
	if err != nil {
		return err
	}
	if err := p.check(r, before, after); err != nil {
		return err
	}
	if err := r.close(ctx); err != nil {
		return err
	}
	gap := r.gap(cut)
	if gap > maxGap {
		return p.west.errorf("nothing arrived for %s after the cut, with a keepalive of %s", gap, soonKeepalive)
	}
	s.Facts["session"], s.Facts["sent"], s.Facts["delivered"], s.Facts["repeats"] = r.session, r.last, r.last, len(r.repeats())
	s.Facts["before"], s.Facts["after"], s.Facts["gap_ms"] = before.transport, after.transport, millis(gap)
	s.Facts["keepalive_ms"], s.Facts["datagrams_dropped"], s.Facts["epoch"] = millis(soonKeepalive), p.dropped(), after.epoch
	s.Say(fmt.Sprintf("%s and %s at work over %s: all %d datagrams from then on vanished", p.west.name, p.east.name, before.transport, p.dropped()),
		fmt.Sprintf("the same session went on over %s after %s of silence (keepalive %s)", after.transport, ms(millis(gap)), soonKeepalive),
		fmt.Sprintf("%d numbers sent, each of them worked on exactly once", r.last))
	return nil
}

// check checks that nothing was lost or repeated, and that it is the session that
// it was.
func (p *pair) check(r *series, before, after agreed) error {
	if err := r.once(); err != nil {
		return err
	}
	if p.dropped() == 0 {
		return p.west.errorf("no datagram was dropped")
	}
	after.transport = before.transport
	if after != before {
		return p.west.errorf("the session was %+v, and is %+v", before, after)
	}
	return nil
}

// pair are two agents with routers in front of them.
type pair struct {
	west, east *node
	routers    []*router.Router
	stop       context.CancelFunc // ends the routers
	running    errgroup.Group     // the routers
}

// openPair makes the two agents and has them join the mesh.
func (m *mesh) openPair(ctx context.Context) (*pair, error) {
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	p := &pair{west: &node{name: "west", role: "agent"}, east: &node{name: "east", role: "agent"}, stop: stop}
	m.pair = p
	for _, n := range p.nodes() {
		n.home, n.log = filepath.Join(m.dir, n.name), filepath.Join(m.dir, n.name+".log")
		if err := p.route(run, n); err != nil {
			return nil, n.at(err)
		}
	}
	err := each(ctx, p.nodes(), func(ctx context.Context, n *node) error {
		if err := m.init(ctx, n); err != nil {
			return err
		}
		return m.enter(ctx, n)
	})
	if err != nil {
		return nil, err
	}
	p.east.offers = []offer{offerSum(m.desk.url)}
	return p, m.registerOffers(ctx, p.east)
}

func (p *pair) nodes() []*node { return []*node{p.west, p.east} }

// route puts a router in front of a node that is to be started: it is known under
// the router's addresses alone.
func (p *pair) route(ctx context.Context, n *node) error {
	behind, err := freePorts()
	if err != nil {
		return err
	}
	r, err := router.New(behind)
	if err != nil {
		return err
	}
	p.routers = append(p.routers, r)
	p.running.Go(func() error { return n.at(r.Run(ctx)) })
	n.flags = []string{
		"--listen", fmt.Sprintf("/ip4/127.0.0.1/udp/%d/quic-v1", behind.UDP.Port()), "--listen", fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", behind.TCP.Port()),
		"--set", fmt.Sprintf("networking.announce=/ip4/127.0.0.1/udp/%d/quic-v1,/ip4/127.0.0.1/tcp/%d", r.UDP().Port(), r.TCP().Port()),
		"--set", "networking.keepalive_interval=" + soonKeepalive.String(),
		"--set", "networking.relay_fallback=false", // only these two ways lead there
	}
	return nil
}

// freePorts are two ports of loopback that nobody has. Somebody could take them
// before the node does; that it does not start is the worst that follows.
func freePorts() (router.Config, error) {
	tcp, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return router.Config{}, fmt.Errorf("find a free TCP port: %w", err)
	}
	defer tcp.Close()
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return router.Config{}, fmt.Errorf("find a free UDP port: %w", err)
	}
	defer udp.Close()
	return router.Config{TCP: tcp.Addr().(*net.TCPAddr).AddrPort(), UDP: udp.LocalAddr().(*net.UDPAddr).AddrPort()}, nil
}

// ends waits until both ends of a session say that it is active over a transport,
// and returns what they agree on.
func (p *pair) ends(ctx context.Context, session, transport string) (a agreed, err error) {
	err = until(ctx, func(ctx context.Context) error {
		here, err := p.west.session(ctx, session)
		if err != nil {
			return err
		}
		there, err := p.east.session(ctx, session)
		if err != nil {
			return err
		}
		a = terms(here)
		switch b := terms(there); {
		case a != b:
			return p.west.errorf("says %+v, %s says %+v", a, p.east.name, b)
		case a.state != "active" || a.transport != transport:
			return p.west.errorf("has the session %s over %s, want it active over %s", a.state, a.transport, transport)
		}
		return nil
	})
	return a, err
}

// drop lets all datagrams vanish from now on.
func (p *pair) drop() {
	for _, r := range p.routers {
		r.Drop(true)
	}
}

// dropped is how many datagrams have vanished.
func (p *pair) dropped() (n uint64) {
	for _, r := range p.routers {
		n += r.Dropped()
	}
	return n
}

// close ends both agents, which must exit with 0, and removes what they left.
func (p *pair) close(ctx context.Context) error {
	err := each(ctx, p.nodes(), func(ctx context.Context, n *node) error { return n.stop(ctx) })
	p.stop()
	if failed := p.running.Wait(); err == nil {
		err = failed
	}
	for _, n := range p.nodes() {
		if err != nil {
			return err
		}
		err = n.remove()
	}
	return err
}
