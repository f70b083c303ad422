package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"

	"openmesh/cmd/openmesh/demo/deal"
	"openmesh/protocols/wire"
)

// market are the agents that do business with the consumer.
type market struct {
	sellers  []*node // as deal.Stalls
	impostor *node   // runs in one step only
	deal     *deal.Deal
	gone     deal.Tally // of the logs of agents that are there no more
}

func newMarket() *market {
	m := &market{impostor: &node{name: "mallory", role: "agent"}}
	for _, s := range deal.Stalls() {
		m.sellers = append(m.sellers, &node{
			name: s.Name, role: "agent", flags: []string{"--set", "node.region=" + s.Region, "--set", "market.sell=" + s.Rule()},
		})
	}
	return m
}

// openMarket: three agents come that sell the same work, each on its own terms.
func (m *mesh) openMarket(ctx context.Context, s *Step) error {
	mk := m.market
	for _, n := range mk.sellers {
		n.offers = []offer{offerFactor(m.cfg.Program)}
	}
	err := each(ctx, mk.sellers, func(ctx context.Context, n *node) error {
		if err := m.enter(ctx, n); err != nil {
			return err
		}
		return m.registerOffers(ctx, n)
	})
	if err != nil {
		return err
	}
	mk.deal = deal.New(m.dealings())
	var lines []string
	rules := map[string]string{}
	for _, stall := range deal.Stalls() {
		rules[stall.Name] = stall.Rule()
		lines = append(lines, stall.Terms())
	}
	s.Fact("rules", rules)
	s.Say(append(lines, fmt.Sprintf("each finds the prime factors of numbers (%s), and only for who has a contract", deal.Capability))...)
	return nil
}

// dealings are who does business, and who looks on.
func (m *mesh) dealings() deal.Config {
	mk := m.market
	cfg := deal.Config{
		Buyer: party(m.consumer()), Passer: party(m.agents[0]),
		Gone: &mk.gone, Folder: m.dir, Alone: m.alone,
	}
	for _, n := range mk.sellers {
		cfg.Sellers = append(cfg.Sellers, party(n))
	}
	for _, n := range m.nodes() {
		cfg.All = append(cfg.All, party(n))
	}
	return cfg
}

func party(n *node) *deal.Party {
	return &deal.Party{Name: n.name, Agent: n.id.Agent, API: n.api, At: n.at}
}

// trade makes a step of one of the deal.
func (m *mesh) trade(do func(*deal.Deal, context.Context, deal.Report) error) func(context.Context, *Step) error {
	return func(ctx context.Context, s *Step) error { return do(m.market.deal, ctx, s) }
}

// outsiders: who has no contract, and who only claims to have it, gets no work.
func (m *mesh) outsiders(ctx context.Context, s *Step) error {
	n := m.market.impostor
	n.home, n.log = filepath.Join(m.dir, n.name), filepath.Join(m.dir, n.name+".log")
	n.command = []string{"demo", ImpostorCommand}
	n.flags = []string{"--seller", m.market.sellers[deal.Chosen].id.Agent}
	if err := m.init(ctx, n); err != nil {
		return err
	}
	if err := m.enter(ctx, n); err != nil {
		return err
	}
	if err := m.market.deal.Exclude(ctx, s, party(n)); err != nil {
		return err
	}
	if err := m.market.gone.Add(ctx, party(n)); err != nil {
		return err
	}
	if err := n.stop(ctx); err != nil {
		return err
	}
	return n.remove()
}

// ImpostorCommand is the hidden command under that of the demo which runs a daemon
// with the deals of package impostor.
const ImpostorCommand = "impostor"

// alone runs the program in a folder, with these arguments and nothing else: no home, no
// environment.
func (m *mesh) alone(ctx context.Context, folder string, args ...string) (out []byte, code int, err error) {
	var said bytes.Buffer
	cmd := exec.Command(m.cfg.Program, append([]string{"--json"}, args...)...)
	cmd.Dir, cmd.Env, cmd.SysProcAttr, cmd.Stdout = folder, []string{}, attributes(false), &said
	p, err := m.starter.run(cmd)
	if err != nil {
		return nil, 0, err
	}
	select {
	case <-p.ended:
	case <-ctx.Done():
		p.kill()
		return nil, 0, fmt.Errorf("openmesh %v: %w", args, ctx.Err())
	}
	if exit, ended := errors.AsType[*exec.ExitError](p.err); p.err != nil && (!ended || !exit.Exited()) {
		return nil, 0, wire.Errorf(wire.Internal, "openmesh %v: %w", args, p.err)
	}
	return said.Bytes(), cmd.ProcessState.ExitCode(), nil
}
