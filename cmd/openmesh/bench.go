package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/bench"
	"openmesh/protocols/wire"
)

func newBench(p *program) *cobra.Command {
	var cfg bench.Config
	cmd := &cobra.Command{
		Use: "bench", Short: "Measure calls, bulk and set-up against raw libp2p and gRPC", Args: cobra.NoArgs,
		Long: "Measure calls, bulk transfer, set-up and discovery between two processes on this machine, in turns with\n" +
			"a raw libp2p stream and with gRPC over TLS. Prints medians and ratios; --json has the method and every round.\n" +
			"Needs no daemon and leaves nothing behind. Exits 1 if a ratio misses its target.",
		Example: "  openmesh bench\n  openmesh bench --transport tcp --rounds 11 --json",
		RunE:    func(cmd *cobra.Command, _ []string) error { return p.bench(cmd.Context(), cfg) },
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Transport, "transport", "quic", "quic or tcp")
	f.IntVar(&cfg.Rounds, "rounds", 7, "rounds of each measurement")
	f.DurationVar(&cfg.Time, "time", time.Second, "time of one measurement in a round")
	f.IntVar(&cfg.Bulk, "bulk-mb", 256, "size of one bulk transfer, in MiB")
	cmd.AddCommand(newBenchServe(p))
	return cmd
}

// newBenchServe is the other process of a benchmark.
func newBenchServe(p *program) *cobra.Command {
	var transport string
	cmd := &cobra.Command{
		Use: "serve HOME", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return bench.Serve(cmd.Context(), args[0], transport, func(s bench.Server) error {
				return json.NewEncoder(p.out).Encode(s)
			})
		},
	}
	cmd.Flags().StringVar(&transport, "transport", "quic", "quic or tcp")
	return cmd
}

func (p *program) bench(ctx context.Context, cfg bench.Config) (err error) {
	if cfg.Transport != "quic" && cfg.Transport != "tcp" {
		return wire.Errorf(wire.InvalidArgument, "bench: transport %q", cfg.Transport).WithHint("quic or tcp")
	}
	if cfg.Rounds < 1 || cfg.Bulk < 1 || cfg.Time <= 0 {
		return wire.Errorf(wire.InvalidArgument, "bench: rounds, time and bulk-mb must be positive")
	}
	cfg.Bulk <<= 20
	dir, err := os.MkdirTemp("", "openmesh-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	cfg.Home = filepath.Join(dir, "client")
	if isTerminal(p.err) {
		cfg.Progress = func(s string) { fmt.Fprintf(p.err, "\r\x1b[K%s", s) }
		defer fmt.Fprint(p.err, "\r\x1b[K")
	}
	idle, err := idleRSS(ctx, filepath.Join(dir, "idle"))
	if err != nil {
		return fmt.Errorf("measure idle daemon: %w", err)
	}
	r, err := runBench(ctx, cfg, filepath.Join(dir, "server"))
	if err != nil {
		return err
	}
	r.IdleRSS = idle
	if err := p.showValue(r, func(g *page) { printReport(g, r) }); err != nil {
		return err
	}
	var missed []error
	for _, x := range r.Ratios {
		if !x.Met {
			missed = append(missed, fmt.Errorf("%s is %.2f, the target is %s", x.Name, x.Value, x.Target))
		}
	}
	return errors.Join(missed...)
}

// runBench starts the server process and measures against it.
func runBench(ctx context.Context, cfg bench.Config, home string) (r *bench.Report, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	server, line, err := startChild(ctx, "bench", "serve", "--transport", cfg.Transport, home)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stopChild(server)) }()
	if err := json.Unmarshal(line, &cfg.Server); err != nil {
		return nil, fmt.Errorf("start server: %w", err)
	}
	return bench.Run(ctx, cfg)
}

// startChild starts this program with args and returns the first line it prints.
func startChild(ctx context.Context, args ...string) (*exec.Cmd, []byte, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	var log strings.Builder
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		stopped := stopChild(cmd)
		return nil, nil, fmt.Errorf("start %s: %w: %w: %s", args[0], err, stopped, log.String())
	}
	return cmd, line, nil
}

func stopChild(cmd *exec.Cmd) error {
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return cmd.Wait()
}

// settle is how long an idle daemon is left alone before it is measured.
const settle = 5 * time.Second

// idleRSS is the resident memory of a daemon that does nothing, in MB; 0 where
// the system does not tell.
func idleRSS(ctx context.Context, home string) (float64, error) {
	if runtime.GOOS != "linux" {
		return 0, nil
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	init := exec.CommandContext(ctx, self, "--home", home, "init", "--realm", "64512",
		"--listen", "/ip4/127.0.0.1/tcp/0", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--listen", "/ip4/127.0.0.1/tcp/0/ws",
		"--api-listen", "unix:"+filepath.Join(home, "api.sock"))
	if out, err := init.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	daemon, _, err := startChild(ctx, "--home", home, "run", "--metrics-port", "0")
	if err != nil {
		return 0, err
	}
	select {
	case <-time.After(settle):
	case <-ctx.Done():
	}
	mb, err := residentMB(daemon.Process.Pid)
	return mb, errors.Join(err, stopChild(daemon))
}

func residentMB(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kb, err := strconv.ParseFloat(f[1], 64)
			return kb / 1000, err
		}
	}
	return 0, errors.New("no VmRSS")
}

func printReport(g *page, r *bench.Report) {
	for _, t := range r.Tables {
		g.text("%s (%s, medians of %d rounds)", t.Name, r.Transport, r.Rounds)
		var rows [][]string
		for _, name := range t.Ways {
			m := t.Medians[name]
			rows = append(rows, []string{name, micros(m.P50), micros(m.P99), fmt.Sprintf("%.0f", m.PerSecond)})
		}
		g.table([]string{"", "P50", "P99", strings.ToUpper(t.Unit)}, rows)
	}
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
}

func micros(us float64) string {
	if us >= 1000 {
		return fmt.Sprintf("%.2f ms", us/1000)
	}
	return fmt.Sprintf("%.1f µs", us)
}
