package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
)

func newProposals(p *program) *cobra.Command {
	var req openmeshv1.ListProposalsRequest
	cmd := &cobra.Command{
		Use: "proposals [RFP]", Short: "List negotiations, oldest first", Args: cobra.MaximumNArgs(1),
		Long: "List negotiations, oldest first: those that have not ended, or all about one request. Each is between the buyer\n" +
			"of a request and one seller. The price is that of the offer on the table, for one unit.",
		ValidArgsFunction: p.completeRFP,
	}
	cmd.Flags().BoolVar(&req.All, "all", false, "also those that have ended; about one request they are listed in any case")
	cmd.Flags().Uint32Var(&req.Limit, "limit", 100, "number of negotiations, at most 1000")
	cmd.RunE = p.ask(timeToLook, aRequest().asking(func(ctx context.Context, d *api.Client, args []string) error {
		if len(args) == 1 {
			req.Rfp = args[0]
		}
		res, err := d.Market.ListProposals(ctx, &req)
		if err != nil {
			return err
		}
		return p.showPlain(res, func(g *page) { g.negotiations(res.Proposals) })
	}))
	return cmd
}

func (g *page) negotiations(all []*openmeshv1.Proposal) {
	var rows [][]string
	for _, n := range all {
		rows = append(rows, []string{
			g.brief(n.Proposal), g.brief(n.Rfp), n.Role, g.id(n.Seller), n.State, fmt.Sprint(n.Round), g.turn(n), n.Price, n.Currency,
			fmt.Sprint(n.Quantity), g.when(n.Expires, time.Now()),
		})
	}
	g.table(strings.Fields("PROPOSAL RFP ROLE SELLER STATE ROUND TURN PRICE CURRENCY QUANTITY EXPIRES"), rows)
}

// turn says who is to move, to a person as it concerns the person.
func (g *page) turn(n *openmeshv1.Proposal) string {
	if g.terminal && n.Turn != "" && n.Turn == n.Role {
		return "you"
	}
	return cmp.Or(n.Turn, "-")
}

func newProposal(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show a negotiation with its moves", Args: cobra.ExactArgs(1),
		Long:              "Show a negotiation with its moves and the offer on the table. ID is its id or a prefix that only it has.",
		ValidArgsFunction: p.completeProposal,
		RunE: p.ask(timeToLook, aProposal().asking(func(ctx context.Context, d *api.Client, args []string) error {
			n, err := d.Market.ShowProposal(ctx, &openmeshv1.ShowProposalRequest{Proposal: args[0]})
			if err != nil {
				return err
			}
			return p.showPlain(n, func(g *page) { g.negotiation(n) })
		})),
	}
}

func (g *page) negotiation(n *openmeshv1.Proposal) {
	pairs := []string{
		"proposal", n.Proposal, "rfp", n.Rfp, "state", n.State, "role", n.Role, "buyer", n.Buyer, "seller", n.Seller,
		"offer", offerLine(n), "offered by", n.Offeror, "round", fmt.Sprint(n.Round), "turn", g.turn(n),
		"expires", g.when(n.Expires, time.Now()), "contract", n.Contract,
	}
	if n.Unsent > 0 {
		pairs = append(pairs, "unanswered", fmt.Sprintf("%d moves, which are sent until the other side answers", n.Unsent))
	}
	g.fields(pairs...)
	g.text("")
	var rows [][]string
	for _, m := range n.Moves {
		rows = append(rows, []string{g.when(m.At, time.Now()), m.By, moveWord(m), m.State, m.Price, quantityOf(m), why(m)})
	}
	g.table(strings.Fields("AT BY MOVE STATE PRICE QUANTITY WHAT"), rows)
	g.attached(n.Json)
}

func offerLine(n *openmeshv1.Proposal) string {
	if n.Price == "" {
		return ""
	}
	return fmt.Sprintf("%s %s × %d = %s %s", n.Price, n.Currency, n.Quantity, n.Total, n.Currency)
}

func moveWord(m *openmeshv1.Move) string {
	if m.Superseded {
		return m.Move + " (superseded)"
	}
	return m.Move
}

func quantityOf(m *openmeshv1.Move) string {
	if m.Quantity == 0 {
		return ""
	}
	return fmt.Sprint(m.Quantity)
}

// why is the reason of a move and what it changes.
func why(m *openmeshv1.Move) string {
	var parts []string
	if m.Reason != "" {
		parts = append(parts, m.Reason)
	}
	for _, c := range m.Changes {
		parts = append(parts, fmt.Sprintf("%s: %s → %s", c.Path, cmp.Or(c.From, "nothing"), cmp.Or(c.To, "nothing")))
	}
	return strings.Join(parts, "; ")
}
