package bench

import (
	"context"
	"fmt"
	"time"

	"openmesh/node/bench/load"
)

// way is one way of doing a workload. One of its functions is set.
type way struct {
	name   string
	do     func(ctx context.Context) error                                              // one operation
	each   func(ctx context.Context) (load.Worker, error)                               // or of a goroutine
	sample func(ctx context.Context, workers int, d time.Duration) (load.Sample, error) // or all of them, elsewhere
}

// workload is a table to be filled.
type workload struct {
	name, unit  string
	concurrency int
	operations  int // of a goroutine in a round; 0: as many as fit the time
	size        int // bytes of an operation, for those measured in MB/s
	ways        []way
}

// run measures the workload: in every round its ways take turns, in an order that
// rotates.
func (w workload) run(ctx context.Context, cfg Config) (*Table, error) {
	t := &Table{Name: w.name, Unit: w.unit, Rounds: map[string][]load.Sample{}, Medians: map[string]load.Sample{}}
	for _, y := range w.ways {
		t.Ways = append(t.Ways, y.name)
	}
	for round := range cfg.Rounds {
		for i := range w.ways {
			y := w.ways[(i+round)%len(w.ways)]
			cfg.Progress(fmt.Sprintf("%s: round %d of %d, %s", w.name, round+1, cfg.Rounds, y.name))
			s, err := w.measure(ctx, y, cfg.Time)
			if err != nil {
				return nil, fmt.Errorf("measure %s, %s: %w", w.name, y.name, err)
			}
			t.Rounds[y.name] = append(t.Rounds[y.name], s)
		}
	}
	for name, samples := range t.Rounds {
		t.Medians[name] = load.Sample{
			P50: medianOf(samples, p50), P99: medianOf(samples, p99), PerSecond: medianOf(samples, perSecond),
		}
	}
	return t, nil
}

func medianOf(samples []load.Sample, f func(load.Sample) float64) float64 {
	var vs []float64
	for _, s := range samples {
		vs = append(vs, f(s))
	}
	return load.Median(vs)
}

func (w workload) measure(ctx context.Context, y way, d time.Duration) (load.Sample, error) {
	if y.sample != nil {
		return y.sample(ctx, w.concurrency, d)
	}
	each := y.each
	if each == nil {
		each = func(context.Context) (load.Worker, error) { return load.Worker{Do: y.do}, nil }
	}
	s, err := load.Run(ctx, load.Config{Workers: w.concurrency, Time: d, Operations: w.operations, New: each})
	if w.size > 0 {
		s.PerSecond *= float64(w.size) / 1e6
	}
	return s, err
}

// fill measures all of ws and puts their tables into r.
func (r *Report) fill(ctx context.Context, cfg Config, ws []workload) error {
	for _, w := range ws {
		t, err := w.run(ctx, cfg)
		if err != nil {
			return err
		}
		r.Tables = append(r.Tables, *t)
	}
	return nil
}
