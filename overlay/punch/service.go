package punch

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/holepunch"

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
	p.counts.attempts.Add(1)
	done := make(chan error, 1)
	p.begin(to)
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
		p.punched(to)
	}
	return nil
}

var errLost = errors.New("the connection was lost at once")

// Trace is called by libp2p's service, on both sides.
func (p *Puncher) Trace(ev *holepunch.Event) {
	end, ok := ev.Evt.(*holepunch.EndHolePunchEvt)
	if ok && end.Success {
		p.punched(ev.Remote)
	}
}

func (p *Puncher) punched(id peer.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.holes) < maxPeers {
		p.holes[id] = struct{}{}
	}
}

// seat is the host as libp2p's service sees it. Attempts are this package's to
// begin, so it hears of no connection. Either side may ask for an attempt, where the
// service takes it from the side that was dialled only: a circuit that stands
// beside another connection has no such side, for both see it as inbound. If both
// ask at once, the one with the smaller id goes ahead.
type seat struct {
	host.Host
	p *Puncher
}

func (s seat) Network() network.Network { return deaf{s.Host.Network()} }

func (s seat) SetStreamHandler(id protocol.ID, handle network.StreamHandler) {
	s.Host.SetStreamHandler(id, func(st network.Stream) {
		c := st.Conn()
		if !circuit.Is(c.RemoteMultiaddr()) || s.p.begun(c.RemotePeer()) && s.ID() < c.RemotePeer() {
			st.Reset()
			return
		}
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
