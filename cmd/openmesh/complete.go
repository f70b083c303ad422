package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
)

// timeToComplete is how long a person waits after the tab key.
const timeToComplete = 700 * time.Millisecond

// completing asks the daemon for words. Without a daemon, or in time, there are
// none: completion must never get in the way.
func (p *program) completing(args []string, ask func(context.Context, *api.Client) []string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	d, err := p.dial()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer d.Close()
	ctx, cancel := context.WithTimeout(context.Background(), timeToComplete)
	defer cancel()
	return ask(ctx, d), cobra.ShellCompDirectiveNoFileComp
}

// completeCapability completes the name of a capability: this agent's own and,
// once a first level is typed, what others offer below it.
func (p *program) completeCapability(_ *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	return p.completing(args, func(ctx context.Context, d *api.Client) []string {
		names := ownCapabilities(ctx, d)
		end := strings.LastIndexByte(typed, '/')
		if end < 0 {
			return names
		}
		res, err := d.Directory.Discover(ctx, &openmeshv1.DiscoverRequest{Capability: typed[:end], Limit: 200})
		if err != nil {
			return names
		}
		for _, r := range res.Results {
			if r.Name == printable(r.Name) { // it goes into someone's shell
				names = append(names, r.Name)
			}
		}
		slices.Sort(names)
		return slices.Compact(names)
	})
}

func (p *program) completeOwnCapability(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return p.completing(args, ownCapabilities)
}

func ownCapabilities(ctx context.Context, d *api.Client) []string {
	res, err := d.Directory.ListCapabilities(ctx, &openmeshv1.ListCapabilitiesRequest{})
	if err != nil {
		return nil
	}
	var names []string
	for _, c := range res.Capabilities {
		names = append(names, c.Name)
	}
	return names
}

func (p *program) completeSession(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return p.completing(args, func(ctx context.Context, d *api.Client) []string {
		res, err := d.Session.List(ctx, &openmeshv1.ListSessionsRequest{})
		if err != nil {
			return nil
		}
		var ids []string
		for _, s := range res.Sessions {
			ids = append(ids, s.Session+"\t"+s.State)
		}
		return ids
	})
}

func (p *program) completeRFP(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return p.completing(args, func(ctx context.Context, d *api.Client) (ids []string) {
		res, err := d.Market.ListRFPs(ctx, &openmeshv1.ListRFPsRequest{})
		if err != nil {
			return nil
		}
		for _, r := range res.Rfps {
			ids = append(ids, described(r.Rfp, r.Direction+", "+r.Item))
		}
		return ids
	})
}

func (p *program) completeProposal(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return p.completing(args, func(ctx context.Context, d *api.Client) (ids []string) {
		res, err := d.Market.ListProposals(ctx, &openmeshv1.ListProposalsRequest{})
		if err != nil {
			return nil
		}
		for _, n := range res.Proposals {
			ids = append(ids, described(n.Proposal, n.State+", "+n.Price+" "+n.Currency))
		}
		return ids
	})
}

func (p *program) completeContract(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return p.completing(args, func(ctx context.Context, d *api.Client) (ids []string) {
		res, err := d.Market.ListContracts(ctx, &openmeshv1.ListContractsRequest{})
		if err != nil {
			return nil
		}
		for _, c := range res.Contracts {
			ids = append(ids, described(c.Contract, c.State+", "+c.Item))
		}
		return ids
	})
}

func (p *program) completeMarketSchema(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return p.completing(args, func(ctx context.Context, d *api.Client) (names []string) {
		res, err := d.Market.ListSchemas(ctx, &openmeshv1.ListSchemasRequest{})
		if err != nil {
			return nil
		}
		for _, s := range res.Schemas {
			names = append(names, described(s.Name, s.Source))
		}
		return names
	})
}

// described is a word with what the shell shows beside it, which others may have
// written.
func described(word, about string) string {
	return word + "\t" + strings.ReplaceAll(printable(about), "\n", " ")
}

// completeFlag completes the value of a flag as that of a first argument.
func (p *program) completeFlag(cmd *cobra.Command, flag string, complete cobra.CompletionFunc) {
	err := cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return complete(cmd, nil, typed)
	})
	if err != nil {
		panic("complete --" + flag + ": " + err.Error()) // no such flag: a slip in this program
	}
}
