//go:build linux

package netlab_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"openmesh/overlay/overlaytest/netlab"
)

// capability is what agent a offers in every mesh of these tests.
const capability = "lab/count"

// mesh is a backbone node and two agents, each on a host: a offers something
// that b calls.
type mesh struct {
	lab  *netlab.Lab
	a, b *netlab.Daemon
	work *counter
}

// counter is a's handler: it answers {"n": 7} with the same, and counts.
type counter struct {
	capability string
	pulse      *pulse // of its work

	mu       sync.Mutex
	seen     map[int]int // times by n
	repeated map[int]int // of these, as a repeat that may be one
}

func newCounter() *counter { return newCounterOf(capability) }

func newCounterOf(capability string) *counter {
	return &counter{capability: capability, pulse: newPulse(), seen: make(map[int]int), repeated: make(map[int]int)}
}

// offer has the counter listen on a host, and writes the file of what a daemon there
// offers.
func (c *counter) offer(t *testing.T, lab *netlab.Lab, h *netlab.Host) (file string) {
	t.Helper()
	listener := h.Listen("127.0.0.1:0")
	go http.Serve(listener, c) // until the listener closes
	file = filepath.Join(lab.Dir(), path.Base(c.capability)+".yaml")
	document := fmt.Sprintf("name: %s\nversion: 1.0.0\nhandler:\n  http: {url: %q}\n", c.capability, "http://"+listener.Addr().String())
	check(t, os.WriteFile(file, []byte(document), 0o600))
	return file
}

type number struct {
	N int `json:"n"`
}

func (c *counter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var req number
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	c.seen[req.N]++
	if r.Header.Get("x-mesh-redelivered") == "true" {
		c.repeated[req.N]++
	}
	c.mu.Unlock()
	c.pulse.beat()
	fmt.Fprintf(w, `{"n": %d}`, req.N) // if it is still wanted
}

func (c *counter) times(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen[n]
}

// await waits until n numbers have been worked on, but not for long.
func (c *counter) await(n int, atMost time.Duration) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(atMost); ; {
		c.mu.Lock()
		got := len(c.seen)
		c.mu.Unlock()
		if got >= n {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			return
		}
	}
}

// faults are the numbers below n that nobody worked on, and those that were worked
// on more than once without a word that it may be so.
func (c *counter) faults(n int) (missing, twice []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range n {
		switch first := c.seen[i] - c.repeated[i]; {
		case c.seen[i] == 0:
			missing = append(missing, i)
		case first > 1:
			twice = append(twice, i)
		}
	}
	return missing, twice
}

// newMesh brings a mesh up and returns when b finds what a offers. Before b's
// daemon starts, its host may be restricted.
func newMesh(t *testing.T, env map[string]string, restrict func(b *netlab.Firewall)) *mesh {
	t.Helper()
	m := newDaemons(t, env, restrict)
	m.awaitOffer(t)
	return m
}

// newDaemons is newMesh for a b that may not find anything.
func newDaemons(t *testing.T, env map[string]string, restrict func(b *netlab.Firewall)) *mesh {
	t.Helper()
	lab := netlab.New(t)
	lab.Backbone(lab.Host("backbone"), env)
	m := &mesh{lab: lab, work: newCounter()}
	a, b := lab.Host("a"), lab.Host("b")
	m.a = lab.Daemon(a, "a", env, "--capability", m.work.offer(t, lab, a))
	if restrict != nil {
		restrict(b.Firewall())
	}
	m.b = lab.Daemon(b, "b", env)
	return m
}

// awaitOffer waits until b finds what a offers.
func (m *mesh) awaitOffer(t *testing.T) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(30 * time.Second); ; {
		out, err := m.b.CLI("discover", capability)
		var found struct{ Results []struct{ Agent string } }
		if err == nil && json.Unmarshal(out, &found) == nil && len(found.Results) == 1 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("b does not find what a offers: %s %v", out, err)
		}
	}
}

// answer is what `openmesh call` prints.
type answer struct {
	Response number
	Agent    string
	Path     struct{ Kind, Transport string }
}

// call has b call a by capability.
func (m *mesh) call(t *testing.T, n int) answer {
	t.Helper()
	out, err := m.b.CLI("call", capability, fmt.Sprintf(`{"n": %d}`, n))
	if err != nil {
		t.Fatal(err)
	}
	var got answer
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("read %q: %v", out, err)
	}
	if got.Response.N != n || got.Agent != m.a.Ready.Agent || m.work.times(n) != 1 {
		t.Errorf("call %d was answered %d by %s, and worked on %d times; want it of %s, once",
			n, got.Response.N, got.Agent, m.work.times(n), m.a.Ready.Agent)
	}
	return got
}

// An agent calls another by capability, over what its network lets through.
func TestCall(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name      string
		restrict  func(*netlab.Firewall)
		transport string
	}{
		{"open network", nil, "quic-v1"},
		{"no UDP", func(f *netlab.Firewall) { f.Drop("udp") }, "tcp"},
		{"UDP refused", func(f *netlab.Firewall) { f.Reject("udp") }, "tcp"},
		{"only the WebSocket port", func(f *netlab.Firewall) { f.OnlyTCP(netlab.WebSocketPort) }, "ws"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, nil, test.restrict)
			if got := m.call(t, 1).Path; got.Kind != "direct" || got.Transport != test.transport {
				t.Errorf("the call went %s over %s, want direct over %s", got.Kind, got.Transport, test.transport)
			}
		})
	}
}

// A daemon that is killed comes back as who it was, and one that is asked to
// stop does.
func TestRestart(t *testing.T) {
	t.Parallel()
	m := newMesh(t, nil, nil)
	m.call(t, 1)
	before := m.a.Ready
	m.a.Kill()
	m.a.Restart()
	if m.a.Ready.Agent != before.Agent || m.a.Ready.Peer != before.Peer {
		t.Errorf("%s at %s came back as %s at %s", before.Agent, before.Peer, m.a.Ready.Agent, m.a.Ready.Peer)
	}
	m.b.Restart()
	m.awaitOffer(t)
	m.call(t, 2)
	m.a.Stop()
	m.b.Stop()
}
