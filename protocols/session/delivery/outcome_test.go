package delivery_test

import (
	"context"
	"slices"
	"testing/synctest"
	"time"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/wire"
)

// heal lets everything go right until all is settled.
func (w *world) heal() {
	w.resume()
	for range 600 {
		for busy := true; busy; {
			busy = w.outStore.Waiting()+w.inStore.Waiting()+len(w.toIn)+len(w.toOut)+len(w.open) > 0
			w.outStore.Flush(-1)
			w.inStore.Flush(-1)
			synctest.Wait()
			w.receive()
			w.ack()
			if len(w.open) > 0 {
				w.finish(0)
			}
		}
		if w.settled() {
			return
		}
		w.wait(time.Second)
	}
	w.Fatalf("not settled: %d pending, %d busy", w.out.Pending(), w.in.Busy())
}

func (w *world) settled() bool {
	for _, s := range w.sent {
		if s.accepted && w.outcome(s).Status == delivery.Pending {
			return false
		}
	}
	return true
}

func (w *world) outcome(s *sent) delivery.Outcome {
	if !w.terms.Durable() {
		return w.told[s.sequence]
	}
	_, out, err := w.out.Lookup(context.Background(), s.key)
	if err != nil {
		w.Fatalf("the outcome of %s: %v", s.key, err)
	}
	return out
}

// check compares what the sender was told with what happened.
func (w *world) check() {
	for _, s := range w.sent {
		if !s.accepted {
			continue
		}
		out := w.outcome(s)
		w.Logf("%s %q is message %d: %+v", s.key, s.body, s.sequence, out)
		if !w.fits(s, out) {
			w.Errorf("%s %q, message %d, is %+v; the handler was called %d times", s.key, s.body, s.sequence, out, len(w.calls[s.key]))
		}
	}
}

func (w *world) fits(s *sent, out delivery.Outcome) bool {
	effect, refused := 0, 0
	for _, c := range w.calls[s.key] {
		if c.refused {
			refused++
		} else {
			effect++
		}
	}
	once := w.terms.QoS == delivery.AtMostOnce
	crowded := w.broken || w.short // messages that the sender has given up take room here
	switch {
	case out.Status == delivery.Expired:
		return s.short
	case out.Status == delivery.Delivered && s.capability == "":
		return true // see checkRead
	case out.Status == delivery.Delivered:
		return effect > 0 && s.body != fail && s.body != unavailable && (s.body != answer || string(out.Response) == "yes" || w.lives > 1 || w.life.Err() != nil || !once)
	case out.Code == wire.HandlerFailed:
		return effect > 0 && s.body == fail
	case out.Code == wire.HandlerUnavailable:
		return refused > 0 && (s.body == unavailable || s.body == starting && (once || crowded))
	case out.Code == wire.ResourceExhausted:
		return once || crowded
	case out.Code == wire.Unreachable:
		return once && effect+refused == 0
	}
	return once && (out.Code == wire.SessionClosed || out.Code == wire.DeadlineExceeded)
}

// checkRead reads the rest, and checks that readers got all that was delivered,
// and were told of all that they did not get.
func (w *world) checkRead() {
	w.wait(time.Minute) // the floor is told
	for len(w.toIn) > 0 {
		w.receive()
	}
	w.inStore.Flush(-1)
	for last := uint64(1<<63 - 1); w.cursor != last; {
		last = w.cursor
		w.readSome()
	}
	for _, s := range w.sent {
		if !s.accepted || s.capability != "" || w.read[s.sequence] {
			continue
		}
		if w.outcome(s).Status == delivery.Delivered && w.terms.Durable() {
			w.Errorf("message %d was delivered, and nobody can read it after %d", s.sequence, w.cursor)
		}
		in := func(g delivery.Range) bool { return g.From <= s.sequence && s.sequence <= g.To }
		if s.sequence > w.cursor || !slices.ContainsFunc(w.gaps, in) {
			w.Errorf("message %d is not read, and that is not told: %v", s.sequence, w.gaps)
		}
	}
}
