package delivery

import (
	"math"
	"time"
)

// QoS is a delivery promise. Values are those of signal.QoS.
type QoS uint8

// The delivery promises, each stronger than the one before.
const (
	AtMostOnce QoS = iota + 1
	AtLeastOnce
	ExactlyOnce
)

// Terms is what a session's contract says about delivery.
type Terms struct {
	QoS        QoS
	Ordered    bool          // a handler gets a message once all before it are settled
	MaxBody    uint32        // bytes of a message's body; 0: any
	TTL        time.Duration // how long a message may wait for its outcome
	AckTimeout time.Duration // how long a transmission may go unanswered
	Retry      Retry

	MaxPending      int   // messages transmitted and not settled; 0: 1024
	MaxBacklog      int   // messages accepted and not settled; 0: 65,536
	MaxBacklogBytes int64 // and their size; 0: 256 MiB
}

// Retry is when a message that was refused without effect is transmitted again:
// after Initial × Multiplierⁿ, at most MaxInterval, varied by ± Jitter of itself.
type Retry struct {
	Max         int // after the first refusal
	Initial     time.Duration
	Multiplier  float64
	MaxInterval time.Duration
	Jitter      float64 // 0 to 1
}

// Limits that both ends keep, so that a sender that keeps them is never refused
// for them.
const (
	MaxWindow   = 16 << 20  // bytes of messages transmitted and not settled; one message may exceed it
	MaxSpan     = 16_384    // sequence numbers from the floor to the newest transmitted
	MaxSequence = 1<<62 - 1 // far beyond what is ever reached, so that sums do not overflow
)

// WithDefaults returns t with its limits set.
func (t Terms) WithDefaults() Terms {
	if t.MaxPending <= 0 {
		t.MaxPending = 1024
	}
	t.MaxPending = min(t.MaxPending, MaxSpan)
	if t.MaxBacklog <= 0 {
		t.MaxBacklog = 65_536
	}
	if t.MaxBacklogBytes <= 0 {
		t.MaxBacklogBytes = 256 << 20
	}
	return t
}

// Tighten takes all terms but the promise itself from other, to which the two sides
// have agreed later.
func (t *Terms) Tighten(other Terms) {
	other = other.WithDefaults()
	t.TTL, t.AckTimeout, t.Retry, t.MaxBody = other.TTL, other.AckTimeout, other.Retry, other.MaxBody
	t.MaxPending, t.MaxBacklog, t.MaxBacklogBytes = other.MaxPending, other.MaxBacklog, other.MaxBacklogBytes
}

// Durable reports whether messages outlive the process.
func (t Terms) Durable() bool { return t.QoS > AtMostOnce }

// After is how long to wait after refusal n, from 0. Random is in [0, 1).
func (r Retry) After(n int, random float64) time.Duration {
	d := float64(r.Initial) * math.Pow(max(r.Multiplier, 1), float64(n))
	if r.MaxInterval > 0 {
		d = min(d, float64(r.MaxInterval))
	}
	d *= 1 + r.Jitter*(2*random-1)
	return time.Duration(min(d, float64(math.MaxInt64/2)))
}

// Patience is how long to wait for an answer to the nth transmission in a row
// without one: a peer that is slow is not helped by more of them.
func (t Terms) Patience(n int) time.Duration { return t.AckTimeout << min(max(n-1, 0), 5) }
