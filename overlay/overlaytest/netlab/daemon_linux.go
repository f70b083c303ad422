package netlab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Where daemons listen.
const (
	Port          = 4747 // TCP and, for QUIC, UDP
	WebSocketPort = 4748 // TCP
	GRPCPort      = 4749 // TCP, if the test has them listen there
	HTTPSPort     = 443  // TCP: backbone, relays, and agents behind a router
)

const (
	patience = 30 * time.Second // with a daemon that starts or stops, and a command
	maxLog   = 64 << 10         // bytes of a log that a failed test shows
)

// Daemon is the program running on a host.
type Daemon struct {
	Host  *Host
	Home  string // folder
	Ready Ready

	lab   *Lab
	env   []string
	flags []string
	cmd   *exec.Cmd
	ended chan error // has how it ended, once it has
}

// Ready is what the program prints once it serves.
type Ready struct {
	Event   string   `json:"event"`
	Agent   string   `json:"agent"`
	Address string   `json:"address"`
	Peer    string   `json:"peer"`
	Addrs   []string `json:"addrs"` // multiaddrs with /p2p/
	API     string   `json:"api"`
}

// Backbone runs a daemon that serves the directory, by which the lab's other
// daemons join.
func (l *Lab) Backbone(h *Host, env map[string]string) *Daemon {
	l.t.Helper()
	env = over(env, map[string]string{
		"OPENMESH_NODE_ROLES":        "backbone",
		"OPENMESH_NETWORKING_LISTEN": listen(h, true),
	})
	return l.Daemon(h, h.Name, env, "--addrs-file", l.bootstrap())
}

// bootstrap is the file with the addresses of the backbone, relays that with the
// addresses of all relays.
func (l *Lab) bootstrap() string { return filepath.Join(l.dir, "backbone.addrs") }
func (l *Lab) relays() string    { return filepath.Join(l.dir, "relays.addrs") }

// Relay runs a daemon that carries the traffic of others. Daemons that are made
// after it have it among their relays.
func (l *Lab) Relay(h *Host, env map[string]string) *Daemon {
	l.t.Helper()
	d := l.Daemon(h, h.Name, over(env, map[string]string{
		"OPENMESH_NODE_ROLES":        "relay",
		"OPENMESH_NETWORKING_LISTEN": listen(h, true),
		"OPENMESH_NETWORKING_RELAYS": "",
	}))
	file, err := os.OpenFile(l.relays(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = file.WriteString(strings.Join(d.Ready.Addrs, "\n") + "\n")
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return d
}

// over returns base with env on top.
func over(env, base map[string]string) map[string]string {
	maps.Copy(base, env)
	return base
}

// listen is where a daemon on h listens: behind a router at whatever address there
// is, as the program does by itself.
func listen(h *Host, https bool) string {
	addr := h.Addr.String()
	if h.Router != nil {
		addr = "0.0.0.0"
	}
	all := fmt.Sprintf("/ip4/%[1]s/tcp/%[2]d,/ip4/%[1]s/udp/%[2]d/quic-v1,/ip4/%[1]s/tcp/%[3]d/ws", addr, Port, WebSocketPort)
	if https {
		all += fmt.Sprintf(",/ip4/%s/tcp/%d", addr, HTTPSPort)
	}
	return all
}

// Daemon runs `openmesh run FLAG…` on a host and waits until it serves. Its home
// is a folder of the lab; it is made first if it is not there. The environment
// env comes on top of settings for a lab: a private realm, the ports above, the
// relays that are there, the local API on a unix socket alone, which is in reach
// from outside the host. If the test fails it shows the end of the daemon's log.
func (l *Lab) Daemon(h *Host, home string, env map[string]string, flags ...string) *Daemon {
	l.t.Helper()
	d := &Daemon{Host: h, Home: filepath.Join(l.dir, home), lab: l, env: l.environ(h, env), flags: flags}
	if program() == "" {
		l.t.Fatalf("%s names no program: call netlab.Main from TestMain", programEnv)
	}
	if _, err := os.Stat(d.Home); errors.Is(err, fs.ErrNotExist) {
		d.mustCLI("init")
	}
	l.t.Cleanup(d.finish)
	d.start()
	return d
}

func program() string { return os.Getenv(programEnv) }

// environ is the environment of a daemon on h. What the test's own says of
// another mesh must not steer it.
func (l *Lab) environ(h *Host, env map[string]string) []string {
	all := map[string]string{
		"OPENMESH_NODE_REALM":                 "64512", // its addresses are found at once
		"OPENMESH_NETWORKING_LISTEN":          listen(h, h.Router != nil),
		"OPENMESH_NETWORKING_BOOTSTRAP":       "@" + l.bootstrap(),
		"OPENMESH_API_LISTEN":                 "unix:api.sock",
		"OPENMESH_OBSERVABILITY_METRICS_PORT": "0",
		"OPENMESH_DISCOVERY_CACHE_TTL":        "30s", // the least there is
	}
	if _, err := os.Stat(l.relays()); err == nil {
		all["OPENMESH_NETWORKING_RELAYS"] = "@" + l.relays()
	}
	for _, entry := range os.Environ() {
		if name, value, ok := strings.Cut(entry, "="); ok && !strings.HasPrefix(name, "OPENMESH_") {
			all[name] = value
		}
	}
	maps.Copy(all, env)
	var list []string
	for name, value := range all {
		list = append(list, name+"="+value)
	}
	return list
}

// command prepares the program for this home, on the daemon's host.
func (d *Daemon) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := d.Host.Command(ctx, program(), append([]string{"--home", d.Home, "--json"}, args...)...)
	cmd.Dir, cmd.Env = d.lab.dir, d.env
	return cmd
}

func (d *Daemon) start() {
	t := d.lab.t
	t.Helper()
	log, err := os.OpenFile(d.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close() // the daemon has its own
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	d.cmd = d.command(context.Background(), append([]string{"run"}, d.flags...)...)
	d.cmd.Stdout, d.cmd.Stderr = in, log
	err = d.cmd.Start()
	in.Close() // the daemon has its own
	if err != nil {
		t.Fatalf("start daemon of %s: %v", d.Host.Name, err)
	}
	ended := make(chan error, 1)
	go func(cmd *exec.Cmd) { ended <- cmd.Wait() }(d.cmd)
	d.ended = ended
	d.awaitReady(out)
}

// awaitReady reads the line that the daemon prints once it serves.
func (d *Daemon) awaitReady(out *os.File) {
	t := d.lab.t
	t.Helper()
	if err := out.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &d.Ready)
	}
	if err != nil || d.Ready.Event != "ready" {
		t.Fatalf("daemon of %s printed %q, want a ready line: %v", d.Host.Name, line, err)
	}
}

