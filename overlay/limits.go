package overlay

import (
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/x/rate"
)

// perIP is how many connections one IPv4 address or IPv6 /56 may have: many
// agents share one behind a NAT. perPeer bounds those of one peer, streamsPerPeer
// its streams.
const (
	perIP          = 256
	perPeer        = 16
	streamsPerPeer = 1024
)

func (c Config) resourceManager() (network.ResourceManager, error) {
	defaults := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&defaults)
	conns := rcmgr.LimitVal(c.MaxConnections)
	streams := 16 * conns
	// Whoever is connected may have a stream or two of each protocol, and one peer alone
	// its share.
	shared := max(2*conns, 2*streamsPerPeer)
	each := rcmgr.ResourceLimits{Streams: 2 * shared, StreamsInbound: shared, StreamsOutbound: shared}
	partial := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{
			Conns: conns, ConnsInbound: conns, ConnsOutbound: conns, FD: conns,
			Streams: streams, StreamsInbound: streams, StreamsOutbound: streams,
		},
		Transient: rcmgr.ResourceLimits{Conns: conns / 4, ConnsInbound: conns / 4, ConnsOutbound: conns / 4},
		PeerDefault: rcmgr.ResourceLimits{
			Conns: perPeer, ConnsInbound: perPeer, ConnsOutbound: perPeer, FD: perPeer,
			Streams: 2 * streamsPerPeer, StreamsInbound: streamsPerPeer, StreamsOutbound: streamsPerPeer,
		},
		ProtocolDefault: each, ServiceDefault: each,
		// Two agents may have many sessions, each with a stream.
		ProtocolPeerDefault: rcmgr.ResourceLimits{Streams: 2 * streamsPerPeer, StreamsInbound: streamsPerPeer, StreamsOutbound: streamsPerPeer},
		ServicePeerDefault:  rcmgr.ResourceLimits{Streams: 2 * streamsPerPeer, StreamsInbound: streamsPerPeer, StreamsOutbound: streamsPerPeer},
	}
	if c.Relay != nil {
		c.Relay.Raise(&partial)
	}
	limits := partial.Build(defaults.AutoScale())
	subnets := func(prefix int) []rcmgr.ConnLimitPerSubnet {
		return []rcmgr.ConnLimitPerSubnet{{PrefixLength: prefix, ConnCount: min(perIP, c.MaxConnections)}}
	}
	options := []rcmgr.Option{
		rcmgr.WithLimitPerSubnet(subnets(32), subnets(56)),
		rcmgr.WithConnRateLimiters(newConnectionRate()),
	}
	if c.Metrics == nil {
		options = append(options, rcmgr.WithMetricsDisabled())
	}
	rm, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits), options...)
	if err != nil {
		return nil, fmt.Errorf("resource manager: %w", err)
	}
	return rm, nil
}

// newConnectionRate lets a site join at once, and slows down one that keeps
// connecting: perIP at first, then eight a second.
func newConnectionRate() *rate.Limiter {
	limit := rate.Limit{RPS: 8, Burst: perIP}
	return &rate.Limiter{SubnetRateLimiter: rate.SubnetLimiter{
		IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: limit}},
		IPv6SubnetLimits: []rate.SubnetLimit{{PrefixLength: 56, Limit: limit}},
		GracePeriod:      time.Minute,
	}}
}
