package demo

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/identity"
)

// realm is one for private use: addresses in it are found at once.
const realm = 64512

// cacheTTL is how long a node may believe what the directory told it; the
// shortest that the configuration allows.
const cacheTTL = 30 * time.Second

// node is one agent of the mesh: its home and, while it runs, its daemon.
type node struct {
	name, role string
	home, log  string // paths
	offers     []offer
	command    []string // that runs its daemon; nil: run
	flags      []string // of its daemon, beside those of all
	hidden     bool     // listens nowhere: it is reached through relays only

	id    identityLine
	addrs []string    // multiaddrs, since it was ready first
	proc  *process    // nil: never started
	api   *api.Client // nil: does not run
}

// identityLine is what `openmesh init` prints.
type identityLine struct{ Agent, Address, Peer string }

// at marks an error as one that happened at this node.
func (n *node) at(err error) error {
	if err == nil {
		return nil
	}
	return &nodeError{n, err}
}

func (n *node) errorf(format string, args ...any) error { return n.at(fmt.Errorf(format, args...)) }

// command prepares the program for this node's home.
func (m *mesh) command(n *node, args ...string) *exec.Cmd {
	cmd := exec.Command(m.cfg.Program, append([]string{"--home", n.home, "--json"}, args...)...)
	cmd.Dir, cmd.Env, cmd.SysProcAttr = m.dir, clean(m.cfg.Environ), attributes(m.cfg.Keep)
	return cmd
}

// init makes the node's home and identity.
func (m *mesh) init(ctx context.Context, n *node) error {
	cmd := m.command(n, "init", "--realm", fmt.Sprint(realm), "--role", n.role, "--name", n.name,
		"--listen", "/ip4/127.0.0.1/udp/0/quic-v1", "--listen", "/ip4/127.0.0.1/tcp/0",
		"--api-listen", "unix:"+filepath.Join(n.home, "api.sock"), "--api-listen", "127.0.0.1:0")
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	p, err := m.starter.run(cmd)
	if err != nil {
		return n.at(err)
	}
	select {
	case <-p.ended:
	case <-ctx.Done():
		p.kill()
		return n.errorf("init: %w", ctx.Err())
	}
	if p.err != nil {
		return n.errorf("init: %w: %s", p.err, strings.TrimSpace(said.String()))
	}
	if err := json.Unmarshal(out.Bytes(), &n.id); err != nil {
		return n.errorf("read what init printed: %w", err)
	}
	return n.checkIdentity()
}

// checkIdentity checks what init made.
func (n *node) checkIdentity() error {
	address, err := identity.ParseAddress(n.id.Address)
	if err != nil {
		return n.at(err)
	}
	if _, err := identity.ParseAgentID(n.id.Agent); err != nil {
		return n.at(err)
	}
	if address.Realm != realm {
		return n.errorf("init made the address %s, want one of realm %d", address, realm)
	}
	info, err := os.Stat(n.home)
	if err != nil {
		return n.at(err)
	}
	if mode := info.Mode().Perm(); mode != 0o700 {
		return n.errorf("the home has mode %04o, want 0700", mode)
	}
	return nil
}

// readyLine is what `openmesh run` prints once it serves.
type readyLine struct {
	Event, Agent, Address, Peer string
	Addrs                       []string
}

// arguments are those of the node's daemon. One that ran before takes its old ports, as
// a daemon with ports of its own does.
func (n *node) arguments(bootstrap []string) []string {
	args := []string{"run"}
	if n.command != nil {
		args = n.command
	}
	args = slices.Concat(args, []string{
		"--metrics-port", "0", "--set", "discovery.cache_ttl=" + cacheTTL.String(), "--set", "observability.log_format=console",
	}, n.flags)
	for _, addr := range bootstrap {
		args = append(args, "--bootstrap", addr)
	}
	for _, addr := range bare(n.addrs) {
		args = append(args, "--listen", addr)
	}
	if n.hidden {
		args = append(args, "--set", "networking.listen=")
	}
	return args
}

