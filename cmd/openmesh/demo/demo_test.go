package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"openmesh/cmd/openmesh/demo/deal"
	"openmesh/protocols/wire"
)

func TestRunRefusesAgents(t *testing.T) {
	t.Parallel()
	for _, agents := range []int{-1, 0, MinAgents - 1, MaxAgents + 1} {
		if _, err := Run(t.Context(), Config{Agents: agents}); wire.CodeOf(err) != wire.InvalidArgument {
			t.Errorf("%d agents: %v", agents, err)
		}
	}
}

// The first step that fails ends the demo, and what a node said is not taken
// for what the demo says.
func TestPlay(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "alice.log")
	if err := os.WriteFile(log, []byte(strings.Repeat("before\n", 20)+"the end\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	alice := &node{name: "alice", log: log}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithDeadline(t.Context(), time.Unix(0, 0))
	defer cancel()
	for _, tc := range []struct {
		name   string
		ctx    context.Context
		err    error
		code   wire.Code
		detail string
		log    int // lines
	}{
		{"own failure", t.Context(), errors.New("boom"), wire.Internal, "boom", 0},
		{"at a node", t.Context(), alice.at(wire.Errorf(wire.NotFound, "no such thing")), wire.Internal, "alice: no such thing", 12},
		{"timeout", late, alice.errorf("asking"), wire.DeadlineExceeded, "alice: asking", 12},
		{"interrupted", ended, errors.New("asking"), wire.Cancelled, "asking", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var heard []Step
			m := &mesh{cfg: Config{Observe: func(s Step) { heard = append(heard, s) }}}
			var record Record
			err := m.play(tc.ctx, []step{
				{"one", func(_ context.Context, s *Step) error { s.Say("a", "b"); return nil }},
				{"two", func(context.Context, *Step) error { return tc.err }},
				{"three", func(context.Context, *Step) error { t.Error("went on"); return nil }},
			}, &record)
			code := wire.CodeOf(err)
			if errors.Is(err, context.Canceled) {
				code = wire.Cancelled
			}
			if code != tc.code || !strings.Contains(err.Error(), "step two") {
				t.Errorf("error %v, want %s of step two", err, tc.code)
			}
			if len(record.Steps) != 2 || len(heard) != 2 || !record.Steps[0].OK || record.Steps[0].Detail != "a\nb" {
				t.Fatalf("steps %+v, heard %+v", record.Steps, heard)
			}
			two := record.Steps[1]
			if two.OK || two.Detail != tc.detail || len(two.Log) != tc.log {
				t.Errorf("got %+v", two)
			}
			if tc.log > 0 && two.Log[tc.log-1] != "the end" {
				t.Errorf("log ends with %q", two.Log[tc.log-1])
			}
		})
	}
}

func TestSpread(t *testing.T) {
	t.Parallel()
	for agents := MinAgents; agents <= MaxAgents; agents++ {
		m := newMesh(Config{Agents: agents})
		m.starter.close()
		m.spread(offerCount("p"), offerSum("u"), offerApprove())
		if len(m.consumer().offers) != 0 || len(m.offering(countName)) != 1 {
			t.Errorf("%d agents: the consumer offers %d, %d count", agents, len(m.consumer().offers), len(m.offering(countName)))
		}
		if len(m.offering(sumName)) == 0 || len(m.offering(approveName)) == 0 {
			t.Errorf("%d agents: not everything is offered", agents)
		}
		for _, n := range m.providers() {
			if len(n.offers) == 0 {
				t.Errorf("%d agents: %s offers nothing", agents, n.name)
			}
		}
	}
}

func TestHandle(t *testing.T) {
	t.Parallel()
	environment := map[string]string{"MESH_CALLER_AGENT": "did:key:z6Mk", "MESH_SESSION": "s1", "MESH_IDEMPOTENCY_KEY": "k1"}
	told := `"caller":"did:key:z6Mk",`
	for _, tc := range []struct{ name, in, want string }{
		{sumName, `{"numbers":[1,2.5]}`, `{` + told + `"key":"k1","session":"s1","sum":3.5}`},
		{sumName, `{"numbers":[]}`, `{` + told + `"key":"k1","session":"s1","sum":0}`},
		{countName, `{"text":" two  words "}`, `{"bytes":12,` + told + `"key":"k1","session":"s1","words":2}`},
		{approveName, `{"item":"a chair","amount":1000}`, `{"approved":true,` + told + `"key":"k1","reason":"a chair: within the limit of 1000","session":"s1"}`},
		{approveName, `{"item":"a car","amount":1001}`, `{"approved":false,` + told + `"key":"k1","reason":"a car: over the limit of 1000","session":"s1"}`},
		{deal.Capability, `{"number":"8051"}`, `{` + told + `"factors":["83","97"],"key":"k1","session":"s1"}`},
		{countName, `{"text":1}`, ""},
		{countName, `{`, ""},
		{deal.Capability, `{"number":"1"}`, ""},
		{"demo/other", `{}`, ""},
	} {
		var out bytes.Buffer
		err := Handle(tc.name, strings.NewReader(tc.in), &out, func(name string) string { return environment[name] })
		if (err != nil) != (tc.want == "") || strings.TrimSpace(out.String()) != tc.want {
			t.Errorf("%s %s: %s, %v; want %s", tc.name, tc.in, out.String(), err, tc.want)
		}
	}
}

