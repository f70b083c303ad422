package limit

import (
	"fmt"
	"time"
)

// Effect is what is done about a peer.
type Effect uint8

// The effects, from mild to hard.
const (
	Pass Effect = iota
	Warn
	Throttle
	Terminate
)

func (e Effect) String() string {
	names := [...]string{"pass", "warn", "throttle", "terminate"}
	if int(e) < len(names) {
		return names[e]
	}
	return fmt.Sprintf("effect-%d", uint8(e))
}

const (
	patience    = 2 * time.Second  // from a warning until the peer is throttled
	probation   = 10 * time.Second // within the limit until all is well again
	tolerance   = 10 * time.Second // how far ahead of the limit a throttled peer may come
	noticeEvery = time.Second
)

// Why a peer is over its limit.
const (
	ReasonMessages = "more messages than the session's contract allows"
	ReasonBytes    = "more bytes than the session's contract allows"
)

// Verdict is the answer to a message.
type Verdict struct {
	Effect Effect        // what is in force now
	Delay  time.Duration // how long to hold back this message, and all reading from the peer; 0 unless throttled
	Reason string        // of the last excess: ReasonMessages, ReasonBytes; empty while the effect is Pass
	Notify bool          // send the peer a policy-notice: the effect has changed; at most one in a second
}

// Meter is the receiving side of the limits: how much a peer sends, and what is
// done about it. It is not safe for concurrent use. The zero value has no limits.
type Meter struct {
	gate     gate
	hopeless int64 // ns ahead of the limit from which throttling does not help

	effect   Effect
	reason   string
	since    int64 // when the effect changed
	over     int64 // ns that the peer came ahead of the limit in all since it was warned
	excess   int64 // until when the peer was over the limit
	noticed  int64 // when the peer was last told
	notified bool  // it ever was
	told     Effect
}

// NewMeter returns a meter of what t allows.
func NewMeter(t Terms) Meter {
	g := newGate(t, t.burst())
	largest := max(g.messages.cost(1), g.bytes.cost(t.MaxMessageBytes))
	return Meter{gate: g, hopeless: int64(tolerance) + largest}
}

// Take counts messages that came at now, of so many bytes in all. The caller
// calls it as it reads them, before it acts on them. After Terminate it says so
// for good.
func (m *Meter) Take(now time.Time, messages, bytes int) Verdict {
	t := m.gate.clock(now)
	cost := m.gate.price(messages, bytes)
	at, byBytes := m.gate.earliest(t, cost)
	ahead := at - t
	m.relax(t)
	if ahead > 0 {
		m.escalate(t, ahead)
		if m.excess = t; m.effect == Throttle {
			m.excess = at // it is being held back until then
		}
		m.reason = ReasonMessages
		if byBytes {
			m.reason = ReasonBytes
		}
	}
	v := Verdict{Effect: m.effect, Reason: m.reason}
	if m.effect == Throttle {
		m.gate.admit(at, cost)
		v.Delay = time.Duration(ahead)
	} else {
		m.gate.admit(t, cost)
		m.gate.forgive(t)
	}
	v.Notify = m.notice(t)
	return v
}

// relax ends what is in force if the peer has kept to the limit.
func (m *Meter) relax(t int64) {
	if (m.effect == Warn || m.effect == Throttle) && t-m.excess >= int64(probation) {
		m.become(Pass, t)
		m.reason = ""
	}
}

// escalate takes the step that follows from a message over the limit.
func (m *Meter) escalate(t, ahead int64) {
	switch m.effect {
	case Pass:
		m.become(Warn, t)
		m.over = 0
	case Warn:
		// Patience is for who is a little over the limit; of a flood it lets no more
		// pass than the limit itself would in that time.
		if m.over += ahead; t-m.since >= int64(patience) || m.over >= int64(patience) {
			m.become(Throttle, t)
		}
	case Throttle:
		if ahead > m.hopeless {
			m.become(Terminate, t)
		}
	}
}

func (m *Meter) become(e Effect, t int64) { m.effect, m.since = e, t }

// notice reports whether to tell the peer now.
func (m *Meter) notice(t int64) bool {
	if m.effect == m.told || m.notified && t-m.noticed < int64(noticeEvery) {
		return false
	}
	m.told, m.noticed, m.notified = m.effect, t, true
	return true
}
