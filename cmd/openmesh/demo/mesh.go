package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"openmesh/cmd/openmesh/demo/deal"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/wire"
)

// names of the agents, in the order in which they join.
var names = [...]string{
	"alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi",
	"ivan", "judy", "kevin", "laura", "mike", "nina", "oscar", "peggy",
}

// mesh is the mesh of a demo. Steps are methods of it, and done one at a time.
type mesh struct {
	cfg      Config
	starter  *starter
	dir      string // folder of all homes; "" before it is made and after it is gone
	backbone *node
	agents   []*node // the last one offers nothing and joins when all is there
	desk     *desk
	pair     *pair   // of a failover that is under way
	remote   *remote // what only relays lead to
	market   *market // who does business

	lastSum *called // the last call for a sum that was answered
}

func newMesh(cfg Config) *mesh {
	m := &mesh{cfg: cfg, starter: newStarter(), backbone: &node{name: "backbone", role: "backbone"}, remote: newRemote(), market: newMarket()}
	for _, name := range names[:cfg.Agents] {
		m.agents = append(m.agents, &node{name: name, role: "agent"})
	}
	return m
}

// steps is the whole demo.
func (m *mesh) steps() []step {
	all := []step{
		{"identities", m.makeIdentities},
		{"backbone", m.startBackbone},
		{"join", m.join},
		{"register", m.register},
		{"join-last", m.joinLast},
		{"discover-name", m.discoverName},
		{"discover-prefix", m.discoverPrefix},
		{"discover-version", m.discoverVersion},
		{"discover-alike", m.discoverAlike},
		{"call-capability", m.callCapability},
		{"call-address", m.callAddress},
		{"call-agent", m.callAgent},
		{"sealed-session", m.sealedSession},
		{"handler-context", m.handlerContext},
		{"refuse-invalid", m.refuseInvalid},
		{"call-exec", m.callExec},
		{"call-api", m.callAPI},
		{"leave", m.leave},
		{"return", m.comeBack},
		{"relays", m.startRelays},
		{"crash", m.crash},
		{"failover", m.failover},
		{"reserve", m.reserve},
		{"call-relayed", m.callRelayed},
		{"call-forwarded", m.callForwarded},
		{"relay-lost", m.relayLost},
		{"mailbox", m.mailbox},
		{"sellers", m.openMarket},
		{"request", m.trade((*deal.Deal).Request)},
		{"haggle", m.trade((*deal.Deal).Haggle)},
		{"contract", m.trade((*deal.Deal).Sign)},
		{"contract-proof", m.trade((*deal.Deal).Prove)},
		{"contract-forged", m.trade((*deal.Deal).Forge)},
		{"outsiders", m.outsiders},
		{"contract-work", m.trade((*deal.Deal).Work)},
		{"settle", m.trade((*deal.Deal).Settle)},
		{"audit-verify", m.trade((*deal.Deal).Audit)},
		{"audit-forged", m.trade((*deal.Deal).ForgeLog)},
		{"audit-replay", m.trade((*deal.Deal).Replay)},
	}
	if m.cfg.Keep {
		return append(all, step{"keep", m.keep})
	}
	return append(all, step{"shutdown", m.shutdown})
}

func (m *mesh) nodes() []*node {
	return slices.Concat([]*node{m.backbone}, m.agents, m.remote.nodes(), m.market.sellers)
}

// consumer is the agent that asks; it offers nothing itself.
func (m *mesh) consumer() *node { return m.agents[len(m.agents)-1] }

// providers are the agents that offer something.
func (m *mesh) providers() []*node { return m.agents[:len(m.agents)-1] }

// offering returns the agents that offer a capability.
func (m *mesh) offering(name string) []*node {
	var out []*node
	for _, n := range m.providers() {
		if slices.ContainsFunc(n.offers, func(o offer) bool { return o.Name == name }) {
			out = append(out, n)
		}
	}
	return out
}

// offered lists what some nodes offer under a prefix, as [found.offers] does.
func offered(nodes []*node, prefix string) []string {
	out := []string{}
	for _, n := range nodes {
		for _, o := range n.offers {
			if o.Name == prefix || strings.HasPrefix(o.Name, prefix+"/") {
				out = append(out, n.id.Agent+" "+o.Name+"@"+o.Version)
			}
		}
	}
	slices.Sort(out)
	return out
}

