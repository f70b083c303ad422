package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
)

func newStatus(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show how the daemon does", Args: cobra.NoArgs,
		RunE: p.ask(timeToLook, func(ctx context.Context, d *api.Client, _ []string) error {
			s, err := d.Node.Status(ctx, &openmeshv1.StatusRequest{})
			if err != nil {
				return err
			}
			return p.show(s, func(g *page) { printStatus(g, s) })
		}),
	}
}

func printStatus(g *page, s *openmeshv1.StatusResponse) {
	directory := "partitioned"
	if !s.Directory.GetPartitioned() {
		directory = fmt.Sprintf("%d servers known", s.Directory.GetTableSize())
	}
	g.fields(
		"name", s.Name,
		"agent", s.Agent,
		"address", s.Address,
		"roles", strings.Join(s.Roles, ", "),
		"version", s.Version,
		"uptime", rough(time.Duration(s.UptimeS*float64(time.Second))),
		"reachability", reachability(s),
		"peers", fmt.Sprint(s.Peers),
		"sessions", sessionCounts(s.Sessions),
		"directory", directory,
		"relay usage", number(s.RelayUsagePct, 1)+" %",
		"tunnel failures", number(s.TunnelFailureRate, 1)+" %",
	)
	for _, help := range s.Standing.GetHelp() {
		g.fields("better", help)
	}
	for _, a := range s.Alerts {
		g.fields("alert", fmt.Sprintf("%s is %s, over %s, since %s",
			a.Name, number(a.Value, 2), number(a.Threshold, 2), g.when(a.Since, time.Now())))
	}
}

// reachability says where the node stands, in words.
func reachability(s *openmeshv1.StatusResponse) string {
	words := s.Reachability
	if nat := s.Standing.GetNat(); nat != "" {
		words += " (" + nat + ")"
	}
	switch relays := len(s.Standing.GetRelays()); {
	case relays == 1:
		words += ", reached through 1 relay"
	case relays > 1:
		words += fmt.Sprintf(", reached through %d relays", relays)
	}
	return words
}

func sessionCounts(states map[string]uint32) string {
	var counts []string
	for _, state := range slices.Sorted(maps.Keys(states)) {
		if states[state] > 0 {
			counts = append(counts, fmt.Sprintf("%d %s", states[state], state))
		}
	}
	if counts == nil {
		return "none"
	}
	return strings.Join(counts, ", ")
}
