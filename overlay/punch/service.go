package punch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"

	"openmesh/overlay/circuit"
)

// service returns libp2p's hole punching, which runs from the moment this host
// knows where others see it; nil before: it would look every five seconds.
func (p *Puncher) service() (*holepunch.Service, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.svc != nil || p.closed || len(p.cfg.Addrs()) == 0 {
		return p.svc, nil
	}
	options := []holepunch.Option{holepunch.DirectDialTimeout(dialTimeout)}
	if p.cfg.Metrics != nil {
		metrics := holepunch.NewMetricsTracer(holepunch.WithRegisterer(p.cfg.Metrics))
		options = append(options, holepunch.WithMetricsAndEventTracer(metrics, p))
	} else {
		options = append(options, holepunch.WithTracer(p))
	}
	svc, err := holepunch.NewService(seat{p.cfg.Host, p}, p.cfg.IDs, p.cfg.Addrs, options...)
	if err != nil {
		return nil, fmt.Errorf("hole punching: %w", err)
	}
	p.svc = svc
	return svc, nil
}

// coordinate dials the peer's public addresses; then it has both sides dial each
// other at once (DCUtR). It ends with ctx.
func (p *Puncher) coordinate(ctx context.Context, svc *holepunch.Service, to peer.ID) (err error) {
	if !p.begin(to) {
		return fmt.Errorf("punch a hole to %s: %w", to, errAnswering)
	}
	p.counts.attempts.Add(1)
	done := make(chan error, 1)
	go func() {
		defer p.end(to)
		done <- svc.DirectConnect(to)
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if _, direct := connections(p.cfg.Host.Network(), to); len(direct) == 0 {
		p.counts.failures.Add(1)
		return fmt.Errorf("punch a hole to %s: %w", to, cmp.Or(err, errLost))
	}
	p.counts.successes.Add(1)
	if err != nil { // this side's dial failed, the other's came through
		p.mu.Lock()
		defer p.mu.Unlock()
		p.punched(to)
	}
	return nil
}

var errLost = errors.New("the connection was lost at once")

// Trace is called by libp2p's service, on both sides.
func (p *Puncher) Trace(ev *holepunch.Event) {
	to := ev.Remote
	switch evt := ev.Evt.(type) {
	case *holepunch.StartHolePunchEvt:
		p.mu.Lock()
		defer p.mu.Unlock()
		p.digs[to] = quic(evt.RemoteAddrs)
	case *holepunch.EndHolePunchEvt:
		_, direct := connections(p.cfg.Host.Network(), to)
		p.mu.Lock()
		defer p.mu.Unlock()
		if evt.Success {
			p.punched(to)
			if addrs := p.digs[to]; len(addrs) > 0 && !slices.ContainsFunc(direct, overQUIC) {
				p.slower[to] = addrs
				p.signal()
			}
		}
		delete(p.digs, to)
	}
}

// quic returns the addresses of QUIC.
func quic(addrs []string) (found []ma.Multiaddr) {
	for _, text := range addrs {
		if a, err := ma.NewMultiaddr(text); err == nil && isQUIC(a) {
			found = append(found, a)
		}
	}
	return found
}

func isQUIC(a ma.Multiaddr) bool { return len(a) > 0 && a[len(a)-1].Code() == ma.P_QUIC_V1 }

func overQUIC(c network.Conn) bool { return isQUIC(c.RemoteMultiaddr()) }

// follow dials peers over QUIC to which a hole was punched over TCP: the packets of
// both sides have opened that way too, TCP was just sooner.
func (p *Puncher) follow(ctx context.Context, all *sync.WaitGroup) {
	p.mu.Lock()
	slower := p.slower
	p.slower = make(map[peer.ID][]ma.Multiaddr)
	p.mu.Unlock()
	for to, addrs := range slower {
		all.Go(func() {
			if err := p.quicken(ctx, to, addrs); err != nil {
				p.cfg.Log.Debug("no hole for QUIC", zap.Stringer("peer", to), zap.Error(err))
				return
			}
			p.mu.Lock()
			p.news = append(p.news, to)
			p.mu.Unlock()
			p.signal()
		})
	}
}

// quicken makes a QUIC connection unless the peer has done so.
func (p *Puncher) quicken(ctx context.Context, to peer.ID, addrs []ma.Multiaddr) error {
	if _, direct := connections(p.cfg.Host.Network(), to); slices.ContainsFunc(direct, overQUIC) {
		return nil
	}
	ctx, cancel := context.WithTimeout(network.WithForceDirectDial(ctx, "upgrade"), dialTimeout)
	defer cancel()
	return p.cfg.Dial(ctx, to, addrs)
}

// punched notes that a hole leads to a peer; p.mu is held.
func (p *Puncher) punched(id peer.ID) {
	if len(p.holes) < maxPeers {
		p.holes[id] = struct{}{}
	}
}

// seat is the host as libp2p's service sees it. Attempts are this package's to
// begin, so it hears of no connection. Either side may ask for an attempt, where the
// service takes it from the side that was dialled only: a circuit that stands
// beside another connection has no such side, for both see it as inbound.
type seat struct {
	host.Host
	p *Puncher
}

func (s seat) Network() network.Network { return deaf{s.Host.Network()} }

// Connect dials for the service. In a punch libp2p's host would share the dials to
// the peer with all who want a connection, wait behind addresses that are dead, and
// keep those of the hole for later, when it is closed.
func (s seat) Connect(ctx context.Context, to peer.AddrInfo) error {
	punch, client, _ := network.GetSimultaneousConnect(ctx)
	switch {
	case !punch:
		return s.Host.Connect(ctx, to)
	case client && !s.p.isAnswering(to.ID):
		return errors.New("both sides would be the client") // as go-libp2p before v0.41 wants it in the last round
	}
	return s.p.cfg.Dial(ctx, to.ID, to.Addrs)
}

func (s seat) SetStreamHandler(id protocol.ID, handle network.StreamHandler) {
	s.Host.SetStreamHandler(id, func(st network.Stream) {
		c := st.Conn()
		if !circuit.Is(c.RemoteMultiaddr()) || !s.p.answer(c.RemotePeer()) {
			st.Reset()
			return
		}
		defer s.p.answered(c.RemotePeer())
		handle(asked{st})
	})
}

type deaf struct{ network.Network }

func (deaf) Notify(network.Notifiee)     {}
func (deaf) StopNotify(network.Notifiee) {}

// asked is a stream over a connection that this side made, as far as anybody asks.
type asked struct{ network.Stream }

func (s asked) Conn() network.Conn { return outbound{s.Stream.Conn()} }

type outbound struct{ network.Conn }

func (c outbound) Stat() network.ConnStats {
	stat := c.Conn.Stat()
	stat.Direction = network.DirOutbound
	return stat
}
