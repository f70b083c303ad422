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

// errInHand is why a letter is put back that takes long.
var errInHand = errors.New("it is still in hand")

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

// visit is one Collect.
type visit struct {
	*Collector
	letters *mailbox.Collecting
	count   int
	end     context.CancelFunc // ends it without error

	mu    sync.Mutex
	again *time.Timer // set when a letter was put back: calls end
}

// run collects until visiting ends, which is no error. A delivery that is under
// way then goes on, unless ctx has ended too.
func (v *visit) run(ctx, visiting context.Context) error {
	defer v.letters.Close()
	defer context.AfterFunc(visiting, func() { v.letters.Close() })()
	defer func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if v.again != nil {
			v.again.Stop()
		}
	}()
	for {
		l, cursor, err := v.letters.Next()
		if err == nil {
			v.count++
			err = v.settle(ctx, l, cursor)
		}
		if visiting.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// settle has a letter delivered, and tells the relay once it is known what became of
// it.
func (v *visit) settle(ctx context.Context, l *mailbox.Letter, cursor uint64) error {
	h, wait, err := v.take(ctx, l)
	if err != nil || h == nil {
		return v.tell(cursor, wait, err)
	}
	select {
	case <-h.over:
		wait, err := v.conclude(ctx, h)
		return v.tell(cursor, wait, err)
	default:
	}
	v.waiting.Go(func() {
		select {
		case <-h.over:
		case <-time.After(inHandMost):
		case <-ctx.Done():
		}
		wait, err := v.conclude(ctx, h)
		v.tell(cursor, wait, err) // if that fails, the letter comes again
	})
	return nil
}

// tell tells the relay that a letter is done with, if wait is 0, or to be tried again
// after that time.
func (v *visit) tell(cursor uint64, wait time.Duration, err error) error {
	if err != nil {
		return err
	}
	if wait == 0 {
		return v.letters.Done(cursor)
	}
	v.mu.Lock()
	if v.again == nil {
		v.again = time.AfterFunc(wait, v.end)
	}
	v.mu.Unlock()
	return v.letters.Later(cursor)
}

// inHand is a letter that was given to Deliver. Copies that come from other relays
// meanwhile wait for the same end.
type inHand struct {
	letter *mailbox.Letter
	from   identity.AgentID
	key    [16]byte
	over   chan struct{} // closed once err is known
	err    error

	// Used by whoever has the turn.
	concluded bool
	wait      time.Duration // then: 0, or after how long to try again
}

// take delivers a letter, unless it was before. It returns the letter in hand, or nil
// and 0 if it is done with, or after how long to try it again. The error is that of
// ctx.
func (c *Collector) take(ctx context.Context, l *mailbox.Letter) (h *inHand, wait time.Duration, err error) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
	from, payload, err := c.cfg.Open(l)
	if wire.CodeOf(err) == wire.Internal && err != nil {
		c.cfg.Log.Warn("a letter cannot be opened now; trying again", zap.Stringer("letter", l.ID), zap.Error(err))
		return nil, holdMost, nil
	}
	if err != nil { // not to be remembered: another relay may have a better copy
		c.cfg.Log.Info("a letter that cannot be opened was dropped", zap.Stringer("letter", l.ID), zap.Error(err))
		return nil, 0, nil
	}
	key, now := letterKey(from.Agent, l.ID), time.Now()
	if c.delivered.has(key) {
		return nil, 0, nil
	}
	if h := c.inHand[key]; h != nil {
		return h, 0, nil
	}
	if h := c.holds[from.Agent]; now.Before(h.until) {
		return nil, h.until.Sub(now), nil
	}
	h = &inHand{letter: &mailbox.Letter{ID: l.ID, Expires: l.Expires}, from: from.Agent, key: key, over: make(chan struct{})}
	c.inHand[key] = h
	var once sync.Once
	c.cfg.Deliver(ctx, from, payload, l.ID, func(err error) {
		once.Do(func() {
			h.err = err
			close(h.over)
		})
	})
	return h, 0, nil
}

// conclude finds out what to do with a letter, once for all its copies: it is over, or
// was in hand for too long. It returns 0 if the letter is done with, or after how long
// to try it again. The error is that of ctx.
func (c *Collector) conclude(ctx context.Context, h *inHand) (wait time.Duration, err error) {
	c.turn <- struct{}{} // Deliver returns soon
	defer func() { <-c.turn }()
	if c.inHand[h.key] == h {
		delete(c.inHand, h.key)
	}
	if h.concluded {
		return h.wait, nil
	}
	select {
	case <-h.over:
		err = h.err
	default:
		err = errInHand
	}
	permanent := (*Permanent)(nil)
	fields := []zap.Field{zap.Stringer("letter", h.letter.ID), zap.String("from", string(h.from)), zap.Error(err)}
	switch {
	case ctx.Err() != nil && err != nil:
		return 0, ctx.Err()
	case errors.As(err, &permanent):
		c.cfg.Log.Info("a letter was refused for good", fields...)
	case err != nil:
		h.concluded, h.wait = true, c.hold(h.from)
		c.cfg.Log.Warn("a letter cannot be delivered now; trying again", append(fields, zap.Duration("after", h.wait))...)
		return h.wait, nil
	}
	h.concluded = true
	delete(c.holds, h.from)
	if !c.delivered.has(h.key) { // another copy may have come meanwhile
		c.delivered.add(h.key, h.letter.Expires, time.Now())
	}
	return 0, nil
}

// hold keeps a sender's letters waiting, and returns for how long. Those that were in
// hand when a hold began do not make it longer.
func (c *Collector) hold(sender identity.AgentID) time.Duration {
	if left := time.Until(c.holds[sender].until); left > 0 {
		return left
	}
	after := min(max(2*c.holds[sender].after, holdFirst), holdMost)
	if _, ok := c.holds[sender]; !ok && len(c.holds) >= maxHeld {
		for a := range c.holds { // any: it starts again with holdFirst
			delete(c.holds, a)
			break
		}
	}
	c.holds[sender] = hold{time.Now().Add(after), after}
	return after
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
