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
		newSessionList(p), newSessionShow(p), newSessionClose(p), newSessionWatch(p))
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
			s.Session, s.Address, g.id(s.Agent), s.State, s.Qos, path, rtt,
			fmt.Sprint(s.Unacked), number(s.Sent, 0), number(s.Received, 0), g.when(s.Opened, time.Now()),
		})
	}
	g.table(strings.Fields("SESSION ADDRESS AGENT STATE QOS PATH RTT UNACKED SENT RECEIVED OPENED"), rows)
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
	}
	for _, c := range s.Channels {
		pairs = append(pairs, "channel", fmt.Sprintf("%s over %s, %s, %s %% lost, %s",
			c.Kind, c.Transport, milliseconds(c.RttMs), number(100*c.Loss, 1), c.Addr))
	}
	if c := s.Contract; c != nil {
		pairs = append(pairs, "contract", fmt.Sprintf("%s, ordered %t, ttl %s, rekey every %s, at most %d bytes a message",
			c.Qos, c.Ordered, span(c.TtlMs), span(c.RekeyIntervalMs), c.MaxMessageBytes))
	}
	for _, e := range s.History {
		pairs = append(pairs, "history", move(e))
	}
	g.fields(pairs...)
}

func span(ms uint32) time.Duration { return time.Duration(ms) * time.Millisecond }

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
