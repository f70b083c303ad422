package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"openmesh/cmd/openmesh/demo"
	"openmesh/cmd/openmesh/demo/impostor"
	"openmesh/node"
	"openmesh/node/observe"
	"openmesh/protocols/identity"
)

const timeForDemo = 2 * time.Minute

func newDemo(p *program) *cobra.Command {
	var agents int
	var keep bool
	cmd := &cobra.Command{
		Use: "demo", Short: "Run a whole mesh on this machine and watch it work", Args: cobra.NoArgs,
		Long: "Run a whole mesh on this machine and watch it work: a backbone, relays and some agents, each a process of its\n" +
			"own with a temporary home, on loopback. Agents are made, join, register what they offer, find and call\n" +
			"each other, leave and come back; both ends of a session are killed at work, the transport of another one\n" +
			"goes silent, the relay of a third is killed, one that is off is told by its mailbox, and no message is lost.\n" +
			"Then one of them buys work: three sellers make offers, it haggles with one, both sign a contract, the work is\n" +
			"done and settled, forgeries are found out, and every log is verified and replayed.\n" +
			"Every step is checked; exit code 0 only if all held. Nothing is left, unless --keep is given. With --json\n" +
			"the record of all steps is printed at the end.",
		Example: "  openmesh demo\n  openmesh demo --agents 8 --json\n  openmesh demo --keep",
		PreRunE: func(*cobra.Command, []string) error {
			if agents < demo.MinAgents || agents > demo.MaxAgents {
				return usagef("--agents %d: want %d to %d", agents, demo.MinAgents, demo.MaxAgents)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return p.demo(cmd.Context(), agents, keep) },
	}
	cmd.Flags().IntVar(&agents, "agents", 3, fmt.Sprintf("number of agents that listen, %d to %d", demo.MinAgents, demo.MaxAgents))
	cmd.Flags().BoolVar(&keep, "keep", false, "leave the mesh running and say how to talk to it")
	cmd.AddCommand(newDemoImpostor(p))
	return cmd
}

// newDemoImpostor runs a dishonest daemon.
func newDemoImpostor(p *program) *cobra.Command {
	var set settings
	var seller string
	cmd := &cobra.Command{
		Use: demo.ImpostorCommand, Short: "Run a daemon that takes any market contract for its own", Hidden: true, Args: cobra.NoArgs,
		PreRunE: func(*cobra.Command, []string) error { return set.check() },
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.impostor(cmd.Context(), set.overrides(), identity.AgentID(seller))
		},
	}
	set.define(cmd, "listen", "bootstrap", "metrics-port")
	set.defineSet(cmd)
	cmd.Flags().StringVar(&seller, "seller", "", "`agent` id of the seller of all these contracts")
	return cmd
}

func (p *program) impostor(ctx context.Context, overrides map[string]string, seller identity.AgentID) error {
	home, cfg, err := p.loadConfig(overrides)
	if err != nil {
		return err
	}
	k, err := openKeys(home)
	if err != nil {
		return err
	}
	log, _, err := observe.Logger(observe.LogConfig{Level: cfg.Observability.LogLevel, Format: cfg.Observability.LogFormat, W: p.err})
	if err != nil {
		return err
	}
	n, err := node.New(node.Config{
		Home: home, Config: cfg, Keys: k, Log: log, Version: thisRelease().Version, Deals: impostor.Deals{Self: k.Agent, Seller: seller},
	})
	if err != nil {
		return err
	}
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { return n.Run(running) })
	group.Go(func() error { return p.welcome(running, n, home, nil, "") })
	return group.Wait()
}

// newDemoHandler is what the exec handlers of a demo's agents run.
func newDemoHandler(p *program) *cobra.Command {
	return &cobra.Command{
		Use: demo.HandlerCommand + " NAME", Short: "Do the work of a capability of the demo", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return demo.Handle(args[0], p.in, p.out, p.getenv) },
	}
}

func (p *program) demo(ctx context.Context, agents int, keep bool) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(p.timeout, timeForDemo))
	defer cancel()
	cfg := demo.Config{Program: self, Agents: agents, Keep: keep, Environ: p.environ}
	if !p.json {
		fmt.Fprintf(p.out, "OpenMesh demo: a backbone, %d agents, two relays, two agents that only these lead to, and three that\nsell their work; on loopback, each a process of its own\n\n", agents)
		cfg.Observe = func(s demo.Step) { _ = p.print(func(g *page) { printStep(g, s) }) }
	}
	record, err := demo.Run(ctx, cfg)
	if shown := p.showValue(record, func(g *page) { printRecord(g, record) }); err == nil {
		err = shown
	}
	return err
}

// printStep prints a step as soon as it has ended.
func printStep(g *page, s demo.Step) {
	const margin = "                             " // as wide as what stands before the detail
	mark := g.style.green("✓")
	if !s.OK {
		mark = g.style.red("✗")
	}
	detail := strings.ReplaceAll(printable(s.Detail), "\n", "\n"+margin)
	took := g.style.dim(fmt.Sprintf("%9s", milliseconds(s.ElapsedMs))) // padded first: colours have no width
	fmt.Fprintf(g.w, "%s %-16s %s %s\n", mark, s.Name, took, detail)
	for _, line := range s.Log {
		fmt.Fprintf(g.w, "%s%s\n", margin, g.style.dim(printable("| "+line)))
	}
}

// printRecord prints the summary, and how to talk to a mesh that was kept.
func printRecord(g *page, r demo.Record) {
	held := 0
	for _, s := range r.Steps {
		if s.OK {
			held++
		}
	}
	result := g.style.green("all of it held")
	if !r.OK {
		result = g.style.red("it failed")
	}
	took := time.Duration(r.ElapsedMs * float64(time.Millisecond)).Round(100 * time.Millisecond)
	fmt.Fprintf(g.w, "\n%d of %d steps in %s: %s\n", held, len(r.Steps), took, result)
	if r.Kept == nil {
		return
	}
	fmt.Fprintf(g.w, "\nThe mesh stays up, in %s\n\n", r.Kept.Folder)
	var rows [][]string
	for _, a := range r.Agents {
		rows = append(rows, []string{a.Name, a.Address, fmt.Sprint(a.PID), strings.Join(a.Offers, ", "), a.Home})
	}
	g.table(strings.Fields("NAME ADDRESS PID OFFERS HOME"), rows)
	fmt.Fprintf(g.w, "\nTalk to it:\n  %s\n\nEnd it:\n  %s\n", strings.Join(r.Kept.Try, "\n  "), r.Kept.Stop)
}
