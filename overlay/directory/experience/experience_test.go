package experience

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"openmesh/protocols/identity"
)

var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func id(n int) identity.AgentID {
	var seed [ed25519.SeedSize]byte
	binary.BigEndian.PutUint64(seed[:], uint64(n))
	return identity.NewAgentID(ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey))
}

func near(a, b float64) bool { return math.Abs(a-b) < 1e-9 }

func TestStranger(t *testing.T) {
	t.Parallel()
	if v := New().Of(id(1), now); v.Trust != 0.5 || v.Probed || v.Uptime != 0 || v.Latency != 0 {
		t.Errorf("a stranger is %+v; want trust 0.5 and nothing else", v)
	}
}

func TestTrust(t *testing.T) {
	t.Parallel()
	b := New()
	for range 3 {
		b.Record(id(1), Success, now)
	}
	b.Record(id(1), Failure, now)
	if got := b.Of(id(1), now).Trust; !near(got, 4.0/6) {
		t.Errorf("trust after 3 successes and a failure = %v, want 4/6", got)
	}
	if got := b.Of(id(1), now.Add(trustHalfLife)).Trust; !near(got, 2.5/4) {
		t.Errorf("a half-life later = %v, want 2.5/4", got)
	}
	b.Record(id(1), Failure, now.Add(trustHalfLife))
	if got := b.Of(id(1), now.Add(trustHalfLife)).Trust; !near(got, 2.5/5) {
		t.Errorf("after another failure = %v, want 2.5/5", got)
	}
	if got := b.Of(id(1), now.Add(100*trustHalfLife)).Trust; !near(got, 0.5) {
		t.Errorf("long forgotten = %v, want a stranger's 0.5", got)
	}
}

func TestUptimeAndLatency(t *testing.T) {
	t.Parallel()
	b := New()
	b.Probe(id(1), true, 100*time.Millisecond, now)
	b.Probe(id(1), false, 0, now)
	if v := b.Of(id(1), now); !near(v.Uptime, 50) || v.Latency != 100*time.Millisecond {
		t.Errorf("one of two answered in 100 ms: %+v", v)
	}
	b.Probe(id(1), true, 200*time.Millisecond, now)
	if v := b.Of(id(1), now); v.Latency != 130*time.Millisecond {
		t.Errorf("latency = %v, want 100 + 0.3 × 100 ms", v.Latency)
	}
	b = New()
	b.Probe(id(1), false, 0, now)
	b.Probe(id(1), true, time.Millisecond, now.Add(uptimeHalfLife))
	if v := b.Of(id(1), now.Add(uptimeHalfLife)); !near(v.Uptime, 100/1.5) {
		t.Errorf("a miss a half-life ago and an answer now: uptime %v, want 66.7", v.Uptime)
	}
}

// A clock that goes back neither breaks nor grows anything.
func TestClockGoesBack(t *testing.T) {
	t.Parallel()
	b := New()
	b.Record(id(1), Success, now)
	b.Record(id(1), Success, now.Add(-time.Hour))
	if got := b.Of(id(1), now.Add(-time.Hour)).Trust; !near(got, 3.0/4) {
		t.Errorf("trust = %v, want 3/4", got)
	}
}

func TestBounded(t *testing.T) {
	t.Parallel()
	b := New()
	for i := range MaxAgents + 100 {
		b.Record(id(i), Success, now.Add(time.Duration(i)*time.Second))
	}
	if len(b.agents) > MaxAgents {
		t.Errorf("%d agents, the bound is %d", len(b.agents), MaxAgents)
	}
	if b.agents[id(0)] != nil || b.agents[id(MaxAgents+99)] == nil {
		t.Error("it is not the oldest that are forgotten")
	}
}

func TestPersistence(t *testing.T) {
	path := filepath.Join(t.TempDir(), "experience.json")
	synctest.Test(t, func(t *testing.T) {
		b := New()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); b.Run(ctx, path, zap.NewNop()) }()
		b.Record(id(1), Success, time.Now())
		<-time.After(saveEvery + time.Second)
		if again, err := Load(path); err != nil || !near(again.Of(id(1), time.Now()).Trust, b.Of(id(1), time.Now()).Trust) {
			t.Errorf("saved while running: %v", err)
		}
		b.Probe(id(2), true, time.Second, time.Now())
		cancel()
		<-done
		again, err := Load(path)
		if err != nil || again.Of(id(2), time.Now()) != b.Of(id(2), time.Now()) {
			t.Errorf("saved at the end: %+v, %v", again.Of(id(2), time.Now()), err)
		}
	})
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("the folder has %v, %v; want the one file", left, err)
	}
}

func TestCorruptFileIsSetAside(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"no JSON":      "{",
		"null":         "null",
		"no agent id":  `{"mallory": {"good": 1}}`,
		"negative":     `{"` + string(id(1)) + `": {"good": -1}}`,
		"uptime > 100": `{"` + string(id(1)) + `": {"answered": 2, "asked": 1}}`,
		"null entry":   `{"` + string(id(1)) + `": null}`,
	} {
		path := filepath.Join(t.TempDir(), "experience.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := Load(path)
		if err == nil || b.Of(id(1), now).Trust != 0.5 {
			t.Errorf("%s: Load = %v", name, err)
		}
		if aside, err := os.ReadFile(path + ".corrupt"); err != nil || string(aside) != text {
			t.Errorf("%s: set aside: %q, %v", name, aside, err)
		}
		if _, err := Load(path); err != nil {
			t.Errorf("%s: the next start: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"` + string(id(1)) + `": {"good": 1, "at": "2026-11-21T12:00:00Z"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		b := New()
		if b.parse(raw) != nil {
			return
		}
		for agent := range b.agents {
			v := b.Of(agent, now)
			if !(v.Trust > 0 && v.Trust < 1) || !(v.Uptime >= 0 && v.Uptime <= 100) {
				t.Errorf("%s is %+v", agent, v)
			}
		}
	})
}
