package bench

import (
	"context"
	"testing"
	"time"
)

func TestPercentileAndMedian(t *testing.T) {
	t.Parallel()
	var ds []time.Duration
	for i := range 100 {
		ds = append(ds, time.Duration(100-i)*time.Millisecond) // 1 to 100 ms, descending
	}
	s := summarize(ds, 10*time.Second)
	if s.P50 != 50_000 || s.P99 != 99_000 || s.PerSecond != 10 {
		t.Errorf("summarize = %+v", s)
	}
	for _, tc := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{3, 1, 2}, 2}, {[]float64{4, 1, 2, 3}, 2.5}} {
		if got := median(tc.in); got != tc.want {
			t.Errorf("median(%v) = %v, want %v", tc.in, got, tc.want)
		}
	}
}

// A target is met or missed by the median of the ratios within rounds.
func TestCompare(t *testing.T) {
	t.Parallel()
	r := &Report{Tables: []Table{{Name: "call, sequential", Rounds: map[string][]Sample{
		"mesh": {{P50: 14, PerSecond: 9}, {P50: 20, PerSecond: 9}, {P50: 30, PerSecond: 9}},
		"raw":  {{P50: 10}, {P50: 10}, {P50: 30}},
		"grpc": {{PerSecond: 10}, {PerSecond: 10}, {PerSecond: 8}},
	}}}}
	r.compare()
	if len(r.Ratios) != 2 || r.Ratios[0].Value != 1.4 || !r.Ratios[0].Met || r.Ratios[1].Value != 0.9 || r.Ratios[1].Met {
		t.Errorf("ratios %+v", r.Ratios)
	}
}

// Every workload runs and every way is measured in every round, over QUIC and
// TCP: real nodes on loopback, though in one process.
func TestRun(t *testing.T) {
	for _, transport := range []string{"quic", "tcp"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			servers, ended := make(chan Server, 1), make(chan error, 1)
			go func() {
				ended <- Serve(ctx, t.TempDir()+"/server", transport, func(s Server) error { servers <- s; return nil })
			}()
			var server Server
			select {
			case server = <-servers:
			case err := <-ended:
				t.Fatal(err)
			}
			r, err := Run(ctx, Config{
				Transport: transport, Rounds: 2, Time: 20 * time.Millisecond, Bulk: 1 << 20, Home: t.TempDir() + "/client", Server: server,
			})
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			if err := <-ended; err != nil {
				t.Errorf("server: %v", err)
			}
			for _, table := range r.Tables {
				for _, way := range table.Ways {
					if n := len(table.Rounds[way]); n != 2 || table.Medians[way].PerSecond <= 0 || table.Medians[way].P50 <= 0 {
						t.Errorf("%s, %s: %d rounds, %+v", table.Name, way, n, table.Medians[way])
					}
				}
			}
			if len(r.Ratios) != len(comparisons) {
				t.Errorf("%d ratios, want %d", len(r.Ratios), len(comparisons))
			}
		})
	}
}
