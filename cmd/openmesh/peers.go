package main

import (
	"context"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
)

func newPeers(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "peers", Short: "List the connections", Args: cobra.NoArgs,
		RunE: p.ask(timeToLook, func(ctx context.Context, d *api.Client, _ []string) error {
			res, err := d.Node.Peers(ctx, &openmeshv1.PeersRequest{})
			if err != nil {
				return err
			}
			return p.show(res, func(g *page) {
				var rows [][]string
				for _, c := range res.Peers {
					path := "direct"
					if c.Relayed {
						path = "relayed"
					}
					rows = append(rows, []string{
						c.Address, g.id(c.Agent), g.id(c.Peer), c.Direction, c.Transport, path, milliseconds(c.LatencyMs), c.Addr,
					})
				}
				g.table([]string{"ADDRESS", "AGENT", "PEER", "DIRECTION", "TRANSPORT", "PATH", "LATENCY", "ADDR"}, rows)
			})
		}),
	}
}

// milliseconds prints a measured time; one that is not known yet is a dash.
func milliseconds(ms float64) string {
	if ms == 0 {
		return "-"
	}
	return number(ms, 1) + " ms"
}
