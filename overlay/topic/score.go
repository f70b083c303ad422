package topic

import (
	"net"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/protocol"

	"openmesh/protocols/wire"
)

// maxRPC bounds what a peer sends at once: some messages, or names of many.
const maxRPC = 4 * MaxMessage

// queue is how many messages wait for a peer, or to be validated, before
// GossipSub drops them: bursts of some origins at once.
const queue = 256

// filled returns l with its defaults. The error is wire.InvalidArgument.
func (l Limits) filled() (Limits, error) {
	if l.Every < 0 || l.Burst < 0 || l.Hops < 0 || l.Hops > MaxHops || l.PerPeer < 0 || l.Relayed < 0 {
		return l, wire.Errorf(wire.InvalidArgument, "limits of topics: %+v", l).
			WithHint("None is negative, and hops are at most %d.", MaxHops)
	}
	if l.Every == 0 {
		l.Every = 3 * time.Second
	}
	for _, field := range []struct {
		n   *int
		def int
	}{{&l.Burst, 20}, {&l.Hops, 16}, {&l.PerPeer, 1024}, {&l.Relayed, 1024}} {
		if *field.n == 0 {
			*field.n = field.def
		}
	}
	return l, nil
}

// options are those of GossipSub. Messages carry a signature of our own, because
// GossipSub's would cover the hops. Own messages go to all peers of a topic at
// once: they are few, and the mesh takes a heartbeat to form.
func (g *Gossip) options() []pubsub.Option {
	return []pubsub.Option{
		pubsub.WithMessageSignaturePolicy(pubsub.StrictNoSign), pubsub.WithNoAuthor(),
		pubsub.WithMessageIdFn(id),
		pubsub.WithMaxMessageSize(maxRPC),
		pubsub.WithDefaultValidator(g.validate, pubsub.WithValidatorInline(true)),
		pubsub.WithSubscriptionFilter(g.audience),
		pubsub.WithFloodPublish(true),
		pubsub.WithPeerOutboundQueueSize(queue), pubsub.WithValidateQueueSize(queue),
		pubsub.WithPeerExchange(false),
		pubsub.WithPeerScore(g.peerScore(), thresholds()),
	}
}

func gossipProtocols() []protocol.ID {
	return append(pubsub.GossipSubDefaultProtocols[:len(pubsub.GossipSubDefaultProtocols):len(pubsub.GossipSubDefaultProtocols)], pubsub.FloodSubID)
}

// How long misdeeds count, and what addresses of one host may share. A relay's
// address is that of all who come through it, and a site's NAT that of all behind
// it: as many as the host lets connect from one.
const (
	memory    = 10 * time.Minute
	oneOrigin = 256
)

// peerScore is what peers are judged by (gossipsub v1.1, "Peer Scoring"): what
// they did here that was wrong. It does not use the parameters for single topics:
// GossipSub would keep those of every topic that it was ever in; and there is no
// penalty for being quiet, for topics are.
func (g *Gossip) peerScore() *pubsub.PeerScoreParams {
	return &pubsub.PeerScoreParams{
		SkipAtomicValidation:        true,
		Topics:                      make(map[string]*pubsub.TopicScoreParams),
		AppSpecificScore:            g.faults.score,
		AppSpecificWeight:           1,
		IPColocationFactorWeight:    -1,
		IPColocationFactorThreshold: oneOrigin,
		IPColocationFactorWhitelist: privateNetworks(),
		BehaviourPenaltyWeight:      -10,
		BehaviourPenaltyThreshold:   6,
		BehaviourPenaltyDecay:       pubsub.ScoreParameterDecay(memory),
		DecayInterval:               pubsub.DefaultDecayInterval,
		DecayToZero:                 pubsub.DefaultDecayToZero,
		RetainScore:                 time.Hour,
	}
}

// thresholds: about 10 lies or messages too many in a while, and a peer gets no
// gossip; 15, and nothing is sent to it; 20, and nothing is taken from it.
func thresholds() *pubsub.PeerScoreThresholds {
	return &pubsub.PeerScoreThresholds{GossipThreshold: -100, PublishThreshold: -200, GraylistThreshold: -400}
}

// privateNetworks are those whose addresses many hosts may share for good
// reasons: RFC 1918, RFC 6598, RFC 4193, link-local.
func privateNetworks() []*net.IPNet {
	var all []*net.IPNet
	for _, n := range []struct {
		ip         net.IP
		ones, bits int
	}{
		{net.IPv4(10, 0, 0, 0).To4(), 8, 32}, {net.IPv4(172, 16, 0, 0).To4(), 12, 32}, {net.IPv4(192, 168, 0, 0).To4(), 16, 32},
		{net.IPv4(100, 64, 0, 0).To4(), 10, 32}, {net.IPv4(169, 254, 0, 0).To4(), 16, 32},
		{net.ParseIP("fc00::"), 7, 128}, {net.ParseIP("fe80::"), 10, 128},
	} {
		all = append(all, &net.IPNet{IP: n.ip, Mask: net.CIDRMask(n.ones, n.bits)})
	}
	return all
}
