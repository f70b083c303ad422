package bench

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"openmesh/node/bench/load"
)

// The test program is the baseline of TestDurable where the environment says so.
func TestMain(m *testing.M) {
	if os.Getenv("BENCH_TEST_BASELINE") == "" {
		os.Exit(m.Run())
	}
	greeting := load.Greeting{Name: "nothing", Ways: []string{"safely", "fast"}, Method: []string{"it does nothing"}}
	err := load.ServeOrders(context.Background(), os.Stdin, os.Stdout, greeting, func(_ context.Context, o load.Order) (load.Sample, error) {
		return load.Sample{P50: 1, P99: 1, PerSecond: float64(o.Workers)}, nil
	})
	if err != nil {
		os.Exit(1)
	}
}

// A target is met or missed by the median of the ratios within rounds; ways that
// were not measured are not compared.
func TestCompare(t *testing.T) {
	t.Parallel()
	r := &Report{Tables: []Table{{Name: "calls", Rounds: map[string][]load.Sample{
		"mesh": {{P50: 14, PerSecond: 9}, {P50: 20, PerSecond: 9}, {P50: 30, PerSecond: 9}},
		"raw":  {{P50: 10}, {P50: 10}, {P50: 30}},
		"grpc": {{PerSecond: 10}, {PerSecond: 10}, {PerSecond: 8}},
	}}}}
	r.compare([]comparison{
		{"p50", "calls", "mesh", "raw", p50, atMost(1.5)},
		{"rate", "calls", "mesh", "grpc", perSecond, atLeast(1)},
		{"rate, told only", "calls", "mesh", "grpc", perSecond, limit{}},
		{"no table", "bulk", "mesh", "grpc", perSecond, atLeast(1)},
		{"no way", "calls", "mesh", "api", perSecond, atLeast(1)},
	})
	if len(r.Ratios) != 3 || r.Ratios[0].Value != 1.4 || !r.Ratios[0].Met || r.Ratios[1].Value != 0.9 || r.Ratios[1].Met || !r.Ratios[2].Met {
		t.Errorf("ratios %+v", r.Ratios)
	}
	if r.Ratios[0].Target != "at most 1.5" || r.Ratios[1].Target != "at least 1" || r.Ratios[2].Target != "" {
		t.Errorf("targets of %+v", r.Ratios)
	}
}

func TestRange(t *testing.T) {
	t.Parallel()
	if least, median, most := (Spread{Values: []float64{3, 1, 8}}).Range(); least != 1 || median != 3 || most != 8 {
		t.Errorf("Range = %v, %v, %v", least, median, most)
	}
	if least, median, most := (Spread{}).Range(); least+median+most != 0 {
		t.Errorf("Range of nothing = %v, %v, %v", least, median, most)
	}
}

// serve runs a server or a relay until stop, which tells how it ended.
func serve(t *testing.T, setup Setup) (s Server, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	servers, ended := make(chan Server, 1), make(chan error, 1)
	home := t.TempDir() + "/server"
	go func() {
		ended <- Serve(ctx, home, setup, func(s Server) error { servers <- s; return nil })
	}()
	select {
	case s = <-servers:
	case err := <-ended:
		t.Fatal(err)
	}
	return s, func() error { cancel(); return <-ended }
}

// measure runs a benchmark for a moment: real nodes on loopback, though in one
// process.
func measure(t *testing.T, run Run, cfg Config) *Report {
	t.Helper()
	server, stop := serve(t, cfg.Setup)
	cfg.Server = server
	cfg.Home, cfg.Rounds, cfg.Time = t.TempDir()+"/client", 2, 20*time.Millisecond
	r, err := run(t.Context(), cfg)
	if ended := stop(); ended != nil {
		t.Errorf("server: %v", ended)
	}
	if err != nil {
		t.Fatal(err)
	}
	measured(t, r)
	return r
}

