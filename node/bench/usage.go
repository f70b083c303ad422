package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"openmesh/protocols/session"
)

// usage is what a process takes: memory in MB (10⁶ bytes), CPU time.
type usage struct {
	Used     float64       `json:"used_rss_mb"` // resident, with garbage
	Resident float64       `json:"rss_mb"`      // resident, without
	Heap     float64       `json:"heap_mb"`     // in use, without garbage
	CPU      time.Duration `json:"cpu_ns"`      // of user and system, up to the collection
}

// usageNow looks, collects garbage, and looks again.
func usageNow() (u usage, err error) {
	if u.CPU, err = cpuTime(); err != nil {
		return u, err
	}
	if u.Used, err = Resident(os.Getpid()); err != nil {
		return u, err
	}
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	u.Heap = float64(m.HeapAlloc+m.StackInuse) / 1e6
	u.Resident, err = Resident(os.Getpid())
	return u, err
}

// cpuTime is what this process has used so far.
func cpuTime() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, fmt.Errorf("read the CPU time: %w", err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

// usageThere asks the server for its usage.
func usageThere(ctx context.Context, s *session.Session) (u usage, err error) {
	resp, _, err := s.Call(ctx, &session.Request{Capability: usageCapability, Encoding: session.JSON, Body: []byte("{}")})
	if err != nil {
		return u, fmt.Errorf("ask the server for its memory: %w", err)
	}
	return u, json.Unmarshal(resp.Body, &u)
}

// Resident is the resident memory of a process, in MB; 0 where the system does not
// tell.
func Resident(pid int) (float64, error) {
	if runtime.GOOS != "linux" {
		return 0, nil
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kb, err := strconv.ParseFloat(f[1], 64)
			return kb * 1024 / 1e6, err
		}
	}
	return 0, errors.New("no VmRSS")
}
