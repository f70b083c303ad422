package inbox

import "openmesh/protocols/wire"

// told is what somebody who keeps a message is to hear about it.
type told struct {
	safe func(error)
	err  error
}

// keep notes who keeps e until it is safe. At most once a message must not come
// again once a handler may have it.
func (b *Inbox) keep(e *entry, safe func(error)) {
	switch {
	case safe == nil:
	case e.stage == settled || !b.cfg.Terms.Durable():
		b.work.tellKeeper(safe, nil)
	default:
		e.kept = append(e.kept, safe)
	}
}

// mayComeAgain is what the keeper of a message that was refused with code hears. At
// most once the refusal is the outcome.
func (b *Inbox) mayComeAgain(code wire.Code) error {
	if b.cfg.Terms.Durable() {
		return code
	}
	return nil
}

// release has those who keep e hear err.
func (w *work) release(e *entry, err error) {
	for _, safe := range e.kept {
		w.tellKeeper(safe, err)
	}
	e.kept = nil
}

func (w *work) tellKeeper(safe func(error), err error) {
	if safe != nil {
		w.told = append(w.told, told{safe, err})
	}
}

// tellKeepers tells them, without the lock.
func (b *Inbox) tellKeepers() {
	b.mu.Lock()
	var all []told
	if b.work != nil {
		all, b.work.told = b.work.told, nil
	}
	b.mu.Unlock()
	for _, t := range all {
		t.safe(t.err)
	}
}

// releaseAll has all who keep messages hear that they may come again.
func (w *work) releaseAll() {
	for _, e := range w.entries {
		w.release(e, wire.Unreachable)
	}
}
