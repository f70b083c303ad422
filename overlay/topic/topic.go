package topic

import (
	"context"
	"fmt"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// Limits of every broadcast. They are part of the protocol: a message beyond
// them is refused by all.
const (
	MaxMessage  = 64 << 10           // bytes: hops, signature and body
	MaxLifetime = 7 * 24 * time.Hour // from issued to expires
	MaxHops     = 32
)

// Limits are those that a node may set. Zero values take the defaults. All nodes
// of a realm should agree on Every and Burst.
type Limits struct {
	Every   time.Duration // an origin gains one message per topic in this time; default 3 s
	Burst   int           // and may save up so many; default 20
	Hops    int           // that own messages go at most; default 16, at most [MaxHops]
	PerPeer int           // topics that one peer may be subscribed to here; default 1024
	Relayed int           // topics that a relay joins for its peers; default 1024
}

// Config is what a [Gossip] needs.
type Config struct {
	Host        host.Host
	Realm       identity.Realm
	Key         crypto.PrivKey // the host key; signs own broadcasts
	Certificate *identity.Certificate

	// Verify returns the certificate in raw if it is good now; the codes of its
	// errors tell lies from bad luck: see [openmesh/protocols/identity.Verifier.Verify].
	Verify func(raw []byte) (*identity.Certificate, error)

	// Relay joins the topics that agents connected to this node listen to: for
	// backbone nodes and relays.
	Relay bool

	Limits  Limits
	Metrics prometheus.Registerer // nil for none
	Log     *zap.Logger
}

// Handler is given the messages of a topic, one at a time over all topics of a
// [Gossip]: it should take over quickly. From is proven; what is in the payload
// is not, and it must not be changed.
type Handler func(from identity.AgentID, payload []byte)

// Gossip takes part in the topics of a realm over one host.
type Gossip struct {
	cfg      Config
	wake     chan struct{} // something changed: settle what to take part in
	arrivals chan arrival
	bouncer  *bouncer
	audience *audience
	faults   *faults
	counts   counts

	mu      sync.Mutex
	topics  map[string]*interest
	router  *pubsub.PubSub // nil unless running
	over    bool           // Run has ended
	settled chan struct{}  // closed and made anew each time that topics were settled
}

// New returns a Gossip that takes part in nothing until it runs.
func New(c Config) (*Gossip, error) {
	if id, err := peer.IDFromPrivateKey(c.Key); err != nil || id != c.Certificate.Peer || id != c.Host.ID() {
		return nil, wire.Errorf(wire.InvalidArgument, "topics: key, certificate and host are not of one peer")
	}
	l, err := c.Limits.filled()
	if err != nil {
		return nil, err
	}
	c.Limits = l
	g := &Gossip{
		cfg: c, wake: make(chan struct{}, 1), arrivals: make(chan arrival, maxArrivals),
		bouncer: newBouncer(c.Limits), faults: newFaults(),
		topics: make(map[string]*interest), settled: make(chan struct{}),
	}
	g.audience = newAudience(c.Realm, c.Limits.PerPeer, g.poke)
	if g.counts, err = newCounts(c.Metrics); err != nil {
		return nil, fmt.Errorf("metrics of topics: %w", err)
	}
	return g, nil
}

// Subscription is a handler's place in a topic.
type Subscription struct {
	g     *Gossip
	topic string
	h     Handler
}

// Subscribe has h called with every message of others on a topic from now on:
// what was said before is not heard. It may be called before Run. A topic may
// have several handlers. The error is wire.InvalidArgument.
func (g *Gossip) Subscribe(topic string, h Handler) (*Subscription, error) {
	if err := g.check(topic); err != nil {
		return nil, err
	}
	s := &Subscription{g, topic, h}
	g.mu.Lock()
	g.interest(topic).handlers[s] = struct{}{}
	g.mu.Unlock()
	g.poke()
	return s, nil
}

// Leave ends the subscription: the handler is not called anew after it. The node
// leaves the topic within [sweep] if nothing else keeps it there. Leave may be
// called more than once.
func (s *Subscription) Leave() {
	s.g.mu.Lock()
	if t := s.g.topics[s.topic]; t != nil {
		delete(t.handlers, s)
	}
	s.g.mu.Unlock()
	s.g.poke()
}

// Publish signs payload and sends it to all who listen to a topic, its own node
// aside; ttl is how long it means anything. That nobody listens is not an error.
// It takes up to [introduction] if this node was not in the topic yet; it then
// stays there for a minute.
//
// Errors: wire.InvalidArgument; wire.TooLarge; wire.ResourceExhausted over the
// rate limit; wire.Unreachable if Run does not run; ctx's.
func (g *Gossip) Publish(ctx context.Context, topic string, payload []byte, ttl time.Duration) error {
	if err := g.check(topic); err != nil {
		return err
	}
	data, err := g.seal(topic, payload, ttl)
	if err != nil {
		return err
	}
	t, err := g.enter(ctx, topic)
	if err != nil {
		return err
	}
	// Asked last: what was not sent does not count.
	if !g.bouncer.admit(bucket{topic, g.cfg.Certificate.Agent, true}) {
		return wire.Errorf(wire.ResourceExhausted, "publish on %s: more than %d messages at once, or one in %v", topic, g.cfg.Limits.Burst, g.cfg.Limits.Every).
			WithHint("Others would drop it. Try again later.")
	}
	if err := t.Publish(ctx, data); err != nil {
		return fmt.Errorf("publish on %s: %w", topic, err)
	}
	g.counts.add(published)
	return nil
}
