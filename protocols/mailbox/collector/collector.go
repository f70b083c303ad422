// Package collector is the recipient's side of the mailbox protocol: it keeps a
// registration and a Collect at each of an agent's mailbox relays, and a Collect at
// those of before whose registration has not lapsed, and delivers every letter once.
//
//	relay 1 ── letters in order ──▶ ┐ open, seen before? ┌──▶ Deliver ── nil, or Permanent ──▶ done
//	relay 2 ── letters in order ──▶ ┘   one at a time    └──▶ done      └─ other errors ─────▶ later
//
// Deliver may tell later what became of a letter; until then the relays keep it, and
// the next ones are delivered. A letter that is to come later is put back at its
// relay, and asked for again with a new Collect once its sender's hold is over; so
// nothing is kept here, and the letters of others go on. Those of the sender that is
// on hold wait behind it. A letter whose end takes long is put back too, so that those
// behind it come: when it comes again, Deliver has it again.
//
// Relays are not trusted: what they send is opened before it counts, a letter
// that was delivered is not delivered again (see [Memory] for how long), and a
// copy that does not open is dropped at that relay only.
package collector

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox"
	"openmesh/protocols/wire"
)

const (
	maxRelays     = 16               // collected from
	relaysEvery   = time.Second      // look whether the relays are others
	saveEvery     = 5 * time.Second  // Memory
	leastLifetime = 20 * time.Second // of a registration
	firstRetry    = 500 * time.Millisecond
	lastRetry     = time.Minute      // of a relay
	holdFirst     = time.Second      // after a letter could not be delivered
	holdMost      = 5 * time.Minute  // doubling up to this
	inHandMost    = 10 * time.Second // until a letter is put back of which it is not known what became
	maxHeld       = 4096             // senders whose letters are on hold
)

// Permanent marks an error of Deliver: the letter will never be taken, so it is
// dropped at the relays.
type Permanent struct{ Err error }

func (p *Permanent) Error() string { return p.Err.Error() }
func (p *Permanent) Unwrap() error { return p.Err }

// Config is what a recipient needs.
type Config struct {
	Dialer      mailbox.Dialer
	Relays      func() []peer.AddrInfo       // where to have a mailbox; asked every few seconds
	Certificate func() *identity.Certificate // this agent's present one, of Dialer's host

	// Former returns relays where this agent has a registration that is not to be
	// renewed: letters may wait or still come there. Those of Relays among them do not
	// count. Of both together the first 16 are collected from. Nil: none.
	Former func() []peer.AddrInfo

	// Open is [mailbox.Open] with this agent's keys.
	Open func(*mailbox.Letter) (*identity.Certificate, []byte, error)

	// Deliver takes a letter, one at a time, and returns soon. done is told, once and
	// from any goroutine, what became of it. With nil the letter is deleted at its
	// relays, so it must be on disk or done with. After an error that is not
	// [Permanent] that sender's letters are on hold for a second, then two, and so on
	// up to 5 min. A letter of which nothing was told for 10 s comes again likewise.
	Deliver func(ctx context.Context, from *identity.Certificate, payload []byte, id mailbox.ID, done func(error))

	// Registered hears until when a relay has given this agent a mailbox; or why not:
	// wire.NotFound says that the relay has none for it any more. It must return soon;
	// nil: nobody does.
	Registered func(relay peer.ID, expires time.Time, err error)

	Memory   Memory        // nil: letters are remembered while Run lasts
	Lifetime time.Duration // of registrations; default mailbox.MaxLifetime
	Log      *zap.Logger
}

// Collector is the recipient's side. Use its Run once.
type Collector struct {
	cfg  Config
	turn chan struct{} // holds one while a letter is being delivered

	// Used by whoever has the turn.
	delivered delivered
	holds     map[identity.AgentID]hold
	inHand    map[[16]byte]*inHand

	waiting sync.WaitGroup // for what became of letters
}

// hold is a sender whose last letter could not be delivered.
type hold struct {
	until time.Time
	after time.Duration // that it took
}

// New returns a collector that is not yet collecting.
func New(cfg Config) *Collector {
	if cfg.Lifetime == 0 {
		cfg.Lifetime = mailbox.MaxLifetime
	}
	return &Collector{cfg: cfg, turn: make(chan struct{}, 1),
		delivered: delivered{expires: make(map[[16]byte]int64)}, holds: make(map[identity.AgentID]hold), inHand: make(map[[16]byte]*inHand)}
}

