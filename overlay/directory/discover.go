package directory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"

	"openmesh/overlay/directory/cache"
	"openmesh/overlay/directory/query"
	"openmesh/protocols/descriptor"
	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// How long discovery waits for what, and how much of it there is.
const (
	maxFound    = 256                     // providers looked at for one key
	maxFetches  = 64                      // descriptors fetched at a time
	maxCircles  = 64                      // of this agent's, that are looked in
	lookupTime  = 10 * time.Second        // in the index; and for a place among maxFetches
	fetchTime   = 3 * time.Second         // for one provider's descriptor
	patience    = 1500 * time.Millisecond // for those who have not answered, since the last who has
	negativeTTL = 2 * time.Second         // that there is no provider is believed this long
	tries       = 3                       // lookups, if there is none
	firstRetry  = 200 * time.Millisecond  // doubling, with jitter
	maxRetry    = 2 * time.Second
	firstRest   = 5 * time.Second // of a dead provider, doubling up to the cache's lifetime
)

// Discover finds capabilities that fit q, best first. What this agent itself
// offers is among them. Errors: wire.InvalidArgument; wire.Unreachable if no
// directory server is; or that ctx ended before anything was found.
func (d *Directory) Discover(ctx context.Context, q Query) (Result, error) {
	start := time.Now()
	f, err := q.Compile()
	if err != nil {
		return Result{}, err
	}
	var g gathering
	err = d.gather(ctx, f, &g)
	rows := f.Finish(append(d.rows(f, g.found), d.ownRows(f)...))
	res := Result{Rows: rows, Elapsed: time.Since(start), Cached: g.cached}
	if len(rows) > 0 {
		err = nil // part of the answer is an answer
	}
	d.observe("discover", start, outcome(res), err)
	if err != nil {
		return Result{}, fmt.Errorf("discover %s: %w", q.Capability, err)
	}
	d.useRows(rows)
	return res, nil
}

func outcome(r Result) string {
	switch {
	case len(r.Rows) == 0:
		return "empty"
	case r.Cached:
		return "cached"
	}
	return "ok"
}

// gathering is what a query has found so far.
type gathering struct {
	found  []fetched
	cached bool      // all of it was here
	moved  []peer.ID // providers that did not answer where they were thought to be
}

// fetched is a descriptor and when it was fetched.
type fetched struct {
	*descriptor.Descriptor
	at time.Time
}

// gather finds the providers of all of f's keys and their descriptors. If it is
// news that there are none, it asks a few times, with backoff and jitter: who
// has just announced may be known a moment later.
func (d *Directory) gather(ctx context.Context, f *query.Filter, g *gathering) error {
	retry := newRetry()
	names := d.keys(f)
	providers, cached, err := d.providersOf(ctx, names, false)
	for try := 1; len(providers) == 0 && !cached && try < tries && len(d.ownRows(f)) == 0; try++ {
		if pause(ctx, retry.NextBackOff()) != nil {
			break
		}
		providers, _, err = d.providersOf(ctx, names, true)
	}
	g.cached = cached
	d.collect(ctx, providers, g)
	if cached && len(g.moved) > 0 && ctx.Err() == nil {
		d.follow(ctx, names, g)
	}
	if ctx.Err() != nil {
		return cache.Ended(ctx, "wait for providers")
	}
	return err
}

// follow asks the index anew for providers that the cache had in places where they
// did not answer: they may have restarted elsewhere.
func (d *Directory) follow(ctx context.Context, names []string, g *gathering) {
	for _, p := range g.moved {
		d.dead.Remove(p)
		if d.cfg.Host.Network().Connectedness(p) != network.Connected {
			d.cfg.Host.Peerstore().ClearAddrs(p)
		}
	}
	for _, n := range names {
		d.sets.Remove(descriptor.Key(n))
	}
	providers, _, _ := d.providersOf(ctx, names, true)
	providers = slices.DeleteFunc(providers, func(pi peer.AddrInfo) bool { return !slices.Contains(g.moved, pi.ID) })
	g.cached = false
	d.collect(ctx, providers, g)
}

