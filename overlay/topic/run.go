package topic

import (
	"context"
	"fmt"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"go.uber.org/zap"

	"openmesh/protocols/wire"
)

const (
	// sweep is how often a node looks for what nobody needs any more.
	sweep = 10 * time.Second
	// pace is what passes between two looks at what there is to join.
	pace = 20 * time.Millisecond
	// linger is how long who published on a topic stays in it.
	linger = time.Minute
	// introduction is how long a message waits for its topic's first peer, when
	// its node has just joined.
	introduction = 2 * time.Second
)

// interest is a topic that this node takes part in, or is about to.
type interest struct {
	handlers map[*Subscription]struct{}
	until    time.Time // for what this node publishes
	relayed  bool      // for peers

	topic *pubsub.Topic // nil until joined
	leave func()
	since time.Time
}

// interest returns what there is about a topic; g.mu is held.
func (g *Gossip) interest(topic string) *interest {
	t := g.topics[topic]
	if t == nil {
		t = &interest{handlers: make(map[*Subscription]struct{})}
		g.topics[topic] = t
	}
	return t
}

func (t *interest) wanted(now time.Time) bool {
	return len(t.handlers) > 0 || t.relayed || now.Before(t.until)
}

// poke has Run look at what there is to join; it does not block.
func (g *Gossip) poke() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// Run takes part in topics until ctx ends, and leaves them. It is called once.
func (g *Gossip) Run(ctx context.Context) error {
	life, cancel := context.WithCancel(context.WithoutCancel(ctx)) // longer, to say goodbye
	router, err := pubsub.NewGossipSub(life, g.cfg.Host, g.options()...)
	if err != nil {
		cancel()
		return fmt.Errorf("start gossip: %w", err)
	}
	var handlers sync.WaitGroup
	handlers.Go(func() { g.dispatch(life) })
	g.begin(router)
	g.follow(ctx)
	g.end()
	cancel()
	handlers.Wait()
	g.hangUp()
	return nil
}

// begin lets messages out, and tells peers if this is a relay.
func (g *Gossip) begin(router *pubsub.PubSub) {
	g.mu.Lock()
	g.router = router
	g.mu.Unlock()
	if g.cfg.Relay {
		g.cfg.Host.SetStreamHandler(g.relayProtocol(), func(s network.Stream) { _ = s.Reset() })
	}
}

// follow joins and leaves topics as they are wanted, until ctx ends.
func (g *Gossip) follow(ctx context.Context) {
	tick := time.NewTicker(sweep)
	defer tick.Stop()
	for {
		g.settle(false)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pace):
		}
		select {
		case <-ctx.Done():
			return
		case <-g.wake:
		case <-tick.C:
			g.bouncer.sweep(time.Now())
			g.faults.sweep(time.Now())
			g.audience.forget(g.connected)
			g.settle(true)
		}
	}
}

func (g *Gossip) connected(p peer.ID) bool {
	return g.cfg.Host.Network().Connectedness(p) == network.Connected
}

// settle joins what is wanted; with tidy it also leaves what is not. Only the
// tidy way gives up a topic that is relayed, so that a peer which comes and goes
// does not have its topics join and leave with it.
func (g *Gossip) settle(tidy bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cfg.Relay {
		g.relay(tidy)
	}
	now := time.Now()
	for name, t := range g.topics {
		switch wanted := t.wanted(now); {
		case wanted && t.topic == nil:
			if err := g.join(name, t); err != nil {
				g.cfg.Log.Warn("topic not joined", zap.String("topic", name), zap.Error(err))
			}
		case !wanted && tidy:
			t.depart()
			delete(g.topics, name)
		}
	}
	close(g.settled)
	g.settled = make(chan struct{})
}

// relay marks the topics to join for peers: those that the most peers listen to,
// up to the limit. Other relays do not count as listeners: each would keep the
// others in a topic for ever after its last listener left.
func (g *Gossip) relay(tidy bool) {
	relayed := 0
	for _, t := range g.topics {
		if tidy {
			t.relayed = false
		}
		if t.relayed {
			relayed++
		}
	}
	for _, name := range g.audience.listened(g.cfg.Limits.Relayed, g.listens) {
		if t := g.interest(name); !t.relayed && relayed < g.cfg.Limits.Relayed {
			t.relayed = true
			relayed++
		}
	}
}

// listens reports whether a peer subscribes for itself, and not as a relay.
func (g *Gossip) listens(p peer.ID) bool {
	known, err := g.cfg.Host.Peerstore().SupportsProtocols(p, g.relayProtocol())
	return err != nil || len(known) == 0
}

// relayProtocol is how relays know each other: in the list of protocols that
// peers exchange (identify). Nothing is said over it.
func (g *Gossip) relayProtocol() protocol.ID {
	return protocol.ID(fmt.Sprintf("/openmesh/%d/topic-relay/1.0.0", g.cfg.Realm))
}

// join enters a topic. Handlers get their messages from the validator, so that
// for GossipSub every node in a topic just relays it.
func (g *Gossip) join(name string, t *interest) error {
	topic, err := g.router.Join(name)
	if err != nil {
		return err
	}
	cancel, err := topic.Relay()
	if err != nil {
		return err
	}
	t.topic, t.since = topic, time.Now()
	t.leave = func() {
		cancel()
		if err := topic.Close(); err != nil {
			g.cfg.Log.Debug("topic not closed", zap.String("topic", name), zap.Error(err))
		}
	}
	return nil
}

func (t *interest) depart() {
	if t.topic != nil {
		t.leave()
		t.topic = nil
	}
}

// enter joins a topic for a message of ours, and waits until somebody else is
// there, or should be.
func (g *Gossip) enter(ctx context.Context, name string) (*pubsub.Topic, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	began := time.Now()
	for {
		t := g.interest(name)
		t.until = time.Now().Add(linger)
		since := began
		if t.topic != nil {
			since = t.since
		}
		wait := introduction - time.Since(since)
		switch {
		case t.topic != nil && (wait <= 0 || len(t.topic.ListPeers()) > 0):
			return t.topic, nil
		case t.topic == nil && (wait <= 0 || g.over):
			return nil, wire.Errorf(wire.Unreachable, "publish on %s: gossip does not run", name)
		}
		g.poke()
		if err := g.await(ctx, g.settled, wait); err != nil {
			return nil, fmt.Errorf("publish on %s: %w", name, err)
		}
	}
}

// await waits for a change, for so long at most, without g.mu, which is held.
func (g *Gossip) await(ctx context.Context, change <-chan struct{}, wait time.Duration) error {
	g.mu.Unlock()
	defer g.mu.Lock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-change:
	case <-timer.C:
	}
	return nil
}

// end leaves all topics, while the router still runs.
func (g *Gossip) end() {
	if g.cfg.Relay {
		g.cfg.Host.RemoveStreamHandler(g.relayProtocol())
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.router, g.over = nil, true
	close(g.settled) // who waits need not
	g.settled = make(chan struct{})
	for _, t := range g.topics {
		t.depart()
	}
}

// hangUp ends the streams of the router, which does not: the host may live on.
func (g *Gossip) hangUp() {
	for _, p := range gossipProtocols() {
		g.cfg.Host.RemoveStreamHandler(p)
	}
	for _, c := range g.cfg.Host.Network().Conns() {
		for _, s := range c.GetStreams() {
			for _, p := range gossipProtocols() {
				if s.Protocol() == p {
					_ = s.Reset()
				}
			}
		}
	}
}
