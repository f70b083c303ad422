package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
)

func newID(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "id", Short: "Print this agent's identity", Args: cobra.NoArgs,
		RunE: p.ask(timeToLook, func(ctx context.Context, d *api.Client, _ []string) error {
			id, err := d.Node.Id(ctx, &openmeshv1.IdRequest{})
			if err != nil {
				return err
			}
			return p.show(id, func(g *page) { identityFields(g, id) })
		}),
	}
}

// identityFields prints who an agent is.
func identityFields(g *page, id *openmeshv1.IdResponse) {
	pairs := []string{
		"agent", id.Agent,
		"address", id.Address,
		"peer", id.Peer,
		"key version", strconv.FormatUint(uint64(id.KeyVersion), 10),
		"key expires", g.when(id.NotAfter, time.Now()),
		"roles", strings.Join(id.Roles, ", "),
	}
	for _, addr := range id.Addrs {
		pairs = append(pairs, "addr", addr)
	}
	g.fields(pairs...)
}