// Kill ends the daemon as the kernel would, by SIGKILL. It does nothing if the
// daemon does not run.
func (d *Daemon) Kill() {
	if d.ended == nil {
		return
	}
	_ = d.cmd.Process.Kill() // fails only if it has ended
	<-d.ended                // it was killed: that is no news
	d.ended = nil
}

// Stop ends the daemon as a service manager would, by SIGTERM; it must exit
// with 0.
func (d *Daemon) Stop() {
	t := d.lab.t
	t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatalf("stop daemon of %s: %v", d.Host.Name, err)
	}
	select {
	case err := <-d.ended:
		d.ended = nil
		if err != nil {
			t.Fatalf("daemon of %s ended with: %v", d.Host.Name, err)
		}
	case <-time.After(patience):
		t.Fatalf("daemon of %s did not end within %s of SIGTERM", d.Host.Name, patience)
	}
}

// Restart starts the daemon again in the same home, as it was started first. One
// that still runs is stopped before.
func (d *Daemon) Restart() {
	d.lab.t.Helper()
	if d.ended != nil {
		d.Stop()
	}
	d.start()
}

// CLI runs a command of the program against this home, on the daemon's host, and
// returns the JSON that it prints. The error has what it says otherwise; it
// wraps an [exec.ExitError] with the exit code. It may be called from any
// goroutine.
func (d *Daemon) CLI(args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(d.lab.t.Context(), patience)
	defer cancel()
	cmd := d.command(ctx, args...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("openmesh %s on %s: %w: %s", strings.Join(args, " "), d.Host.Name, err, said.Bytes())
	}
	return out.Bytes(), nil
}

func (d *Daemon) mustCLI(args ...string) {
	d.lab.t.Helper()
	if _, err := d.CLI(args...); err != nil {
		d.lab.t.Fatal(err)
	}
}

func (d *Daemon) logFile() string { return d.Home + ".log" }

// finish ends the daemon with its test, and shows its log if that failed.
func (d *Daemon) finish() {
	d.Kill()
	if !d.lab.t.Failed() {
		return
	}
	log, err := os.ReadFile(d.logFile())
	if err != nil {
		log = []byte(err.Error())
	}
	d.lab.t.Logf("log of %s:\n%s", d.Host.Name, log[max(0, len(log)-maxLog):])
}
