package session

import (
	"math/bits"
	"sync"
	"time"
)

// health is what the pings of a channel tell about it.
type health struct {
	mu      sync.Mutex
	sent    uint64 // token of the last ping; counts from 1
	at      [outstanding]time.Time
	pending uint64 // bit i: ping sent-i has no pong
	rtt     time.Duration
}

const outstanding = 16

// ping returns the token of a new ping.
func (h *health) ping(now time.Time) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sent++
	h.at[h.sent%outstanding] = now
	h.pending = h.pending<<1 | 1
	return h.sent
}

// due reports whether it is time for a ping: one every interval.
func (h *health) due(now time.Time, interval time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sent == 0 || now.Sub(h.at[h.sent%outstanding]) >= interval
}

// pong takes the answer to a ping into account. A token that is not outstanding
// is ignored.
func (h *health) pong(token uint64, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	age := h.sent - token
	if token == 0 || token > h.sent || age >= outstanding || h.pending&(1<<age) == 0 {
		return
	}
	h.pending &^= 1 << age
	rtt := max(now.Sub(h.at[token%outstanding]), 1) // 0 is unknown
	if h.rtt == 0 {
		h.rtt = rtt
	}
	h.rtt += (rtt - h.rtt) / 8 // RFC 6298
}

// read returns the smoothed round-trip time, 0 while unknown, and the share of
// the last pings that had no answer; the one under way does not count.
func (h *health) read() (rtt time.Duration, loss float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := min(h.sent, outstanding)
	if n < 2 {
		return h.rtt, 0
	}
	missing := bits.OnesCount64(h.pending >> 1 & (1<<(n-1) - 1))
	return h.rtt, float64(missing) / float64(n-1)
}
