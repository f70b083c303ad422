package load

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestSummarizeAndMedian(t *testing.T) {
	t.Parallel()
	var ds []time.Duration
	for i := range 100 {
		ds = append(ds, time.Duration(100-i)*time.Millisecond) // 1 to 100 ms, descending
	}
	s := Summarize(ds, 10*time.Second)
	if s.P50 != 50_000 || s.P99 != 99_000 || s.PerSecond != 10 {
		t.Errorf("Summarize = %+v", s)
	}
	if s := Summarize(nil, time.Second); s != (Sample{}) {
		t.Errorf("Summarize of nothing = %+v", s)
	}
	for _, tc := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{3, 1, 2}, 2}, {[]float64{4, 1, 2, 3}, 2.5}} {
		if got := Median(tc.in); got != tc.want {
			t.Errorf("Median(%v) = %v, want %v", tc.in, got, tc.want)
		}
	}
}

// Four workers whose operations take 10 ms make 400 a second, each with a worker
// of its own.
func TestRun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var begun, ended atomic.Int32
		cfg := Config{Workers: 4, Time: 95 * time.Millisecond, New: func(context.Context) (Worker, error) {
			begun.Add(1)
			return Worker{Do: func(ctx context.Context) error {
				<-time.After(10 * time.Millisecond)
				return nil
			}, End: func() { ended.Add(1) }}, nil
		}}
		s, err := Run(t.Context(), cfg)
		if err != nil || s.P50 != 10_000 || s.P99 != 10_000 || s.PerSecond != 400 {
			t.Errorf("Run = %+v, %v", s, err)
		}
		cfg.Operations = 50
		if s, err := Run(t.Context(), cfg); err != nil || s.PerSecond != 400 {
			t.Errorf("Run of 50 = %+v, %v", s, err)
		}
		if begun.Load() != 8 || ended.Load() != 8 {
			t.Errorf("%d workers began, %d ended", begun.Load(), ended.Load())
		}
	})
}

func TestRunFails(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	for name, cfg := range map[string]Config{
		"worker": {Workers: 2, Time: time.Second, New: func(context.Context) (Worker, error) { return Worker{}, broken }},
		"operation": {Workers: 2, Time: time.Second, New: func(context.Context) (Worker, error) {
			return Worker{Do: func(context.Context) error { return broken }}, nil
		}},
	} {
		if _, err := Run(t.Context(), cfg); !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
