package main

import (
	"context"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
)

var transports = strings.Fields("quic-v1 tcp ws wss webtransport webrtc-direct grpc p2p-circuit")

// sessionTimes are the terms of a contract that are times.
type sessionTimes struct{ ttl, ackTimeout, keepalive, rekeyInterval limit }

func newSessionOpen(p *program) *cobra.Command {
	var req openmeshv1.OpenSessionRequest
	var times sessionTimes
	cmd := &cobra.Command{
		Use: "open [TARGET...]", Short: "Set a session up",
		Long: "Set a session up, on terms that the other side may tighten. TARGET is a capability name, an address or an\n" +
			"agent id; more than one make a multicast session, which sends to all of them. Terms that are not given are\n" +
			"this node's own. With --via TARGET is an agent id. at-least-once and exactly-once sessions are persistent:\n" +
			"they survive a restart of either side, with all that was accepted and not delivered yet. One to an agent that\n" +
			"is away is offered by mail, and takes messages at once. With --through all that the session says goes over\n" +
			"relays of which each knows its neighbours only. With --contract the session cites a market contract: it is with the\n" +
			"seller, TARGET may be left out, and each request in it uses one unit.",
		Example: "  openmesh session open 0:A91F.0000.7C2E --qos at-least-once --ordered\n" +
			"  openmesh session open finance/fx-pricing --qos exactly-once --ttl 24h --json | jq -r .session\n" +
			"  openmesh session open 0:A91F.0000.7C2E 0:11B0.93C4.0001 --qos at-least-once\n" +
			"  openmesh session open did:key:z6Mk… --transport grpc --via https://mesh.example.org",
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
			return p.completeCapability(cmd, nil, typed) // every argument is a target
		},
	}
	openFlags(cmd, &req, &times)
	p.throughFlag(cmd, &req.Through)
	cmd.PreRunE = func(_ *cobra.Command, args []string) error {
		req.Targets = args
		if len(args) == 0 && req.Contract == "" {
			return usagef("session open: TARGET is missing: a capability, an address or an agent id; or --contract, with whose seller it is")
		}
		return prepareOpen(&req, &times)
	}
	cmd.RunE = p.ask(timeToReach, func(ctx context.Context, d *api.Client, _ []string) error {
		s, err := d.Session.Open(ctx, &req)
		if err != nil {
			return err
		}
		return p.show(s, func(g *page) { printSession(g, s) })
	})
	return cmd
}

func openFlags(cmd *cobra.Command, req *openmeshv1.OpenSessionRequest, times *sessionTimes) {
	f := cmd.Flags()
	f.StringVar(&req.Qos, "qos", "", "delivery: "+strings.Join(qosModes, ", "))
	f.BoolVar(&req.Ordered, "ordered", false, "hand messages over in the order in which they were sent")
	f.BoolVar(&req.Persistent, "persistent", false, "survive a restart of either side")
	f.Var(&times.ttl, "ttl", "how long a message may wait for its delivery")
	f.Var(&times.ackTimeout, "ack-timeout", "how long a message may go unanswered before it is sent again")
	f.Var(&times.keepalive, "keepalive", "how often an idle channel is probed; a dead one is noticed within twice that")
	f.Var(&times.rekeyInterval, "rekey-interval", "how long keys are used")
	f.Uint32Var(&req.MaxMessageBytes, "max-message-bytes", 0, "size of the largest message")
	f.Uint32Var(&req.MaxPending, "max-pending", 0, "how many messages may be on their way at a time")
	f.Uint32Var(&req.MessageRate, "message-rate", 0, "messages per second and direction")
	f.Uint32Var(&req.ByteRate, "byte-rate", 0, "bytes per second and direction")
	f.StringVar(&req.Transport, "transport", "", "only this transport: "+strings.Join(transports, ", ")+" (through relays)")
	f.StringVar(&req.Via, "via", "", "where to reach TARGET, if the directory does not say: a multiaddr, or the https URL of a gRPC listener")
	f.StringVar(&req.Contract, "contract", "", "market contract that the session cites: its id, or 6 digits of it or more")
	fixed(cmd, "qos", qosModes)
	fixed(cmd, "transport", transports)
}

// prepareOpen completes the request and finds what is wrong with it.
func prepareOpen(req *openmeshv1.OpenSessionRequest, times *sessionTimes) (err error) {
	if req.Qos != "" {
		if err := oneOf("qos", req.Qos, qosModes); err != nil {
			return err
		}
	}
	if req.Transport != "" {
		if err := oneOf("transport", req.Transport, transports); err != nil {
			return err
		}
	}
	if req.Via != "" && len(req.Targets) > 1 {
		return usagef("--via says where one TARGET is: %d were given", len(req.Targets))
	}
	if req.Via != "" && len(req.Through) > 0 {
		return usagef("--via says where TARGET is, --through how to get there: leave one of them out")
	}
	if err := checkChains(req.Through); err != nil {
		return err
	}
	ttl, err := times.ttl.milliseconds("ttl")
	if err != nil {
		return err
	}
	req.TtlMs = uint64(ttl)
	if req.AckTimeoutMs, err = times.ackTimeout.milliseconds("ack-timeout"); err != nil {
		return err
	}
	if req.KeepaliveMs, err = times.keepalive.milliseconds("keepalive"); err != nil {
		return err
	}
	req.RekeyIntervalMs, err = times.rekeyInterval.milliseconds("rekey-interval")
	return err
}

// milliseconds is the value of a flag as the local API has it; 0 if it was not
// given.
func (l limit) milliseconds(flag string) (uint32, error) {
	ms := time.Duration(l).Milliseconds()
	if l > 0 && ms < 1 || ms > math.MaxUint32 {
		return 0, usagef("--%s %s: want 1ms to %s", flag, time.Duration(l), time.Duration(math.MaxUint32)*time.Millisecond)
	}
	return uint32(ms), nil
}
