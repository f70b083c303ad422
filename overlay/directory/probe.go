package directory

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
)

const (
	probeTime    = 5 * time.Second
	probesAtOnce = 8
	inUseFor     = time.Hour // since an agent was last used
)

// use marks a as in use, so that it is probed.
func (d *Directory) use(a Agent) {
	if a.Peer.ID != d.cfg.Host.ID() {
		d.inUse.Put(a.ID, a, inUseFor)
	}
}

func (d *Directory) useRows(rows []Row) {
	for i := range min(len(rows), maxInUse) {
		if a, _, ok := d.agents.Get(rows[i].Agent); ok {
			d.use(a)
		}
	}
}

// probe pings the agents in use every probe interval, give or take a fifth,
// until ctx ends: that is what uptime and latency are measured by.
func (d *Directory) probe(ctx context.Context) {
	for {
		jitter := d.cfg.ProbeInterval / 5
		if pause(ctx, d.cfg.ProbeInterval-jitter+rand.N(2*jitter+1)) != nil {
			return
		}
		slots := make(chan struct{}, probesAtOnce)
		var wg sync.WaitGroup
		for _, a := range d.inUse.Values() {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				rtt, err := d.ping(ctx, a)
				if ctx.Err() == nil {
					d.book.Probe(a.ID, err == nil, rtt, time.Now())
				}
			})
		}
		wg.Wait()
	}
}

// ping returns the time that one round trip to a takes, connecting first if need
// be.
func (d *Directory) ping(ctx context.Context, a Agent) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	ctx = network.WithAllowLimitedConn(ctx, "ping")
	d.cfg.Host.Peerstore().AddAddrs(a.Peer.ID, a.Peer.Addrs, peerstore.TempAddrTTL)
	if err := d.cfg.Host.Connect(ctx, a.Peer); err != nil {
		return 0, err
	}
	for r := range ping.Ping(ctx, d.cfg.Host, a.Peer.ID) {
		return r.RTT, r.Error
	}
	return 0, errors.New("ping ended without a result")
}
