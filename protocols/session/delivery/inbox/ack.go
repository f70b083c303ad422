package inbox

import (
	"cmp"
	"slices"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/wire"
)

// listed is a message about which an ack is to be sent: what its state is then,
// or that it is past, if nothing is kept of it but that it was settled.
type listed struct {
	sequence uint64
	past     bool
}

// list has an ack say what e's state is when the ack is sent.
func (w *work) list(e *entry) {
	if !e.listed {
		e.listed = true
		w.acks = append(w.acks, listed{sequence: e.sequence})
	}
}

// acknowledge has an ack say that sequence, of which nothing is kept, is
// delivered: the sender knows better, or has forgotten only that.
func (w *work) acknowledge(sequence uint64) {
	if len(w.acks) < maxAcks {
		w.acks = append(w.acks, listed{sequence, true})
	}
}

// refuse has an ack say that an attempt at a message had no effect.
func (w *work) refuse(sequence uint64, attempt uint32, code wire.Code, pointers ...string) {
	if len(w.refusals) >= maxAcks {
		w.refusals = w.refusals[1:]
	}
	w.refusals = append(w.refusals, delivery.Failure{Sequence: sequence, Attempt: attempt, Code: code, Pointers: pointers})
}

// flush sends what there is to acknowledge.
func (b *Inbox) flush() {
	for {
		b.mu.Lock()
		w := b.work
		if w == nil || b.ended || len(w.acks)+len(w.refusals) == 0 {
			b.mu.Unlock()
			return
		}
		a := b.ack()
		b.mu.Unlock()
		if !b.cfg.SendAck(a) {
			b.unsent(a)
			return
		}
	}
}

// How large an ack becomes: with a lone answer or failure it may be larger.
const (
	ackBytes    = 7 << 10
	rangeBytes  = 24
	answerBytes = 24 // besides its body or pointers
)

// ack makes an ack of what is listed, as much as fits one.
func (b *Inbox) ack() (a delivery.Ack) {
	w, size, n, i := b.work, 0, 0, 0
	fits := func(more int) bool {
		if n == delivery.MaxEntries || n > 0 && size+more > ackBytes {
			return false
		}
		n, size = n+1, size+more
		return true
	}
	slices.SortFunc(w.acks, func(a, b listed) int { return cmp.Compare(a.sequence, b.sequence) })
	for i < len(w.acks) && b.say(&a, w.acks[i], fits) {
		i++
	}
	if w.acks = w.acks[i:]; len(w.acks) == 0 {
		w.acks = w.acks[:0:0]
	}
	for len(w.refusals) > 0 && fits(failureSize(w.refusals[0].Pointers)) {
		a.Failed = append(a.Failed, w.refusals[0])
		w.refusals = w.refusals[1:]
	}
	return a
}

func failureSize(pointers []string) int {
	n := answerBytes
	for _, p := range pointers {
		n += len(p) + 3
	}
	return n
}

// say puts what is known of a message into a, if it fits.
func (b *Inbox) say(a *delivery.Ack, l listed, fits func(int) bool) bool {
	sequence, ok := l.sequence, false
	e := b.work.entries[sequence]
	switch {
	case l.past:
		return join(&a.Delivered, sequence, fits)
	case e == nil:
		return true // refused meanwhile
	case e.stage != settled:
		if ok = join(&a.Working, sequence, fits); ok {
			e.working = true
		}
	case e.outcome == nil:
		ok = join(&a.Delivered, sequence, fits)
	case e.outcome.Status == delivery.Delivered:
		if ok = fits(answerBytes + len(e.outcome.Response)); ok {
			a.Responses = append(a.Responses, delivery.Response{Sequence: sequence, Encoding: e.outcome.Encoding, Body: e.outcome.Response})
		}
	default:
		if ok = fits(failureSize(e.outcome.Pointers)); ok {
			a.Failed = append(a.Failed, delivery.Failure{Sequence: sequence, Attempt: e.attempt, Code: e.outcome.Code, Pointers: e.outcome.Pointers})
		}
	}
	if ok {
		e.listed = false
		if e.stage == settled && sequence < b.work.lowest {
			b.drop(e)
		}
	}
	return ok
}

// join adds sequence to ascending ranges.
func join(rs *[]delivery.Range, sequence uint64, fits func(int) bool) bool {
	if n := len(*rs); n > 0 && sequence <= (*rs)[n-1].To+1 {
		(*rs)[n-1].To = sequence
		return true
	}
	if !fits(rangeBytes) {
		return false
	}
	*rs = append(*rs, delivery.Range{From: sequence, To: sequence})
	return true
}

// unsent lists again what an ack said that found no channel.
func (b *Inbox) unsent(a delivery.Ack) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.need()
	again := func(sequence uint64) bool {
		e := w.entries[sequence]
		if e != nil {
			e.working = false
			w.list(e)
		}
		return e != nil
	}
	for _, r := range a.Delivered {
		for n := r.From; n <= r.To; n++ {
			if !again(n) {
				w.acknowledge(n)
			}
		}
	}
	for _, r := range a.Working {
		for n := r.From; n <= r.To; n++ {
			again(n)
		}
	}
	for _, r := range a.Responses {
		again(r.Sequence)
	}
	for _, f := range a.Failed {
		if !again(f.Sequence) && len(w.refusals) < maxAcks {
			w.refusals = append(w.refusals, f)
		}
	}
}
