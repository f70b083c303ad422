// Package directory is how agents find each other: by what they can do, by
// address, by id. It stands on a distributed index (package kad) that knows only
// which peer provides which key, and on the descriptors that agents serve
// themselves (package descriptor).
//
//	Announce ──> index: provider record under every key of each capability,
//	             agent record under address and agent id;
//	             again on change, and at half of the registration's lifetime
//	Discover ──> index: providers of the name ──> descriptor of each, all at once
//	             ──> verify ──> filter ──> score ──> sort
//	Resolve  ──> index: agent record
//
// What a node finds does not depend on when it joined: the index is asked, there
// is no gossip to have missed. It is eventually consistent: lookups retry with
// exponential backoff and jitter, and what was found is kept for the cache's
// lifetime and not a moment longer, so that an agent that stopped is gone by then.
//
// A dead provider costs one lookup at most [patience]; then it is left alone for
// a time that doubles up to the cache's lifetime. Uptime, latency and trust are
// what this node has seen itself (package experience).
//
// Rows are filtered, scored and sorted by package query, which has the formula.
package directory

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"

	"openmesh/overlay/directory/cache"
	"openmesh/overlay/directory/experience"
	"openmesh/overlay/directory/kad"
	"openmesh/overlay/directory/query"
	"openmesh/protocols/descriptor"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// Index is the distributed index that a directory stands on; [kad.Table] is one.
// Its methods are safe for concurrent use.
type Index interface {
	// Provide announces that this peer provides key.
	Provide(ctx context.Context, key cid.Cid) error
	// Withdraw takes that back.
	Withdraw(ctx context.Context, keys []cid.Cid) error
	// Providers sends the providers of key as they are found, about limit of
	// them, and closes the channel when all are. It must be read until then.
	Providers(ctx context.Context, key cid.Cid, limit int) (<-chan peer.AddrInfo, error)
	// Put stores value under key, merged with what others prove there.
	Put(ctx context.Context, key string, value []byte) error
	// Search returns the best value under key, or wire.NotFound.
	Search(ctx context.Context, key string) ([]byte, error)
	// Reach returns how many directory servers are known, since when none of
	// them is in reach (zero: one is), and why.
	Reach() (servers int, lost time.Time, why error)
}

// Observer hears of every operation: kind is announce, discover, resolve or
// descriptor; outcome is ok, cached, empty or the name of an error code. It must
// not block.
type Observer interface {
	Observe(kind string, took time.Duration, outcome string)
}

// Query, Result, Row and Claims are those of package query.
type (
	Query  = query.Query
	Result = query.Result
	Row    = query.Row
	Claims = query.Claims
)

// Config is what a [Directory] needs. One directory belongs to one libp2p host:
// when the host key is rotated, the new host gets a new directory.
type Config struct {
	Host        host.Host
	Key         crypto.PrivKey        // the host's
	Certificate *identity.Certificate // of Key
	Verifier    *identity.Verifier    // its realm is the directory's
	Mode        kad.Mode

	// Bootstrap returns directory servers to start from, anew at each attempt.
	Bootstrap func() []peer.AddrInfo

	RegistrationTTL time.Duration // default 12h; 1m to 7 days
	CacheTTL        time.Duration // default 45s
	ProbeInterval   time.Duration // default 1m: how often agents in use are probed

	// ExperienceFile is where experience is kept; "" forgets it.
	ExperienceFile string

	// The functions below are optional and must not block.

	Circles func() []string                                  // this agent's
	Member  func(circle string, agent identity.AgentID) bool // nil: nobody
	Load    func() float64                                   // this node's, 0 to 1
	Reach   func(peer.ID) string                             // nil: judged by open connections
	Believe func(*descriptor.Descriptor) Claims              // nil: all that it claims
	Index   Index                                            // nil: Kademlia on Host; else run by the caller

	Observer Observer // nil: nobody
	Log      *zap.Logger
}

// The bounds of what is cached.
const (
	maxDescriptors = 4096
	maxSets        = 1024 // provider sets
	maxResolved    = 4096
	maxInUse       = 64 // agents that are probed
)

// Directory is one node's directory. Its methods are safe for concurrent use.
type Directory struct {
	cfg   Config
	index Index
	table *kad.Table // index, if it is ours to run
	self  *self
	book  *experience.Book

	flights     *cache.Flights
	descriptors *cache.Cache[peer.ID, *descriptor.Descriptor]
	sets        *cache.Cache[cid.Cid, []peer.AddrInfo]
	resolved    *cache.Cache[string, descriptor.Value]
	agents      *cache.Cache[identity.AgentID, Agent] // last place known
	inUse       *cache.Cache[identity.AgentID, Agent]
	dead        *cache.Cache[peer.ID, deadline]
	fetches     chan struct{} // one slot for each at a time
}