// Run collects until ctx ends.
func (c *Collector) Run(ctx context.Context) error {
	if c.cfg.Memory != nil {
		if err := c.delivered.load(ctx, c.cfg.Memory); err != nil {
			c.cfg.Log.Warn("which letters were delivered before is not known: some may come again", zap.Error(err))
		}
	}
	defer c.waiting.Wait()
	var loops sync.WaitGroup
	defer loops.Wait()
	loops.Go(func() { c.remember(ctx) })
	links := make(map[peer.ID]link)
	tick := time.NewTicker(relaysEvery)
	defer tick.Stop()
	for {
		relays := c.relays()
		for id, l := range links {
			if r, ok := find(relays, id); !ok || r.former != l.former {
				l.cancel()
				delete(links, id)
			}
		}
		for _, r := range relays {
			if _, ok := links[r.ID]; !ok {
				following, cancel := context.WithCancel(ctx)
				links[r.ID] = link{cancel, r.former}
				loops.Go(func() { c.follow(following, r) })
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// link is a relay that is followed.
type link struct {
	cancel context.CancelFunc
	former bool
}

// box is a relay to collect from.
type box struct {
	peer.AddrInfo
	former bool // it is not registered with again
}

func (c *Collector) relays() (all []box) {
	for _, r := range c.cfg.Relays() {
		all = append(all, box{r, false})
	}
	if c.cfg.Former != nil {
		for _, r := range c.cfg.Former() {
			if _, ok := find(all, r.ID); !ok {
				all = append(all, box{r, true})
			}
		}
	}
	return all[:min(len(all), maxRelays)]
}

func find(relays []box, id peer.ID) (box, bool) {
	i := slices.IndexFunc(relays, func(r box) bool { return r.ID == id })
	if i < 0 {
		return box{}, false
	}
	return relays[i], true
}

// follow keeps a Collect at one relay until ctx ends.
func (c *Collector) follow(ctx context.Context, relay box) {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = firstRetry, lastRetry
	var reg registration
	for ctx.Err() == nil {
		if r, ok := find(c.relays(), relay.ID); ok { // else its addresses have gone just now
			relay.Addrs = r.Addrs
		}
		letters, err := c.visit(ctx, relay, &reg)
		if letters > 0 || err == nil {
			wait.Reset()
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		c.cfg.Log.Debug("mailbox out of reach", zap.Stringer("relay", relay.ID), zap.Error(err))
		select {
		case <-time.After(wait.NextBackOff()):
		case <-ctx.Done():
		}
	}
}

// registration is what is known of one at a relay.
type registration struct {
	version uint32 // of the certificate; 0: none
	renew   time.Time
}

// register registers with a relay if that is due.
func (c *Collector) register(ctx context.Context, relay peer.AddrInfo, cert *identity.Certificate, reg *registration) error {
	now := time.Now()
	if cert.Version == reg.version && now.Before(reg.renew) {
		return nil
	}
	terms, err := mailbox.Register(ctx, c.cfg.Dialer, relay, cert, c.cfg.Lifetime)
	given := min(max(terms.Expires.Sub(now), leastLifetime), c.cfg.Lifetime) // whatever the relay says
	if ctx.Err() == nil {
		c.registered(relay.ID, now.Add(given), err)
	}
	if err == nil {
		*reg = registration{cert.Version, now.Add(given / 2)}
	}
	return err
}

func (c *Collector) registered(relay peer.ID, expires time.Time, err error) {
	if c.cfg.Registered == nil {
		return
	}
	if err != nil {
		expires = time.Time{}
	}
	c.cfg.Registered(relay, expires, err)
}

// visit registers if that is due, and collects until the registration has to be
// renewed or letters put back may be tried again: then without error. It returns
// how many letters came.
func (c *Collector) visit(ctx context.Context, relay box, reg *registration) (letters int, err error) {
	cert := c.cfg.Certificate()
	if !relay.former {
		if err := c.register(ctx, relay.AddrInfo, cert, reg); err != nil {
			return 0, err
		}
	}
	v := &visit{Collector: c}
	if v.letters, err = mailbox.Collect(ctx, c.cfg.Dialer, relay.AddrInfo, cert, 0); err != nil {
		return 0, err
	}
	until := reg.renew
	if relay.former {
		until = time.Now().Add(mailbox.MaxLifetime) // by then it has lapsed
	}
	visiting, end := context.WithDeadline(ctx, until)
	defer end()
	v.end = end
	err = v.run(ctx, visiting)
	if errors.Is(err, wire.NotFound) { // the relay has lost it, or it has lapsed
		*reg = registration{}
		c.registered(relay.ID, time.Time{}, err)
	}
	return v.count, err
}

// remember saves what was delivered, every few seconds and at the end.
func (c *Collector) remember(ctx context.Context) {
	if c.cfg.Memory == nil {
		return
	}
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		if err := c.save(context.WithoutCancel(ctx)); err != nil {
			c.cfg.Log.Warn("which letters were delivered is not saved; trying again", zap.Error(err))
		}
	}
}

func (c *Collector) save(ctx context.Context) error {
	c.turn <- struct{}{} // Deliver returns soon after ctx ends
	document, dirty := c.delivered.marshal(), c.delivered.dirty
	c.delivered.dirty = false
	<-c.turn
	if !dirty {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, saveEvery)
	defer cancel()
	err := c.cfg.Memory.Save(ctx, document)
	if err != nil {
		c.turn <- struct{}{}
		c.delivered.dirty = true
		<-c.turn
	}
	return err
}
