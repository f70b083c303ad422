package topic

import (
	"slices"
	"strings"
	"sync"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pubsubpb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"openmesh/protocols/identity"
)

// Bounds of what peers make this node remember.
const (
	maxTopics    = 1 << 18 // of all peers together
	maxListeners = 1 << 14 // peers
	// GossipSub never forgets the name of a topic that it was told of. So many
	// names are let in, and then one more in a second.
	maxNames = 1 << 16
)

// audience is who listens to what, as peers tell. GossipSub asks it about every
// subscription, so it also bounds what GossipSub keeps: names of this realm's
// topics only, so many of one peer, and after some changes one more in a second,
// so that names cannot be cycled through.
type audience struct {
	realm   identity.Realm
	perPeer int
	changed func() // a subscription came or went; must not block

	mu    sync.Mutex
	peers map[peer.ID]*listener
	total int // topics of all peers
	names map[string]struct{}
	fresh *rate.Limiter // of names
}

type listener struct {
	topics map[string]struct{}
	budget *rate.Limiter
}

func newAudience(r identity.Realm, perPeer int, changed func()) *audience {
	return &audience{
		realm: r, perPeer: perPeer, changed: changed, peers: make(map[peer.ID]*listener),
		names: make(map[string]struct{}), fresh: rate.NewLimiter(1, maxNames),
	}
}

var _ pubsub.SubscriptionFilter = (*audience)(nil)

// CanSubscribe reports whether this node may join a topic.
func (a *audience) CanSubscribe(topic string) bool { return isTopic(a.realm, topic) }

// FilterIncomingSubscriptions returns those of a peer's subscriptions that count.
func (a *audience) FilterIncomingSubscriptions(from peer.ID, subs []*pubsubpb.RPC_SubOpts) ([]*pubsubpb.RPC_SubOpts, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var kept []*pubsubpb.RPC_SubOpts
	for _, s := range subs {
		if s.GetSubscribe() && a.add(from, s.GetTopicid()) || !s.GetSubscribe() && a.remove(from, s.GetTopicid()) {
			kept = append(kept, s)
		}
	}
	if len(kept) > 0 {
		a.changed()
	}
	return kept, nil
}

func (a *audience) add(p peer.ID, topic string) bool {
	l := a.peers[p]
	if l == nil {
		if len(a.peers) >= maxListeners {
			return false
		}
		l = &listener{make(map[string]struct{}), rate.NewLimiter(1, 2*a.perPeer)}
		a.peers[p] = l
	}
	if _, ok := l.topics[topic]; ok {
		return true // GossipSub may have forgotten: a new stream
	}
	if len(l.topics) >= a.perPeer || a.total >= maxTopics || !isTopic(a.realm, topic) || !l.budget.Allow() {
		return false
	}
	if _, ok := a.names[topic]; !ok {
		if !a.fresh.Allow() {
			return false
		}
		a.names[topic] = struct{}{}
	}
	l.topics[topic] = struct{}{}
	a.total++
	return true
}

func (a *audience) remove(p peer.ID, topic string) bool {
	l := a.peers[p]
	if l == nil {
		return false
	}
	if _, ok := l.topics[topic]; !ok {
		return false
	}
	delete(l.topics, topic)
	a.total--
	return true
}

// forget drops the topics of peers that are not here any more; what they have
// used up is remembered until it makes no difference.
func (a *audience) forget(here func(peer.ID) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for p, l := range a.peers {
		if here(p) {
			continue
		}
		a.total -= len(l.topics)
		clear(l.topics)
		if l.budget.Tokens() >= float64(l.budget.Burst()) {
			delete(a.peers, p)
		}
	}
}

// listened returns the topics that peers which count listen to: those with the
// most listeners, at most limit.
func (a *audience) listened(limit int, counts func(peer.ID) bool) []string {
	listeners := make(map[string]int)
	a.mu.Lock()
	for p, l := range a.peers {
		if !counts(p) {
			continue
		}
		for t := range l.topics {
			listeners[t]++
		}
	}
	a.mu.Unlock()
	all := make([]string, 0, len(listeners))
	for t := range listeners {
		all = append(all, t)
	}
	slices.SortFunc(all, func(x, y string) int {
		if d := listeners[y] - listeners[x]; d != 0 {
			return d
		}
		return strings.Compare(x, y)
	})
	return all[:min(limit, len(all))]
}
