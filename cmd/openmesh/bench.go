package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/bench"
	"openmesh/protocols/wire"
)

const benchManners = "Needs no daemon and leaves nothing behind. Prints medians and ratios; --json has the method and every round.\n" +
	"Exits 1 if a target is missed."

// benchmark is one command that measures.
type benchmark struct {
	use, short, long, example string
	run                       bench.Run
	idle                      bool                               // measure an idle daemon as well
	relays                    int                                // processes of relays beside the server
	sellers                   int                                // processes of sellers in place of the server
	alone                     bool                               // needs no other process
	baseline                  bool                               // may be compared with another program
	both                      bool                               // over QUIC and TCP; else --transport says over which
	setup                     func(transport string) bench.Setup // of the nodes; nil: as they are by default
	flags                     func(*cobra.Command, *bench.Config)
}

func newBench(p *program) *cobra.Command {
	calls := benchCalls()
	cmd := newBenchmark(p, calls)
	cmd.Use, cmd.Short, cmd.Example = "bench", "Measure what OpenMesh costs", "  openmesh bench\n  openmesh bench sessions --json"
	cmd.Long = "Measure what OpenMesh costs, with synthetic workloads between two processes on this machine.\n" +
		"Without a subcommand: bench calls.\n" + benchManners
	for _, b := range []benchmark{calls, benchDurable(), benchSessions(), benchFailover(), benchRekey(), benchPaths(), benchMarket(), benchAudit()} {
		cmd.AddCommand(newBenchmark(p, b))
	}
	cmd.AddCommand(newBenchServe(p))
	return cmd
}

func benchCalls() benchmark {
	return benchmark{
		use: "calls", short: "Measure calls, bulk and set-up against raw libp2p and gRPC", run: bench.Calls, idle: true,
		long: "Measure calls, bulk transfer, set-up and discovery, in turns with a raw libp2p stream and with gRPC over\n" +
			"TLS, and the memory of an idle daemon.",
		example: "  openmesh bench calls --transport tcp --rounds 11 --json",
		flags: func(cmd *cobra.Command, c *bench.Config) {
			cmd.Flags().IntVar(&c.Bulk, "bulk-mb", 256, "size of one bulk transfer, in MiB")
		},
	}
}

func benchDurable() benchmark {
	return benchmark{
		use: "durable", short: "Measure durable delivery against NATS JetStream", run: bench.Durable, baseline: true,
		long: "Measure messages that are delivered at least once, to a handler and to the peer's inbox: how many a second,\n" +
			"and how long until their sender knows. With --jetstream it takes turns with NATS JetStream, which is in a\n" +
			"program of its own: go build -o jetstream ./node/bench/jetstream",
		example: "  openmesh bench durable\n  openmesh bench durable --jetstream ./jetstream --senders 1,16,64 --json",
		flags: func(cmd *cobra.Command, c *bench.Config) {
			cmd.Flags().IntSliceVar(&c.Senders, "senders", []int{1, 16, 64}, "numbers of senders that each wait for their message's outcome")
		},
	}
}

func benchSessions() benchmark {
	return benchmark{
		use: "sessions", short: "Measure idle sessions: memory, set-up, wake-up", run: bench.Sessions, setup: bench.ForSessions,
		long: "Measure what idle sessions between two nodes take, how long they take to open, and how much longer a call\n" +
			"takes in one that is parked.",
		example: "  openmesh bench sessions --sessions 1000",
		flags: func(cmd *cobra.Command, c *bench.Config) {
			cmd.Flags().IntVar(&c.Sessions, "sessions", 10_000, "how many to open")
		},
	}
}

func benchFailover() benchmark {
	return benchmark{
		use: "failover", short: "Measure for how long the loss of a transport interrupts a session", run: bench.Failover, both: true,
		long: "Measure for how long no call in a session ends when its transport is cut: QUIC whose packets vanish, TCP\n" +
			"whose connection is reset or whose packets vanish. The session goes on over another one.",
		example: "  openmesh bench failover --trials 20 --json",
		flags: func(cmd *cobra.Command, c *bench.Config) {
			cmd.Flags().IntVar(&c.Trials, "trials", 7, "of each kind of cut")
		},
	}
}

func benchRekey() benchmark {
	return benchmark{
		use: "rekey", short: "Measure what fresh session keys cost, for each suite", run: bench.Rekey,
		long: "Measure the change of a session's keys, for each cipher suite: by itself, and what it adds to calls that\n" +
			"go on meanwhile.",
		example: "  openmesh bench rekey --time 3s --rounds 5",
		flags: func(cmd *cobra.Command, c *bench.Config) {
			cmd.Flags().DurationVar(&c.Every, "every", time.Second, "between two changes of keys")
		},
	}
}

