package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/identity"
)

// throughFlag defines --through, which names chains of forwarding relays.
func (p *program) throughFlag(cmd *cobra.Command, chains *[]string) {
	cmd.Flags().StringArrayVar(chains, "through", nil,
		"only over these forwarding relays, first hop first: `RELAY,RELAY,…`, each an address or agent id (repeatable: the next if one fails)")
	if err := cmd.RegisterFlagCompletionFunc("through", p.completeChain); err != nil {
		panic(fmt.Sprintf("complete --through: %v", err)) // no such flag: a slip in this program
	}
}

// checkChains finds what is wrong with the names of relays, before anything is sent.
func checkChains(chains []string) error {
	for _, chain := range chains {
		seen := map[string]bool{}
		for name := range strings.SplitSeq(chain, ",") {
			name = strings.TrimSpace(name)
			_, addressErr := identity.ParseAddress(name)
			_, agentErr := identity.ParseAgentID(name)
			switch {
			case addressErr != nil && agentErr != nil:
				return usagef("--through %q: %q is no relay: want addresses or agent ids, with commas between them", chain, name)
			case seen[name]:
				return usagef("--through %q: %s is twice in the chain", chain, name)
			}
			seen[name] = true
		}
	}
	return nil
}

// completeChain completes the last relay of a chain by those that are known and
// forward, and are not in it yet.
func (p *program) completeChain(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	words, how := p.completing(nil, func(ctx context.Context, d *api.Client) []string {
		res, err := d.Node.Relays(ctx, &openmeshv1.RelaysRequest{})
		if err != nil {
			return nil
		}
		chain := typed[:strings.LastIndexByte(typed, ',')+1]
		var words []string
		for _, r := range res.Relays {
			if slices.Contains(r.Services, "forward") && r.Address != "" && !slices.Contains(strings.Split(chain, ","), r.Address) {
				words = append(words, chain+r.Address)
			}
		}
		return words
	})
	return words, how | cobra.ShellCompDirectiveNoSpace // another relay may follow
}
