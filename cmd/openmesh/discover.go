package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
)

var (
	sortColumns = strings.Fields("score latency load uptime trust name version age")
	qosModes    = strings.Fields("at-most-once at-least-once exactly-once")
	pathClasses = strings.Fields("low-latency high-throughput low-cost")
)

func newDiscover(p *program) *cobra.Command {
	var req openmeshv1.DiscoverRequest
	var maxLatency limit
	cmd := &cobra.Command{
		Use: "discover NAME", Short: "Find agents by what they offer", Args: cobra.ExactArgs(1),
		Long: "Find agents by what they offer. NAME is a capability or a prefix of one. Uptime and latency are\n" +
			"as measured by this node, never the provider's own word.",
		Example: "  openmesh discover finance\n" +
			"  openmesh discover finance/fx-pricing --version '^1.4' --region eu-central-1 --max-latency 50ms",
		ValidArgsFunction: p.completeCapability,
	}
	flags := cmd.Flags()
	flags.StringVar(&req.Version, "version", "", "semantic version range, such as '>=1.2, <2'")
	flags.Float64Var(&req.MinUptime, "min-uptime", 0, "percent of probes answered")
	flags.Var(&maxLatency, "max-latency", "round-trip time, such as 50ms")
	flags.StringVar(&req.Region, "region", "", "region")
	flags.StringVar(&req.Jurisdiction, "jurisdiction", "", "jurisdiction")
	flags.StringVar(&req.Domain, "domain", "", "organisation")
	flags.StringToStringVar(&req.Tags, "tag", nil, "tag that must match, as key=value (repeatable)")
	flags.Float64Var(&req.MinTrust, "min-trust", 0, "trust, 0 to 1")
	flags.Uint32Var(&req.Limit, "limit", 20, "number of results, at most 200")
	flags.StringVar(&req.Sort, "sort", "score", "order: "+strings.Join(sortColumns, ", "))
	fixed(cmd, "sort", sortColumns)
	cmd.PreRunE = func(*cobra.Command, []string) error { return oneOf("sort", req.Sort, sortColumns) }
	cmd.RunE = p.ask(timeToReach, func(ctx context.Context, d *api.Client, args []string) error {
		req.Capability, req.MaxLatencyMs = args[0], time.Duration(maxLatency).Seconds()*1000
		res, err := d.Directory.Discover(ctx, &req)
		if err != nil {
			return err
		}
		if len(res.Results) == 0 {
			p.note("no agent that offers %s was found", args[0])
		}
		return p.show(res, func(g *page) { printResults(g, res.Results) })
	})
	return cmd
}

func printResults(g *page, results []*openmeshv1.DiscoverResult) {
	var rows [][]string
	for _, r := range results {
		rows = append(rows, []string{
			r.Address, g.id(r.Agent), r.Name, r.Version, milliseconds(r.LatencyMs), number(100*r.Load, 0) + " %",
			number(r.UptimePct, 1) + " %", number(r.Trust, 2), r.Region, r.Reachability,
			rough(time.Duration(r.AgeS * float64(time.Second))),
		})
	}
	if rows != nil {
		g.table(strings.Fields("ADDRESS AGENT NAME VERSION LATENCY LOAD UPTIME TRUST REGION REACHABILITY AGE"), rows)
	}
}

// oneOf checks the value of a flag that has a few.
func oneOf(flag, value string, allowed []string) error {
	for _, a := range allowed {
		if value == a {
			return nil
		}
	}
	return usagef("--%s %q: want %s", flag, value, strings.Join(allowed, ", "))
}

// fixed completes a flag by its few values.
func fixed(cmd *cobra.Command, flag string, values []string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(fmt.Sprintf("complete --%s: %v", flag, err)) // no such flag: a slip in this program
	}
}
