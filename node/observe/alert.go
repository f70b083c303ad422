package observe

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

// The names of the alerts are the keys of observability.alert_thresholds.
const (
	RelayUsage        = "relay_usage_pct"
	TunnelFailure     = "tunnel_failure_rate"
	RegistryPartition = "registry_partition_ms"
)

var alertNames = [...]string{RelayUsage, TunnelFailure, RegistryPartition}

// MinSetups is how many session set-ups a failure rate needs to raise an alert:
// one failure of two is no 50 %.
const MinSetups = 10

// Thresholds are the values above which an alert holds.
type Thresholds struct {
	RelayUsagePct     float64       // percent of payload bytes over relays, in the last Span
	TunnelFailureRate float64       // percent of session set-ups that failed, in the last Span
	RegistryPartition time.Duration // how long the directory has been out of reach
}

// DefaultThresholds returns those of a node that is told nothing else.
func DefaultThresholds() Thresholds {
	return Thresholds{RelayUsagePct: 15, TunnelFailureRate: 2, RegistryPartition: 5 * time.Second}
}

// A Sample is what is measured of a node at one moment.
type Sample struct {
	Payload, Relayed uint64    // bytes in the last Span, in and out; Relayed of them by relay, forwarding or mailbox
	Setups, Failures uint64    // set-ups begun here in the last Span; Failures of them failed
	PartitionedSince time.Time // zero while the directory is in reach
}

// RelayUsagePct returns the percentage of payload bytes that went over relays.
func (s Sample) RelayUsagePct() float64 { return percent(s.Relayed, s.Payload) }

// TunnelFailureRate returns the percentage of session set-ups that failed.
func (s Sample) TunnelFailureRate() float64 { return percent(s.Failures, s.Setups) }

func percent(part, whole uint64) float64 {
	if whole == 0 {
		return 0
	}
	return min(100, 100*float64(part)/float64(whole))
}

// An Alert is a threshold that is exceeded. Value and Threshold are in the unit
// that the name says: percent, or milliseconds.
type Alert struct {
	Name             string
	Value, Threshold float64
	Since            time.Time
}

// A Transition is an alert that was raised or cleared. A cleared one has the
// value that is below its threshold, and when it was raised.
type Transition struct {
	Alert
	Raised bool
}

// Evaluate returns the alerts that hold at now, given those that held before,
// and what changed. It is a pure function.
func Evaluate(t Thresholds, held []Alert, now time.Time, s Sample) (holding []Alert, changes []Transition) {
	check := func(name string, value, threshold float64, enough bool) {
		a := Alert{Name: name, Value: value, Threshold: threshold, Since: now}
		i := slices.IndexFunc(held, func(h Alert) bool { return h.Name == name })
		if i >= 0 {
			a.Since = held[i].Since
		}
		exceeded := enough && value > threshold
		if exceeded {
			holding = append(holding, a)
		}
		if exceeded != (i >= 0) {
			changes = append(changes, Transition{a, exceeded})
		}
	}
	var partitioned time.Duration
	if !s.PartitionedSince.IsZero() {
		partitioned = now.Sub(s.PartitionedSince)
	}
	check(RelayUsage, s.RelayUsagePct(), t.RelayUsagePct, true)
	check(TunnelFailure, s.TunnelFailureRate(), t.TunnelFailureRate, s.Setups >= MinSetups)
	check(RegistryPartition, milliseconds(partitioned), milliseconds(t.RegistryPartition), true)
	return holding, changes
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// AlertsConfig is what the alerts of a node need.
type AlertsConfig struct {
	Thresholds  Thresholds
	Metrics     *Metrics
	Log         *zap.Logger
	Partitioned func() bool      // whether the directory is out of reach now; may be nil
	Notify      func(Transition) // told of every change, one at a time; must not block; may be nil
}

// Alerts watches a node's metrics against its thresholds. While one is exceeded
// it is in Current and its gauge is 1; each change is logged.
type Alerts struct {
	cfg                                AlertsConfig
	payload, relayed, setups, failures windowed

	mu      sync.Mutex
	current Overview
}

// An Overview is how a node stands, as status shows it.
type Overview struct {
	RelayUsagePct     float64 // of the last Span
	TunnelFailureRate float64 // percent, of the last Span
	Partitioned       bool
	Alerts            []Alert // that hold now
}

// windowed turns a total that only grows into what it grew by lately.
type windowed struct {
	last   uint64
	window Window
}

func (w *windowed) update(now time.Time, total uint64) uint64 {
	w.window.Add(now, total-w.last)
	w.last = total
	return w.window.Sum(now)
}

// NewAlerts makes the alerts of a node; [Alerts.Run] watches.
func NewAlerts(cfg AlertsConfig) *Alerts { return &Alerts{cfg: cfg} }

// alertInterval is how often the thresholds are looked at.
const alertInterval = time.Second

// Run watches until ctx ends, and returns nil then.
func (a *Alerts) Run(ctx context.Context) error {
	tick := time.NewTicker(alertInterval)
	defer tick.Stop()
	var s Sample
	var held []Alert
	for {
		now := time.Now()
		s = a.sample(now, s.PartitionedSince)
		var changes []Transition
		held, changes = Evaluate(a.cfg.Thresholds, held, now, s)
		a.publish(s, held)
		for _, c := range changes {
			a.announce(now, c)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Current returns how the node stands. Safe for concurrent use.
func (a *Alerts) Current() Overview {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.current
}

func (a *Alerts) sample(now, partitionedSince time.Time) Sample {
	t := &a.cfg.Metrics.totals
	s := Sample{
		// Parts before wholes: what comes in between must not make 101 %.
		Relayed:  a.relayed.update(now, t.relayed.Load()),
		Payload:  a.payload.update(now, t.payload.Load()),
		Failures: a.failures.update(now, t.failures.Load()),
		Setups:   a.setups.update(now, t.setups.Load()),
	}
	if a.cfg.Partitioned != nil && a.cfg.Partitioned() {
		s.PartitionedSince = cmp.Or(partitionedSince, now)
	}
	return s
}

func (a *Alerts) publish(s Sample, held []Alert) {
	m := a.cfg.Metrics
	m.relayUsage.Set(s.RelayUsagePct() / 100)
	partitioned := !s.PartitionedSince.IsZero()
	m.partition.Set(oneIf(partitioned))
	a.mu.Lock()
	defer a.mu.Unlock()
	a.current = Overview{s.RelayUsagePct(), s.TunnelFailureRate(), partitioned, held}
}

func (a *Alerts) announce(now time.Time, c Transition) {
	a.cfg.Metrics.alerts[c.Name].Set(oneIf(c.Raised))
	log, what := a.cfg.Log.Info, "alert cleared"
	if c.Raised {
		log, what = a.cfg.Log.Warn, "alert raised"
	}
	log(what, zap.String("alert", c.Name), zap.Float64("value", c.Value), zap.Float64("threshold", c.Threshold), zap.Duration("held", now.Sub(c.Since)))
	if a.cfg.Notify != nil {
		a.cfg.Notify(c)
	}
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
