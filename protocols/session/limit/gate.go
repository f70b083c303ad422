package limit

import (
	"math"
	"math/bits"
	"time"
)

// gate spaces messages out in time: two token buckets, of messages and of bytes,
// in the form of the generic cell rate algorithm (ITU-T I.371): a bucket is the
// time at which it will be full again. Times are nanoseconds since the first use.
type gate struct {
	messages, bytes bucket
	now             int64     // the latest time seen
	start           time.Time // the first
}

// bucket admits what costs no more than the time it lacks to burst.
type bucket struct {
	unit  uint64 // cost of one message or byte in 2⁻²⁰ ns; 0: no limit
	burst int64
	full  int64 // when the bucket will be full again
}

const (
	unitBits = 20
	maxCost  = int64(1) << 60 // 36 years: costs and times do not overflow
)

// newGate makes a gate of t with the given burst, on top of which comes one
// message of the largest size.
func newGate(t Terms, burst time.Duration) gate {
	g := gate{messages: newBucket(t.MessagesPerSecond, burst), bytes: newBucket(t.BytesPerSecond, burst)}
	g.messages.burst += g.messages.cost(1)
	g.bytes.burst += g.bytes.cost(t.MaxMessageBytes)
	return g
}

func newBucket(perSecond float64, burst time.Duration) bucket {
	if !(perSecond > 0) {
		return bucket{}
	}
	unit := 1e9 * (1 << unitBits) / perSecond
	return bucket{unit: uint64(min(unit, math.MaxInt64)), burst: min(int64(burst), maxCost)}
}

// cost returns the time that n messages or bytes are worth, rounded down.
func (b *bucket) cost(n int) int64 {
	high, low := bits.Mul64(b.unit, uint64(max(n, 0)))
	if high >= 1<<unitBits>>4 {
		return maxCost
	}
	return min(int64(high<<(64-unitBits)|low>>unitBits), maxCost)
}

// earliest returns when cost may be admitted. What costs more than burst is late
// even if the bucket is full now.
func (b *bucket) earliest(now, cost int64) int64 {
	if cost > b.burst {
		return max(b.full, now) + cost - b.burst
	}
	return b.full + cost - b.burst
}

func (b *bucket) charge(at, cost int64) { b.full = min(max(b.full, at)+cost, at+maxCost) }

// clock turns now into the gate's time, which never goes back.
func (g *gate) clock(now time.Time) int64 {
	if g.start.IsZero() {
		g.start = now
	}
	g.now = max(g.now, int64(now.Sub(g.start)))
	return g.now
}

// price is what a message costs, in time at either limit.
type price struct{ messages, bytes int64 }

func (g *gate) price(messages, size int) price {
	return price{g.messages.cost(messages), g.bytes.cost(size)}
}

// earliest returns when a message that came at now is within the limits, and
// whether that of bytes decides. It is no earlier than what was admitted before:
// the bucket that held that back is empty until then.
func (g *gate) earliest(now int64, p price) (at int64, byBytes bool) {
	at = max(now, g.messages.earliest(now, p.messages))
	if e := g.bytes.earliest(now, p.bytes); e > at {
		at, byBytes = e, true
	}
	return min(at, now+maxCost), byBytes
}

// admit charges for a message that passes at the time at.
func (g *gate) admit(at int64, p price) {
	g.messages.charge(at, p.messages)
	g.bytes.charge(at, p.bytes)
}

// forgive lets no bucket be emptier than empty.
func (g *gate) forgive(now int64) {
	g.messages.full = min(g.messages.full, now+g.messages.burst)
	g.bytes.full = min(g.bytes.full, now+g.bytes.burst)
}