// each does something at several nodes at a time, as many as there are CPUs.
func each(ctx context.Context, nodes []*node, do func(context.Context, *node) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0) + 1)
	for _, n := range nodes {
		group.Go(func() error { return do(ctx, n) })
	}
	return group.Wait()
}

func (m *mesh) makeIdentities(ctx context.Context, s *Step) error {
	dir, err := os.MkdirTemp("", "openmesh-demo-") // mode 0700
	if err != nil {
		return wire.Errorf(wire.Internal, "make a folder for the homes: %w", err).
			WithHint("it goes where temporary files go: set TMPDIR to a folder that you may write in")
	}
	m.dir = dir
	if m.cfg.Keep {
		if err := m.keepProgram(); err != nil {
			return err
		}
	}
	for _, n := range m.nodes() {
		n.home, n.log = filepath.Join(dir, n.name), filepath.Join(dir, n.name+".log")
	}
	if err := each(ctx, m.nodes(), m.init); err != nil {
		return err
	}
	addresses, seen := map[string]string{}, map[string]bool{}
	lines := []string{fmt.Sprintf("%d made, each an Ed25519 root key and an address derived from it", len(m.nodes()))}
	for _, n := range m.nodes() {
		if seen[n.id.Address] || seen[n.id.Agent] {
			return n.errorf("has the identity of another: %s", n.id.Address)
		}
		seen[n.id.Address], seen[n.id.Agent] = true, true
		addresses[n.name] = n.id.Address
		lines = append(lines, fmt.Sprintf("%-8s  %s  %s", n.name, n.id.Address, short(n.id.Agent)))
	}
	s.Facts["addresses"] = addresses
	s.Say(lines...)
	return nil
}

// short is an agent id as people can compare it.
func short(agent string) string {
	const head, tail = 14, 4
	if len(agent) <= head+tail {
		return agent
	}
	return agent[:head] + "…" + agent[len(agent)-tail:]
}

func (m *mesh) startBackbone(ctx context.Context, s *Step) error {
	if err := m.start(ctx, m.backbone, nil); err != nil {
		return err
	}
	s.Facts["pid"], s.Facts["addrs"] = m.backbone.proc.cmd.Process.Pid, m.backbone.addrs
	s.Say(fmt.Sprintf("process %d serves the directory", m.backbone.proc.cmd.Process.Pid), strings.Join(bare(m.backbone.addrs), "  "))
	return nil
}

// bare leaves out the peer ids of multiaddrs.
func bare(addrs []string) []string {
	var out []string
	for _, a := range addrs {
		a, _, _ := strings.Cut(a, "/p2p/")
		out = append(out, a)
	}
	return out
}

func (m *mesh) join(ctx context.Context, s *Step) error {
	err := each(ctx, m.providers(), func(ctx context.Context, n *node) error { return m.enter(ctx, n) })
	if err != nil {
		return err
	}
	var who []string
	pids := map[string]int{}
	for _, n := range m.providers() {
		who = append(who, n.name)
		pids[n.name] = n.proc.cmd.Process.Pid
	}
	s.Facts["pids"] = pids
	s.Say(strings.Join(who, ", ") + ": connected to the backbone, which is in the routing table")
	return nil
}

// enter starts a node and waits until it has a directory server.
func (m *mesh) enter(ctx context.Context, n *node) error {
	if err := m.start(ctx, n, m.backbone.addrs); err != nil {
		return err
	}
	return until(ctx, func(ctx context.Context) error {
		status, err := n.api.Node.Status(ctx, &openmeshv1.StatusRequest{})
		switch {
		case err != nil:
			return n.at(err)
		case status.Directory.GetTableSize() == 0 || status.Directory.GetPartitioned():
			return n.errorf("knows no directory server")
		}
		return nil
	})
}

