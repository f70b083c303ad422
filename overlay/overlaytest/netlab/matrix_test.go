//go:build linux

package netlab_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/overlay/overlaytest/netlab"
)

const (
	// known is how long an agent may take to be reachable through a relay.
	known = 20 * time.Second
	// prompt is how long a session may take to answer its first call, by whatever
	// path; settle is how long it may take to get to its best one.
	prompt = 3 * time.Second
	settle = 30 * time.Second
	// stands is how long the best path must hold: the two ends of a fresh one may
	// yet choose differently among several connections.
	stands = 2 * time.Second

	atOnce = 3 // cells, for each keeps a machine busy
)

// matrixLink is what lies between any two routers or public hosts.
var matrixLink = netlab.Link{Delay: 20 * time.Millisecond, Loss: 0.02}

// cell is a pair of agents, each behind a router of a kind. a calls b.
type cell struct {
	a, b netlab.Kind
	runs []*run
}

// run is what became of a pair that did not know each other.
type run struct {
	ready    time.Duration // until both had an address at a relay, since the second served
	first    time.Duration // until the first call was answered
	firstWay string
	best     time.Duration // until one went the best way, from the beginning of the first
	bestWay  string        // which is the last seen
	over     bool
	held     bool // all that was wanted
}

// want is the best way there is: "relayed", or the transport of a direct connection.
//
// A symmetric router maps towards each destination anew, so nobody can be told
// where to send. Agents listen on TCP 443 and dial from there, so that a hole can
// be punched through routers that let only that port of others out.
func (c *cell) want() string {
	switch {
	case c.a == netlab.Symmetric || c.b == netlab.Symmetric:
		return "relayed"
	case c.a == netlab.Easy && c.b == netlab.Easy:
		return "quic-v1"
	}
	return "tcp"
}

func (c *cell) String() string { return fmt.Sprintf("%s to %s", c.a, c.b) }

// Two agents that know nothing of each other's networks have a session within
// three seconds, whatever routers they are behind, and it gets to the best way
// that these let through.
//
// OPENMESH_NETLAB_REPEATS is how often each pair is tried, each time with other
// packets lost (default 1); OPENMESH_NETLAB_TABLE names a file for the result.
func TestMatrix(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	netlab.New(t) // or skip here, once
	repeats := 1
	if text := os.Getenv("OPENMESH_NETLAB_REPEATS"); text != "" {
		var err error
		repeats, err = strconv.Atoi(text)
		check(t, err)
	}
	var cells []*cell
	slots := make(chan struct{}, atOnce)
	t.Run("from", func(t *testing.T) {
		for _, a := range netlab.Kinds() {
			for _, b := range netlab.Kinds() {
				c := &cell{a: a, b: b, runs: make([]*run, repeats)}
				cells = append(cells, c)
				for i := range c.runs {
					c.runs[i] = new(run)
					t.Run(fmt.Sprintf("%s, %d", c, i+1), func(t *testing.T) {
						t.Parallel()
						slots <- struct{}{}
						defer func() { <-slots }()
						defer func() { c.runs[i].over, c.runs[i].held = true, !t.Failed() }()
						c.try(t, i)
					})
				}
			}
		}
	})
	table := matrixTable(cells)
	t.Log("\n" + table)
	if file := os.Getenv("OPENMESH_NETLAB_TABLE"); file != "" {
		check(t, os.WriteFile(file, []byte(table), 0o644))
	}
}

// try has a call b until it does so by the best way.
func (c *cell) try(t *testing.T, i int) {
	link, r := matrixLink, c.runs[i]
	link.Seed = uint64(i)
	m := netlab.NewMesh(t, link, nil)
	p := c.meet(t, m)
	r.ready = p.await(t, m.Relays)

	start := time.Now()
	r.firstWay, r.first = p.call(t, start), time.Since(start)
	t.Logf("both were ready after %v; the first call took %v and went %s", round(r.ready), round(r.first), r.firstWay)
	if r.first > prompt {
		t.Errorf("the first call was answered after %v, want %v", round(r.first), prompt)
	}
	r.bestWay, r.best = r.firstWay, r.first
	for !c.reached(r.bestWay) && time.Since(start) < settle {
		p.pause(t)
		r.bestWay, r.best = p.call(t, start), time.Since(start)
	}
	if !c.reached(r.bestWay) {
		t.Fatalf("after %v calls go %s, want %s", settle, r.bestWay, c.want())
	}
	for there := time.Now(); time.Since(there) < stands; p.pause(t) {
		way := p.call(t, start)
		if !c.reached(way) {
			t.Errorf("calls went %s, and %v later %s", r.bestWay, round(time.Since(there)), way)
		}
		r.bestWay = way
	}
}

// reached reports whether a way is at least as good as can be expected.
func (c *cell) reached(way string) bool {
	return strings.HasSuffix(way, " "+c.want()) || c.want() == "relayed"
}

// pair is two agents of a cell, of which a calls b.
type pair struct {
	a, b  *api.Client
	agent string // b
	work  *counter
	calls int
}

