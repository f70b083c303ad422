package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/wire"
)

func newPing(p *program) *cobra.Command {
	var count uint32
	interval := limit(time.Second)
	cmd := &cobra.Command{
		Use: "ping TARGET", Short: "Measure round trips to an agent", Args: cobra.ExactArgs(1),
		Long: "Measure round trips to an agent. TARGET is a capability name, an address or an agent id.\n" +
			"With --json every answer is one line.",
		Example:           "  openmesh ping 0:A91F.0000.7C2E\n  openmesh ping --count 10 finance/fx-pricing",
		ValidArgsFunction: p.completeCapability,
	}
	cmd.Flags().Uint32VarP(&count, "count", "c", 4, "number of pings, 1 to 1000")
	cmd.Flags().VarP(&interval, "interval", "i", "time between pings")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if count < 1 || count > 1000 {
			return usagef("--count %d: want 1 to 1000", count)
		}
		return nil
	}
	cmd.RunE = p.ask(noLimit, func(ctx context.Context, d *api.Client, args []string) error {
		return p.ping(ctx, d, &openmeshv1.PingRequest{
			Target: args[0], Count: count, IntervalMs: uint32(time.Duration(interval).Milliseconds()),
		})
	})
	return cmd
}

func (p *program) ping(ctx context.Context, d *api.Client, req *openmeshv1.PingRequest) error {
	stream, err := d.Node.Ping(ctx, req)
	if err != nil {
		return err
	}
	defer stream.Close()
	var sum pingSummary
	for stream.Receive() {
		res := stream.Msg()
		sum.add(res.RttMs)
		if err := p.pong(res); err != nil {
			return err
		}
	}
	err = stream.Err()
	if wire.CodeOf(err) == wire.Cancelled && sum.answers > 0 { // ^C is how one ends a long ping
		err = nil
	}
	if !p.json && sum.answers > 0 {
		err = errors.Join(err, p.print(func(g *page) { g.text("%s", sum) }))
	}
	return err
}

func (p *program) pong(res *openmeshv1.PingResponse) error {
	if p.json {
		return p.line(res)
	}
	return p.print(func(g *page) {
		g.text("%s: seq=%d time=%s ms path=%s/%s", res.Address, res.Sequence, number(res.RttMs, 2),
			res.Path.GetKind(), res.Path.GetTransport())
	})
}

// pingSummary is what a run of pings came to, in milliseconds.
type pingSummary struct {
	answers             int
	total, least, worst float64
}

func (s *pingSummary) add(ms float64) {
	if s.answers == 0 || ms < s.least {
		s.least = ms
	}
	s.worst = max(s.worst, ms)
	s.total += ms
	s.answers++
}

func (s pingSummary) String() string {
	return fmt.Sprintf("%d answers, min/avg/max %s/%s/%s ms", s.answers,
		number(s.least, 2), number(s.total/float64(s.answers), 2), number(s.worst, 2))
}
