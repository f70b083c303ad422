package directory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/event"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/descriptor"
	"openmesh/protocols/descriptor/descriptorpb"
)

// How announcements go out.
const (
	debounce       = 100 * time.Millisecond // changes this close go out together
	atOnce         = 8                      // keys announced at a time
	announceTime   = 30 * time.Second       // for one of them
	minAnnounceGap = 500 * time.Millisecond // between attempts, doubling
	maxAnnounceGap = 30 * time.Second
	withdrawTime   = 2 * time.Second
)

// Profile is what an agent says of itself, apart from what the directory knows
// by itself: identity, addresses, load, uptime, sequence and lifetime.
type Profile struct {
	Capabilities      []*descriptorpb.Capability
	Region            string
	Jurisdictions     []string
	Domain            string
	DomainCertificate []byte
	Mailboxes         []string
	AgentVersion      string // program and version, such as openmesh/0.1.0
}

// self is this agent's own entry. Safe for concurrent use.
type self struct {
	cfg     *Config
	started time.Time
	kick    chan struct{} // there is something to announce

	mu       sync.Mutex
	profile  *descriptorpb.Descriptor
	sequence uint64
	keys     map[cid.Cid]bool      // to provide
	until    map[cid.Cid]time.Time // what has been provided
	record   uint64                // sequence of the record that was put
	expires  time.Time             // of that record
}

func newSelf(cfg *Config) *self {
	s := &self{cfg: cfg, started: time.Now(), kick: make(chan struct{}, 1), profile: new(descriptorpb.Descriptor), until: make(map[cid.Cid]time.Time)}
	s.advance()
	return s
}

// set replaces the profile.
func (s *self) set(p Profile) error {
	body := &descriptorpb.Descriptor{
		Region: p.Region, Jurisdictions: p.Jurisdictions, Domain: p.Domain, DomainCertificate: p.DomainCertificate,
		Mailboxes: p.Mailboxes, AgentVersion: p.AgentVersion, Capabilities: p.Capabilities,
	}
	body = proto.CloneOf(body) // what the caller does to p later is not announced
	keys, err := keysOf(body.Capabilities)
	if err != nil {
		return err
	}
	if _, err := descriptor.Seal(s.cfg.Key, s.cfg.Certificate, body); err != nil {
		return err
	}
	s.mu.Lock()
	s.profile, s.keys = body, keys
	s.advance()
	s.mu.Unlock()
	s.poke()
	return nil
}

// advance makes what follows newer than all before it, also than what a former
// run of the node announced.
func (s *self) advance() { s.sequence = max(s.sequence+1, uint64(time.Now().UnixMilli())) }

func keysOf(cs []*descriptorpb.Capability) (map[cid.Cid]bool, error) {
	all := make(map[cid.Cid]bool)
	for _, c := range cs {
		keys, err := capabilityKeys(c)
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			all[k] = true
		}
	}
	return all, nil
}

func capabilityKeys(c *descriptorpb.Capability) ([]cid.Cid, error) {
	v, err := descriptor.ParseVisibility(c.Visibility)
	if err != nil {
		return nil, err
	}
	return descriptor.Keys(c.Name, c.Version, v)
}

// renew makes everything be announced again: the servers in reach may be new
// ones, or this node's addresses.
func (s *self) renew() {
	s.mu.Lock()
	for k := range s.until {
		s.until[k] = time.Time{} // due, but not forgotten: it is to be withdrawn one day
	}
	s.advance()
	s.mu.Unlock()
	s.poke()
}

func (s *self) poke() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// body returns the whole descriptor as of now, for signing.
func (s *self) body() *descriptorpb.Descriptor {
	s.mu.Lock()
	b := proto.CloneOf(s.profile)
	b.Sequence = s.sequence
	s.mu.Unlock()
	now := time.Now()
	b.Load = min(max(s.cfg.Load(), 0), 1)
	b.Uptime = uint64(now.Sub(s.started) / time.Second)
	b.Issued, b.Expires = now.Unix(), now.Add(s.cfg.RegistrationTTL).Unix()
	return b
}

// sealRecord returns the agent record as of now.
func (s *self) sealRecord() (*descriptor.Record, error) {
	s.mu.Lock()
	body := &descriptorpb.AgentRecord{Mailboxes: s.profile.Mailboxes, Sequence: s.sequence}
	s.mu.Unlock()
	for _, a := range s.cfg.Host.Addrs() {
		body.Addrs = append(body.Addrs, a.Bytes())
	}
	now := time.Now()
	body.Issued, body.Expires = now.Unix(), now.Add(s.cfg.RegistrationTTL).Unix()
	return descriptor.SealRecord(s.cfg.Key, s.cfg.Certificate, body)
}

// due returns what is to be provided and what withdrawn at now.
func (s *self) due(now time.Time) (provide, withdraw []cid.Cid) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.keys {
		if s.old(s.until[k], now) {
			provide = append(provide, k)
		}
	}
	for k := range s.until {
		if !s.keys[k] {
			withdraw = append(withdraw, k)
		}
	}
	return provide, withdraw
}