// meet runs the agents of a cell.
func (c *cell) meet(t *testing.T, m *netlab.Mesh) *pair {
	t.Helper()
	p := &pair{work: newCounter()}
	host := m.Router("b's router", c.b).Host("b")
	b := m.Daemon(host, "b", nil, "--capability", p.work.offer(t, m.Lab, host))
	a := m.Daemon(m.Router("a's router", c.a).Host("a"), "a", nil)
	p.agent, p.a, p.b = b.Ready.Agent, dial(t, a), dial(t, b)
	return p
}

// await waits until both agents are reachable through a relay.
func (p *pair) await(t *testing.T, relays [2]*netlab.Daemon) time.Duration {
	t.Helper()
	start := time.Now()
	for _, client := range []*api.Client{p.a, p.b} {
		for !relayed(t, client, relays) {
			if time.Since(start) > known {
				t.Fatalf("an agent has no address at a relay after %v", known)
			}
			p.pause(t)
		}
	}
	return time.Since(start)
}

// relayed reports whether a daemon says that it is reached through one of the
// relays.
func relayed(t *testing.T, client *api.Client, relays [2]*netlab.Daemon) bool {
	t.Helper()
	id, err := client.Node.Id(t.Context(), &openmeshv1.IdRequest{})
	check(t, err)
	return slices.ContainsFunc(id.Addrs, func(addr string) bool {
		return slices.ContainsFunc(relays[:], func(r *netlab.Daemon) bool {
			return strings.Contains(addr, "/p2p/"+r.Ready.Peer+"/p2p-circuit")
		})
	})
}

// pause lets a little time pass between questions.
func (p *pair) pause(t *testing.T) {
	t.Helper()
	select {
	case <-time.After(100 * time.Millisecond):
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
}

// call has a call b, if need be again until settle after start, and returns by which
// way it was answered: the kind of path and the transport. A call that fails is an
// error of the test.
func (p *pair) call(t *testing.T, start time.Time) (way string) {
	t.Helper()
	for {
		p.calls++
		resp, err := p.try(t, p.calls)
		if err == nil {
			if resp.Path.Kind == "relayed" {
				return "relayed"
			}
			return resp.Path.Kind + " " + resp.Path.Transport
		}
		t.Errorf("call %d, %v after the first began: %v", p.calls, round(time.Since(start)), err)
		if time.Since(start) > settle {
			t.FailNow()
		}
		p.pause(t)
	}
}

func (p *pair) try(t *testing.T, n int) (*openmeshv1.CallResponse, error) {
	ctx, cancel := context.WithTimeout(t.Context(), settle)
	defer cancel()
	resp, err := p.a.Session.Call(ctx, &openmeshv1.CallRequest{
		Target: p.agent, Capability: capability, TimeoutMs: uint32(settle.Milliseconds()),
		Body: &openmeshv1.CallRequest_Json{Json: fmt.Sprintf(`{"n": %d}`, n)},
	})
	if err != nil {
		return nil, err
	}
	return resp, isNumber(resp.GetJson(), n)
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }

// matrixTable is the result in Markdown.
func matrixTable(cells []*cell) string {
	var b strings.Builder
	fmt.Fprintf(&b, "One way takes %v and loses %.0f %%. Times in seconds: median (longest).\n\n", matrixLink.Delay, 100*matrixLink.Loss)
	b.WriteString("| a | b | held | at a relay | first answer | by | best way | reached | best expected |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, c := range cells {
		over, held := c.count()
		if over == 0 {
			continue // -test.run left it out
		}
		fmt.Fprintf(&b, "| %s | %s | %d/%d | %s | %s | %s | %s | %s | %s |\n", c.a, c.b, held, over,
			c.times(func(r *run) time.Duration { return r.ready }),
			c.times(func(r *run) time.Duration { return r.first }), c.ways(func(r *run) string { return r.firstWay }),
			c.times(func(r *run) time.Duration { return r.best }), c.ways(func(r *run) string { return r.bestWay }), c.want())
	}
	return b.String()
}

// count is how many runs of a cell were made, and how many of them were as wanted.
func (c *cell) count() (over, held int) {
	for _, r := range c.runs {
		if r.over {
			over++
		}
		if r.held {
			held++
		}
	}
	return over, held
}

// times are the median of some of a cell's times and the longest.
func (c *cell) times(of func(*run) time.Duration) string {
	var all []time.Duration
	for _, r := range c.runs {
		if r.firstWay != "" {
			all = append(all, of(r))
		}
	}
	if len(all) == 0 {
		return "–"
	}
	slices.Sort(all)
	return fmt.Sprintf("%.2f (%.2f)", all[len(all)/2].Seconds(), all[len(all)-1].Seconds())
}

// ways are the ways of a cell's runs, with their number.
func (c *cell) ways(of func(*run) string) string {
	count := make(map[string]int)
	for _, r := range c.runs {
		if r.firstWay != "" {
			count[of(r)]++
		}
	}
	var all []string
	for way, n := range count {
		all = append(all, fmt.Sprintf("%s ×%d", way, n))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}
