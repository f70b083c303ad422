package main

import (
	"context"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
)

func newConnect(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "connect ADDR", Short: "Connect to a peer", Args: cobra.ExactArgs(1),
		Long: "Connect to a peer. ADDR is a multiaddr that ends in /p2p/ and a peer id, an address or an agent id.",
		Example: "  openmesh connect /ip4/192.0.2.7/tcp/4747/p2p/12D3KooW…\n" +
			"  openmesh connect 0:A91F.0000.7C2E",
		RunE: p.ask(timeToReach, func(ctx context.Context, d *api.Client, args []string) error {
			res, err := d.Node.Connect(ctx, &openmeshv1.ConnectRequest{Target: args[0]})
			if err != nil {
				return err
			}
			return p.show(res, func(g *page) {
				g.fields("peer", res.Peer, "agent", res.Agent, "address", res.Address, "addr", res.Addr,
					"transport", res.Transport, "took", milliseconds(res.ElapsedMs))
			})
		}),
	}
}
