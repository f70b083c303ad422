package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
)

func newResolve(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "resolve TARGET", Short: "Find out where an agent is", Args: cobra.ExactArgs(1),
		Long:    "Find out where an agent is and how it can be reached. TARGET is an address or an agent id.",
		Example: "  openmesh resolve 0:A91F.0000.7C2E",
		RunE: p.ask(timeToReach, func(ctx context.Context, d *api.Client, args []string) error {
			res, err := d.Directory.Resolve(ctx, &openmeshv1.ResolveRequest{Target: args[0]})
			if err != nil {
				return err
			}
			return p.show(res, func(g *page) {
				pairs := []string{"agent", res.Agent, "address", res.Address, "peer", res.Peer,
					"key version", fmt.Sprint(res.KeyVersion), "reachability", res.Reachability,
					"mailboxes", strings.Join(res.Mailboxes, ", ")}
				for _, addr := range res.Addrs {
					pairs = append(pairs, "addr", addr)
				}
				g.fields(pairs...)
			})
		}),
	}
}
