package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"openmesh/cmd/openmesh/demo"
)

// demoCommand prepares the program's demo, whose temporary files go to tmp.
func demoCommand(t *testing.T, tmp string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.LookPath("openmesh")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, append([]string{"demo"}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "OPENMESH_NODE_REALM=7", "OPENMESH_HOME=/nowhere") // must not matter
	return cmd
}

// runDemo runs a demo with --json to its end.
func runDemo(t *testing.T, tmp string, args ...string) (record demo.Record, stderr string, code int) {
	t.Helper()
	// The race detector, and other tests beside it, make it some twenty times as long.
	cmd := demoCommand(t, tmp, append([]string{"--json", "--timeout", "10m"}, args...)...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if strings.Count(out.String(), "\n") != 1 {
		t.Fatalf("want one document, got %s\n%s", &out, &said)
	}
	if err := json.Unmarshal(out.Bytes(), &record); err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	return record, said.String(), cmd.ProcessState.ExitCode()
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

var demoSteps = strings.Fields(`identities backbone join register join-last
	discover-name discover-prefix discover-version discover-alike call-capability call-address call-agent
	sealed-session handler-context refuse-invalid call-exec call-api leave return
	relays crash failover reserve call-relayed call-forwarded relay-lost mailbox
	sellers request haggle contract contract-proof contract-forged outsiders contract-work settle
	audit-verify audit-forged audit-replay shutdown`)

func TestDemo(t *testing.T) {
	t.Parallel()
	tmp := t.TempDir()
	record, stderr, code := runDemo(t, tmp, "--agents", "2")
	if code != 0 || !record.OK || stderr != "" {
		t.Errorf("exit code %d, ok %t, %s", code, record.OK, stderr)
	}
	var names []string
	for _, s := range record.Steps {
		names = append(names, s.Name)
		if !s.OK || s.Detail == "" || len(s.Facts) == 0 {
			t.Errorf("step %s: ok %t, %s, %v", s.Name, s.OK, s.Detail, s.Log)
		}
	}
	if got, want := strings.Join(names, " "), strings.Join(demoSteps, " "); got != want {
		t.Errorf("steps %s\nwant  %s", got, want)
	}
	if len(record.Agents) != 10 || record.Agents[0].Role != "backbone" || len(record.Agents[1].Offers) != 3 {
		t.Errorf("agents %+v", record.Agents)
	}
	wantEmpty(t, tmp)
}

func TestDemoWithoutFolder(t *testing.T) {
	t.Parallel()
	record, stderr, code := runDemo(t, filepath.Join(t.TempDir(), "nothing"))
	if code != exitFailed || record.OK || len(record.Steps) != 1 || record.Steps[0].OK || record.Steps[0].Name != "identities" {
		t.Errorf("exit code %d, %+v", code, record)
	}
	if !strings.Contains(stderr, `"code":"internal"`) || !strings.Contains(stderr, "TMPDIR") {
		t.Errorf("said %s", stderr)
	}
}

// The demo takes longer than this wherever it runs: it waits for the directory's
// answers that there is nobody.
func TestDemoTimeout(t *testing.T) {
	t.Parallel()
	tmp := t.TempDir()
	record, stderr, code := runDemo(t, tmp, "--timeout", "1s")
	if code != exitTimedOut || record.OK || record.Steps[len(record.Steps)-1].OK {
		t.Errorf("exit code %d, %+v", code, record)
	}
	if !strings.Contains(stderr, `"code":"deadline_exceeded"`) {
		t.Errorf("said %s", stderr)
	}
	wantEmpty(t, tmp)
}

func TestDemoUsage(t *testing.T) {
	t.Parallel()
	for _, agents := range []string{"1", "17", "-3", "some"} {
		if got := execute(t, t.TempDir(), "", "demo", "--agents", agents); got.code != exitUsage || got.out != "" {
			t.Errorf("--agents %s: %+v", agents, got)
		}
	}
}

// startDemo starts a demo and returns once its backbone runs, with a connection
// to it that breaks when the backbone ends.
func startDemo(t *testing.T, tmp string, args ...string) (*exec.Cmd, io.Reader, net.Conn) {
	t.Helper()
	cmd := demoCommand(t, tmp, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("the demo ended: %v", err)
		}
		if strings.HasPrefix(line, "✓ backbone") {
			break
		}
	}
	sockets, err := filepath.Glob(filepath.Join(tmp, "openmesh-demo-*", "backbone", "api.sock"))
	if err != nil || len(sockets) != 1 {
		t.Fatalf("sockets %v, %v", sockets, err)
	}
	return cmd, lines, dialSocket(t, sockets[0])
}

func dialSocket(t *testing.T, path string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// wantGone waits until the daemon at the other end is no more.
func wantGone(t *testing.T, conn net.Conn) {
	t.Helper()
	path := conn.RemoteAddr().String()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the daemon goes on")
	}
	if again, err := net.Dial("unix", path); err == nil {
		again.Close()
		t.Error("the daemon takes connections still")
	}
}

func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	tmp := shortDir(t)
	cmd, out, conn := startDemo(t, tmp)
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // fails, as it should: see the exit code
	if code := cmd.ProcessState.ExitCode(); code != exitFailed || !strings.Contains(string(rest), "it failed") {
		t.Errorf("exit code %d, said %s", code, rest)
	}
	wantGone(t, conn)
	wantEmpty(t, tmp)
}

// On Linux the daemons do not outlive a demo that is killed.
func TestDemoKilled(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux ends children with their parent")
	}
	cmd, _, conn := startDemo(t, shortDir(t))
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // fails: it was killed
	wantGone(t, conn)
}

// shortDir is a folder whose sockets have paths that can be dialled.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "demo")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// A mesh that was kept answers after the demo has ended, until it is ended.
func TestDemoKeep(t *testing.T) {
	t.Parallel()
	tmp := shortDir(t)
	record, stderr, code := runDemo(t, tmp, "--keep", "--agents", "2")
	if code != 0 || !record.OK || record.Kept == nil {
		t.Fatalf("exit code %d, %s, %+v", code, stderr, record)
	}
	stopped := false
	stop := func() {
		if out, err := exec.Command("/bin/sh", "-c", record.Kept.Stop).CombinedOutput(); err != nil && !stopped {
			t.Errorf("%s: %v: %s", record.Kept.Stop, err, out)
		}
		stopped = true
	}
	defer stop()
	var conns []net.Conn
	for _, a := range record.Agents {
		if a.PID == 0 {
			t.Errorf("%s does not run", a.Name)
		}
		conns = append(conns, dialSocket(t, filepath.Join(a.Home, "api.sock")))
	}
	for i, want := range []string{"demo/math/sum", `"sum": 6`, `"words": 2`, "active", "circuit", "fulfilled", "verdict"} {
		out, err := exec.Command("/bin/sh", "-c", record.Kept.Try[i]).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v: %s, want %s", record.Kept.Try[i], err, out, want)
		}
	}
	stop()
	for _, conn := range conns {
		wantGone(t, conn)
	}
	wantEmpty(t, tmp)
}