func benchPaths() benchmark {
	return benchmark{
		use: "paths", short: "Measure what relays cost a session", run: bench.Paths, relays: bench.PathRelays,
		long: "Measure calls and bulk transfer in sessions between two agents over each way that there is, in turns: direct,\n" +
			"through a relay (circuit relay v2), and forwarded through one, two and three relays; with the ratios to direct.",
		example: "  openmesh bench paths --rounds 5 --json",
		flags: func(cmd *cobra.Command, c *bench.Config) {
			cmd.Flags().IntVar(&c.Bulk, "bulk-mb", 32, "size of one bulk transfer, in MiB")
		},
	}
}

func benchMarket() benchmark {
	return benchmark{
		use: "market", short: "Measure negotiations against as many durable messages", run: bench.Market, sellers: bench.MarketSellers,
		long: "Measure complete negotiations, with one seller and with three: request, proposals, counteroffer, amendment,\n" +
			"acceptance, contract. They take turns with as many durable messages between the same nodes: the ratio is what\n" +
			"signatures, validation, the audit log and the store cost.",
		example: "  openmesh bench market\n  openmesh bench market --in-flight 1,16 --rounds 3 --json",
		setup:   func(transport string) bench.Setup { return bench.Setup{Transport: transport, Market: true} },
		flags: func(cmd *cobra.Command, c *bench.Config) {
			cmd.Flags().IntSliceVar(&c.InFlight, "in-flight", []int{1, 16, 128}, "numbers of negotiations at once")
		},
	}
}

func benchAudit() benchmark {
	return benchmark{
		use: "audit", short: "Measure the audit log: append, verify, replay", run: bench.Audit, alone: true,
		long: "Measure entries that are added to the audit log and synced, in turns with documents that are just stored; how\n" +
			"fast a log is verified, beside hashing as much; and how fast negotiations are run again, beside checking their\n" +
			"moves once.",
		example: "  openmesh bench audit --appenders 1,64 --entries 100000",
		flags: func(cmd *cobra.Command, c *bench.Config) {
			cmd.Flags().IntSliceVar(&c.Senders, "appenders", []int{1, 16, 64}, "numbers of appenders that each wait until their entry is synced")
			cmd.Flags().IntVar(&c.Entries, "entries", 20_000, "in the log that is verified")
		},
	}
}

func newBenchmark(p *program, b benchmark) *cobra.Command {
	var cfg bench.Config
	var jetstream string
	cmd := &cobra.Command{
		Use: b.use, Short: b.short, Args: cobra.NoArgs, Long: b.long + "\n" + benchManners, Example: b.example,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.bench(cmd.Context(), b, cfg, jetstream) },
	}
	f := cmd.Flags()
	if b.both {
		cfg.Setup.Transport = "both"
	} else {
		if !b.alone {
			f.StringVar(&cfg.Setup.Transport, "transport", "quic", "quic or tcp")
		}
		f.IntVar(&cfg.Rounds, "rounds", 7, "rounds of each measurement")
		f.DurationVar(&cfg.Time, "time", time.Second, "time of one measurement in a round")
	}
	if b.baseline {
		f.StringVar(&jetstream, "jetstream", "", "`program` of node/bench/jetstream to compare with")
	}
	b.flags(cmd, &cfg)
	return cmd
}

// newBenchServe is the other process of a benchmark.
func newBenchServe(p *program) *cobra.Command {
	var setup string
	cmd := &cobra.Command{
		Use: "serve HOME", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var s bench.Setup
			if err := json.Unmarshal([]byte(setup), &s); err != nil {
				return wire.Errorf(wire.InvalidArgument, "bench serve: setup: %w", err)
			}
			return bench.Serve(cmd.Context(), args[0], s, func(s bench.Server) error {
				return json.NewEncoder(p.out).Encode(s)
			})
		},
	}
	cmd.Flags().StringVar(&setup, "setup", "{}", "what the node is like, in JSON")
	return cmd
}

func checkBench(b benchmark, c bench.Config) error {
	bad := func(format string, args ...any) error {
		return wire.Errorf(wire.InvalidArgument, "bench: "+format, args...)
	}
	if t := c.Setup.Transport; t != "quic" && t != "tcp" && !b.both && !b.alone {
		return wire.Errorf(wire.InvalidArgument, "bench: transport %q", t).WithHint("quic or tcp")
	}
	if c.Rounds < 0 || c.Bulk < 0 || c.Time < 0 || c.Sessions < 0 || c.Trials < 0 || c.Every < 0 || c.Entries < 0 {
		return bad("numbers and times must be positive")
	}
	if c.Time < c.Every {
		return bad("--time %s: no change of keys would fall into it; want at least --every, %s", c.Time, c.Every)
	}
	for _, n := range slices.Concat(c.Senders, c.InFlight) {
		if n < 1 || n > 1024 {
			return bad("%d at once: want 1 to 1024", n)
		}
	}
	return nil
}

