package directory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"

	"openmesh/overlay/directory/cache"
	"openmesh/protocols/descriptor"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// Target names an agent: by id, or by address if Agent is empty.
type Target struct {
	Agent   identity.AgentID
	Address identity.Address
}

// ParseTarget reads an agent id or an address. The error is
// wire.InvalidArgument.
func ParseTarget(s string) (Target, error) {
	if strings.HasPrefix(s, "did:") {
		id, err := identity.ParseAgentID(s)
		if err != nil {
			return Target{}, wire.Errorf(wire.InvalidArgument, "target: %w", err).WithHint("an agent id is did:key:z6Mk…")
		}
		return Target{Agent: id}, nil
	}
	a, err := identity.ParseAddress(s)
	if err != nil {
		return Target{}, wire.Errorf(wire.InvalidArgument, "target: %w", err).WithHint("an address is R:XXXX.XXXX.XXXX, an agent id did:key:z6Mk…")
	}
	return Target{Address: a}, nil
}

// String returns the id or the address.
func (t Target) String() string {
	if t.Agent != "" {
		return string(t.Agent)
	}
	return t.Address.String()
}

func (t Target) key() string {
	if t.Agent != "" {
		return descriptor.AgentKey(t.Agent)
	}
	return descriptor.AddressKey(t.Address)
}

func (t Target) names(c *identity.Certificate) bool {
	return t.Agent == c.Agent || t.Agent == "" && t.Address == c.Address
}

// Agent is an agent and where it is.
type Agent struct {
	ID           identity.AgentID
	Address      identity.Address
	Certificate  *identity.Certificate // verified
	Peer         peer.AddrInfo
	Mailboxes    []string
	Record       *descriptor.Record // nil if known by other means than its record
	Reachability string             // direct, holepunched, relayed or mailbox
}

// Resolve finds out where an agent is: from what is known, from who is
// connected, or from its record in the directory. Errors: wire.NotFound;
// wire.AmbiguousAddress, which names both agents; wire.Unreachable if no
// directory server is; or that ctx ended.
func (d *Directory) Resolve(ctx context.Context, t Target) (Agent, error) {
	start := time.Now()
	a, outcome, err := d.resolve(ctx, t)
	d.observe("resolve", start, outcome, err)
	if err != nil {
		return Agent{}, err
	}
	a.Reachability = d.cfg.Reach(a.Peer.ID)
	d.use(a)
	return a, nil
}

func (d *Directory) resolve(ctx context.Context, t Target) (a Agent, outcome string, err error) {
	if t.Agent == "" && t.Address.Realm != d.cfg.Verifier.Realm() {
		return a, "", wire.Errorf(wire.NotFound, "resolve %s: this node is in realm %d", t, d.cfg.Verifier.Realm()).
			WithHint("realms never mix: ask a node of realm %d", t.Address.Realm)
	}
	if t.names(d.cfg.Certificate) {
		return d.ownAgent(), "cached", nil
	}
	if v, _, ok := d.resolved.Get(t.key()); ok && d.current(v) {
		a, err = d.pick(v)
		return a, "cached", err
	}
	if a, ok := d.connected(t); ok && t.Agent != "" {
		return a, "cached", nil
	}
	v, err := cache.Do(ctx, d.flights, "resolve "+t.String(), lookupTime, func(ctx context.Context) (descriptor.Value, error) {
		return d.search(ctx, t)
	})
	if err != nil {
		// An address may be ambiguous, so the directory is asked first; failing
		// that, someone who is connected and proves it will do.
		if a, ok := d.connected(t); ok && wire.CodeOf(err) != wire.AmbiguousAddress {
			return a, "cached", nil
		}
		return a, "", err
	}
	a, err = d.pick(v)
	return a, "ok", err
}

func (d *Directory) ownAgent() Agent {
	c := d.cfg.Certificate
	return Agent{ID: c.Agent, Address: c.Address, Certificate: c,
		Peer:      peer.AddrInfo{ID: c.Peer, Addrs: d.cfg.Host.Addrs()},
		Mailboxes: d.self.body().Mailboxes}
}

