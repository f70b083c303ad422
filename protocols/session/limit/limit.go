// Package limit holds the two sides of a session to the rates of their contract.
// The receiving side measures with a [Meter], and answers excess in steps; the
// sending side spaces its messages out with a [Pacer], so that an honest one never
// meets them. Both are pure: the caller says what time it is.
//
// A limit is a token bucket: over any time T, rate × T and a burst may pass. The
// burst is what the limit allows in [Terms.Burst], and one message more, of the
// largest size, so that a limit below one such message per second can be kept. The
// Pacer uses half of Terms.Burst: the rest makes up for a network that delays some
// messages more than others.
//
// The steps of a Meter:
//
//	effect      what happens                  leads to    when
//	pass        nothing                       warn        at the first message over the limit
//	warn        nothing but the notice        throttle    at a message over the limit, 2 s or more
//	                                                      after the warning; or once 2 s worth of the
//	                                                      limit came too early since then
//	throttle    reading is held back, so that terminate   when messages have come 10 s and a largest
//	            what is read is at the limit              message ahead of the limit: the peer has
//	                                                      ways around the holding back
//	terminate   the session ends with         -
//	            resource_exhausted
//	warn,       …                             pass        after 10 s in which all was within
//	throttle                                              the limit
//
// What is over the limit before throttling is let pass, and forgotten: the delays
// of a throttled peer do not make up for it.
package limit

import "time"

// Terms are the limits of one direction. The zero value has none.
type Terms struct {
	MessagesPerSecond float64       // 0, or less: no limit
	BytesPerSecond    float64       // 0, or less: no limit
	MaxMessageBytes   int           // the largest message, which always may come alone
	Burst             time.Duration // what may come at once is worth so much time at the limit; 0: 1 s
}

const defaultBurst = time.Second

func (t Terms) burst() time.Duration {
	if t.Burst <= 0 {
		return defaultBurst
	}
	return t.Burst
}

// Pacer is the sending side of the limits. It is not safe for concurrent use. The
// zero value has no limits.
type Pacer struct{ gate gate }

// NewPacer returns a pacer for what t allows.
func NewPacer(t Terms) Pacer { return Pacer{newGate(t, t.burst()/2)} }

// Reserve returns how long to wait from now before messages of so many bytes in
// all are sent; they count as sent then. A message larger than
// Terms.MaxMessageBytes may be over the limit all the same.
func (p *Pacer) Reserve(now time.Time, messages, bytes int) time.Duration {
	t := p.gate.clock(now)
	cost := p.gate.price(messages, bytes)
	at, _ := p.gate.earliest(t, cost)
	p.gate.admit(at, cost)
	return time.Duration(at - t)
}