// start runs the node's daemon and returns when it is ready and answers.
func (m *mesh) start(ctx context.Context, n *node, bootstrap []string) error {
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return n.errorf("open log: %w", err)
	}
	defer log.Close() // the child has its own
	cmd := m.command(n, n.arguments(bootstrap)...)
	cmd.Stderr = log
	proc, line, err := m.starter.firstLine(ctx, cmd)
	if err != nil {
		return n.at(err)
	}
	n.proc = proc
	var ready readyLine
	if err := json.Unmarshal(line, &ready); err != nil || ready.Event != "ready" {
		return n.errorf("printed %q, want a ready line", line)
	}
	return n.arrived(ready)
}

// arrived checks that the daemon is who it should be, on loopback alone, and
// opens its local API.
func (n *node) arrived(ready readyLine) (err error) {
	if ready.Agent != n.id.Agent || ready.Address != n.id.Address || ready.Peer != n.id.Peer {
		return n.errorf("runs as %s (%s), was made as %s (%s)", ready.Agent, ready.Address, n.id.Agent, n.id.Address)
	}
	for _, addr := range ready.Addrs {
		if !strings.HasPrefix(addr, "/ip4/127.0.0.1/") {
			return n.errorf("listens on %s, which is not loopback", addr)
		}
	}
	switch {
	case n.hidden: // of what it has, nothing is its own
	case len(ready.Addrs) == 0:
		return n.errorf("listens nowhere")
	default:
		n.addrs = ready.Addrs
	}
	n.api, err = api.Dial(n.home)
	return n.at(err)
}

// stop ends the daemon, which must exit with 0 and take its socket along.
func (n *node) stop(ctx context.Context) error {
	if n.api != nil {
		n.api.Close()
		n.api = nil
	}
	if n.proc == nil {
		return nil
	}
	if err := n.proc.drain(ctx); err != nil {
		return n.at(err)
	}
	if _, err := os.Lstat(filepath.Join(n.home, "api.sock")); !errors.Is(err, os.ErrNotExist) {
		return n.errorf("left its socket behind")
	}
	return nil
}

// remove removes what a node that does not run any more has left.
func (n *node) remove() error {
	if err := os.RemoveAll(n.home); err != nil {
		return n.at(err)
	}
	return n.at(os.Remove(n.log))
}

// logEnd returns the last lines of the daemon's log.
func (n *node) logEnd() []string {
	const lines, most = 12, 8 << 10
	f, err := os.Open(n.log)
	if err != nil {
		return nil // it never ran
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > most {
		_, _ = f.Seek(-most, io.SeekEnd) // else from the start, which is bounded too
	}
	text, _ := io.ReadAll(io.LimitReader(f, most)) // what could be read of it will do
	all := strings.Split(strings.TrimSpace(strings.ReplaceAll(string(text), "\t", "  ")), "\n")
	return all[max(0, len(all)-lines):]
}

func (n *node) summary() Agent {
	a := Agent{
		Name: n.name, Role: n.role, Agent: n.id.Agent, Address: n.id.Address, Peer: n.id.Peer, Offers: []string{},
	}
	for _, o := range n.offers {
		a.Offers = append(a.Offers, o.Name)
	}
	if n.proc != nil && n.proc.alive() {
		a.Home, a.PID = n.home, n.proc.cmd.Process.Pid
	}
	return a
}

// found is an answer of the directory.
type found struct {
	rows      []*openmeshv1.DiscoverResult
	elapsedMs float64
}

// discover asks this node's daemon.
func (n *node) discover(ctx context.Context, name, version string) (found, error) {
	res, err := n.api.Directory.Discover(ctx, &openmeshv1.DiscoverRequest{Capability: name, Version: version, Limit: 200})
	if err != nil {
		return found{}, n.at(err)
	}
	slices.SortFunc(res.Results, func(a, b *openmeshv1.DiscoverResult) int {
		return cmp.Or(strings.Compare(a.Agent, b.Agent), strings.Compare(a.Name, b.Name))
	})
	return found{res.Results, res.ElapsedMs}, nil
}

// offers lists what was found as "agent name@version", in order.
func (f found) offers() []string {
	out := []string{}
	for _, r := range f.rows {
		out = append(out, r.Agent+" "+r.Name+"@"+r.Version)
	}
	slices.Sort(out)
	return out
}
