// Package kad keeps the directory in a Kademlia DHT (Maymounkov, Mazières
// 2002), as go-libp2p-kad-dht implements it, under a realm's own protocol prefix:
//
//	/openmesh/<realm>/kad/1.0.0        lookups, provider records, values
//	/openmesh/<realm>/withdraw/1.0.0   forgets provider records of the caller
//
// A directory server (mode [Server]) stores what others announce, in memory and
// within bounds:
//
//	provider records  384 per provider, 4,096 per key, 131,072 in all; for ttl
//	values            checked and merged as package descriptor says, 64 MiB in
//	                  all; for ttl; each peer may put 2 a second, 64 at once
//
// go-libp2p-kad-dht has no withdrawal, no bound on what one peer stores, and
// buffers provider records where nothing can delete them. So this package takes
// each ADD_PROVIDER and PUT_VALUE as it comes in (its OnRequestHook, which runs
// before the handler and may change the message), keeps provider records in a
// table of its own, and gives the DHT a datastore that reads from that table.
//
// An announcement goes to the servers closest to its key, and again to any of
// them that reconnects: a server that restarted has an empty memory. While there
// are fewer servers than make up one bucket, each new one gets it too.
package kad

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p-kad-dht/records"
	record "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"go.uber.org/zap"

	"openmesh/protocols/descriptor"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// Mode says whether a node serves the directory.
type Mode int

// The modes.
const (
	Client Mode = iota // asks others
	Server             // stores and answers: backbone nodes
	Auto               // a client that serves while libp2p finds it publicly reachable
)

// bucket is Kademlia's k: how many servers an announcement goes to.
const bucket = 20

// Config is what a [Table] needs.
type Config struct {
	Host     host.Host
	Realm    identity.Realm
	Verifier *identity.Verifier
	Mode     Mode
	// Bootstrap returns directory servers to start from. It is called at every
	// attempt, so the list may change. Nil or empty: wait for others to connect.
	Bootstrap func() []peer.AddrInfo
	// TTL is how long a server keeps what was announced.
	TTL time.Duration
	// Reachable is called whenever a directory server is in reach after none
	// was. It must not block.
	Reachable func()
	Log       *zap.Logger
}

// Table is this node's part of the DHT. Its methods are safe for concurrent use
// while [Table.Run] runs; before, and until it has tried to reach a server, they
// wait for it.
type Table struct {
	cfg       Config
	providers *providers
	values    *values
	own       *announcements
	budget    *budget
	link      *link

	joined  chan struct{} // closed when the first attempt to reach a server is over
	started chan struct{} // closed when what follows is set
	dht     *dht.IpfsDHT
	store   *records.ValueStore
}

// New returns a table. It starts nothing.
func New(cfg Config) *Table {
	return &Table{
		cfg:       cfg,
		providers: newProviders(cfg.TTL),
		values:    newValues(cfg.TTL),
		own:       newAnnouncements(),
		budget:    newBudget(),
		link:      newLink(),
		joined:    make(chan struct{}),
		started:   make(chan struct{}),
	}
}

// Protocol returns the Kademlia protocol of realm r, which directory servers
// announce.
func Protocol(r identity.Realm) protocol.ID { return prefix(r) + "/kad/1.0.0" }

func prefix(r identity.Realm) protocol.ID { return protocol.ID(fmt.Sprintf("/openmesh/%d", r)) }

// Run joins the DHT and stays in it until ctx ends. It returns when all that it
// started has ended. A table runs once.
func (t *Table) Run(ctx context.Context) error {
	if err := t.start(); err != nil {
		return err
	}
	events, err := t.subscribe()
	if err != nil {
		return errors.Join(err, t.dht.Close())
	}
	var wg sync.WaitGroup
	if t.cfg.Mode != Client {
		s := &descriptor.WithdrawServer{Realm: t.cfg.Realm, Forget: t.providers.remove, Log: t.cfg.Log}
		wg.Go(func() { s.Run(ctx, t.cfg.Host) })
	}
	wg.Go(func() { t.sweep(ctx) })
	wg.Go(func() { t.watch(ctx, events) })
	wg.Go(func() { t.stayConnected(ctx) })
	close(t.started)
	<-ctx.Done()
	wg.Wait()
	t.cfg.Host.RemoveStreamHandler(Protocol(t.cfg.Realm)) // the DHT leaves it there
	return t.dht.Close()
}

