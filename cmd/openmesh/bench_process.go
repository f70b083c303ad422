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
	"strings"
	"syscall"
	"time"

	"openmesh/node/bench"
	"openmesh/node/bench/load"
	"openmesh/protocols/wire"
)

// runBench starts the processes that b needs, and measures against them, in folders
// of dir.
func runBench(ctx context.Context, b benchmark, cfg bench.Config, dir, jetstream string) (r *bench.Report, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cfg.Home = filepath.Join(dir, "client")
	if jetstream != "" {
		if cfg.Baseline, err = startBaseline(ctx, jetstream, filepath.Join(dir, "jetstream")); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, cfg.Baseline.Stop()) }()
	}
	for i := range b.relays {
		setup := cfg.Setup
		setup.Relay = true
		relay, child, err := startServer(ctx, setup, filepath.Join(dir, fmt.Sprintf("relay-%d", i+1)))
		if err != nil {
			return nil, fmt.Errorf("start relay: %w", err)
		}
		defer stopChild(child) // its end is of no interest once all is measured
		cfg.Relays = append(cfg.Relays, relay)
		if i == 0 {
			cfg.Setup.Relays = relay.Node
		}
	}
	if b.alone {
		return b.run(ctx, cfg)
	}
	for i := range max(b.sellers, 1) {
		server, child, failed := startServer(ctx, cfg.Setup, filepath.Join(dir, fmt.Sprintf("server-%d", i+1)))
		if failed != nil {
			return nil, fmt.Errorf("start server: %w", failed)
		}
		defer func() { err = errors.Join(err, stopChild(child)) }()
		if b.sellers > 0 {
			cfg.Sellers = append(cfg.Sellers, server)
			cfg.Setup.Bootstrap = cfg.Sellers[0].Node
		}
		cfg.Server = server
	}
	return b.run(ctx, cfg)
}

// startServer starts a process of a benchmark, which tells where it is.
func startServer(ctx context.Context, setup bench.Setup, home string) (s bench.Server, child *exec.Cmd, err error) {
	text, err := json.Marshal(setup)
	if err != nil {
		return s, nil, err
	}
	child, line, err := startChild(ctx, "bench", "serve", "--setup", string(text), home)
	if err != nil {
		return s, nil, err
	}
	if err := json.Unmarshal(line, &s); err != nil {
		return s, nil, errors.Join(err, stopChild(child))
	}
	return s, child, nil
}

func startBaseline(ctx context.Context, program, dir string) (*load.Baseline, error) {
	cmd := exec.CommandContext(ctx, program, dir)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stderr = os.Stderr
	b, err := load.StartBaseline(cmd)
	if err != nil {
		return nil, wire.Errorf(wire.InvalidArgument, "bench: %w", err).WithHint("build it with: go build -o jetstream ./node/bench/jetstream")
	}
	return b, nil
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
	mb, err := bench.Resident(daemon.Process.Pid)
	return mb, errors.Join(err, stopChild(daemon))
}
