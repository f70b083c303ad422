package outbox

import (
	"fmt"
	"time"

	"openmesh/protocols/session/delivery"
)

// effects are what the surroundings are asked to do once the lock is released.
type effects struct {
	commits []commit
	events  []event
}

type commit struct {
	change  delivery.Change
	durable bool
	done    func(error)
}

type event struct {
	message *delivery.Message
	outcome delivery.Outcome
}

func (fx *effects) run(cfg *Config) {
	for _, c := range fx.commits {
		cfg.Store.Commit(c.change, c.durable, c.done)
	}
	for _, e := range fx.events {
		cfg.Observe(e.message, e.outcome)
	}
}

// settle gives p its outcome, with mu held. That it failed or expired is told
// when it is on disk: it must not come back to life.
func (o *Outbox) settle(p *pending, out delivery.Outcome, now time.Time, fx *effects) {
	w := o.work
	w.leave(p)
	out.Attempts, out.At = p.attempt, now
	p.outcome = out
	if !o.cfg.Terms.Durable() {
		p.state, p.past = gone, true
		w.unindex(p)
		if out.Status != delivery.Delivered {
			w.giveUp(p)
		}
		o.tell(p, fx)
		return
	}
	p.state = settling
	if out.Status == delivery.Delivered {
		// After a crash it may be transmitted again, and the receiver will say again
		// that it is delivered: but it may have forgotten the answer.
		p.past = len(out.Response) == 0
		o.tell(p, fx)
	}
	o.save(p, fx)
	o.limitOutcomes(now, fx)
}

// save stores the outcome of p.
func (o *Outbox) save(p *pending, fx *effects) {
	fx.commits = append(fx.commits, commit{
		delivery.Settle{Session: o.cfg.Session, Sequence: p.sequence, Outcome: p.outcome},
		p.outcome.Status != delivery.Delivered,
		func(err error) { o.settled(p, err) },
	})
}

// saveAgain stores the outcomes that could not be stored.
func (o *Outbox) saveAgain(fx *effects) {
	for _, p := range o.work.unstored {
		p.err = nil
		o.save(p, fx)
	}
	o.work.unstored = nil
}

// settled is called when the outcome of p is stored, or could not be.
func (o *Outbox) settled(p *pending, err error) {
	var fx effects
	o.mu.Lock()
	w := o.work
	if err != nil {
		p.err = fmt.Errorf("store the outcome of message %d: %w", p.sequence, err)
		w.unstored = append(w.unstored, p)
		w.wake(p.sequence)
	} else {
		p.state, p.past = gone, true
		w.unindex(p)
		if !p.told {
			w.giveUp(p)
			o.tell(p, &fx)
		}
	}
	o.mu.Unlock()
	fx.run(&o.cfg)
}

// tell makes the outcome of p known.
func (o *Outbox) tell(p *pending, fx *effects) {
	if o.cfg.Observe != nil {
		m := *p.message
		m.Body = nil
		fx.events = append(fx.events, event{&m, p.outcome})
	}
	p.message = nil
	o.work.remember(p)
}

// maxOutcomes bounds the outcomes of a session that the store keeps; every
// maxMark-th has its time noted.
const (
	maxOutcomes = 16_384
	maxMark     = 1024
)

// limitOutcomes has the store forget the oldest outcomes when there are too many,
// and notes that there are some that will be too old.
func (o *Outbox) limitOutcomes(now time.Time, fx *effects) {
	o.lastSettled = now.Unix()
	if o.pruneAt == 0 {
		o.pruneAt = now.Add(2 * o.cfg.Terms.TTL).Unix()
	}
	w := o.work
	if w.settled++; w.settled%maxMark != 0 {
		return
	}
	w.marks = append(w.marks, now)
	if len(w.marks) > maxOutcomes/maxMark {
		fx.commits = append(fx.commits, commit{change: delivery.PruneOutbox{Session: o.cfg.Session, Before: w.marks[0]}})
		w.marks = w.marks[1:]
	}
}

// pruneOld has the store forget outcomes older than the TTL, now and then.
func (o *Outbox) pruneOld(now time.Time, fx *effects) {
	if o.pruneAt == 0 || now.Unix() < o.pruneAt {
		return
	}
	ttl := o.cfg.Terms.TTL
	fx.commits = append(fx.commits, commit{change: delivery.PruneOutbox{Session: o.cfg.Session, Before: now.Add(-ttl)}})
	o.pruneAt = 0
	if o.lastSettled >= now.Add(-ttl).Unix() {
		o.pruneAt = now.Add(max(ttl, time.Second)).Unix()
	}
}
