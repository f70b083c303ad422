package observe

import "time"

// Span is how far back a [Window] looks.
const Span = 5 * time.Minute

const (
	slots    = 30
	slotSpan = Span / slots
)

// A Window counts what happened in the last [Span], in steps of ten seconds. It
// reads no clock; the zero value is empty. Not safe for concurrent use.
type Window struct {
	slots [slots]slot
}

// slot counts one step of time, which it belongs to until the window has gone
// round.
type slot struct {
	step  int64 // Unix time / slotSpan
	count uint64
}

// Add counts n more at now.
func (w *Window) Add(now time.Time, n uint64) {
	step := now.UnixNano() / int64(slotSpan)
	s := &w.slots[uint64(step)%slots]
	if s.step != step {
		*s = slot{step: step}
	}
	s.count += n
}

// Sum returns the count of the last Span before now.
func (w *Window) Sum(now time.Time) uint64 {
	var sum uint64
	step := now.UnixNano() / int64(slotSpan)
	for _, s := range w.slots {
		if s.step > step-slots && s.step <= step {
			sum += s.count
		}
	}
	return sum
}
