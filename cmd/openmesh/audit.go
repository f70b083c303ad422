package main

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
)

func newAudit(p *program) *cobra.Command {
	return p.noun("audit", "The log of what this agent sent, received and decided",
		newAuditList(p), newAuditShow(p), newAuditVerify(p), newAuditReplay(p), newAuditExport(p), newAuditCheckpoint(p))
}

func newAuditList(p *program) *cobra.Command {
	var req openmeshv1.ListAuditRequest
	cmd := &cobra.Command{
		Use: "list", Short: "List entries of the log, oldest first", Args: cobra.NoArgs,
		Long:    "List entries of the log, oldest first: the first of them, or with --last the newest.",
		Example: "  openmesh audit list --last --limit 20\n  openmesh audit list --of 3f9a20 --kind market",
	}
	f := cmd.Flags()
	f.StringVar(&req.Of, "of", "", "only of this session, negotiation, request or contract")
	f.StringVar(&req.Kind, "kind", "", "only of this kind, such as market or market.accept")
	f.Uint64Var(&req.From, "from", 0, "from this index on")
	f.Uint32Var(&req.Limit, "limit", 100, "number of entries, at most 1000")
	f.BoolVar(&req.Last, "last", false, "the newest instead of the oldest; still in order")
	fixed(cmd, "kind", strings.Fields("signal session policy market checkpoint contract"))
	cmd.RunE = p.ask(timeToLook, func(ctx context.Context, d *api.Client, _ []string) error {
		res, err := d.Audit.List(ctx, &req)
		if err != nil {
			return err
		}
		if err := p.showPlain(res, func(g *page) { g.auditEntries(res.Entries) }); err != nil {
			return err
		}
		p.note("%d of %d entries", len(res.Entries), res.Size)
		return nil
	})
	return cmd
}

func (g *page) auditEntries(all []*openmeshv1.AuditEntry) {
	var rows [][]string
	for _, e := range all {
		rows = append(rows, []string{
			fmt.Sprint(e.Index), g.when(e.At, time.Now()), e.Kind, e.Direction, g.id(e.Agent), g.brief(cmp.Or(e.Ref, e.Session)), e.Summary,
		})
	}
	g.table(strings.Fields("INDEX AT KIND DIRECTION AGENT OF SUMMARY"), rows)
}

func newAuditShow(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "show INDEX", Short: "Show an entry with what was signed", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			index, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil {
				return usagef("INDEX %q: want a number, as audit list shows it", args[0])
			}
			return p.ask(timeToLook, func(ctx context.Context, d *api.Client, _ []string) error {
				e, err := d.Audit.Show(ctx, &openmeshv1.ShowAuditRequest{Index: index})
				if err != nil {
					return err
				}
				return p.showPlain(e, func(g *page) { g.auditEntry(e) })
			})(cmd, args)
		},
	}
}

func (g *page) auditEntry(e *openmeshv1.AuditEntry) {
	original := fmt.Sprintf("%d bytes", e.Size)
	if e.Pruned {
		original = "removed, as it was older than audit.retention; the hash proves what it was"
	}
	g.fields("index", fmt.Sprint(e.Index), "at", e.At, "kind", e.Kind, "direction", e.Direction, "agent", e.Agent,
		"session", e.Session, "ref", e.Ref, "summary", e.Summary, "hash", e.Hash, "original", original)
	g.attached(e.Json)
}

func newAuditCheckpoint(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "checkpoint", Short: "Sign the present state of the log, and print that", Args: cobra.NoArgs,
		Long: "Sign the present state of the log, and print that (https://c2sp.org/tlog-checkpoint). Whoever keeps it can tell\n" +
			"later whether what was in the log then was changed: `openmesh audit verify --against FILE`.",
		Example: "  openmesh audit checkpoint > yesterday.txt\n  openmesh audit verify --against yesterday.txt",
		RunE: p.ask(timeToLook, func(ctx context.Context, d *api.Client, _ []string) error {
			c, err := d.Audit.Checkpoint(ctx, &openmeshv1.AuditCheckpointRequest{})
			if err != nil {
				return err
			}
			return p.showPlain(c, func(g *page) { fmt.Fprint(g.w, printable(c.Text)) })
		}),
	}
}
