package observe

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"openmesh/protocols/wire"
)

// used returns metrics all of whose instruments have a child.
func used() *Metrics {
	m := NewMetrics("1.2.3")
	m.DirectoryLookup("discover", time.Second, nil)
	m.Handler("http", time.Second, wire.HandlerFailed)
	m.Letter("deposited", nil)
	m.MailboxRefused(wire.NotFound)
	return m
}

// names maps the name of each instrument of ours to its type.
func names(t testing.TB, m *Metrics) map[string]string {
	t.Helper()
	families, err := m.Registry().Gather()
	check(t, err)
	all := make(map[string]string)
	for _, f := range families {
		all[f.GetName()] = strings.ToLower(f.GetType().String())
	}
	return all
}

func TestMetricNames(t *testing.T) {
	t.Parallel()
	m := used()
	got := names(t, m)
	want := map[string]string{
		"openmesh_alert":                        "gauge",
		"openmesh_build_info":                   "gauge",
		"openmesh_bytes_total":                  "counter",
		"openmesh_directory_lookup_seconds":     "histogram",
		"openmesh_directory_partitioned":        "gauge",
		"openmesh_handler_seconds":              "histogram",
		"openmesh_hole_punches_total":           "counter",
		"openmesh_key_expiry_timestamp_seconds": "gauge",
		"openmesh_log_dropped_total":            "counter",
		"openmesh_mailbox_events_total":         "counter",
		"openmesh_mailbox_held":                 "gauge",
		"openmesh_mailbox_held_bytes":           "gauge",
		"openmesh_mailbox_letters_total":        "counter",
		"openmesh_mailbox_refused_total":        "counter",
		"openmesh_messages_total":               "counter",
		"openmesh_policy_decisions_total":       "counter",
		"openmesh_relay_bytes_total":            "counter",
		"openmesh_relay_in_use":                 "gauge",
		"openmesh_relay_usage_ratio":            "gauge",
		"openmesh_schema_warnings_total":        "counter",
		"openmesh_session_setup_seconds":        "histogram",
		"openmesh_session_paths":                "gauge",
		"openmesh_sessions":                     "gauge",
		"openmesh_tunnel_failures_total":        "counter",
		"go_goroutines":                         "gauge",
	}
	for name, kind := range want {
		if got[name] != kind {
			t.Errorf("%s is %q, want a %s", name, got[name], kind)
		}
	}
	var ours []string
	for name := range got {
		if strings.HasPrefix(name, "openmesh_") {
			ours = append(ours, name)
			if want[name] == "" {
				t.Errorf("%s is not in the list", name)
			}
		}
	}
	problems, err := testutil.GatherAndLint(m.Registry(), ours...)
	check(t, err)
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestMetricsCount(t *testing.T) {
	t.Parallel()
	m := NewMetrics("1.2.3")
	m.SessionMoved("", "offered")
	m.SessionMoved("", "offered")
	m.SessionMoved("offered", "active")
	m.SessionMoved("active", "closed")
	m.Message(Out, AtLeastOnce, Delivered)
	m.Bytes(In, Relayed, 7)
	m.Bytes(In, Relayed, -1)
	m.PolicyDecision("session.open", "deny")
	m.PolicyDecision("made up", "deny")
	m.SchemaWarning()
	m.LogDropped()
	m.KeyExpiry(time.Unix(1800000000, 0))
	check(t, testutil.GatherAndCompare(m.Registry(), strings.NewReader(`
# HELP openmesh_sessions Sessions by state.
# TYPE openmesh_sessions gauge
openmesh_sessions{state="active"} 0
openmesh_sessions{state="draining"} 0
openmesh_sessions{state="establishing"} 0
openmesh_sessions{state="migrating"} 0
openmesh_sessions{state="offered"} 1
# HELP openmesh_key_expiry_timestamp_seconds When the key certificate expires, in Unix time.
# TYPE openmesh_key_expiry_timestamp_seconds gauge
openmesh_key_expiry_timestamp_seconds 1.8e+09
# HELP openmesh_log_dropped_total Log entries not written because they repeat.
# TYPE openmesh_log_dropped_total counter
openmesh_log_dropped_total 1
# HELP openmesh_schema_warnings_total Messages let through although they break their schema.
# TYPE openmesh_schema_warnings_total counter
openmesh_schema_warnings_total 1
`), "openmesh_sessions", "openmesh_key_expiry_timestamp_seconds", "openmesh_log_dropped_total", "openmesh_schema_warnings_total"))
	for _, tc := range []struct {
		name string
		got  float64
		want float64
	}{
		{"message", testutil.ToFloat64(m.messages[Out][AtLeastOnce][Delivered]), 1},
		{"other message", testutil.ToFloat64(m.messages[In][AtLeastOnce][Delivered]), 0},
		{"bytes", testutil.ToFloat64(m.bytes[In][Relayed]), 7},
		{"decision", testutil.ToFloat64(m.decisions[[2]string{"session.open", "deny"}]), 1},
		{"unknown decision", testutil.ToFloat64(m.decisions[[2]string{other, other}]), 1},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, tc.got, tc.want)
		}
	}
}

