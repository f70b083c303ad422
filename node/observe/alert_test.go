package observe

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"pgregory.net/rapid"

	"openmesh/protocols/wire"
)

var start = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// The window agrees with a list of all that happened, to within one step.
func TestWindowAgreesWithList(t *testing.T) {
	t.Parallel()
	type event struct {
		at time.Time
		n  uint64
	}
	rapid.Check(t, func(t *rapid.T) {
		var w Window
		var all []event
		now := start
		for range rapid.IntRange(1, 60).Draw(t, "events") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(2*time.Minute)).Draw(t, "gap")))
			n := rapid.Uint64Range(0, 1000).Draw(t, "n")
			w.Add(now, n)
			all = append(all, event{now, n})
			var low, high uint64
			for _, e := range all {
				if age := now.Sub(e.at); age <= Span-slotSpan {
					low += e.n
					high += e.n
				} else if age < Span {
					high += e.n
				}
			}
			if sum := w.Sum(now); sum < low || sum > high {
				t.Fatalf("sum %d, want %d to %d", sum, low, high)
			}
		}
		if sum := w.Sum(now.Add(Span)); sum != 0 {
			t.Fatalf("sum %d after the span", sum)
		}
	})
}

// A clock that steps back neither counts twice nor panics.
func TestWindowWhenClockStepsBack(t *testing.T) {
	t.Parallel()
	var w Window
	w.Add(start, 5)
	back := start.Add(-time.Hour)
	w.Add(back, 3)
	if got := w.Sum(back); got != 3 {
		t.Errorf("sum %d an hour earlier, want 3", got)
	}
	w.Add(time.Unix(-100, 0), 1)
	if got := w.Sum(time.Unix(-100, 0)); got != 1 {
		t.Errorf("sum %d before 1970, want 1", got)
	}
}

// A story in which every alert is raised, held and cleared.
func TestEvaluate(t *testing.T) {
	t.Parallel()
	th := DefaultThresholds()
	var held []Alert
	for i, step := range []struct {
		sample  Sample
		holding string // name@seconds of Since
		changes string
	}{
		0: {Sample{}, "", ""},
		1: {Sample{Payload: 100, Relayed: 15, Setups: 100, Failures: 2}, "", ""}, // at the threshold, not above it
		2: {Sample{Payload: 100, Relayed: 16}, "relay_usage_pct@2", "+relay_usage_pct"},
		3: {Sample{Payload: 100, Relayed: 99, Setups: MinSetups - 1, Failures: MinSetups - 1}, "relay_usage_pct@2", ""},
		4: {Sample{Payload: 100, Relayed: 99, Setups: MinSetups, Failures: 1}, "relay_usage_pct@2 tunnel_failure_rate@4", "+tunnel_failure_rate"},
		5: {Sample{Setups: 100, Failures: 3, PartitionedSince: start.Add(time.Second)}, "tunnel_failure_rate@4", "-relay_usage_pct"},
		6: {Sample{Setups: 100, Failures: 3, PartitionedSince: start}, "tunnel_failure_rate@4 registry_partition_ms@6", "+registry_partition_ms"},
		7: {Sample{}, "", "-tunnel_failure_rate -registry_partition_ms"},
		8: {Sample{PartitionedSince: start}, "registry_partition_ms@8", "+registry_partition_ms"},
	} {
		now := start.Add(time.Duration(i) * time.Second)
		var changes []Transition
		held, changes = Evaluate(th, held, now, step.sample)
		var h, c []string
		for _, a := range held {
			h = append(h, a.Name+"@"+strings.TrimSuffix(a.Since.Sub(start).String(), "s"))
		}
		for _, x := range changes {
			c = append(c, map[bool]string{true: "+", false: "-"}[x.Raised]+x.Name)
		}
		if got := strings.Join(h, " "); got != step.holding {
			t.Errorf("step %d: %q holds, want %q", i, got, step.holding)
		}
		if got := strings.Join(c, " "); got != step.changes {
			t.Errorf("step %d: %q changes, want %q", i, got, step.changes)
		}
	}
}

// Run shows an alert everywhere while it holds, and nowhere after.
func TestAlertsRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := NewMetrics("")
		log, _, buf := newLogger(t, LogConfig{})
		var partitioned atomic.Bool
		var told []Transition
		a := NewAlerts(AlertsConfig{
			Thresholds: DefaultThresholds(), Metrics: m, Log: log,
			Partitioned: partitioned.Load,
			Notify:      func(c Transition) { told = append(told, c) },
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		advance := func(d time.Duration) { <-time.After(d); synctest.Wait() }
		wantAlerts := func(want ...string) {
			t.Helper()
			var got []string
			for _, alert := range a.Current().Alerts {
				got = append(got, alert.Name)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
			for _, name := range alertNames {
				if g := testutil.ToFloat64(m.alerts[name]); (g == 1) != strings.Contains(strings.Join(want, " "), name) {
					t.Errorf("openmesh_alert{name=%q} is %v", name, g)
				}
			}
		}
		wantAlerts()

		m.Bytes(Out, Direct, 300)
		m.Bytes(In, Forwarded, 100)
		for range 9 {
			m.SessionSetup(time.Second, nil)
		}
		m.SessionSetup(time.Second, wire.Unreachable)
		partitioned.Store(true)
		advance(2 * time.Second)
		wantAlerts(RelayUsage, TunnelFailure)
		if o := a.Current(); o.RelayUsagePct != 25 || o.TunnelFailureRate != 10 || !o.Partitioned {
			t.Errorf("%+v", o)
		}
		if r := testutil.ToFloat64(m.relayUsage); r != .25 {
			t.Errorf("relay usage %v", r)
		}
		if p := testutil.ToFloat64(m.partition); p != 1 {
			t.Errorf("partitioned %v", p)
		}

		advance(5 * time.Second)
		wantAlerts(RelayUsage, TunnelFailure, RegistryPartition)
		partitioned.Store(false)
		advance(Span)
		wantAlerts()
		cancel()
		check(t, <-done)
		if len(told) != 6 || strings.Count(buf.String(), "alert raised") != 3 || strings.Count(buf.String(), "alert cleared") != 3 {
			t.Errorf("told %+v and logged %s", told, buf)
		}
	})
}