// bench measures b and prints its report.
func (p *program) bench(ctx context.Context, b benchmark, cfg bench.Config, jetstream string) (err error) {
	if err := checkBench(b, cfg); err != nil {
		return err
	}
	cfg.Bulk <<= 20
	if b.setup != nil {
		cfg.Setup = b.setup(cfg.Setup.Transport)
	}
	dir, err := os.MkdirTemp("", "openmesh-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if isTerminal(p.err) {
		cfg.Progress = func(s string) { fmt.Fprintf(p.err, "\r\x1b[K%s", s) }
		defer fmt.Fprint(p.err, "\r\x1b[K")
	}
	idle := 0.0
	if b.idle {
		if idle, err = idleRSS(ctx, filepath.Join(dir, "idle")); err != nil {
			return fmt.Errorf("measure idle daemon: %w", err)
		}
	}
	r, err := runBench(ctx, b, cfg, dir, jetstream)
	if err != nil {
		return err
	}
	r.IdleRSS = idle
	if err := p.showValue(r, func(g *page) { printReport(g, r) }); err != nil {
		return err
	}
	return missed(r)
}

// missed is an error that names the targets missed.
func missed(r *bench.Report) error {
	var missed []error
	for _, x := range r.Ratios {
		if !x.Met {
			missed = append(missed, fmt.Errorf("%s is %.2f, the target is %s", x.Name, x.Value, x.Target))
		}
	}
	return errors.Join(missed...)
}

func printReport(g *page, r *bench.Report) {
	for _, t := range r.Tables {
		about := fmt.Sprintf("medians of %d rounds", r.Rounds)
		if r.Transport != "" {
			about = r.Transport + ", " + about
		}
		g.text("%s (%s)", t.Name, about)
		var rows [][]string
		for _, name := range t.Ways {
			m := t.Medians[name]
			rows = append(rows, []string{name, micros(m.P50), micros(m.P99), fmt.Sprintf("%.0f", m.PerSecond)})
		}
		g.table([]string{"", "P50", "P99", strings.ToUpper(t.Unit)}, rows)
	}
	printSpreads(g, r.Spreads)
	printMemory(g, r.Memory)
	for _, x := range r.Ratios {
		verdict := ""
		if x.Target != "" {
			verdict = "(target: " + x.Target + ", met)"
			if !x.Met {
				verdict = "(target: " + x.Target + ", MISSED)"
			}
		}
		g.text("%s: %.2f %s", x.Name, x.Value, verdict)
	}
	if r.IdleRSS > 0 {
		g.text("idle daemon: %.1f MB resident", r.IdleRSS)
	}
	if r.Bench != "calls" { // what is compared must be known to read these
		g.text("%s", strings.Join(r.Method, "\n"))
	}
}

func printSpreads(g *page, ss []bench.Spread) {
	var rows [][]string
	for _, s := range ss {
		least, middle, most := s.Range()
		cell := func(v float64) string { return fmt.Sprintf("%.4g %s", v, s.Unit) }
		rows = append(rows, []string{s.Name, cell(least), cell(middle), cell(most), fmt.Sprint(len(s.Values))})
	}
	if rows != nil {
		g.table([]string{"", "LEAST", "MEDIAN", "MOST", "TRIALS"}, rows)
	}
}

func printMemory(g *page, ms []bench.Memory) {
	var rows [][]string
	mb := func(v float64) string { return fmt.Sprintf("%.1f MB", v) }
	for _, m := range ms {
		rows = append(rows, []string{m.Process, mb(m.Before), mb(m.After), mb(m.Used), mb(m.HeapBefore), mb(m.HeapAfter), fmt.Sprintf("%.0f B", m.PerSession)})
	}
	if rows != nil {
		g.table([]string{"", "RSS BEFORE", "RSS AFTER", "WITH GARBAGE", "HEAP BEFORE", "HEAP AFTER", "A SESSION"}, rows)
	}
}

func micros(us float64) string {
	if us >= 1000 {
		return fmt.Sprintf("%.2f ms", us/1000)
	}
	return fmt.Sprintf("%.1f µs", us)
}
