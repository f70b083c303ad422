package bench

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Config says what to measure.
type Config struct {
	Transport string        // quic or tcp
	Rounds    int           // default 7
	Time      time.Duration // of each measurement in a round; default 1 s
	Bulk      int           // bytes of one bulk transfer; default 256 MiB
	Home      string        // an empty folder for the client node
	Server    Server
	Progress  func(string) // told what is being measured; may be nil
}

// Report is the outcome: every number of every round, and what follows.
type Report struct {
	Method    []string        `json:"method"`
	Transport string          `json:"transport"`
	Rounds    int             `json:"rounds"`
	Tables    []Table         `json:"tables"`
	Ratios    []Ratio         `json:"ratios"`
	IdleRSS   float64         `json:"idle_daemon_rss_mb,omitempty"`
	Targets   map[string]bool `json:"targets"` // by name of the ratio: was it met?
	ElapsedS  float64         `json:"elapsed_s"`
}

// Table is one workload: for each way of doing it, a sample per round.
type Table struct {
	Name    string              `json:"name"`
	Unit    string              `json:"unit"` // of what is compared
	Ways    []string            `json:"ways"`
	Rounds  map[string][]Sample `json:"samples"`
	Medians map[string]Sample   `json:"medians"`
}

// Ratio compares two ways: the median over the rounds of their ratio in a round.
type Ratio struct {
	Name   string  `json:"name"`
	Value  float64 `json:"value"`
	Target string  `json:"target,omitempty"`
	Met    bool    `json:"met"`
}

// Method says how the numbers were made.
var method = []string{
	"client and server are two processes on 127.0.0.1; in every round the ways take turns, in an order that rotates",
	fmt.Sprintf("request and response have %d bytes; raw is one long-lived libp2p stream per goroutine on the same transport, grpc unary over TLS 1.3, mesh a call between two nodes, api the same through the local API", PayloadSize),
	fmt.Sprintf("bulk sends messages of %d KiB one way and ends when the receiver has counted all bytes", ChunkSize>>10),
	"set-up ends with the first answer: raw and cold begin without a connection, warm with a connection and no session, grpc with a new TLS connection",
	"percentiles are by nearest rank; a ratio is the median over the rounds of the ratio within a round",
}

// way is one way of doing a workload; do is called once per operation.
type way struct {
	name string
	do   func(ctx context.Context) error
	each func(ctx context.Context) (do func(context.Context) error, end func(), err error) // instead: per goroutine
}

// Run measures all workloads.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	start := time.Now()
	cfg.defaults()
	c, err := newClient(ctx, cfg.Home, cfg.Transport, cfg.Server)
	if err != nil {
		return nil, fmt.Errorf("start client: %w", err)
	}
	defer c.close()
	r := &Report{Method: method, Transport: cfg.Transport, Rounds: cfg.Rounds}
	for _, w := range c.workloads(cfg) {
		t, err := w.run(ctx, cfg)
		if err != nil {
			return nil, fmt.Errorf("measure %s: %w", w.name, err)
		}
		r.Tables = append(r.Tables, *t)
	}
	r.compare()
	r.ElapsedS = time.Since(start).Seconds()
	return r, nil
}

func (c *Config) defaults() {
	if c.Rounds == 0 {
		c.Rounds = 7
	}
	if c.Time == 0 {
		c.Time = time.Second
	}
	if c.Bulk == 0 {
		c.Bulk = 256 << 20
	}
	if c.Progress == nil {
		c.Progress = func(string) {}
	}
}

// workload is a table to be filled.
type workload struct {
	name, unit  string
	concurrency int
	operations  int // in a round; 0: as many as fit the time
	size        int // bytes of an operation, for those measured in MB/s
	ways        []way
}

func (c *client) workloads(cfg Config) []workload {
	raw := way{name: "raw", each: c.echoStream}
	calls := []way{raw, {name: "grpc", do: c.grpcCall}, {name: "mesh", do: c.meshCall}, {name: "api", do: c.apiCall}}
	bulk := func(f func(context.Context, int) error) func(context.Context) error {
		return func(ctx context.Context) error { return f(ctx, cfg.Bulk) }
	}
	lookup := 0
	return []workload{
		{name: "call, sequential", unit: "calls/s", concurrency: 1, ways: calls},
		{name: "call, 16 concurrent", unit: "calls/s", concurrency: 16, ways: calls},
		{name: "bulk", unit: "MB/s", concurrency: 1, operations: 1, size: cfg.Bulk, ways: []way{
			{name: "raw", do: bulk(c.rawBulk)}, {name: "grpc", do: bulk(c.grpcBulk)}, {name: "mesh", do: bulk(c.meshBulk)}}},
		{name: "set-up", unit: "set-ups/s", concurrency: 1, operations: 10, ways: []way{
			{name: "raw", do: c.rawSetup}, {name: "grpc", do: c.grpcSetup}, {name: "mesh-warm", do: c.meshWarm}, {name: "mesh-cold", do: c.meshCold}}},
		{name: "discover, through the local API", unit: "lookups/s", concurrency: 1, ways: []way{
			{name: "mesh", do: func(ctx context.Context) error { lookup++; return c.discover(ctx, lookup) }}}},
	}
}

