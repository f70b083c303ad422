package reserve

import (
	"context"
	"sync"
	"time"
)

// trial is an attempt to reach a relay, for a slot that is missing.
type trial struct {
	configured bool
	late       bool // those found need not wait for it any more
	cancel     context.CancelFunc
}

// settle tries relays for the reservations that are missing, and lets go of those not
// needed. It waits for none: another one may be lost meanwhile.
func (k *Keeper) settle(ctx context.Context, all *sync.WaitGroup) {
	if !k.cfg.Needed() {
		k.mu.Lock()
		defer k.mu.Unlock()
		for _, s := range k.slots {
			s.cancel()
		}
		k.endTrials()
		return
	}
	if !k.missing() {
		return
	}
	k.tryEach(ctx, all, k.configured(), true)
	if k.mayAsk() {
		all.Go(func() {
			found := k.found(ctx)
			k.mu.Lock()
			k.asking = false
			k.mu.Unlock()
			k.tryEach(ctx, all, found, false)
		})
	}
}

func (k *Keeper) missing() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.slots) < k.cfg.Want
}

// mayAsk reports whether relays are to be found, for those of the configuration do not
// suffice: none is being tried that may still answer soon. Find is under way then.
func (k *Keeper) mayAsk() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cfg.Find == nil || k.asking {
		return false
	}
	for _, t := range k.trials {
		if t.configured && !t.late {
			return false
		}
	}
	k.asking = true
	return true
}

// endTrials gives up all trials; k.mu is held.
func (k *Keeper) endTrials() {
	for _, t := range k.trials {
		t.cancel()
	}
}

// tryEach tries candidates beside each other; the first that answer get the slots.
func (k *Keeper) tryEach(ctx context.Context, all *sync.WaitGroup, cs []Candidate, configured bool) {
	cs = k.usable(cs)
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range cs {
		if len(k.slots) >= k.cfg.Want || len(k.trials) >= maxMeasured {
			return
		}
		if k.slots[c.ID] != nil || k.trials[c.ID] != nil {
			continue // since a moment ago
		}
		trying, cancel := context.WithCancel(ctx)
		t := &trial{configured: configured, cancel: cancel}
		k.trials[c.ID] = t
		all.Go(func() {
			defer cancel()
			if err := k.try(trying, c, t); err == nil {
				k.start(ctx, all, c.AddrInfo)
			} else if trying.Err() == nil {
				k.failed(c.ID, err)
			}
			k.mu.Lock()
			delete(k.trials, c.ID)
			k.mu.Unlock()
			k.Wake()
		})
	}
}

// try returns when a candidate has answered, or will not.
func (k *Keeper) try(ctx context.Context, c Candidate, t *trial) error {
	late := time.AfterFunc(lateTime, func() {
		k.mu.Lock()
		t.late = true
		k.mu.Unlock()
		k.Wake()
	})
	defer late.Stop()
	return k.meet(ctx, c).err
}
