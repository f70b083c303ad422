package main

import (
	"bytes"
	"os"
	"os/exec"
	"testing"
	"time"

	"openmesh/node/bench/load"
)

// The test program is the command itself where the environment says so.
func TestMain(m *testing.M) {
	if os.Getenv("JETSTREAM_TEST_MAIN") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// Both ways publish and are acknowledged, with servers in processes of their own;
// an order that makes no sense is answered with an error.
func TestOrders(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0], t.TempDir())
	cmd.Env = append(os.Environ(), "JETSTREAM_TEST_MAIN=1")
	cmd.Stderr = os.Stderr
	b, err := load.StartBaseline(cmd)
	if err != nil {
		t.Fatal(err)
	}
	for _, way := range b.Ways {
		s, err := b.Sample(way, 4, 50*time.Millisecond, 256)
		if err != nil || s.PerSecond <= 0 || s.P50 <= 0 {
			t.Errorf("%s: %+v, %v", way, s, err)
		}
	}
	if _, err := b.Sample("no such way", 1, time.Millisecond, 1); err == nil {
		t.Error("an unknown way has a sample")
	}
	if err := b.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	if err := run(t.Context(), nil, new(bytes.Buffer), new(bytes.Buffer)); err == nil {
		t.Error("run without a folder succeeds")
	}
}
