package observe

import (
	"context"
	"errors"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"openmesh/protocols/wire"
)

// Direction is which way a message or a byte went, seen from this node.
type Direction uint8

// The directions.
const (
	In Direction = iota
	Out
)

// QoS is a session's delivery promise.
type QoS uint8

// The modes of delivery.
const (
	AtMostOnce QoS = iota
	AtLeastOnce
	ExactlyOnce
)

// Outcome is what became of a message: of one sent, as its sender learned it;
// of one received, as it was judged.
type Outcome uint8

// The outcomes.
const (
	Delivered Outcome = iota // acknowledged, or handed to the application
	Failed
	Expired
	Duplicate // seen before, or a repeat
	Refused   // by policy, limits or schema
)

// Path is the way that payload bytes took.
type Path uint8

// The paths, from the most direct.
const (
	Direct Path = iota
	HolePunched
	Relayed
	Forwarded
	Mailbox
)

// The label values of the types above, and of the other closed lists, in order.
var (
	directions = [...]string{"in", "out"}
	qosModes   = [...]string{"at-most-once", "at-least-once", "exactly-once"}
	outcomes   = [...]string{"delivered", "failed", "expired", "duplicate", "refused"}
	paths      = [...]string{"direct", "holepunched", "relayed", "forwarded", "mailbox"}

	sessionStates = [...]string{"offered", "establishing", "active", "migrating", "draining"}
	policyPoints  = [...]string{
		"session.open", "session.message", "call", "topic.publish", "topic.subscribe", "relay.transit",
		"relay.reserve", "mailbox.deposit", "market.rfp", "market.proposal", "market.contract", other,
	}
	policyEffects = [...]string{"allow", "deny", "warn", "throttle", "terminate", other}
	setupOutcomes = [...]string{"ok", "failed", "cancelled"}
)

// other stands for a label value that is not in its list.
const other = "other"

// Metrics are a node's Prometheus instruments, in a registry of its own. The
// methods are safe for concurrent use. Those for every message (Message, Bytes,
// PolicyDecision) take no lock and allocate nothing.
type Metrics struct {
	registry *prometheus.Registry
	totals   totals

	sessions   map[string]prometheus.Gauge
	setup      map[string]prometheus.Observer
	failures   map[string]prometheus.Counter
	messages   [len(directions)][len(qosModes)][len(outcomes)]prometheus.Counter
	bytes      [len(directions)][len(paths)]prometheus.Counter
	decisions  map[[2]string]prometheus.Counter
	lookups    *prometheus.HistogramVec
	handlers   *prometheus.HistogramVec
	warnings   prometheus.Counter
	dropped    prometheus.Counter
	keyExpiry  prometheus.Gauge
	relayUsage prometheus.Gauge
	partition  prometheus.Gauge
	alerts     map[string]prometheus.Gauge
	routes     routes
}

// totals are what the alerts are computed from, since the node started.
type totals struct {
	payload, relayed, setups, failures atomic.Uint64
}

// NewMetrics makes the instruments of a node that runs version of the program.
// Every child with a closed list of label values exists from the start, at zero.
func NewMetrics(version string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	m.gauge("build_info", "What this node runs; always 1.", "version", "revision", "go_version").
		WithLabelValues(version, revision(), runtime.Version()).Set(1)
	m.makeSessions()
	m.makeTraffic()
	m.makeRest()
	m.makeRoutes()
	return m
}

func (m *Metrics) makeSessions() {
	sessions := m.gauge("sessions", "Sessions by state.", "state")
	m.sessions = children(sessionStates[:], sessions.WithLabelValues)
	setup := m.histogram("session_setup_seconds", "Time to set a session up, or to fail.", "outcome")
	m.setup = children(setupOutcomes[:], setup.WithLabelValues)
	failures := m.counter("tunnel_failures_total", "Session set-ups that failed, by error code.", "reason")
	m.failures = map[string]prometheus.Counter{other: failures.WithLabelValues(other)}
	for _, c := range wire.Codes() {
		m.failures[c.String()] = failures.WithLabelValues(c.String())
	}
}

func (m *Metrics) makeTraffic() {
	messages := m.counter("messages_total", "Session messages.", "direction", "qos", "outcome")
	bytes := m.counter("bytes_total", "Payload bytes of sessions.", "direction", "path")
	for d, direction := range directions {
		for q, qos := range qosModes {
			for o, outcome := range outcomes {
				m.messages[d][q][o] = messages.WithLabelValues(direction, qos, outcome)
			}
		}
		for p, path := range paths {
			m.bytes[d][p] = bytes.WithLabelValues(direction, path)
		}
	}
	decisions := m.counter("policy_decisions_total", "Policy decisions by what was asked and the effect.", "on", "effect")
	m.decisions = make(map[[2]string]prometheus.Counter)
	for _, on := range policyPoints {
		for _, effect := range policyEffects {
			m.decisions[[2]string{on, effect}] = decisions.WithLabelValues(on, effect)
		}
	}
}

