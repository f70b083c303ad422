// Package demo runs a whole mesh on one machine and checks that it does what
// it should: the openmesh program itself in child processes, real sockets on
// loopback, temporary homes.
//
//	demo ─┬─ starts ──► backbone          directory server and bootstrap point
//	      │             north, south      relays
//	      │             quinn, ruth       listen nowhere: only the relays lead to them
//	      │             west, east        for a while, with routers of this process
//	      │                               in front, which can lose datagrams
//	      │             alice, bob, …     offer capabilities of three kinds:
//	      │               │ http  ──────► desk: an HTTP server in this process
//	      │               │ exec  ──────► the program's hidden demo-handler
//	      │               └ api   ──────► this process, which pulls
//	      └─ asks ────► the last agent, which joins when all is there: discovers, calls,
//	                    and buys from
//	                    trent, ursula, victor   see package deal
//
// It is a list of steps, [mesh.steps]. Each does one thing as a user would, by
// the command line or the local API, and fails unless what came of it is what
// was promised. The first that fails ends the demo.
package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"openmesh/node/api"
	"openmesh/protocols/wire"
)

// The bounds of [Config].Agents.
const (
	MinAgents = 2 // one that offers, one that asks
	MaxAgents = len(names)
)

const (
	stepTime  = time.Minute      // for one step, or half of the time left if that is more
	clearTime = 15 * time.Second // for cleaning up
)

// Config is what a demo needs.
type Config struct {
	Program string     // absolute path of the openmesh executable
	Agents  int        // that listen; MinAgents to MaxAgents
	Keep    bool       // leave the mesh running if all steps held
	Environ []string   // what children inherit, save OPENMESH_* variables
	Observe func(Step) // hears of each step as it ends; may be nil
}

// Record is what happened.
type Record struct {
	OK        bool    `json:"ok"` // every step held
	Steps     []Step  `json:"steps"`
	Agents    []Agent `json:"agents"` // the backbone first
	ElapsedMs float64 `json:"elapsed_ms"`
	Kept      *Kept   `json:"kept,omitempty"` // the mesh that still runs, if any
}

// Step is one thing that was tried.
type Step struct {
	Name      string         `json:"name"`
	OK        bool           `json:"ok"`
	Detail    string         `json:"detail"` // for people: what was seen, or why it failed; may have several lines
	ElapsedMs float64        `json:"elapsed_ms"`
	Facts     map[string]any `json:"facts"`         // what was measured, for programs
	Log       []string       `json:"log,omitempty"` // end of the log of the daemon where it failed
}

// Agent is a node of the mesh.
type Agent struct {
	Name    string   `json:"name"`
	Role    string   `json:"role"` // backbone, relay or agent
	Agent   string   `json:"agent"`
	Address string   `json:"address"`
	Peer    string   `json:"peer"`
	Offers  []string `json:"offers"`         // capability names
	Home    string   `json:"home,omitempty"` // only if it was kept
	PID     int      `json:"pid,omitempty"`  // only if it was kept
}

// Say sets the detail, a line for each.
func (s *Step) Say(lines ...string) { s.Detail = strings.Join(lines, "\n") }

// Fact sets one of the facts.
func (s *Step) Fact(name string, value any) { s.Facts[name] = value }

// Run runs the demo and returns its record, also if it failed. Whether or not
// it did, nothing is left of it, unless cfg.Keep asked for it and all held. The
// error of a step that failed is [wire.Internal], or [wire.DeadlineExceeded] or
// [wire.Cancelled] if ctx ended; [wire.InvalidArgument] is a bad cfg.
func Run(ctx context.Context, cfg Config) (Record, error) {
	if cfg.Agents < MinAgents || cfg.Agents > MaxAgents {
		return Record{}, wire.Errorf(wire.InvalidArgument, "%d agents: want %d to %d", cfg.Agents, MinAgents, MaxAgents)
	}
	if cfg.Observe == nil {
		cfg.Observe = func(Step) {}
	}
	start := time.Now()
	m := newMesh(cfg)
	defer m.starter.close()
	record := Record{Steps: []Step{}, Agents: []Agent{}}
	err := m.play(ctx, m.steps(), &record)
	if err != nil || !cfg.Keep {
		if left := m.clear(context.WithoutCancel(ctx)); left != nil {
			err = errors.Join(err, fmt.Errorf("clean up: %w", left))
		}
	}
	for _, n := range m.nodes() {
		record.Agents = append(record.Agents, n.summary())
	}
	record.OK, record.ElapsedMs = err == nil, millis(time.Since(start))
	if record.OK && cfg.Keep {
		record.Kept = m.kept()
	}
	return record, err
}

// step is a part of the demo: do fills in what it saw.
type step struct {
	name string
	do   func(context.Context, *Step) error
}

// play does one step after another until one fails.
func (m *mesh) play(ctx context.Context, steps []step, record *Record) error {
	for _, s := range steps {
		seen, err := perform(ctx, s)
		record.Steps = append(record.Steps, seen)
		m.cfg.Observe(seen)
		if err != nil {
			return failed(ctx, s.name, err)
		}
	}
	return nil
}

// perform does one step, in time.
func perform(ctx context.Context, s step) (Step, error) {
	limit := stepTime
	if end, ok := ctx.Deadline(); ok {
		limit = max(limit, time.Until(end)/2)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	seen := Step{Name: s.name, Facts: map[string]any{}}
	start := time.Now()
	err := s.do(ctx, &seen)
	seen.ElapsedMs, seen.OK = millis(time.Since(start)), err == nil
	if err != nil {
		seen.Detail = api.Describe(err).Message
		var at *nodeError
		if errors.As(err, &at) {
			seen.Log = at.node.logEnd()
		}
	}
	return seen, err
}

// failed says which step failed. A code that a node gave it stays inside: to
// the user it is not his request that was refused, but the demo that failed.
func failed(ctx context.Context, name string, err error) error {
	code, hint := wire.Internal, "the mesh did not do what it should; --json gives the whole record"
	var at *nodeError
	if !errors.As(err, &at) {
		hint = cmp.Or(api.Describe(err).Hint, hint)
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		code, hint = wire.DeadlineExceeded, "allow more time with --timeout"
	case ctx.Err() != nil:
		return fmt.Errorf("demo: step %s: %w", name, ctx.Err())
	}
	return wire.Errorf(code, "demo: step %s: %s", name, api.Describe(err).Message).WithHint("%s", hint)
}

// nodeError is what went wrong at one node.
type nodeError struct {
	node *node
	err  error
}

func (e *nodeError) Error() string { return e.node.name + ": " + api.Describe(e.err).Message }
func (e *nodeError) Unwrap() error { return e.err }

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// ms shows a time in milliseconds to people.
func ms(v float64) string {
	if v >= 1000 {
		return fmt.Sprintf("%.1f s", v/1000)
	}
	return fmt.Sprintf("%.1f ms", v)
}

// until asks again and again until the answer is nil, or ctx ends: then it
// returns the last answer.
func until(ctx context.Context, ask func(context.Context) error) error {
	const pause = 25 * time.Millisecond
	tick := time.NewTicker(pause)
	defer tick.Stop()
	var err error
	for {
		answer := ask(ctx)
		if answer == nil {
			return nil
		}
		if err == nil || ctx.Err() == nil { // the last answer that was not cut off
			err = answer
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w (gave up: %w)", err, ctx.Err())
		}
	}
}