// What the capability files say must be what the work gives.
func TestOffersAreCapabilities(t *testing.T) {
	t.Parallel()
	for _, o := range []offer{offerSum("http://127.0.0.1:1/"), offerCount("/bin/p"), offerApprove(), offerFactor("/bin/p")} {
		keys, err := o.keys()
		if err != nil || !slices.Contains(keys, family) || !slices.Contains(keys, o.Name) {
			t.Errorf("%s: keys %v, %v", o.Name, keys, err)
		}
		answer, err := work(o.Name, []byte(`{"number":"12"}`))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range o.Response["required"].([]string) {
			if _, ok := answer[name]; !ok {
				t.Errorf("%s: the answer has no %s", o.Name, name)
			}
		}
		if _, err := json.Marshal(o); err != nil {
			t.Error(err)
		}
	}
}

// The consumer and the one who passes by are different agents, however many there are;
// all who have a log are asked for it, and no two agents have the same name.
func TestDealings(t *testing.T) {
	t.Parallel()
	for agents := MinAgents; agents <= MaxAgents; agents++ {
		m := newMesh(Config{Agents: agents})
		m.starter.close()
		cfg := m.dealings()
		if cfg.Buyer.Name == cfg.Passer.Name || len(cfg.Sellers) != len(deal.Stalls()) || len(cfg.All) != len(m.nodes()) {
			t.Errorf("%d agents: %s buys and %s passes; %d sellers, %d logs", agents, cfg.Buyer.Name, cfg.Passer.Name, len(cfg.Sellers), len(cfg.All))
		}
		seen := map[string]bool{m.market.impostor.name: true}
		for _, n := range m.nodes() {
			if seen[n.name] {
				t.Errorf("two agents are called %s", n.name)
			}
			seen[n.name] = true
		}
	}
}

// A program that is run alone has its arguments, its folder and nothing else.
func TestAlone(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	program := filepath.Join(t.TempDir(), "program")
	script := "#!/bin/sh\n[ \"$2\" = kill ] && kill -9 $$\n[ \"$2\" = wait ] && sleep 60\necho \"$*\" in \"$(/bin/pwd)\" HOME=$HOME\nexit 3\n"
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	m := newMesh(Config{Agents: MinAgents, Program: program, Environ: []string{"HOME=/somewhere"}})
	defer m.starter.close()
	out, code, err := m.alone(t.Context(), folder, "look", "file")
	if want := "--json look file in " + folder + " HOME=\n"; err != nil || code != 3 || string(out) != want {
		t.Errorf("%q, %d, %v; want %q, 3", out, code, err, want)
	}
	if _, _, err := m.alone(t.Context(), folder, "kill"); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("killed: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := m.alone(ctx, folder, "wait"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waits: %v", err)
	}
}

func TestClean(t *testing.T) {
	t.Parallel()
	got := clean([]string{"PATH=/bin", "OPENMESH_HOME=/h", "OPENMESH_PASSPHRASE=x", "OTEL_SDK_DISABLED=true"})
	if want := []string{"PATH=/bin", "OTEL_SDK_DISABLED=true"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestShellWord(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"/tmp/a-1.x_Y": "/tmp/a-1.x_Y", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "$(x)": "'$(x)'"} {
		if got := shellWord(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

// shell prepares a child that misbehaves.
func shell(script string) *exec.Cmd {
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.SysProcAttr = attributes(false)
	return cmd
}

func TestDrain(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, script, want string }{
		{"clean", `trap 'exit 0' TERM; echo ready; while :; do read -t 1 x; done`, ""},
		{"exits with 3", `trap 'exit 3' TERM; echo ready; while :; do read -t 1 x; done`, "exit status 3"},
		{"leaves a child", `sleep 60 >&- & trap 'exit 0' TERM; echo ready; wait`, "left processes behind"},
		{"ignores SIGTERM", `trap '' TERM; echo ready; while :; do read -t 1 x; done`, "did not end on SIGTERM"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newStarter()
			defer s.close()
			p, line, err := s.firstLine(t.Context(), shell(tc.script))
			if err != nil || string(line) != "ready\n" {
				t.Fatalf("%q, %v", line, err)
			}
			limit := time.Minute
			if strings.HasPrefix(tc.name, "ignores") {
				limit = 100 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			err = p.drain(ctx)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if p.alive() {
				t.Error("still alive")
			}
		})
	}
}

func TestFirstLineFails(t *testing.T) {
	t.Parallel()
	s := newStarter()
	defer s.close()
	if _, _, err := s.firstLine(t.Context(), shell("exit 4")); err == nil || !strings.Contains(err.Error(), "exit status 4") {
		t.Errorf("ended early: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := s.firstLine(ctx, shell("sleep 60")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent: %v", err)
	}
	if _, _, err := s.firstLine(t.Context(), exec.Command("/nowhere/program")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no program: %v", err)
	}
}