// old reports whether a registration that lasts until t is to be renewed: half
// of its life is over, or nearly so.
func (s *self) old(t, now time.Time) bool { return t.Sub(now) < s.cfg.RegistrationTTL*11/20 }

func (s *self) recordDue(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.record != s.sequence || s.old(s.expires, now)
}

func (s *self) provided(k cid.Cid, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.until[k] = at.Add(s.cfg.RegistrationTTL)
}

func (s *self) announced() []cid.Cid {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.until))
}

// withdrawn forgets that keys were provided.
func (s *self) withdrawn(keys []cid.Cid) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range keys {
		delete(s.until, k)
	}
}

func (s *self) recorded(r *descriptor.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.record, s.expires = r.Body.Sequence, r.Expires()
}

// registered returns until when each capability is provided under all its keys.
func (s *self) registered() map[string]time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]time.Time)
	now := time.Now()
	for _, c := range s.profile.Capabilities {
		keys, err := capabilityKeys(c)
		if err != nil || len(keys) == 0 {
			continue // private: registered nowhere
		}
		first := slices.MinFunc(keys, func(a, b cid.Cid) int { return s.until[a].Compare(s.until[b]) })
		if t := s.until[first]; t.After(now) {
			out[c.Name+"@"+c.Version] = t
		}
	}
	return out
}

// announce keeps the index up to date until ctx ends, then withdraws.
func (d *Directory) announce(ctx context.Context) error {
	sub, err := d.cfg.Host.EventBus().Subscribe(new(event.EvtLocalAddressesUpdated))
	if err != nil {
		return fmt.Errorf("watch own addresses: %w", err)
	}
	defer sub.Close()
	retry := &backoff.ExponentialBackOff{InitialInterval: minAnnounceGap, Multiplier: 2, RandomizationFactor: 0.5, MaxInterval: maxAnnounceGap}
	due := time.NewTimer(0)
	defer due.Stop()
	for {
		select {
		case <-ctx.Done():
			d.withdraw(context.WithoutCancel(ctx))
			return nil
		case <-sub.Out():
			d.self.renew()
			continue
		case <-d.self.kick:
			due.Reset(debounce)
			continue
		case <-due.C:
		}
		start := time.Now()
		err := d.announceOnce(ctx)
		d.observe("announce", start, "ok", err)
		next := time.Duration(float64(d.cfg.RegistrationTTL) * (0.45 + 0.05*rand.Float64()))
		if err == nil {
			retry.Reset()
		} else {
			next = retry.NextBackOff()
			d.cfg.Log.Info("announcement is not complete", zap.Error(err), zap.Duration("retry", next))
		}
		due.Reset(next)
	}
}

// announceOnce announces what is due. What succeeds is remembered, so that a
// retry does the rest.
func (d *Directory) announceOnce(ctx context.Context) error {
	provide, withdraw := d.self.due(time.Now())
	var errs []error
	if len(withdraw) > 0 {
		ctx, cancel := context.WithTimeout(ctx, announceTime)
		defer cancel()
		if err := d.index.Withdraw(ctx, withdraw); err != nil {
			d.cfg.Log.Info("withdrawal is not complete; the rest expires", zap.Error(err))
		}
		d.self.withdrawn(withdraw)
	}
	if d.self.recordDue(time.Now()) {
		errs = append(errs, d.putRecord(ctx))
	}
	var g errgroup.Group
	g.SetLimit(atOnce)
	for _, k := range provide {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, announceTime)
			defer cancel()
			at := time.Now()
			if err := d.index.Provide(ctx, k); err != nil {
				return err
			}
			d.self.provided(k, at)
			return nil
		})
	}
	return errors.Join(append(errs, g.Wait())...)
}

// putRecord puts the agent record under address and agent id.
func (d *Directory) putRecord(ctx context.Context) error {
	r, err := d.self.sealRecord()
	if err != nil {
		return err
	}
	value := descriptor.Value{r}.Marshal()
	ctx, cancel := context.WithTimeout(ctx, announceTime)
	defer cancel()
	var g errgroup.Group
	g.Go(func() error { return d.index.Put(ctx, descriptor.AddressKey(r.Certificate.Address), value) })
	g.Go(func() error { return d.index.Put(ctx, descriptor.AgentKey(r.Certificate.Agent), value) })
	if err := g.Wait(); err != nil {
		return err
	}
	d.self.recorded(r)
	return nil
}

// withdraw takes back all that was announced, save the agent record: that says
// where mail for the agent is taken.
func (d *Directory) withdraw(ctx context.Context) {
	keys := d.self.announced()
	if len(keys) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, withdrawTime)
	defer cancel()
	if err := d.index.Withdraw(ctx, keys); err != nil {
		d.cfg.Log.Info("withdrawal is not complete; the rest expires", zap.Error(err))
	}
}
