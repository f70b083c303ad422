package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/proof"
	"openmesh/protocols/wire"
)

func newAuditVerify(p *program) *cobra.Command {
	var against []string
	cmd := &cobra.Command{
		Use: "verify [FILE]", Short: "Find out whether the log was changed", Args: cobra.MaximumNArgs(1),
		Long: "Find out whether the log was changed: recompute its tree from what is stored, and compare it with checkpoints\n" +
			"that the agent signed before: its own, those in its contracts, and those that --against names: checkpoints,\n" +
			"exported contracts or exported logs that others hold. A changed, removed, reordered or cut-off entry is found.\n" +
			"Exits 1 if something is wrong. FILE is an exported log to verify instead, or - for standard input; no daemon is\n" +
			"needed for that.",
		Example: "  openmesh audit verify --against yesterday.txt\n  openmesh audit verify deal.log --against deal.json",
		RunE: func(cmd *cobra.Command, args []string) error {
			texts, err := p.readProofs(against)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				return p.verifyFile(args[0], texts)
			}
			return p.verifyOwn(texts)(cmd, args)
		},
	}
	cmd.Flags().StringArrayVar(&against, "against", nil, "`file` with a checkpoint, an exported contract or an exported log (repeatable)")
	return cmd
}

func (p *program) verifyFile(name string, against [][]byte) error {
	return p.reading(name, func(in io.Reader) error {
		res, err := proof.VerifyLog(in, against...)
		if err != nil {
			return err
		}
		return p.verified(res)
	})
}

func (p *program) verifyOwn(against [][]byte) func(*cobra.Command, []string) error {
	return p.ask(timeToCheck, func(ctx context.Context, d *api.Client, _ []string) error {
		req := new(openmeshv1.VerifyAuditRequest)
		for _, text := range against {
			req.Against = append(req.Against, string(text))
		}
		res, err := d.Audit.Verify(ctx, req)
		if err != nil {
			return err
		}
		return p.verified(res)
	})
}

// reading opens a file, or standard input, for do.
func (p *program) reading(name string, do func(io.Reader) error) error {
	if name == "-" {
		return do(p.in)
	}
	f, err := os.Open(name)
	if err != nil {
		return wire.Errorf(wire.InvalidArgument, "read FILE: %w", err)
	}
	defer f.Close()
	return do(f)
}

// timeToCheck is enough for a log of millions of entries.
const timeToCheck = 10 * time.Minute

// readProofs reads the files that a log is compared with.
func (p *program) readProofs(names []string) (texts [][]byte, err error) {
	left := int64(maxData)
	for _, name := range names {
		text, err := readFile(name, left)
		if err != nil {
			return nil, wire.Errorf(wire.InvalidArgument, "read %s: %w", name, err).
				WithHint("of a long log, its checkpoint is enough: openmesh audit checkpoint")
		}
		left -= int64(len(text))
		texts = append(texts, text)
	}
	return texts, nil
}

// verified prints what verification found, and fails if something is wrong.
func (p *program) verified(res *openmeshv1.VerifyAuditResponse) error {
	err := p.showPlain(res, func(g *page) {
		pairs := []string{
			"log of", res.Agent, "entries", fmt.Sprint(res.Entries), "root", res.Root, "checkpoints", fmt.Sprintf("%d compared", res.Checkpoints),
		}
		if res.Expired > 0 {
			pairs = append(pairs, "expired", fmt.Sprintf("%d checkpoints, signed when the certificate had expired", res.Expired))
		}
		if res.Pruned > 0 {
			pairs = append(pairs, "pruned", fmt.Sprintf("%d originals, which audit.retention has removed", res.Pruned))
		}
		g.fields(append(pairs, "took", milliseconds(res.ElapsedMs), "verdict", verdictOf(res.Ok))...)
	})
	if err != nil || res.Ok {
		return err
	}
	return wire.Errorf(wire.Malformed, "the log is not what it was: entry %d: %s", res.Bad.GetIndex(), res.Bad.GetReason()).
		WithHint("keep the log as it is, and compare it with an export or a checkpoint that another agent holds")
}

func verdictOf(ok bool) string {
	if ok {
		return checkOK
	}
	return checkFail
}

func newAuditReplay(p *program) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "replay ID", Short: "Run a session or negotiation again from the log", Args: cobra.ExactArgs(1),
		Long: "Run a session or negotiation again from the log: validate what was signed, run the machines over it, and compare\n" +
			"each step with what was recorded. Exits 1 where they differ. ID is that of a session, negotiation, request or\n" +
			"contract, or a prefix that only it has. With --export no daemon is needed.",
		Example: "  openmesh audit replay 3f9a20\n  openmesh audit replay 3f9a20 --export deal.log",
		RunE: func(cmd *cobra.Command, args []string) error {
			if file != "" {
				return p.replayFile(file, args[0])
			}
			return p.replayOwn(cmd, args)
		},
	}
	cmd.Flags().StringVar(&file, "export", "", "exported log to replay from, a `file` or - for standard input")
	return cmd
}

func (p *program) replayFile(name, id string) error {
	return p.reading(name, func(in io.Reader) error {
		res, err := proof.ReplayLog(in, id)
		if err != nil {
			return err
		}
		return p.replayed(res)
	})
}

func (p *program) replayOwn(cmd *cobra.Command, args []string) error {
	return p.ask(timeToCheck, func(ctx context.Context, d *api.Client, args []string) error {
		res, err := d.Audit.Replay(ctx, &openmeshv1.ReplayAuditRequest{Session: args[0]})
		if err != nil {
			return err
		}
		return p.replayed(res)
	})(cmd, args)
}

func (p *program) replayed(res *openmeshv1.ReplayAuditResponse) error {
	err := p.showPlain(res, func(g *page) {
		var rows [][]string
		for _, s := range res.Steps {
			rows = append(rows, []string{
				verdictOf(s.Ok), fmt.Sprint(s.Index), g.when(s.At, time.Now()), s.Kind, s.Direction, g.id(s.Agent), s.Recorded, s.Recomputed,
			})
		}
		g.table(strings.Fields("STATUS INDEX AT KIND DIRECTION AGENT RECORDED RECOMPUTED"), rows)
		g.text("%d steps, outcome %s", len(res.Steps), res.Outcome)
	})
	if err != nil || res.Ok {
		return err
	}
	return wire.Errorf(wire.Malformed, "the log does not replay: %s", res.Divergence).
		WithHint("see whether it was changed: openmesh audit verify")
}