func newRetry() *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{InitialInterval: firstRetry, Multiplier: 2, RandomizationFactor: 0.5, MaxInterval: maxRetry}
}

func pause(ctx context.Context, t time.Duration) error {
	select {
	case <-time.After(t):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// keys returns the keys to look under: the name as the public knows it, and as
// each of this agent's circles does.
func (d *Directory) keys(f *query.Filter) []string {
	names := []string{f.Capability}
	for i, circle := range d.cfg.Circles() {
		if i < maxCircles {
			names = append(names, descriptor.Scoped(circle, f.Capability))
		}
	}
	if major, ok := f.Major(); ok {
		// One key's providers are a sample once there are too many of them; the
		// narrower key then has more of those that are wanted.
		names = append(names, descriptor.Major(f.Capability, major))
	}
	return names
}

// providersOf returns the providers of all names, and whether all were cached;
// if insist, an absence that is cached does not count. The error is set if some
// lookups failed and none found any.
func (d *Directory) providersOf(ctx context.Context, names []string, insist bool) ([]peer.AddrInfo, bool, error) {
	answers := make(chan providerSet, len(names))
	for _, n := range names {
		go func() { answers <- d.lookup(ctx, descriptor.Key(n), insist) }()
	}
	var all []peer.AddrInfo
	seen := make(map[peer.ID]bool)
	cached := true
	var errs error
	for range names {
		a := <-answers
		cached = cached && a.cached
		errs = errors.Join(errs, a.err)
		for _, pi := range a.peers {
			if !seen[pi.ID] {
				seen[pi.ID] = true
				all = append(all, pi)
			}
		}
	}
	if len(all) > 0 {
		errs = nil
	}
	return all, cached, errs
}

// providerSet is the providers of one key.
type providerSet struct {
	peers  []peer.AddrInfo
	cached bool
	err    error
}

// lookup returns the providers of key, from the cache or the index.
func (d *Directory) lookup(ctx context.Context, key cid.Cid, insist bool) providerSet {
	if peers, _, ok := d.sets.Get(key); ok && (len(peers) > 0 || !insist) {
		return providerSet{peers: peers, cached: true}
	}
	peers, err := cache.Do(ctx, d.flights, "find providers of "+key.String(), lookupTime, func(ctx context.Context) ([]peer.AddrInfo, error) {
		found, err := d.ask(ctx, key)
		ttl := d.cfg.CacheTTL
		if len(found) == 0 {
			ttl = min(ttl, negativeTTL)
		}
		if err == nil {
			d.sets.Put(key, found, ttl)
		}
		return found, err
	})
	return providerSet{peers: peers, err: err}
}

// ask asks the index once. Each provider's descriptor begins to be fetched as
// soon as the provider is known.
func (d *Directory) ask(ctx context.Context, key cid.Cid) ([]peer.AddrInfo, error) {
	ch, err := d.index.Providers(ctx, key, maxFound)
	if err != nil {
		return nil, err
	}
	var found []peer.AddrInfo
	for pi := range ch {
		if pi.ID == d.cfg.Host.ID() || len(found) >= 2*maxFound {
			continue
		}
		found = append(found, pi)
		d.prefetch(ctx, pi)
	}
	return found, nil
}

// collect adds the descriptors of providers to g. It waits for none longer than
// patience after the last that answered.
func (d *Directory) collect(ctx context.Context, providers []peer.AddrInfo, g *gathering) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		fetched
		peer peer.ID
		err  error
	}
	results := make(chan result, len(providers))
	for _, pi := range providers {
		go func() {
			desc, at, err := d.descriptor(ctx, pi)
			results <- result{fetched{desc, at}, pi.ID, err}
		}()
	}
	waiting := make(map[peer.ID]bool, len(providers))
	for _, pi := range providers {
		waiting[pi.ID] = true
	}
	began := time.Now()
	late := time.NewTimer(patience)
	defer late.Stop()
	for range providers {
		select {
		case r := <-results:
			delete(waiting, r.peer)
			if r.err != nil && !errors.Is(r.err, errResting) {
				g.moved = append(g.moved, r.peer)
			}
			if r.err == nil {
				g.found = append(g.found, r.fetched)
				g.cached = g.cached && r.at.Before(began)
				late.Reset(patience)
			}
		case <-late.C:
			g.moved = slices.AppendSeq(g.moved, maps.Keys(waiting))
			return
		case <-ctx.Done():
			return
		}
	}
}

