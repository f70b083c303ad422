package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
)

func newMarketContract(p *program) *cobra.Command {
	return p.noun("contract", "Contracts that both sides signed",
		newContractList(p), newContractShow(p), newContractExport(p), newContractVerify(p))
}

func newContractList(p *program) *cobra.Command {
	var req openmeshv1.ListContractsRequest
	cmd := &cobra.Command{
		Use: "list", Short: "List contracts, newest first", Args: cobra.NoArgs,
		RunE: p.ask(timeToLook, func(ctx context.Context, d *api.Client, _ []string) error {
			res, err := d.Market.ListContracts(ctx, &req)
			if err != nil {
				return err
			}
			return p.showPlain(res, func(g *page) { g.contracts(res.Contracts) })
		}),
	}
	cmd.Flags().BoolVar(&req.All, "all", false, "also those that are settled or have run out")
	cmd.Flags().Uint32Var(&req.Limit, "limit", 100, "number of contracts, at most 1000")
	return cmd
}

func (g *page) contracts(all []*openmeshv1.MarketContract) {
	var rows [][]string
	for _, c := range all {
		rows = append(rows, []string{
			g.brief(c.Contract), c.Role, g.id(c.Buyer), g.id(c.Seller), c.State, c.Item, c.Total, c.Currency,
			fmt.Sprintf("%d/%d", c.Used, c.Quantity), g.when(c.ValidUntil, time.Now()),
		})
	}
	g.table(strings.Fields("CONTRACT ROLE BUYER SELLER STATE ITEM TOTAL CURRENCY USED VALID-UNTIL"), rows)
}

func newContractShow(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show a contract", Args: cobra.ExactArgs(1),
		Long:              "Show a contract: who, what, how much, until when, and who signed it. ID is its id or a prefix that only it has.",
		ValidArgsFunction: p.completeContract,
		RunE: p.ask(timeToLook, aContract().asking(func(ctx context.Context, d *api.Client, args []string) error {
			c, err := d.Market.ShowContract(ctx, &openmeshv1.ShowContractRequest{Contract: args[0]})
			if err != nil {
				return err
			}
			if err := p.showPlain(c, func(g *page) { g.contract(c) }); err != nil {
				return err
			}
			if c.State == "contracted" && c.Role == "buyer" {
				p.note("work under it with: openmesh call %s --contract %s", c.Capability, c.Contract)
			}
			return nil
		})),
	}
}

// contract is a page that reads like a contract.
func (g *page) contract(c *openmeshv1.MarketContract) {
	now := time.Now()
	pairs := []string{
		"contract", c.Contract, "state", c.State,
		"buyer", party(c.Buyer, c.Role == "buyer"), "seller", party(c.Seller, c.Role == "seller"),
		"item", c.Item, "price", fmt.Sprintf("%s %s × %d = %s %s", c.Price, c.Currency, c.Quantity, c.Total, c.Currency),
		"capability", c.Capability, "used", fmt.Sprintf("%d of %d", c.Used, c.Quantity),
		"valid from", g.when(c.ValidFrom, now), "valid until", g.when(c.ValidUntil, now), "rfp", c.Rfp, "proposal", c.Proposal,
	}
	for _, s := range c.Signatures {
		pairs = append(pairs, "signature", signature(s.Agent, s.KeyVersion, s.Ok))
	}
	for _, s := range c.Settlements {
		line := fmt.Sprintf("%s says %s, %s", s.Agent, s.Outcome, g.when(s.At, now))
		if s.Reason != "" {
			line += " (" + s.Reason + ")"
		}
		pairs = append(pairs, "settlement", line)
	}
	g.fields(pairs...)
	g.attached(c.Json)
}

func party(agent string, own bool) string {
	if own {
		return agent + " (this agent)"
	}
	return agent
}

func signature(agent string, version uint32, ok bool) string {
	sign := "✗"
	if ok {
		sign = "✓"
	}
	return fmt.Sprintf("%s %s, key version %d", sign, agent, version)
}

func newContractExport(p *program) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "export ID", Short: "Write a file that proves a contract", Args: cobra.ExactArgs(1),
		Long: "Write a file that proves a contract to anyone who has just that: the document, both signatures, and the signed\n" +
			"moves that led to it. `openmesh market contract verify` checks it, without a daemon.",
		Example:           "  openmesh market contract export 3f9a20 -o deal.json\n  openmesh market contract verify deal.json",
		ValidArgsFunction: p.completeContract,
		RunE: p.ask(timeToLook, aContract().asking(func(ctx context.Context, d *api.Client, args []string) error {
			res, err := d.Market.ExportContract(ctx, &openmeshv1.ShowContractRequest{Contract: args[0]})
			if err != nil {
				return err
			}
			return p.export(file, func(w io.Writer) error {
				_, err := io.WriteString(w, res.Json)
				return err
			})
		})),
	}
	outputFlag(cmd, &file)
	return cmd
}
