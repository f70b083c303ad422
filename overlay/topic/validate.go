package topic

import (
	"context"
	"crypto/sha256"
	"slices"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pubsubpb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"

	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// lies are the errors that an honest forwarder cannot cause: it would have found
// the same. Others (an expired message, a key that only this node knows to be
// superseded) are no fault of the one who sent it here.
func lies(err error) bool {
	return slices.Contains([]wire.Code{wire.Malformed, wire.TooLarge, wire.Unauthenticated}, wire.CodeOf(err))
}

// validate is asked by GossipSub about every message that it has not seen: it
// decides what is heard, and what goes further. It runs inline, so that the
// message can be changed: one hop less.
func (g *Gossip) validate(_ context.Context, from peer.ID, m *pubsub.Message) pubsub.ValidationResult {
	now := time.Now()
	if from == g.cfg.Host.ID() {
		return pubsub.ValidationAccept // sealed here
	}
	sum := [sha256.Size]byte([]byte(id(m.Message)))
	b, cert, err := g.open(m.GetTopic(), m.Data, now)
	switch {
	case err != nil && lies(err):
		g.counts.add(rejected)
		g.faults.add(from)
		return pubsub.ValidationReject
	case err != nil:
		g.counts.add(ignored)
		return pubsub.ValidationIgnore
	case g.bouncer.known(sum):
		g.counts.add(ignored)
		return pubsub.ValidationIgnore
	case !g.bouncer.admit(bucket{b.Topic, cert.Agent, false}):
		g.counts.add(limited)
		if from == cert.Peer {
			g.faults.add(from) // its own excess, which its own node should have stopped
		}
		return pubsub.ValidationIgnore
	case !g.bouncer.first(sum, time.UnixMilli(b.Expires)):
		g.counts.add(ignored)
		return pubsub.ValidationIgnore // the same one, at the same time
	}
	g.deliver(b.Topic, cert.Agent, b.Payload)
	return g.forward(m, int(b.MaxHops))
}

// forward has a message go one hop less than it came with, and no further at the
// last one. Hops are not signed: whoever forwards can lower them, or raise them up
// to what the origin allowed.
func (g *Gossip) forward(m *pubsub.Message, limit int) pubsub.ValidationResult {
	hops := min(int(m.Data[0]), limit)
	if hops <= 1 {
		return pubsub.ValidationIgnore
	}
	data := slices.Clone(m.Data)
	data[0] = byte(hops - 1)
	m.Message = &pubsubpb.Message{Topic: m.Message.Topic, Data: data} // the old one may be in use
	return pubsub.ValidationAccept
}

// arrival is a message that waits for its handlers.
type arrival struct {
	topic   string
	from    identity.AgentID
	payload []byte
}

// maxArrivals bounds what waits for slow handlers.
const maxArrivals = 256

// deliver hands a message over without waiting.
func (g *Gossip) deliver(topic string, from identity.AgentID, payload []byte) {
	if from == g.cfg.Certificate.Agent || len(g.handlers(topic)) == 0 {
		return
	}
	select {
	case g.arrivals <- arrival{topic, from, payload}:
		g.counts.add(delivered)
	default:
		g.counts.add(dropped)
	}
}

// dispatch calls handlers until ctx ends.
func (g *Gossip) dispatch(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case a := <-g.arrivals:
			for _, s := range g.handlers(a.topic) {
				s.h(a.from, a.payload)
			}
		}
	}
}

func (g *Gossip) handlers(topic string) []*Subscription {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := g.topics[topic]
	if t == nil {
		return nil
	}
	all := make([]*Subscription, 0, len(t.handlers))
	for s := range t.handlers {
		all = append(all, s)
	}
	return all
}
