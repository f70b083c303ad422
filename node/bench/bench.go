package bench

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"openmesh/node/bench/load"
)

// Config says what to measure, and how long. Home and Server are needed, Relays too
// for Paths; for Market Home and Sellers, for Audit Home alone. The rest has defaults.
type Config struct {
	Setup    Setup
	Rounds   int           // default 7
	Time     time.Duration // of each measurement in a round; default 1 s
	Home     string        // an empty folder for this side's nodes
	Server   Server
	Relays   []Server     // of Paths, in the order of the chains
	Sellers  []Server     // of Market; the first serves the directory
	Progress func(string) // told what is being measured; may be nil

	Bulk     int            // of Calls and Paths: bytes of one bulk transfer; default 256 MiB
	Senders  []int          // of Durable and Audit: numbers of senders and appenders; default 1, 16 and 64
	Baseline *load.Baseline // of Durable: what to compare with; may be nil
	Sessions int            // of Sessions: how many to open; default 10,000
	Trials   int            // of Failover: of each kind; default 7
	Every    time.Duration  // of Rekey: between two changes of keys; default 1 s, the least there is
	InFlight []int          // of Market: numbers of negotiations at once; default 1, 16 and 128
	Entries  int            // of Audit: in the log that is verified; default 20,000
}

// Run is one of the benchmarks.
type Run func(context.Context, Config) (*Report, error)

// Methods that all have in common.
const (
	turns      = "client and server are two processes on 127.0.0.1; " + rotation
	rotation   = "in every round the ways take turns, in an order that rotates"
	statistics = "percentiles are by nearest rank; a ratio is the median over the rounds of the ratio within a round"
)

// Calls measures requests, bulk transfer, set-up and discovery.
func Calls(ctx context.Context, cfg Config) (*Report, error) {
	start := time.Now()
	cfg.defaults()
	c, err := newClient(ctx, cfg.Home, cfg.Setup, cfg.Server)
	if err != nil {
		return nil, fmt.Errorf("start client: %w", err)
	}
	defer c.close()
	r := cfg.report("calls",
		fmt.Sprintf("request and response have %d bytes; raw is one long-lived libp2p stream per goroutine on the same transport, grpc unary over TLS 1.3, mesh a call between two nodes, api the same through the local API", PayloadSize),
		fmt.Sprintf("bulk sends messages of %d KiB one way and ends when the receiver has counted all bytes", ChunkSize>>10),
		"set-up ends with the first answer: raw and cold begin without a connection, warm with a connection and no session, grpc with a new TLS connection")
	if err := r.fill(ctx, cfg, c.workloads(cfg)); err != nil {
		return nil, err
	}
	r.compare([]comparison{
		{"call p50 / raw stream p50", sequential, "mesh", "raw", p50, atMost(1.5)},
		{"call rate / gRPC unary rate, sequential", sequential, "mesh", "grpc", perSecond, atLeast(1)},
		{"call rate / gRPC unary rate, 16 concurrent", concurrent, "mesh", "grpc", perSecond, atLeast(0.8)},
		{"bulk / raw stream bulk", "bulk", "mesh", "raw", perSecond, atLeast(0.7)},
		{"bulk / gRPC streaming bulk", "bulk", "mesh", "grpc", perSecond, limit{}},
	})
	r.ElapsedS = time.Since(start).Seconds()
	return r, nil
}

func (c *Config) defaults() {
	c.Rounds = cmp.Or(c.Rounds, 7)
	c.Time = cmp.Or(c.Time, time.Second)
	c.Bulk = cmp.Or(c.Bulk, 256<<20)
	c.Sessions = cmp.Or(c.Sessions, 10_000)
	c.Trials = cmp.Or(c.Trials, 7)
	c.Every = cmp.Or(c.Every, time.Second)
	c.Entries = cmp.Or(c.Entries, 20_000)
	if c.Senders == nil {
		c.Senders = []int{1, 16, 64}
	}
	if c.InFlight == nil {
		c.InFlight = []int{1, 16, 128}
	}
	if c.Progress == nil {
		c.Progress = func(string) {}
	}
}

// report begins a report.
func (c *Config) report(bench string, method ...string) *Report {
	return &Report{
		Bench: bench, Method: append(append([]string{turns}, method...), statistics),
		Transport: c.Setup.Transport, Rounds: c.Rounds, Tables: []Table{}, Ratios: []Ratio{},
	}
}

// Names of tables.
const (
	sequential = "call, sequential"
	concurrent = "call, 16 concurrent"
)

func (c *client) workloads(cfg Config) []workload {
	raw := way{name: "raw", each: c.echoWorker}
	calls := []way{raw, {name: "grpc", do: c.grpcCall}, {name: "mesh", do: c.meshCall}, {name: "api", do: c.apiCall}}
	send := func(f func(context.Context, int) error) func(context.Context) error {
		return func(ctx context.Context) error { return f(ctx, cfg.Bulk) }
	}
	lookup := 0
	return []workload{
		{name: sequential, unit: "calls/s", concurrency: 1, ways: calls},
		{name: concurrent, unit: "calls/s", concurrency: 16, ways: calls},
		{name: "bulk", unit: "MB/s", concurrency: 1, operations: 1, size: cfg.Bulk, ways: []way{
			{name: "raw", do: send(c.rawBulk)}, {name: "grpc", do: send(c.grpcBulk)}, {name: "mesh", do: send(c.meshBulk)}}},
		{name: "set-up", unit: "set-ups/s", concurrency: 1, operations: 10, ways: []way{
			{name: "raw", do: c.rawSetup}, {name: "grpc", do: c.grpcSetup}, {name: "mesh-warm", do: c.meshWarm}, {name: "mesh-cold", do: c.meshCold}}},
		{name: "discover, through the local API", unit: "lookups/s", concurrency: 1, ways: []way{
			{name: "mesh", do: func(ctx context.Context) error { lookup++; return c.discover(ctx, lookup) }}}},
	}
}