// deadline is until when a dead provider is left alone.
type deadline struct {
	until time.Time
	rest  time.Duration // before it is tried again
}

// errResting is why a peer is not asked.
var errResting = errors.New("did not answer a moment ago")

// descriptor returns pi's descriptor, from the cache or from pi, and when it was
// fetched.
func (d *Directory) descriptor(ctx context.Context, pi peer.AddrInfo) (*descriptor.Descriptor, time.Time, error) {
	if desc, at, ok := d.descriptors.Get(pi.ID); ok {
		return desc, at, nil
	}
	if dl, _, ok := d.dead.Get(pi.ID); ok && time.Now().Before(dl.until) && d.cfg.Host.Network().Connectedness(pi.ID) != network.Connected {
		return nil, time.Time{}, wire.Errorf(wire.Unreachable, "peer %s: %w", pi.ID, errResting)
	}
	desc, err := cache.Do(ctx, d.flights, descriptorFlight(pi), lookupTime, d.fetching(pi))
	return desc, time.Now(), err
}

// descriptorFlight names a fetch: of one peer, at the places where it is thought
// to be.
func descriptorFlight(pi peer.AddrInfo) string {
	return fmt.Sprintf("fetch descriptor of %s at %s", pi.ID, pi.Addrs)
}

// prefetch is descriptor without waiting.
func (d *Directory) prefetch(ctx context.Context, pi peer.AddrInfo) {
	if _, _, ok := d.descriptors.Get(pi.ID); ok {
		return
	}
	if dl, _, ok := d.dead.Get(pi.ID); ok && time.Now().Before(dl.until) {
		return
	}
	cache.Start(ctx, d.flights, descriptorFlight(pi), lookupTime, d.fetching(pi))
}

// fetching returns the function that fetches pi's descriptor and takes note of
// how that went.
func (d *Directory) fetching(pi peer.AddrInfo) func(context.Context) (*descriptor.Descriptor, error) {
	return func(ctx context.Context) (*descriptor.Descriptor, error) {
		select {
		case d.fetches <- struct{}{}:
			defer func() { <-d.fetches }()
		case <-ctx.Done():
			return nil, cache.Ended(ctx, descriptorFlight(pi))
		}
		ctx, cancel := context.WithTimeout(ctx, fetchTime)
		defer cancel()
		start := time.Now()
		desc, rtt, err := d.fetch(ctx, pi)
		if transient(err) && ctx.Err() == nil {
			desc, rtt, err = d.fetch(ctx, pi)
		}
		d.observe("descriptor", start, "ok", err)
		if err != nil {
			d.buried(pi.ID)
			return nil, err
		}
		d.dead.Remove(pi.ID)
		d.descriptors.Put(pi.ID, desc, min(d.cfg.CacheTTL, time.Until(desc.Expires())))
		d.book.Probe(desc.Certificate.Agent, true, rtt, time.Now())
		d.agents.Put(desc.Certificate.Agent, d.agentOf(desc), d.cfg.RegistrationTTL)
		return desc, nil
	}
}

// fetch connects to pi and asks. The time is that of the question alone.
func (d *Directory) fetch(ctx context.Context, pi peer.AddrInfo) (*descriptor.Descriptor, time.Duration, error) {
	ctx = network.WithAllowLimitedConn(ctx, "descriptor")
	d.cfg.Host.Peerstore().AddAddrs(pi.ID, pi.Addrs, peerstore.TempAddrTTL)
	if err := d.cfg.Host.Connect(ctx, peer.AddrInfo{ID: pi.ID}); err != nil {
		return nil, 0, wire.Errorf(wire.Unreachable, "connect to %s: %w", pi.ID, err)
	}
	start := time.Now()
	desc, err := descriptor.Fetch(ctx, d.cfg.Host, pi.ID, d.cfg.Certificate.Raw, d.cfg.Verifier)
	return desc, time.Since(start), err
}

