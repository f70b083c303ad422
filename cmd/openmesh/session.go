package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/wire"
)

func newSession(p *program) *cobra.Command {
	return p.noun("session", "Sealed channels to other agents",
		newSessionOpen(p), newSessionList(p), newSessionShow(p), newSessionSend(p), newSessionOutcome(p), newSessionRecv(p),
		newSessionClose(p), newSessionWatch(p))
}

func newSessionList(p *program) *cobra.Command {
	var req openmeshv1.ListSessionsRequest
	cmd := &cobra.Command{
		Use: "list", Short: "List sessions, newest first", Args: cobra.NoArgs,
		RunE: p.ask(timeToLook, func(ctx context.Context, d *api.Client, _ []string) error {
			res, err := d.Session.List(ctx, &req)
			if err != nil {
				return err
			}
			return p.show(res, func(g *page) { printSessions(g, res.Sessions) })
		}),
	}
	cmd.Flags().BoolVar(&req.All, "all", false, "also sessions that have ended")
	return cmd
}

func printSessions(g *page, sessions []*openmeshv1.SessionInfo) {
	var rows [][]string
	for _, s := range sessions {
		path, rtt := "-", "-"
		if len(s.Channels) > 0 {
			path, rtt = s.Channels[0].Kind+"/"+s.Channels[0].Transport, milliseconds(s.Channels[0].RttMs)
		}
		rows = append(rows, []string{
			s.Session, s.Address, g.id(s.Agent), s.State, s.Qos, fmt.Sprint(s.Epoch), fmt.Sprint(len(s.Channels)), path, rtt,
			fmt.Sprint(s.Unacked), number(s.Sent, 0), number(s.Received, 0), g.when(s.Opened, time.Now()),
		})
	}
	g.table(strings.Fields("SESSION ADDRESS AGENT STATE QOS EPOCH CHANNELS PATH RTT UNACKED SENT RECEIVED OPENED"), rows)
}

func newSessionShow(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "show SESSION", Short: "Show a session with its contract and history", Args: cobra.ExactArgs(1),
		Long:              "Show a session with its contract and history. SESSION is its id or a prefix that only it has.",
		ValidArgsFunction: p.completeSession,
		RunE: p.ask(timeToLook, func(ctx context.Context, d *api.Client, args []string) error {
			s, err := d.Session.Show(ctx, &openmeshv1.ShowSessionRequest{Session: args[0]})
			if err != nil {
				return err
			}
			return p.show(s, func(g *page) { printSession(g, s) })
		}),
	}
}

func printSession(g *page, s *openmeshv1.SessionInfo) {
	now := time.Now()
	pairs := []string{
		"session", s.Session, "agent", s.Agent, "address", s.Address, "role", s.Role, "kind", s.Kind,
		"state", s.State, "reason", s.Reason, "suite", s.Suite, "epoch", fmt.Sprint(s.Epoch),
		"opened", g.when(s.Opened, now), "expires", g.when(s.Expires, now),
		"frames", fmt.Sprintf("%s sent, %s received, %d not acknowledged", number(s.Sent, 0), number(s.Received, 0), s.Unacked),
		"outbox", fmt.Sprint(s.Outbox),
	}
	if s.Contract != nil {
		pairs = append(pairs, contractFields(s.Contract)...)
	}
	for _, a := range s.Protocols {
		pairs = append(pairs, "protocol", a.Name+"@"+a.Version)
	}
	for _, m := range s.Members {
		pairs = append(pairs, "member", fmt.Sprintf("%s with %s, %s, %d in the outbox", m.Session, m.Address, m.State, m.Outbox))
	}
	for _, c := range s.Channels {
		pairs = append(pairs, "channel", fmt.Sprintf("%s over %s, %s, %s %% lost, %s",
			c.Kind, c.Transport, milliseconds(c.RttMs), number(100*c.Loss, 1), c.Addr))
	}
	for _, n := range s.Notices {
		pairs = append(pairs, "notice", fmt.Sprintf("%s  %s %s: %s", n.At, n.Effect, n.Direction, n.Reason))
	}
	for _, e := range s.History {
		pairs = append(pairs, "history", move(e))
	}
	g.fields(pairs...)
}

// contractFields are the terms of a contract, under the names of the flags that
// ask for them.
func contractFields(c *openmeshv1.Contract) []string {
	pairs := []string{
		"qos", c.Qos, "ordered", fmt.Sprint(c.Ordered), "persistent", fmt.Sprint(c.Persistent), "ttl", span(c.TtlMs),
		"ack-timeout", span(c.AckTimeoutMs), "keepalive", span(c.KeepaliveMs), "rekey-interval", span(c.RekeyIntervalMs),
		"max-message-bytes", fmt.Sprint(c.MaxMessageBytes), "max-pending", fmt.Sprint(c.MaxPending),
		"message-rate", rate(c.MessageRate), "byte-rate", rate(c.ByteRate), "contract", c.Market,
	}
	if r := c.Retry; r != nil {
		pairs = append(pairs, "retry", fmt.Sprintf("at most %d times, first after %s, then × %s up to %s, ± %s %%",
			r.Max, span(r.InitialMs), number(r.Multiplier, 2), span(r.MaxIntervalMs), number(100*r.Jitter, 0)))
	}
	return pairs
}

func span(ms uint32) string { return (time.Duration(ms) * time.Millisecond).String() }

func rate(perSecond uint32) string {
	if perSecond == 0 {
		return "no limit"
	}
	return fmt.Sprintf("%d/s", perSecond)
}

// move is one change of a session's state.
func move(e *openmeshv1.SessionEvent) string {
	text := fmt.Sprintf("%s  %s → %s", e.At, e.From, e.To)
	if e.Reason != "" {
		text += " (" + e.Reason + ")"
	}
	return text
}

func newSessionClose(p *program) *cobra.Command {
	var req openmeshv1.CloseSessionRequest
	cmd := &cobra.Command{
		Use: "close SESSION", Short: "Close a session", Args: cobra.ExactArgs(1),
		Long:              "Close a session: what is under way is delivered first, unless --terminate is given.",
		ValidArgsFunction: p.completeSession,
		RunE: p.ask(timeToReach, func(ctx context.Context, d *api.Client, args []string) error {
			req.Session = args[0]
			s, err := d.Session.Close(ctx, &req)
			if err != nil {
				return err
			}
			return p.show(s, func(g *page) { g.text("session %s is %s", s.Session, s.State) })
		}),
	}
	cmd.Flags().BoolVar(&req.Terminate, "terminate", false, "at once, without delivering what is under way")
	return cmd
}

func newSessionWatch(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "watch", Short: "Print changes of sessions as they happen", Args: cobra.NoArgs,
		Long: "Print changes of sessions as they happen, until interrupted. With --json every change is one line.",
		RunE: p.ask(noLimit, func(ctx context.Context, d *api.Client, _ []string) error {
			stream, err := d.Session.Watch(ctx, &openmeshv1.WatchSessionsRequest{})
			if err != nil {
				return err
			}
			defer stream.Close()
			for stream.Receive() {
				if err := p.printEvent(stream.Msg()); err != nil {
					return err
				}
			}
			if wire.CodeOf(stream.Err()) == wire.Cancelled { // ^C is how one ends a watch
				return nil
			}
			return stream.Err()
		}),
	}
}

func (p *program) printEvent(e *openmeshv1.SessionEvent) error {
	if p.json {
		return p.line(e)
	}
	return p.print(func(g *page) { g.text("%s  %s  %s", e.Session, g.id(e.Agent), move(e)) })
}