// measured checks that every way was measured in every round.
func measured(t *testing.T, r *Report) {
	t.Helper()
	for _, table := range r.Tables {
		for _, way := range table.Ways {
			if n := len(table.Rounds[way]); n < 2 || table.Medians[way].PerSecond <= 0 || table.Medians[way].P50 <= 0 {
				t.Errorf("%s, %s: %d rounds, %+v", table.Name, way, n, table.Medians[way])
			}
		}
	}
}

// wants checks how much there is in a report.
func wants(t *testing.T, r *Report, tables, ratios int) {
	t.Helper()
	if len(r.Tables) != tables || len(r.Ratios) != ratios {
		t.Errorf("%d tables and %d ratios, want %d and %d", len(r.Tables), len(r.Ratios), tables, ratios)
	}
}

func TestCalls(t *testing.T) {
	for _, transport := range []string{"quic", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			wants(t, measure(t, Calls, Config{Setup: Setup{Transport: transport}, Bulk: 1 << 20}), 5, 5)
		})
	}
}

// Messages are delivered to handler and inbox, and compared with a baseline in a
// process of its own.
func TestDurable(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "BENCH_TEST_BASELINE=1")
	b, err := load.StartBaseline(cmd)
	if err != nil {
		t.Fatal(err)
	}
	r := measure(t, Durable, Config{Setup: Setup{Transport: "quic"}, Senders: []int{1, 4}, Baseline: b})
	if err := b.Stop(); err != nil {
		t.Errorf("baseline: %v", err)
	}
	wants(t, r, 2, 8)
	if got := r.Tables[1].Medians["safely"].PerSecond; got != 4 {
		t.Errorf("the baseline's sample has %v a second, it said 4", got)
	}
	if r.Ratios[0].Target != "" || r.Ratios[4].Target == "" || r.Ratios[5].Target != "" {
		t.Errorf("what is compared with the safe way has a target, and only that: %+v", r.Ratios)
	}
}

// Sessions are opened, parked and woken.
func TestSessions(t *testing.T) {
	t.Parallel()
	r := measure(t, Sessions, Config{Setup: ForSessions("tcp"), Sessions: 100})
	wants(t, r, 2, 2)
	if len(r.Memory) != 2 || r.Memory[0].HeapAfter <= 0 || r.Memory[1].HeapAfter <= 0 {
		t.Errorf("memory %+v", r.Memory)
	}
}

// A reset and packets that vanish interrupt a session, and do not end it.
func TestFailover(t *testing.T) {
	t.Parallel()
	r := measure(t, Failover, Config{Setup: Setup{Transport: "both"}, Trials: 1})
	wants(t, r, 0, len(cuts()))
	for _, s := range r.Spreads {
		if len(s.Values) != 1 || s.Values[0] <= 0 {
			t.Errorf("%s: %v", s.Name, s.Values)
		}
	}
}

// The keys of every suite change while calls go on.
func TestRekey(t *testing.T) {
	t.Parallel()
	r := measure(t, func(ctx context.Context, cfg Config) (*Report, error) {
		cfg.Time = 1200 * time.Millisecond // the keys change once a second
		return Rekey(ctx, cfg)
	}, Config{Setup: Setup{Transport: "quic"}})
	wants(t, r, 5, 12)
}

// Sessions go directly, through a relay, and over chains of relays.
func TestPaths(t *testing.T) {
	for _, transport := range []string{"quic", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			cfg := Config{Setup: Setup{Transport: transport}, Bulk: 1 << 20}
			for range PathRelays {
				setup := cfg.Setup
				setup.Relay = true
				relay, stop := serve(t, setup)
				defer func() {
					if err := stop(); err != nil {
						t.Errorf("relay: %v", err)
					}
				}()
				cfg.Relays = append(cfg.Relays, relay)
				cfg.Setup.Relays = cfg.Relays[0].Node
			}
			r := measure(t, Paths, cfg)
			wants(t, r, 3, 12)
			if got := len(r.Tables[0].Ways); got != 2+PathRelays {
				t.Errorf("%d ways", got)
			}
		})
	}
}

func TestPathsNeedsRelays(t *testing.T) {
	t.Parallel()
	if _, err := Paths(t.Context(), Config{}); err == nil {
		t.Error("measured without relays")
	}
}