// New checks cfg and returns a directory. It starts nothing; it reads
// cfg.ExperienceFile.
func New(cfg Config) (*Directory, error) {
	cfg.defaults()
	if cfg.RegistrationTTL < time.Minute || cfg.RegistrationTTL > descriptor.MaxLifetime {
		return nil, wire.Errorf(wire.InvalidArgument, "directory: registration_ttl %v", cfg.RegistrationTTL).
			WithHint("1m to %v", descriptor.MaxLifetime)
	}
	if cfg.CacheTTL <= 0 || cfg.ProbeInterval <= 0 {
		return nil, wire.Errorf(wire.InvalidArgument, "directory: cache_ttl and the probe interval must be positive")
	}
	book, err := experience.Load(cfg.ExperienceFile)
	if err != nil {
		cfg.Log.Error("starting with no experience", zap.Error(err))
	}
	d := &Directory{
		cfg:         cfg,
		index:       cfg.Index,
		book:        book,
		flights:     cache.NewFlights(),
		descriptors: cache.New[peer.ID, *descriptor.Descriptor](maxDescriptors),
		sets:        cache.New[cid.Cid, []peer.AddrInfo](maxSets),
		resolved:    cache.New[string, descriptor.Value](maxResolved),
		agents:      cache.New[identity.AgentID, Agent](maxResolved),
		inUse:       cache.New[identity.AgentID, Agent](maxInUse),
		dead:        cache.New[peer.ID, deadline](maxDescriptors),
		fetches:     make(chan struct{}, maxFetches),
	}
	d.self = newSelf(&d.cfg)
	if d.index == nil {
		d.table = kad.New(kad.Config{
			Host: cfg.Host, Realm: cfg.Verifier.Realm(), Verifier: cfg.Verifier, Mode: cfg.Mode,
			Bootstrap: cfg.Bootstrap, TTL: cfg.RegistrationTTL, Reachable: d.self.renew, Log: cfg.Log,
		})
		d.index = d.table
	}
	return d, nil
}

func (c *Config) defaults() {
	if c.RegistrationTTL == 0 {
		c.RegistrationTTL = 12 * time.Hour
	}
	if c.CacheTTL == 0 {
		c.CacheTTL = 45 * time.Second
	}
	if c.ProbeInterval == 0 {
		c.ProbeInterval = time.Minute
	}
	if c.Circles == nil {
		c.Circles = func() []string { return nil }
	}
	if c.Load == nil {
		c.Load = func() float64 { return 0 }
	}
	if c.Believe == nil {
		c.Believe = func(d *descriptor.Descriptor) Claims {
			return Claims{Region: d.Body.Region, Jurisdictions: d.Body.Jurisdictions, Domain: d.Body.Domain}
		}
	}
	if c.Reach == nil {
		c.Reach = func(p peer.ID) string { return reachability(c.Host.Network(), p) }
	}
	if c.Observer == nil {
		c.Observer = deaf{}
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
}

type deaf struct{}

func (deaf) Observe(string, time.Duration, string) {}

// Run announces, serves, probes and keeps the directory's link until ctx ends.
// Then it withdraws what was announced, for at most two seconds, and returns
// when all that it started has ended. A directory runs once.
func (d *Directory) Run(ctx context.Context) error {
	beyond, stop := context.WithCancel(context.WithoutCancel(ctx)) // the index outlives ctx, for the withdrawal
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	index := make(chan error, 1)
	go func() {
		if d.table != nil {
			index <- d.table.Run(beyond)
			cancel() // without it there is no directory
		}
		close(index)
	}()
	server := &descriptor.Server{
		Key: d.cfg.Key, Certificate: d.cfg.Certificate, Body: d.self.body,
		Member: d.cfg.Member, Verifier: d.cfg.Verifier, Log: d.cfg.Log,
	}
	notifee := &network.NotifyBundle{DisconnectedF: d.lost}
	d.cfg.Host.Network().Notify(notifee)
	defer d.cfg.Host.Network().StopNotify(notifee)
	var wg sync.WaitGroup
	wg.Go(func() { server.Run(ctx, d.cfg.Host) })
	wg.Go(func() { d.book.Run(ctx, d.cfg.ExperienceFile, d.cfg.Log) })
	wg.Go(func() { d.probe(ctx) })
	err := d.announce(ctx)
	wg.Wait()
	d.flights.Close()
	stop()
	return errors.Join(err, <-index)
}

// Status is how the directory looks from this node.
type Status struct {
	Servers int       // directory servers in the routing table
	Lost    time.Time // since when none of them is in reach; zero: one is
	Why     error     // the last attempt to reach one failed
}

// Partitioned reports whether no directory server is in reach.
func (s Status) Partitioned() bool { return !s.Lost.IsZero() }

// Status returns how the directory looks from this node.
func (d *Directory) Status() Status {
	n, lost, why := d.index.Reach()
	return Status{Servers: n, Lost: lost, Why: why}
}

// Announce replaces what this agent says of itself; all others see it soon
// after. Error: wire.InvalidArgument or wire.TooLarge, and nothing has changed.
func (d *Directory) Announce(p Profile) error {
	if err := d.self.set(p); err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	return nil
}

// Registered returns until when each capability, as name@version, is registered
// under all of its keys.
func (d *Directory) Registered() map[string]time.Time { return d.self.registered() }

// Record takes note of how a dealing with agent ended.
func (d *Directory) Record(agent identity.AgentID, o experience.Outcome) {
	d.book.Record(agent, o, time.Now())
	if a, _, ok := d.agents.Get(agent); ok {
		d.use(a)
	}
}

// Experience returns what this node has seen of agent.
func (d *Directory) Experience(agent identity.AgentID) experience.View {
	return d.book.Of(agent, time.Now())
}

// observe reports an operation that began at start.
func (d *Directory) observe(kind string, start time.Time, outcome string, err error) {
	if err != nil {
		outcome = wire.CodeOf(err).String()
	}
	d.cfg.Observer.Observe(kind, time.Since(start), outcome)
}

// reachability judges by open connections: direct if any is.
func reachability(n network.Network, p peer.ID) string {
	kind := "mailbox"
	for _, c := range n.ConnsToPeer(p) {
		if _, err := c.RemoteMultiaddr().ValueForProtocol(multiaddr.P_CIRCUIT); err != nil {
			return "direct"
		}
		kind = "relayed"
	}
	return kind
}