// transient reports whether a fetch may have met a connection that was going:
// when two agents connect to each other at once, one of the connections ends.
func transient(err error) bool {
	if err == nil {
		return false
	}
	c := wire.CodeOf(err)
	return c == wire.Unreachable || c == wire.Internal
}

// Doubt forgets what is known of where an agent is, after it could not be reached
// there: the next question goes to the network.
func (d *Directory) Doubt(agent identity.AgentID, p peer.ID) {
	d.descriptors.Remove(p)
	d.agents.Remove(agent)
	d.inUse.Remove(agent)
	d.resolved.RemoveFunc(func(_ string, v descriptor.Value) bool {
		return slices.ContainsFunc(v, func(r *descriptor.Record) bool { return r.Certificate.Agent == agent })
	})
	d.sets.RemoveFunc(func(_ cid.Cid, peers []peer.AddrInfo) bool {
		return slices.ContainsFunc(peers, func(pi peer.AddrInfo) bool { return pi.ID == p })
	})
	if n := d.cfg.Host.Network(); n.Connectedness(p) != network.Connected {
		d.cfg.Host.Peerstore().ClearAddrs(p)
	}
}

// lost forgets the descriptor of a peer whose last connection has ended: it may
// have stopped, and whoever asks next finds out.
func (d *Directory) lost(n network.Network, c network.Conn) {
	if p := c.RemotePeer(); n.Connectedness(p) == network.NotConnected {
		d.descriptors.Remove(p)
	}
}

// buried takes note that p did not answer, or not as it should.
func (d *Directory) buried(p peer.ID) {
	dl, _, _ := d.dead.Get(p)
	dl.rest = min(max(2*dl.rest, firstRest), d.cfg.CacheTTL)
	dl.until = time.Now().Add(dl.rest)
	d.dead.Put(p, dl, 4*d.cfg.CacheTTL)
	for _, a := range d.inUse.Values() {
		if a.Peer.ID == p {
			d.book.Probe(a.ID, false, 0, time.Now())
		}
	}
}

// rows returns those capabilities of found that fit f.
func (d *Directory) rows(f *query.Filter, found []fetched) []Row {
	var out []Row
	now := time.Now()
	for _, x := range found {
		if d.cfg.Verifier.Current(x.Certificate) != nil {
			continue // superseded since
		}
		claims := d.cfg.Believe(x.Descriptor)
		seen := d.book.Of(x.Certificate.Agent, now)
		for _, c := range x.Body.Capabilities {
			if !f.Offers(c) {
				continue
			}
			r := newRow(x.Descriptor, c, claims)
			r.Latency, r.Uptime, r.Trust, r.Age = seen.Latency, seen.Uptime, seen.Trust, now.Sub(x.at)
			r.Reachability = d.cfg.Reach(x.Certificate.Peer)
			if f.Accepts(&r, claims) {
				out = append(out, r)
			}
		}
	}
	return out
}

func newRow(d *descriptor.Descriptor, c *descriptorpb.Capability, claims Claims) Row {
	return Row{
		Agent: d.Certificate.Agent, Address: d.Certificate.Address, Peer: d.Certificate.Peer,
		Name: c.Name, Version: c.Version, Load: d.Body.Load, Region: claims.Region,
		KeyVersion: d.Certificate.Version, Capability: c, Descriptor: d,
	}
}

// ownRows returns this agent's own capabilities that fit f, save private ones.
// Of itself a node knows all there is: no latency, full uptime and trust.
func (d *Directory) ownRows(f *query.Filter) []Row {
	body := descriptor.View(d.self.body(), func(string) bool { return true })
	own := &descriptor.Descriptor{Certificate: d.cfg.Certificate, Body: body}
	claims := d.cfg.Believe(own)
	var out []Row
	for _, c := range body.Capabilities {
		r := newRow(own, c, claims)
		r.Uptime, r.Trust, r.Reachability = 100, 1, "direct"
		if f.Offers(c) && f.Accepts(&r, claims) {
			out = append(out, r)
		}
	}
	return out
}
