package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"openmesh/node"
	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/config"
	"openmesh/node/keys"
	"openmesh/node/observe"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// start is how a daemon is started, beside its configuration.
type start struct {
	init         bool     // make an identity if there is none
	capabilities []string // files to offer
	addrsFile    string
}

func newRun(p *program) *cobra.Command {
	var set settings
	var how start
	cmd := &cobra.Command{
		Use: "run", Short: "Run the daemon in the foreground", Args: cobra.NoArgs,
		Long: "Run the daemon in the foreground. Once it serves it says so on standard output: one line of JSON,\n" +
			"unless a person looks at it. The log goes to standard error. SIGTERM or ^C lets work in progress\n" +
			"finish and exits 0; a second one ends it at once. With --init one command is enough, in a container\n" +
			"say: the passphrase of a new root key comes from where `openmesh init` would take it.",
		Example: "  openmesh run\n" +
			"  openmesh run --role backbone --role relay --listen /ip4/0.0.0.0/tcp/4747 --set session.ttl=1h\n" +
			"  openmesh run --init --capability fx.yaml",
		PreRunE: func(*cobra.Command, []string) error { return set.check() },
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.run(cmd.Context(), set.overrides(), how)
		},
	}
	set.define(cmd, "role", "listen", "bootstrap", "relay", "api-listen", "metrics-port", "log-level")
	set.defineSet(cmd)
	cmd.Flags().StringVar(&how.addrsFile, "addrs-file", "", "write the multiaddrs to this file, one a line, once the daemon serves")
	cmd.Flags().BoolVar(&how.init, "init", false, "make an identity first, if the home has none")
	cmd.Flags().StringArrayVar(&how.capabilities, "capability", nil, "`file` to offer, as capability add does, once the daemon serves (repeatable)")
	return cmd
}

// run runs a node until ctx ends.
func (p *program) run(ctx context.Context, overrides map[string]string, how start) error {
	home, cfg, err := p.loadConfig(overrides)
	if err != nil {
		return err
	}
	offers, err := p.readOffers(how.capabilities)
	if err != nil {
		return err
	}
	k, err := openKeys(home)
	if how.init && wire.CodeOf(err) == wire.NotFound {
		k, err = p.settle(ctx, home, cfg)
	}
	if err != nil {
		return err
	}
	log, _, err := observe.Logger(observe.LogConfig{
		Level: cfg.Observability.LogLevel, Format: cfg.Observability.LogFormat, W: p.err,
	})
	if err != nil {
		return err
	}
	if name := cfg.Node.ID; name != "" {
		log = log.With(zap.String("node", name))
	}
	observe.RouteLibp2p(log, zap.WarnLevel)
	n, err := node.New(node.Config{Home: home, Config: cfg, Keys: k, Log: log, Version: thisRelease().Version})
	if err != nil {
		return err
	}
	group, running := errgroup.WithContext(ctx)
	group.Go(func() error { return n.Run(running) })
	group.Go(func() error { return p.welcome(running, n, home, offers, how.addrsFile) })
	return group.Wait()
}

// settle makes an identity in a home that has none. A mounted volume is often
// open to all: where it has to stay so, doctor warns.
func (p *program) settle(ctx context.Context, home string, cfg *config.Config) (*keys.Keys, error) {
	k, err := p.makeKeys(ctx, home, identity.Realm(cfg.Node.Realm), "")
	if err != nil {
		return nil, fmt.Errorf("make an identity in %s: %w", home, err)
	}
	_ = os.Chmod(home, 0o700)
	return k, nil
}

// welcome waits until the node serves, adds to what it offers, and says so.
func (p *program) welcome(
	ctx context.Context, n *node.Node, home string, offers []*openmeshv1.AddCapabilityRequest, addrsFile string,
) error {
	select {
	case <-n.Ready():
	case <-ctx.Done():
		return nil
	}
	switch err := offer(ctx, home, offers); {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		return err
	}
	return p.ready(n.Info(), addrsFile)
}

// readOffers reads capability files, before anything runs.
func (p *program) readOffers(files []string) (offers []*openmeshv1.AddCapabilityRequest, err error) {
	for _, name := range files {
		req := &openmeshv1.AddCapabilityRequest{File: name}
		if req.Document, req.BaseDir, err = p.readDocument(name); err != nil {
			return nil, fmt.Errorf("--capability %s: %w", name, err)
		}
		offers = append(offers, req)
	}
	return offers, nil
}

// offer adds capabilities to the daemon of home in the way that everyone else
// does.
func offer(ctx context.Context, home string, offers []*openmeshv1.AddCapabilityRequest) error {
	if len(offers) == 0 {
		return nil
	}
	d, err := api.Dial(home)
	if err != nil {
		return err
	}
	defer d.Close()
	for _, req := range offers {
		if _, err := d.Directory.AddCapability(ctx, req); err != nil {
			return fmt.Errorf("--capability %s: %w", req.File, err)
		}
	}
	return nil
}

// openKeys opens the identity of a home, or says how to make one.
func openKeys(home string) (*keys.Keys, error) {
	k, err := keys.Open(home)
	if wire.CodeOf(err) == wire.NotFound {
		return nil, wire.Errorf(wire.NotFound, "%s has no identity: %w", home, err).WithHint("make one with: openmesh init")
	}
	return k, err
}

// readyLine is what run prints once it serves.
type readyLine struct {
	Event   string   `json:"event"`
	Agent   string   `json:"agent"`
	Address string   `json:"address"`
	Peer    string   `json:"peer"`
	Addrs   []string `json:"addrs"`
	API     string   `json:"api"`
}

// ready tells that the node serves: first to programs that watch the file,
// then to who reads standard output.
func (p *program) ready(info node.Info, addrsFile string) error {
	if addrsFile != "" {
		_, err := replaceFile(addrsFile, 0o644, func(w io.Writer) error {
			_, err := io.WriteString(w, strings.Join(info.Addrs, "\n")+"\n")
			return err
		})
		if err != nil {
			return fmt.Errorf("--addrs-file: %w", err)
		}
	}
	if !p.json && isTerminal(p.out) {
		return p.print(func(g *page) {
			pairs := []string{"agent", info.Agent, "address", info.Address, "api", info.API}
			for _, addr := range info.Addrs {
				pairs = append(pairs, "addr", addr)
			}
			g.text("%s", "OpenMesh is ready; ^C ends it.")
			g.fields(pairs...)
		})
	}
	doc, err := oneLine(readyLine{
		Event: "ready", Agent: info.Agent, Address: info.Address, Peer: info.Peer,
		Addrs: append([]string{}, info.Addrs...), API: info.API,
	})
	if err == nil {
		_, err = p.out.Write(doc)
	}
	return err
}
