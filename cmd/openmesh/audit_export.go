package main

import (
	"bufio"
	"context"
	"io"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
)

func newAuditExport(p *program) *cobra.Command {
	var req openmeshv1.ExportAuditRequest
	var file string
	cmd := &cobra.Command{
		Use: "export", Short: "Write the log to a file that another machine can verify and replay", Args: cobra.NoArgs,
		Long: "Write the log to a file that another machine can verify and replay, without a daemon. With --of, what was said\n" +
			"elsewhere is in it as hashes only.",
		Example: "  openmesh audit export --of 3f9a20 -o deal.log\n  openmesh audit verify deal.log\n" +
			"  openmesh audit replay 3f9a20 --export deal.log",
		RunE: p.ask(noLimit, func(ctx context.Context, d *api.Client, _ []string) error {
			stream, err := d.Audit.Export(ctx, &req)
			if err != nil {
				return err
			}
			defer stream.Close()
			return p.export(file, func(w io.Writer) error {
				for stream.Receive() {
					if _, err := w.Write(stream.Msg().Data); err != nil {
						return err
					}
				}
				return stream.Err()
			})
		}),
	}
	cmd.Flags().StringVar(&req.Of, "of", "", "only what was said in this session, negotiation, request or contract")
	outputFlag(cmd, &file)
	return cmd
}

func outputFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "output", "o", "", "`file` to write (default: standard output)")
}

// export writes to a file, which is there once all of it is, or to standard output.
func (p *program) export(name string, write func(io.Writer) error) error {
	if name == "" || name == "-" {
		out := bufio.NewWriter(p.out)
		if err := write(out); err != nil {
			return err
		}
		return out.Flush()
	}
	size, err := replaceFile(name, 0o600, write)
	if err != nil {
		return err
	}
	written := struct {
		File  string `json:"file"`
		Bytes int64  `json:"bytes"`
	}{name, size}
	return p.showValue(written, func(g *page) { g.text("written to %s (%s)", name, bytesOf(float64(size))) })
}
