package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/wire"
)

func newMarketWatch(p *program) *cobra.Command {
	var req openmeshv1.WatchMarketRequest
	cmd := &cobra.Command{
		Use: "watch", Short: "Print what happens in negotiations, as it happens", Args: cobra.NoArgs,
		Long: "Print what happens in negotiations, as it happens, until interrupted: moves of both sides, requests that were\n" +
			"posted or received and whom they reached, moves that lost against one that they crossed or that the\n" +
			"other side refused, calls under contracts. One event a line; with --json each is a document.",
		RunE: p.ask(noLimit, aProposal().asking(func(ctx context.Context, d *api.Client, _ []string) error {
			stream, err := d.Market.Watch(ctx, &req)
			if err != nil {
				return err
			}
			defer stream.Close()
			for stream.Receive() {
				if err := p.marketEvent(stream.Msg()); err != nil {
					return err
				}
			}
			if wire.CodeOf(stream.Err()) == wire.Cancelled { // ^C is how one ends a watch
				return nil
			}
			return stream.Err()
		})),
	}
	cmd.Flags().StringVar(&req.Rfp, "rfp", "", "only about this request")
	cmd.Flags().StringVar(&req.Proposal, "proposal", "", "only about this negotiation")
	p.completeFlag(cmd, "rfp", p.completeRFP)
	p.completeFlag(cmd, "proposal", p.completeProposal)
	cmd.MarkFlagsMutuallyExclusive("rfp", "proposal")
	return cmd
}

func (p *program) marketEvent(e *openmeshv1.MarketEvent) error {
	if p.json {
		doc, err := plain(e)
		if err == nil {
			_, err = fmt.Fprintf(p.out, "%s\n", doc)
		}
		return err
	}
	return p.print(func(g *page) {
		cells := []string{e.At, e.Event, g.brief(e.Rfp), g.brief(e.Proposal), g.id(e.From), e.State}
		switch {
		case e.Contract != "" && e.State != "":
			cells = append(cells, "contract "+g.brief(e.Contract))
		case e.Price != "":
			cells = append(cells, fmt.Sprintf("%s, round %d", e.Price, e.Round))
		}
		for i, c := range cells {
			cells[i] = printable(c)
		}
		g.row(cells, make([]int, len(cells)), g.style.word)
	})
}
