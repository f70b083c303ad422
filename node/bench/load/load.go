// Package load puts load on something and says what it achieved: an operation is
// repeated by some goroutines, each of which begins the next when the last has
// ended (a closed loop), and their latencies are summed up.
package load

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Sample is what one way of doing a thing achieved in one round.
type Sample struct {
	P50       float64 `json:"p50_us"`
	P99       float64 `json:"p99_us"`
	PerSecond float64 `json:"per_second"`
}

// Worker is one goroutine's way of doing an operation; End, which may be nil, is
// called when it is done.
type Worker struct {
	Do  func(ctx context.Context) error
	End func()
}

// Config says how much load.
type Config struct {
	Workers    int
	Time       time.Duration // an operation that began within it is let end
	Operations int           // of each worker, whatever the time; 0: as many as fit it
	New        func(ctx context.Context) (Worker, error)
}

// Run returns what the workers achieved together, and one of their errors, if any
// failed.
func Run(ctx context.Context, cfg Config) (Sample, error) {
	var mu sync.Mutex
	var all []time.Duration
	var failure error
	var workers sync.WaitGroup
	start := time.Now()
	for range cfg.Workers {
		workers.Go(func() {
			lat, err := cfg.repeat(ctx, start.Add(cfg.Time))
			mu.Lock()
			defer mu.Unlock()
			all = append(all, lat...)
			if err != nil {
				failure = err
			}
		})
	}
	workers.Wait()
	return Summarize(all, time.Since(start)), failure
}

func (cfg Config) repeat(ctx context.Context, until time.Time) (latencies []time.Duration, err error) {
	w, err := cfg.New(ctx)
	if err != nil {
		return nil, err
	}
	if w.End != nil {
		defer w.End()
	}
	latencies = make([]time.Duration, 0, 1<<12)
	for begin := time.Now(); ; {
		if err := w.Do(ctx); err != nil {
			return latencies, err
		}
		now := time.Now()
		latencies = append(latencies, now.Sub(begin))
		if cfg.Operations > 0 && len(latencies) >= cfg.Operations || cfg.Operations == 0 && now.After(until) {
			return latencies, nil
		}
		begin = now
	}
}

// Summarize turns the latencies of operations that took total together into a
// sample. It sorts them.
func Summarize(latencies []time.Duration, total time.Duration) Sample {
	slices.Sort(latencies)
	return Sample{
		P50: Micros(percentile(latencies, 50)), P99: Micros(percentile(latencies, 99)),
		PerSecond: float64(len(latencies)) / total.Seconds(),
	}
}

// percentile returns the nearest-rank percentile p of sorted values, or 0 of
// none.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}

// Micros returns d in microseconds.
func Micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

// Median returns the median of values, or 0 of none.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}