func (m *Metrics) makeRest() {
	m.lookups = m.histogram("directory_lookup_seconds", "Time of a directory lookup.", "kind", "outcome")
	m.handlers = m.histogram("handler_seconds", "Time that a local handler took.", "handler", "outcome")
	m.warnings = m.counter("schema_warnings_total", "Messages let through although they break their schema.").WithLabelValues()
	m.dropped = m.counter("log_dropped_total", "Log entries not written because they repeat.").WithLabelValues()
	m.keyExpiry = m.gauge("key_expiry_timestamp_seconds", "When the key certificate expires, in Unix time.").WithLabelValues()
	m.relayUsage = m.gauge("relay_usage_ratio", "Share of payload bytes over relays in the last five minutes.").WithLabelValues()
	m.partition = m.gauge("directory_partitioned", "Whether the directory is out of reach.").WithLabelValues()
	alerts := m.gauge("alert", "Whether the alert of that name holds.", "name")
	m.alerts = children(alertNames[:], alerts.WithLabelValues)
}

// Registry is where other parts register their own collectors, and what is
// served.
func (m *Metrics) Registry() *prometheus.Registry { return m.registry }

// SessionMoved counts a session that left state from for state to. A state that
// is not alive ("", closed, terminated) is not counted.
func (m *Metrics) SessionMoved(from, to string) {
	if g := m.sessions[from]; g != nil {
		g.Dec()
	}
	if g := m.sessions[to]; g != nil {
		g.Inc()
	}
}

// SessionSetup records a session set-up that this node began, how long it took
// and how it ended. One that was cancelled counts neither for nor against.
func (m *Metrics) SessionSetup(took time.Duration, err error) {
	switch code := outcome(err); code {
	case "ok":
		m.totals.setups.Add(1)
		m.setup["ok"].Observe(took.Seconds())
	case wire.Cancelled.String():
		m.setup["cancelled"].Observe(took.Seconds())
	default:
		m.totals.setups.Add(1)
		m.totals.failures.Add(1)
		m.setup["failed"].Observe(took.Seconds())
		m.failures[code].Inc()
	}
}

// Message counts one session message.
func (m *Metrics) Message(d Direction, q QoS, o Outcome) { m.messages[d][q][o].Inc() }

// Bytes counts n payload bytes. All but direct and hole-punched ones went over
// relays, for the relay usage.
func (m *Metrics) Bytes(d Direction, p Path, n int) {
	if n <= 0 {
		return
	}
	m.bytes[d][p].Add(float64(n))
	m.totals.payload.Add(uint64(n))
	if p >= Relayed {
		m.totals.relayed.Add(uint64(n))
	}
}

// PolicyDecision counts a decision: on and effect are those of the manifest
// language, such as "session.open" and "deny".
func (m *Metrics) PolicyDecision(on, effect string) {
	c := m.decisions[[2]string{on, effect}]
	if c == nil {
		c = m.decisions[[2]string{other, other}]
	}
	c.Inc()
}

// DirectoryLookup records a lookup. kind comes from a closed list of the
// directory's, such as "discover" or "resolve".
func (m *Metrics) DirectoryLookup(kind string, took time.Duration, err error) {
	m.lookups.WithLabelValues(kind, outcome(err)).Observe(took.Seconds())
}

// Handler records a call of a local handler. kind is its kind (http, exec, mcp,
// a2a, api), not its name.
func (m *Metrics) Handler(kind string, took time.Duration, err error) {
	m.handlers.WithLabelValues(kind, outcome(err)).Observe(took.Seconds())
}

// SchemaWarning counts a message let through although it breaks its schema.
func (m *Metrics) SchemaWarning() { m.warnings.Inc() }

// LogDropped counts a log entry that was not written; see [LogConfig].
func (m *Metrics) LogDropped() { m.dropped.Inc() }

// KeyExpiry sets when the current key certificate expires.
func (m *Metrics) KeyExpiry(t time.Time) { m.keyExpiry.Set(float64(t.Unix())) }

// outcome returns "ok", the name of err's code, or other for a code that only a
// newer peer knows: peers must not invent label values.
func outcome(err error) string {
	code := wire.CodeOf(err)
	switch {
	case err == nil:
		return "ok"
	case code == wire.Internal && errors.Is(err, context.Canceled):
		code = wire.Cancelled
	case code == wire.Internal && errors.Is(err, context.DeadlineExceeded):
		code = wire.DeadlineExceeded
	case !code.Known():
		return other
	}
	return code.String()
}

func (m *Metrics) counter(name, help string, labels ...string) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "openmesh", Name: name, Help: help}, labels)
	m.registry.MustRegister(v)
	return v
}

func (m *Metrics) gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "openmesh", Name: name, Help: help}, labels)
	m.registry.MustRegister(v)
	return v
}

// histogram has buckets from a quick local answer to an agent that thinks.
func (m *Metrics) histogram(name, help string, labels ...string) *prometheus.HistogramVec {
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "openmesh", Name: name, Help: help,
		Buckets: []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120},
	}, labels)
	m.registry.MustRegister(v)
	return v
}

// children resolves the child for each value of a vector's only label.
func children[T any](values []string, child func(...string) T) map[string]T {
	cs := make(map[string]T, len(values))
	for _, v := range values {
		cs[v] = child(v)
	}
	return cs
}

// revision is the commit that the program was built from, if it is known.
func revision() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
}