// current reports whether none of v's keys has been superseded or has expired.
func (d *Directory) current(v descriptor.Value) bool {
	return !slices.ContainsFunc(v, func(r *descriptor.Record) bool {
		return d.cfg.Verifier.Current(r.Certificate) != nil || !time.Now().Before(r.Expires())
	})
}

// pick returns the one agent in v, or that there are two.
func (d *Directory) pick(v descriptor.Value) (Agent, error) {
	if err := v.Ambiguous(); err != nil {
		return Agent{}, err
	}
	r := v[0]
	d.cfg.Host.Peerstore().AddAddrs(r.Certificate.Peer, r.Addrs, peerstore.TempAddrTTL)
	a := Agent{ID: r.Certificate.Agent, Address: r.Certificate.Address, Certificate: r.Certificate,
		Peer: r.AddrInfo(), Mailboxes: r.Body.Mailboxes, Record: r}
	d.agents.Put(a.ID, a, d.cfg.RegistrationTTL)
	return a, nil
}

// connected returns the agent that t names if a peer is connected that has
// proved to be it with a key that is still good.
func (d *Directory) connected(t Target) (Agent, bool) {
	for _, a := range d.agents.Values() {
		c := a.Certificate
		if t.names(c) && d.cfg.Host.Network().Connectedness(c.Peer) == network.Connected &&
			c.Valid(time.Now()) == nil && d.cfg.Verifier.Current(c) == nil {
			return a, true
		}
	}
	return Agent{}, false
}

// search asks the index: a few times if it has no record of t, and for as long
// as ctx lets it if no server is in reach.
func (d *Directory) search(ctx context.Context, t Target) (descriptor.Value, error) {
	retry := newRetry()
	for try := 1; ; try++ {
		raw, err := d.index.Search(ctx, t.key())
		if err == nil {
			return d.checked(t, raw)
		}
		if errors.Is(err, wire.NotFound) && try >= tries {
			return nil, wire.Errorf(wire.NotFound, "resolve %s: no agent has announced it", t).
				WithHint("check the name, and that the agent has run within the last %v", d.cfg.RegistrationTTL)
		}
		if pause(ctx, retry.NextBackOff()) != nil {
			return nil, fmt.Errorf("resolve %s: %w", t, err)
		}
	}
}

func (d *Directory) checked(t Target, raw []byte) (descriptor.Value, error) {
	v, err := descriptor.VerifyValue(t.key(), raw, d.cfg.Verifier, time.Now())
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", t, err)
	}
	d.resolved.Put(t.key(), v, d.cfg.CacheTTL)
	return v, nil
}

// Descriptor returns a's descriptor, as fresh as the cache's lifetime. Errors:
// wire.Unreachable, and those of [descriptor.Verify].
func (d *Directory) Descriptor(ctx context.Context, a Agent) (*descriptor.Descriptor, error) {
	if a.Peer.ID == d.cfg.Host.ID() {
		body := descriptor.View(d.self.body(), func(string) bool { return true })
		return descriptor.Seal(d.cfg.Key, d.cfg.Certificate, body)
	}
	desc, _, err := d.descriptor(ctx, a.Peer)
	if err != nil {
		return nil, fmt.Errorf("descriptor of %s: %w", a.ID, err)
	}
	if desc.Certificate.Agent != a.ID {
		return nil, wire.Errorf(wire.Unauthenticated, "descriptor of %s: the peer is agent %s", a.ID, desc.Certificate.Agent)
	}
	d.use(a)
	return desc, nil
}

// agentOf returns the agent that desc is of, where it is connected now.
func (d *Directory) agentOf(desc *descriptor.Descriptor) Agent {
	c := desc.Certificate
	return Agent{ID: c.Agent, Address: c.Address, Certificate: c,
		Peer: d.cfg.Host.Peerstore().PeerInfo(c.Peer), Mailboxes: desc.Body.Mailboxes}
}
