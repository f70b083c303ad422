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

func newRelays(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "relays", Short: "List the relays that are known and, on a relay, what it carries", Args: cobra.NoArgs,
		Long: "List the relays that are known: those of networking.relays and those that the directory finds. SLOT says that\n" +
			"this node is reached through the relay, BOX that the relay keeps messages for this agent while it is away. On a\n" +
			"node with the role relay, also who uses it and how much.",
		RunE: p.ask(timeToLook, func(ctx context.Context, d *api.Client, _ []string) error {
			res, err := d.Node.Relays(ctx, &openmeshv1.RelaysRequest{})
			if err != nil {
				return err
			}
			return p.show(res, func(g *page) { printRelays(g, res) })
		}),
	}
}

func printRelays(g *page, res *openmeshv1.RelaysResponse) {
	var rows [][]string
	for _, r := range res.Relays {
		rows = append(rows, []string{
			r.Address, g.id(r.Agent), g.id(r.Peer), strings.Join(r.Services, ","), number(100*r.Load, 0) + " %", milliseconds(r.LatencyMs),
			mark(r.Configured), mark(r.Reserved), mark(r.Mailbox),
		})
	}
	g.table([]string{"ADDRESS", "AGENT", "PEER", "SERVICES", "LOAD", "LATENCY", "CONFIGURED", "SLOT", "BOX"}, rows)
	u := res.Usage
	if u == nil {
		return
	}
	g.fields(
		"slots", fmt.Sprint(u.Reservations),
		"circuits", fmt.Sprintf("%d open, %s carried", u.Circuits, bytesOf(u.CircuitBytes)),
		"forwards", fmt.Sprintf("%d open, %s carried", u.Forwards, bytesOf(u.ForwardBytes)),
		"mailboxes", fmt.Sprintf("%d with %d letters, %s", u.Mailboxes, u.Letters, bytesOf(u.LetterBytes)),
		"refused", refusalCounts(u.Refusals),
	)
	rows = nil
	for _, c := range u.Clients {
		rows = append(rows, []string{
			c.Address, g.id(c.Agent), g.id(c.Peer), g.when(c.ReservedUntil, time.Now()), fmt.Sprint(c.Circuits), fmt.Sprint(c.Forwards),
			bytesOf(c.Sent), bytesOf(c.Received), bytesOf(c.ForwardBytes), refusalCounts(c.Refusals),
		})
	}
	g.table([]string{"ADDRESS", "AGENT", "PEER", "SLOT UNTIL", "CIRCUITS", "FORWARDS", "SENT", "RECEIVED", "FORWARDED", "REFUSED"}, rows)
}

func mark(yes bool) string {
	if yes {
		return "yes"
	}
	return "-"
}

func refusalCounts(by map[string]uint32) string {
	var counts []string
	for _, why := range slices.Sorted(maps.Keys(by)) {
		counts = append(counts, fmt.Sprintf("%d %s", by[why], why))
	}
	if counts == nil {
		return "none"
	}
	return strings.Join(counts, ", ")
}

// bytesOf prints a size in the largest binary unit that keeps it above 1.
func bytesOf(n float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	for n >= 1024 && len(units) > 1 {
		n, units = n/1024, units[1:]
	}
	return number(n, 1) + " " + units[0]
}
