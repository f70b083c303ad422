package outbox

import (
	"slices"
	"time"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/wire"
)

// pump transmits what may be. One goroutine at a time does so, for all, and
// without the lock: so the order is kept, and Transmit may call back.
func (o *Outbox) pump(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := o.work
	if w == nil || w.pumping {
		return
	}
	w.pumping = true
	for !w.stalled && o.ended == 0 {
		if p := w.pick(o.cfg.Terms); p != nil {
			o.launch(p, now)
		} else if !o.load() && !o.tellFloor() {
			break
		}
	}
	w.pumping = false
}

// tellFloor tells the floor by itself, if the peer should learn it, and reports
// whether it did.
func (o *Outbox) tellFloor() bool {
	w := o.work
	floor := w.lowest()
	wanted := w.announce || w.quit >= w.floor
	w.announce = false
	if !wanted || floor <= w.floor {
		return false
	}
	o.mu.Unlock()
	ok := o.cfg.Transmit(&delivery.Message{}, floor)
	o.mu.Lock()
	if ok {
		w.floor = max(w.floor, floor)
	} else {
		w.stalled, w.announce = true, true
	}
	return ok
}

// launch transmits p, which was picked.
func (o *Outbox) launch(p *pending, now time.Time) {
	w, before := o.work, p.state
	p.state = flying
	if !now.Before(p.message.Expires) {
		o.withhold(p, delivery.Outcome{Status: delivery.Expired}, now)
		return
	}
	if most := o.cfg.Terms.MaxBody; most > 0 && p.size > int(most) {
		o.withhold(p, delivery.Outcome{Status: delivery.Failed, Code: wire.TooLarge}, now)
		return
	}
	p.attempt++
	p.silent++
	p.wake = now.Add(o.cfg.Terms.Patience(p.silent))
	w.soon(p.wake)
	attempt, floor, m := p.attempt, w.lowest(), p.message
	if m.Attempt != attempt || p.doubt {
		c := *m
		c.Attempt, c.Redelivered = attempt, p.doubt
		m = &c
	}
	o.mu.Unlock()
	ok := o.cfg.Transmit(m, floor)
	o.mu.Lock()
	if ok {
		w.floor = max(w.floor, floor)
		return
	}
	w.stalled = true
	if p.state != flying || p.attempt != attempt {
		return // settled meanwhile
	}
	p.attempt--
	p.silent--
	p.state = before
	if before == due {
		w.again = append([]*pending{p}, w.again...)
		return
	}
	if !o.cfg.Terms.Durable() {
		p.wake = p.message.Accepted.Add(o.cfg.Terms.AckTimeout)
	}
	w.window--
	w.windowBytes -= p.size
	w.fresh = append([]*pending{p}, w.fresh...)
	w.freshBytes += p.size
}

// withhold settles p, which is not to be transmitted though its turn has come.
func (o *Outbox) withhold(p *pending, out delivery.Outcome, now time.Time) {
	var fx effects
	o.settle(p, out, now, &fx)
	o.mu.Unlock()
	fx.run(&o.cfg)
	o.mu.Lock()
}

// Ack takes in what the receiver says about messages.
func (o *Outbox) Ack(a delivery.Ack, now time.Time) {
	var fx effects
	o.mu.Lock()
	if o.work == nil || o.ended != 0 {
		o.mu.Unlock()
		return
	}
	delivered := func(p *pending) {
		if p.open() {
			o.settle(p, delivery.Outcome{Status: delivery.Delivered}, now, &fx)
		}
	}
	for _, r := range a.Delivered {
		o.work.each(r.From, r.To, delivered)
	}
	for _, r := range a.Responses {
		if p := o.work.find(r.Sequence); p != nil && p.open() {
			o.settle(p, delivery.Outcome{Status: delivery.Delivered, Encoding: r.Encoding, Response: r.Body}, now, &fx)
		}
	}
	for _, f := range a.Failed {
		if p := o.work.find(f.Sequence); p != nil {
			o.refused(p, f, now, &fx)
		}
	}
	for _, r := range a.Working {
		o.work.each(r.From, r.To, func(p *pending) {
			if p.state == flying {
				p.state, p.silent = inHand, 0
			}
		})
	}
	o.mu.Unlock()
	fx.run(&o.cfg)
	o.pump(now)
}

