package observe

import (
	"github.com/prometheus/client_golang/prometheus"

	"openmesh/protocols/wire"
)

// mailboxEvents are what happens to the letters that a relay keeps.
var mailboxEvents = [...]string{"deposited", "delivered", "expired"}

// routes are the instruments of how agents reach each other.
type routes struct {
	paths      map[string]prometheus.Gauge
	punches    map[string]prometheus.Counter
	counted    map[string]uint64
	letters    *prometheus.CounterVec
	events     map[string]prometheus.Counter
	refused    *prometheus.CounterVec
	held, size prometheus.Gauge
	relay      map[string]prometheus.Gauge
	relayed    map[string]prometheus.Counter
	moves      *prometheus.CounterVec
}

func (m *Metrics) makeRoutes() {
	r := &m.routes
	r.paths = children(paths[:], m.gauge("session_paths", "Sessions by the kind of path they use now.", "path").WithLabelValues)
	r.punches = children([]string{"attempt", "success", "failure"},
		m.counter("hole_punches_total", "Attempts to replace a relayed connection by a direct one, and how they ended.", "event").WithLabelValues)
	r.counted = make(map[string]uint64)
	r.letters = m.counter("mailbox_letters_total", "Letters that this agent deposited or collected, by outcome.", "event", "outcome")
	r.events = children(mailboxEvents[:], m.counter("mailbox_events_total", "Relay: letters by what happened to them.", "event").WithLabelValues)
	r.refused = m.counter("mailbox_refused_total", "Relay: requests of the mailbox refused, by error code.", "reason")
	r.held = m.gauge("mailbox_held", "Relay: letters kept.").WithLabelValues()
	r.size = m.gauge("mailbox_held_bytes", "Relay: size of the letters kept.").WithLabelValues()
	r.relay = children([]string{"reservations", "circuits", "forwards"}, m.gauge("relay_in_use", "Relay: what of its quotas is in use.", "quota").WithLabelValues)
	r.moves = m.counter("market_moves_total", "Moves of negotiations, by outcome.", "direction", "move", "outcome")
	r.relayed = children([]string{"circuit", "forward"}, m.counter("relay_bytes_total", "Relay: bytes carried for others.", "service").WithLabelValues)
}

// SessionPaths tells how many sessions use each kind of path now.
func (m *Metrics) SessionPaths(byKind map[string]int) {
	for kind, g := range m.routes.paths {
		g.Set(float64(byKind[kind]))
	}
}

// HolePunches tells how many attempts there were since the start, and how they
// ended. It is called by one goroutine.
func (m *Metrics) HolePunches(attempts, successes, failures uint64) {
	for event, n := range map[string]uint64{"attempt": attempts, "success": successes, "failure": failures} {
		m.routes.grow(m.routes.punches[event], "punch "+event, n)
	}
}

// grow brings a counter up to a total that is kept elsewhere.
func (r *routes) grow(c prometheus.Counter, name string, total uint64) {
	if last := r.counted[name]; total > last {
		c.Add(float64(total - last))
		r.counted[name] = total
	}
}

// Relay tells what a relay carries: slots, circuits and forwarded paths now, and
// bytes since the start. It is called by one goroutine.
func (m *Metrics) Relay(reservations, circuits, forwards int, circuitBytes, forwardBytes uint64) {
	m.routes.relay["reservations"].Set(float64(reservations))
	m.routes.relay["circuits"].Set(float64(circuits))
	m.routes.relay["forwards"].Set(float64(forwards))
	m.routes.grow(m.routes.relayed["circuit"], "relay circuit", circuitBytes)
	m.routes.grow(m.routes.relayed["forward"], "relay forward", forwardBytes)
}

// Letter counts a letter of this agent: event is deposited or collected.
func (m *Metrics) Letter(event string, err error) {
	m.routes.letters.WithLabelValues(event, outcome(err)).Inc()
}

// MailboxEvent counts n letters that a relay keeps or kept: event is deposited,
// delivered or expired.
func (m *Metrics) MailboxEvent(event string, n int) {
	if c := m.routes.events[event]; c != nil && n > 0 {
		c.Add(float64(n))
	}
}

// MailboxRefused counts a request that a relay's mailbox refused.
func (m *Metrics) MailboxRefused(code wire.Code) {
	m.routes.refused.WithLabelValues(outcome(code)).Inc()
}

// MailboxHeld tells how many letters a relay keeps, and their size.
func (m *Metrics) MailboxHeld(letters int, bytes int64) {
	m.routes.held.Set(float64(letters))
	m.routes.size.Set(float64(bytes))
}

// MarketMove counts a move of a negotiation that was sent or received.
func (m *Metrics) MarketMove(direction, move string, err error) {
	outcome := "ok"
	if err != nil {
		outcome = wire.CodeOf(err).String()
	}
	m.routes.moves.WithLabelValues(direction, move, outcome).Inc()
}