func (m *mesh) register(ctx context.Context, s *Step) (err error) {
	if m.desk, err = openDesk(); err != nil {
		return err
	}
	m.spread(offerCount(m.cfg.Program), offerSum(m.desk.url), offerApprove())
	if err := each(ctx, m.providers(), m.registerOffers); err != nil {
		return err
	}
	registered := []map[string]any{}
	var lines []string
	for _, n := range m.providers() {
		for _, o := range n.offers {
			keys, err := o.keys()
			if err != nil {
				return n.at(err)
			}
			registered = append(registered, map[string]any{
				"agent": n.name, "name": o.Name, "version": o.Version, "handler": o.kind(), "keys": keys,
			})
			lines = append(lines, fmt.Sprintf("%-8s  %-4s  %s %s  under %s", n.name, o.kind(), o.Name, o.Version, strings.Join(keys, ", ")))
		}
	}
	s.Facts["capabilities"] = registered
	s.Say(lines...)
	return nil
}

// spread deals out the offers: each provider has one, each offer a provider, and
// the unique one no second.
func (m *mesh) spread(unique offer, others ...offer) {
	p := m.providers()
	for i := range max(len(p), 1+len(others)) {
		n := p[i%len(p)]
		if i == 1 {
			n.offers = append(n.offers, unique)
		} else {
			n.offers = append(n.offers, others[i/2%len(others)])
		}
	}
}

// registerOffers adds what n offers and waits until the directory has it.
func (m *mesh) registerOffers(ctx context.Context, n *node) error {
	for _, o := range n.offers {
		if err := n.add(ctx, o); err != nil {
			return err
		}
	}
	return until(ctx, func(ctx context.Context) error {
		list, err := n.api.Directory.ListCapabilities(ctx, &openmeshv1.ListCapabilitiesRequest{})
		if err != nil {
			return n.at(err)
		}
		if len(list.Capabilities) != len(n.offers) {
			return n.errorf("lists %d capabilities, want %d", len(list.Capabilities), len(n.offers))
		}
		for _, c := range list.Capabilities {
			if c.RegisteredUntil == "" {
				return n.errorf("%s is not registered", c.Name)
			}
		}
		return nil
	})
}

func (n *node) add(ctx context.Context, o offer) error {
	doc, err := json.Marshal(o)
	if err != nil {
		return n.errorf("write capability %s: %w", o.Name, err)
	}
	_, err = n.api.Directory.AddCapability(ctx, &openmeshv1.AddCapabilityRequest{
		Document: string(doc), BaseDir: n.home, File: strings.ReplaceAll(o.Name, "/", "-") + ".json",
	})
	return n.at(err)
}

func (m *mesh) shutdown(ctx context.Context, s *Step) error {
	agents, others := slices.Concat(m.agents, m.remote.agents(), m.market.sellers), slices.Concat(m.remote.relays[:], []*node{m.backbone})
	for _, nodes := range [][]*node{agents, others} {
		err := each(ctx, nodes, func(ctx context.Context, n *node) error { return n.stop(ctx) })
		if err != nil {
			return err
		}
	}
	dir := m.dir
	if err := m.clear(ctx); err != nil {
		return err
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the folder %s is still there", dir)
	}
	s.Facts["exit_codes"] = m.exitCodes()
	s.Say("SIGTERM: every daemon drained and exited 0; no process, socket or file is left")
	return nil
}

func (m *mesh) exitCodes() map[string]int {
	codes := map[string]int{}
	for _, n := range m.nodes() {
		codes[n.name] = n.proc.cmd.ProcessState.ExitCode()
	}
	return codes
}

// clear ends what runs, at first kindly, and removes the folder. It may be
// called again.
func (m *mesh) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, clearTime)
	defer cancel()
	var errs error
	nodes := append(m.nodes(), m.market.impostor)
	if m.pair != nil {
		nodes = append(nodes, m.pair.nodes()...)
		defer m.pair.stop()
	}
	_ = each(ctx, nodes, func(ctx context.Context, n *node) error {
		if n.proc != nil && n.proc.alive() {
			grace, cancel := context.WithTimeout(ctx, clearTime/3)
			defer cancel()
			_ = n.stop(grace) // of a demo that failed; stop kills in the end
		}
		return nil
	})
	if m.desk != nil {
		errs = m.desk.close()
		m.desk = nil
	}
	if m.dir != "" {
		if err := os.RemoveAll(m.dir); err != nil {
			return errors.Join(errs, fmt.Errorf("remove %s: %w", m.dir, err))
		}
		m.dir = ""
	}
	return errs
}
