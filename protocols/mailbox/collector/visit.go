package collector

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox"
	"openmesh/protocols/wire"
)

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

// errInHand is why a letter is put back that takes long.
var errInHand = errors.New("it is still in hand")

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