// refused takes in that a transmission of p failed. A refusal without effect says
// nothing of later transmissions; any other is what became of the message.
func (o *Outbox) refused(p *pending, f delivery.Failure, now time.Time, fx *effects) {
	code := f.Code
	if !code.Known() {
		code = wire.Internal
	}
	again := code.Retry() && o.cfg.Terms.Durable()
	if !p.open() || again && (f.Attempt != p.attempt || !p.inWindow() || p.state == resting) {
		return
	}
	if !again || p.refusals >= o.cfg.Terms.Retry.Max {
		o.settle(p, delivery.Outcome{Status: delivery.Failed, Code: code, Pointers: f.Pointers}, now, fx)
		return
	}
	random := 0.5
	if o.cfg.Random != nil {
		random = o.cfg.Random()
	}
	p.wake = now.Add(o.cfg.Terms.Retry.After(p.refusals, random))
	p.state, p.silent = resting, 0
	p.refusals++
	o.work.soon(p.wake)
}

// Due does what is due at now: messages expire, go again, or fail for want of an
// answer. It returns when to call it next at the latest, zero if nothing is
// known to come; the session may call it at any time.
func (o *Outbox) Due(now time.Time) time.Time {
	var fx effects
	o.mu.Lock()
	if o.ended != 0 {
		o.mu.Unlock()
		return time.Time{}
	}
	o.pruneOld(now, &fx)
	if w := o.work; w != nil {
		if !w.next.IsZero() && !now.Before(w.next) {
			o.scan(now, &fx)
		}
		o.saveAgain(&fx)
		for len(w.recentOrder) > 0 && now.Sub(w.recentOrder[0].at) >= recentFor {
			w.forgetRecent()
		}
		w.stalled = false
		w.announce = w.announce || w.window == 0 && len(w.fresh) == 0
	}
	o.mu.Unlock()
	fx.run(&o.cfg)
	o.pump(now)
	return o.rest()
}

// rest drops what an idle outbox does not need, and returns when it is due.
func (o *Outbox) rest() time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	w, next := o.work, time.Time{}
	if w != nil {
		w.lowest()
		next = w.next
		if len(w.recentOrder) > 0 {
			next = sooner(next, w.recentOrder[0].at.Add(recentFor))
		}
		if w.idle() {
			o.last, o.work, next = w.high, nil, time.Time{}
		}
	}
	if o.pruneAt != 0 {
		next = sooner(next, time.Unix(o.pruneAt, 0))
	}
	return next
}

func sooner(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// scan does what is due for each message, and finds when the next is.
func (o *Outbox) scan(now time.Time, fx *effects) {
	w := o.work
	w.next = time.Time{}
	for _, p := range w.line {
		if !p.open() {
			continue
		}
		if !now.Before(p.message.Expires) {
			o.settle(p, delivery.Outcome{Status: delivery.Expired}, now, fx)
			continue
		}
		w.soon(p.message.Expires)
		if p.wake.IsZero() || p.state == inHand || p.state == due || p.state == waiting && o.cfg.Terms.Durable() {
			continue
		}
		if now.Before(p.wake) {
			w.soon(p.wake)
		} else {
			o.overdue(p, now, fx)
		}
	}
	w.fresh = slices.DeleteFunc(w.fresh, func(p *pending) bool {
		if p.state != waiting {
			w.freshBytes -= p.size
		}
		return p.state != waiting
	})
}

// overdue acts on a message whose wake time has come. At most once, one that
// was never transmitted certainly had no effect, and any other may have.
func (o *Outbox) overdue(p *pending, now time.Time, fx *effects) {
	switch {
	case o.cfg.Terms.Durable():
		p.doubt = p.doubt || p.state == flying
		o.work.repeat(p)
	case p.state == waiting:
		o.settle(p, delivery.Outcome{Status: delivery.Failed, Code: wire.Unreachable}, now, fx)
	default:
		o.settle(p, delivery.Outcome{Status: delivery.Failed, Code: wire.DeadlineExceeded}, now, fx)
	}
}

// Resume is called when the session has been resumed, before the first frame
// that follows is taken in: either process may have lost its memory, and what was
// on its way. All that was transmitted and is not settled goes again, in order;
// at most once it fails with wire.SessionClosed.
func (o *Outbox) Resume(now time.Time) {
	var fx effects
	o.mu.Lock()
	if o.ended != 0 || o.last == 0 {
		o.mu.Unlock()
		return
	}
	w := o.need()
	w.floor, w.announce, w.stalled, w.again = 0, true, false, nil
	for _, p := range w.line {
		switch {
		case !p.inWindow():
		case !o.cfg.Terms.Durable():
			o.settle(p, delivery.Outcome{Status: delivery.Failed, Code: wire.SessionClosed}, now, &fx)
		default:
			p.doubt = true
			if p.state != resting {
				p.silent = 0
				w.repeat(p)
			}
		}
	}
	o.mu.Unlock()
	fx.run(&o.cfg)
	o.pump(now)
}