func (t *Table) start() error {
	v := record.NamespacedValidator{descriptor.Namespace: t.validator()}
	modes := map[Mode]dht.ModeOpt{Client: dht.ModeClient, Server: dht.ModeServer, Auto: dht.ModeAuto}
	var err error
	t.dht, err = dht.New(t.cfg.Host,
		dht.ProtocolPrefix(prefix(t.cfg.Realm)),
		dht.Mode(modes[t.cfg.Mode]),
		dht.BucketSize(bucket),
		dht.Validator(v),
		dht.ProviderDatastore(t.providers.datastore()),
		dht.ProviderManagerOpts(
			records.ProvideValidity(t.cfg.TTL),
			records.ProviderAddrTTL(t.cfg.TTL),
			records.CleanupInterval(0), // the table sweeps itself
			records.Cache(noCache{})),
		dht.ValueDatastore(t.values),
		dht.MaxRecordAge(t.cfg.TTL),
		dht.ValueGCInterval(0), // likewise
		dht.OnRequestHook(t.inspect),
	)
	if err != nil {
		return fmt.Errorf("join DHT of realm %d: %w", t.cfg.Realm, err)
	}
	t.store = records.NewValueStore(t.values, v, t.cfg.TTL)
	return nil
}

func (t *Table) validator() validator {
	return validator{func(key string, value []byte) (descriptor.Value, error) {
		return descriptor.VerifyValue(key, value, t.cfg.Verifier, time.Now())
	}}
}

// Reach returns how many directory servers the routing table has, since when
// this node reaches none of them (zero while it does, or is one with no other
// to reach), and why the last attempt to reach one failed.
func (t *Table) Reach() (servers int, lost time.Time, why error) {
	lost, why = t.link.status()
	select {
	case <-t.started:
		servers = t.dht.RoutingTable().Size()
	default:
	}
	return servers, lost, why
}

// quorum is how many servers that hold a value are heard before the best of
// them is taken: more than one, since any one may be behind or lie by omission.
const quorum = 4

// grace is how long others may take once a server has answered with a value: those
// that are dead, or out of this node's reach, would cost seconds each.
const grace = time.Second

// Search returns the best value under key that the servers closest to it hold, and
// that they give soon after the first of them.
// Errors: wire.NotFound, wire.Unreachable, or that ctx ended.
func (t *Table) Search(ctx context.Context, key string) ([]byte, error) {
	if err := t.askable(ctx); err != nil {
		return nil, fmt.Errorf("look up %s: %w", key, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	found, err := t.dht.SearchValue(ctx, key, dht.Quorum(quorum))
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", key, err)
	}
	best := last(found, grace)
	switch {
	case best != nil:
		return best, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("look up %s: %w", key, ctx.Err())
	}
	return nil, wire.Errorf(wire.NotFound, "look up %s: no directory server has it", key)
}

// last returns the last value of a channel: of all, or of those that come within some
// time of the first.
func last(values <-chan []byte, within time.Duration) (v []byte) {
	var late <-chan time.Time
	for {
		select {
		case next, ok := <-values:
			if !ok {
				return v
			}
			if v = next; late == nil {
				late = time.After(within)
			}
		case <-late:
			return v
		}
	}
}

// askable waits until there is someone to ask, be it this node, or says that
// there is not.
func (t *Table) askable(ctx context.Context) error {
	if err := t.joining(ctx); err != nil {
		return err
	}
	if t.dht.RoutingTable().Size() == 0 && !t.alone() {
		return noServer()
	}
	return nil
}

// joining waits for the first attempt to reach a server to be over.
func (t *Table) joining(ctx context.Context) error {
	select {
	case <-t.joined:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("join the directory: %w: %w", wire.Unreachable, ctx.Err())
	}
}

func noServer() error {
	return wire.Errorf(wire.Unreachable, "no directory server is in reach").
		WithHint("check networking.bootstrap and that a backbone node of this realm is up")
}

// alone reports whether this node is a directory server that has been told of
// no other: then what it holds itself is all there is.
func (t *Table) alone() bool {
	return t.cfg.Mode == Server && len(t.bootstrap()) == 0
}

// sweep drops what has expired.
func (t *Table) sweep(ctx context.Context) {
	tick := time.NewTicker(max(t.cfg.TTL/8, time.Second))
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			t.providers.expire(now)
			t.values.expire(now)
		case <-ctx.Done():
			return
		}
	}
}
