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

// runBench starts the server process, and the baseline if there is one, and
// measures against them in folders of dir.
func runBench(ctx context.Context, run bench.Run, cfg bench.Config, dir, jetstream string) (r *bench.Report, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cfg.Home = filepath.Join(dir, "client")
	if jetstream != "" {
		if cfg.Baseline, err = startBaseline(ctx, jetstream, filepath.Join(dir, "jetstream")); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, cfg.Baseline.Stop()) }()
	}
	setup, err := json.Marshal(cfg.Setup)
	if err != nil {
		return nil, err
	}
	server, line, err := startChild(ctx, "bench", "serve", "--setup", string(setup), filepath.Join(dir, "server"))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stopChild(server)) }()
	if err := json.Unmarshal(line, &cfg.Server); err != nil {
		return nil, fmt.Errorf("start server: %w", err)
	}
	return run(ctx, cfg)
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
