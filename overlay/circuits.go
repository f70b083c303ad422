package overlay

import (
	"context"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"
)

// circuits holds reservations at relays and the addresses they give.
type circuits struct {
	mu   sync.Mutex
	held map[peer.ID][]ma.Multiaddr
}

func newCircuits() *circuits { return &circuits{held: make(map[peer.ID][]ma.Multiaddr)} }

// addrs returns the addresses under which this host is reached through relays.
func (c *circuits) addrs() []ma.Multiaddr {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []ma.Multiaddr
	for _, as := range c.held {
		all = append(all, as...)
	}
	return all
}

// run keeps one reservation at every relay until ctx ends. The list is read
// again every rescan, so that it may begin empty and grow.
func (c *circuits) run(ctx context.Context, h host.Host, relays func() []peer.AddrInfo, log *zap.Logger) {
	var all sync.WaitGroup
	defer all.Wait()
	started := make(map[peer.ID]bool)
	wait := backoff.NewExponentialBackOff()
	wait.MaxInterval = rescan
	for ctx.Err() == nil {
		for _, r := range relays() {
			if r.ID != h.ID() && !started[r.ID] {
				started[r.ID] = true
				all.Go(func() { c.hold(ctx, h, r, log) })
			}
		}
		sleep(ctx, wait.NextBackOff())
	}
}

const rescan = 30 * time.Second

// hold keeps a reservation at relay r: it renews at half of its lifetime and
// starts over, with backoff, when the connection to the relay is lost.
func (c *circuits) hold(ctx context.Context, h host.Host, r peer.AddrInfo, log *zap.Logger) {
	lost := make(chan struct{}, 1)
	notifee := &network.NotifyBundle{DisconnectedF: func(n network.Network, conn network.Conn) {
		if conn.RemotePeer() == r.ID && n.Connectedness(r.ID) != network.Connected {
			select {
			case lost <- struct{}{}:
			default:
			}
		}
	}}
	h.Network().Notify(notifee)
	defer h.Network().StopNotify(notifee)
	h.ConnManager().Protect(r.ID, "relay")
	retry := backoff.NewExponentialBackOff()
	retry.MaxInterval = rescan
	for ctx.Err() == nil {
		expires, err := reserve(ctx, h, r)
		if err != nil {
			c.set(r, false)
			log.Debug("relay reservation failed", zap.Stringer("relay", r.ID), zap.Error(err))
			sleep(ctx, retry.NextBackOff())
			continue
		}
		retry.Reset()
		if c.set(r, true) {
			log.Info("relay reservation made", zap.Stringer("relay", r.ID), zap.Time("expires", expires))
		}
		select {
		case <-time.After(time.Until(expires) / 2):
		case <-lost:
			c.set(r, false)
			log.Info("relay connection lost", zap.Stringer("relay", r.ID))
		case <-ctx.Done():
		}
	}
}

func reserve(ctx context.Context, h host.Host, r peer.AddrInfo) (expires time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if err := h.Connect(ctx, r); err != nil {
		return time.Time{}, err
	}
	res, err := client.Reserve(ctx, h, r)
	if err != nil {
		return time.Time{}, err
	}
	return res.Expiration, nil
}

// set records whether a reservation at r is held, and reports a change.
func (c *circuits) set(r peer.AddrInfo, held bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, was := c.held[r.ID]
	delete(c.held, r.ID)
	if !held {
		return was
	}
	var addrs []ma.Multiaddr
	circuit := ma.StringCast("/p2p/" + r.ID.String() + "/p2p-circuit")
	for _, a := range r.Addrs {
		addrs = append(addrs, a.Encapsulate(circuit))
	}
	c.held[r.ID] = addrs
	return !was
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