func (w workload) run(ctx context.Context, cfg Config) (*Table, error) {
	t := &Table{Name: w.name, Unit: w.unit, Rounds: map[string][]Sample{}, Medians: map[string]Sample{}}
	for _, y := range w.ways {
		t.Ways = append(t.Ways, y.name)
	}
	for round := range cfg.Rounds {
		for i := range w.ways {
			y := w.ways[(i+round)%len(w.ways)]
			cfg.Progress(fmt.Sprintf("%s: round %d of %d, %s", w.name, round+1, cfg.Rounds, y.name))
			s, err := w.measure(ctx, y, cfg.Time)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", y.name, err)
			}
			t.Rounds[y.name] = append(t.Rounds[y.name], s)
		}
	}
	for name, samples := range t.Rounds {
		t.Medians[name] = Sample{
			P50:       median(column(samples, func(s Sample) float64 { return s.P50 })),
			P99:       median(column(samples, func(s Sample) float64 { return s.P99 })),
			PerSecond: median(column(samples, func(s Sample) float64 { return s.PerSecond })),
		}
	}
	return t, nil
}

func column(samples []Sample, f func(Sample) float64) []float64 {
	var vs []float64
	for _, s := range samples {
		vs = append(vs, f(s))
	}
	return vs
}

// measure runs one way in w.concurrency goroutines.
func (w workload) measure(ctx context.Context, y way, limit time.Duration) (Sample, error) {
	var mu sync.Mutex
	var all []time.Duration
	var failure error
	var workers sync.WaitGroup
	start := time.Now()
	for range w.concurrency {
		workers.Go(func() {
			lat, err := w.repeat(ctx, y, start.Add(limit))
			mu.Lock()
			defer mu.Unlock()
			all = append(all, lat...)
			if err != nil {
				failure = err
			}
		})
	}
	workers.Wait()
	s := summarize(all, time.Since(start))
	if w.size > 0 {
		s.PerSecond *= float64(w.size) / 1e6
	}
	return s, failure
}

func (w workload) repeat(ctx context.Context, y way, until time.Time) (latencies []time.Duration, err error) {
	do := y.do
	if y.each != nil {
		var end func()
		if do, end, err = y.each(ctx); err != nil {
			return nil, err
		}
		defer end()
	}
	latencies = make([]time.Duration, 0, 1<<16)
	for begin := time.Now(); ; {
		if err := do(ctx); err != nil {
			return latencies, err
		}
		now := time.Now()
		latencies = append(latencies, now.Sub(begin))
		if w.operations > 0 && len(latencies) >= w.operations || w.operations == 0 && now.After(until) {
			return latencies, nil
		}
		begin = now
	}
}

// comparisons are the ratios that matter, and what they should be.
var comparisons = []struct {
	name, table, of, to string
	what                func(Sample) float64
	target              float64
	atMost              bool
}{
	{"call p50 / raw stream p50", "call, sequential", "mesh", "raw", func(s Sample) float64 { return s.P50 }, 1.5, true},
	{"call rate / gRPC unary rate, sequential", "call, sequential", "mesh", "grpc", func(s Sample) float64 { return s.PerSecond }, 1, false},
	{"call rate / gRPC unary rate, 16 concurrent", "call, 16 concurrent", "mesh", "grpc", func(s Sample) float64 { return s.PerSecond }, 0.8, false},
	{"bulk / raw stream bulk", "bulk", "mesh", "raw", func(s Sample) float64 { return s.PerSecond }, 0.7, false},
	{"bulk / gRPC streaming bulk", "bulk", "mesh", "grpc", func(s Sample) float64 { return s.PerSecond }, 0, false},
}

func (r *Report) compare() {
	for _, c := range comparisons {
		i := slices.IndexFunc(r.Tables, func(t Table) bool { return t.Name == c.table })
		if i < 0 {
			continue
		}
		t := r.Tables[i]
		var ratios []float64
		for round := range t.Rounds[c.of] {
			ratios = append(ratios, c.what(t.Rounds[c.of][round])/c.what(t.Rounds[c.to][round]))
		}
		v := Ratio{Name: c.name, Value: median(ratios), Met: true}
		if c.target > 0 {
			sign := "at least"
			v.Met = median(ratios) >= c.target
			if c.atMost {
				sign, v.Met = "at most", median(ratios) <= c.target
			}
			v.Target = fmt.Sprintf("%s %.2g", sign, c.target)
		}
		r.Ratios = append(r.Ratios, v)
	}
}