// How a set-up ends decides what it counts for.
func TestSessionSetupOutcomes(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		err            error
		reason         string
		setups, failed uint64
	}{
		{nil, "", 1, 0},
		{wire.Errorf(wire.Unreachable, "dial"), "unreachable", 1, 1},
		{fmt.Errorf("dial: %w", context.DeadlineExceeded), "deadline_exceeded", 1, 1},
		{wire.Code(0x100000), other, 1, 1},
		{fmt.Errorf("dial: %w", context.Canceled), "", 0, 0},
		{wire.Cancelled, "", 0, 0},
	} {
		m := NewMetrics("")
		m.SessionSetup(time.Millisecond, tc.err)
		if s, f := m.totals.setups.Load(), m.totals.failures.Load(); s != tc.setups || f != tc.failed {
			t.Errorf("%v: %d set-ups, %d failures; want %d, %d", tc.err, s, f, tc.setups, tc.failed)
		}
		for reason, c := range m.failures {
			if got := testutil.ToFloat64(c); got != 0 && reason != tc.reason || got != 1 && reason == tc.reason {
				t.Errorf("%v: %v failures for %s", tc.err, got, reason)
			}
		}
	}
}

// Not parallel: others would allocate meanwhile.
func TestHotPathsDoNotAllocate(t *testing.T) {
	m := NewMetrics("")
	if n := testing.AllocsPerRun(100, func() {
		m.Message(In, ExactlyOnce, Refused)
		m.Bytes(Out, Direct, 1<<20)
		m.PolicyDecision("session.message", "allow")
	}); n != 0 {
		t.Errorf("%v allocations a message", n)
	}
}

// The Prometheus rules name metrics that exist and have the default thresholds.
func TestRulesMatchMetrics(t *testing.T) {
	t.Parallel()
	file, err := os.ReadFile("alerts.rules.yml")
	check(t, err)
	var rules struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	check(t, yaml.UnmarshalWithOptions(file, &rules, yaml.Strict()))
	known := names(t, used())
	exprs := make(map[string]string)
	for _, r := range rules.Groups[0].Rules {
		exprs[r.Alert] = r.Expr + " for " + r.For
		if r.Labels["severity"] == "" || r.Annotations["summary"] == "" {
			t.Errorf("%s has no severity or no summary", r.Alert)
		}
		for _, name := range regexp.MustCompile(`openmesh_\w+`).FindAllString(r.Expr, -1) {
			base, counts := strings.CutSuffix(name, "_count")
			if known[base] == "" || counts && known[base] != "histogram" {
				t.Errorf("%s names %s, which does not exist", r.Alert, name)
			}
		}
	}
	d := DefaultThresholds()
	for alert, want := range map[string]string{
		"OpenMeshRelayUsage":           fmt.Sprintf("> %v for", d.RelayUsagePct),
		"OpenMeshTunnelFailures":       fmt.Sprintf("> %v\n", d.TunnelFailureRate),
		"OpenMeshDirectoryPartitioned": fmt.Sprintf("for %s", d.RegistryPartition),
		"OpenMeshKeyExpiry":            "7 * 86400",
		"OpenMeshThreshold":            "openmesh_alert == 1",
	} {
		if !strings.Contains(exprs[alert], want) {
			t.Errorf("%s is %q, want %q in it", alert, exprs[alert], want)
		}
	}
	if want := fmt.Sprintf(">= %d", MinSetups); !strings.Contains(exprs["OpenMeshTunnelFailures"], want) {
		t.Errorf("OpenMeshTunnelFailures does not want %s set-ups", want)
	}
}
