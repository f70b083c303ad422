package main

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
)

func newMarketSchema(p *program) *cobra.Command {
	return p.noun("schema", "Schemas of the market's documents",
		newMarketSchemaList(p), newMarketSchemaShow(p), newMarketSchemaAdd(p),
		newExample(p, "Print a schema to start from", exampleSchema))
}

func newMarketSchemaList(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the schemas that this agent knows", Args: cobra.NoArgs,
		RunE: p.ask(timeToLook, func(ctx context.Context, d *api.Client, _ []string) error {
			res, err := d.Market.ListSchemas(ctx, &openmeshv1.ListSchemasRequest{})
			if err != nil {
				return err
			}
			return p.showPlain(res, func(g *page) {
				var rows [][]string
				for _, s := range res.Schemas {
					rows = append(rows, []string{s.Name, s.Cid, s.Source})
				}
				g.table(strings.Fields("NAME CID SOURCE"), rows)
			})
		}),
	}
}

func newMarketSchemaShow(p *program) *cobra.Command {
	var req openmeshv1.GetSchemaRequest
	cmd := &cobra.Command{
		Use: "show SCHEMA", Short: "Print a schema", Args: cobra.ExactArgs(1),
		Long: "Print a schema, byte for byte: the CID is of these bytes. SCHEMA is NAME@vVERSION or a CID. One that is not\n" +
			"known here can be had from an agent that knows it, by its CID.",
		Example:           "  openmesh market schema show market/rfp@v1.0.0\n  openmesh market schema show bafkrei… --from did:key:z6Mk…",
		ValidArgsFunction: p.completeMarketSchema,
		RunE: p.ask(timeToReach, aSchema().asking(func(ctx context.Context, d *api.Client, args []string) error {
			req.Schema = args[0]
			s, err := d.Market.GetSchema(ctx, &req)
			if err != nil {
				return err
			}
			return p.showPlain(s, func(g *page) {
				text := s.Json
				if g.terminal {
					text = printable(text)
				}
				_, _ = io.WriteString(g.w, text) // a buffer takes all
			})
		})),
	}
	cmd.Flags().StringVar(&req.Agent, "from", "", "agent id or address to ask for a CID that is not known here")
	return cmd
}

func newMarketSchemaAdd(p *program) *cobra.Command {
	var req openmeshv1.AddSchemaRequest
	return &cobra.Command{
		Use: "add NAME FILE", Short: "Add a schema, for details of requests and proposals", Args: cobra.ExactArgs(2),
		Long: "Add a schema, for the details of requests and proposals. NAME is NAME@vVERSION, such as acme/widget@v1.0.0. FILE is\n" +
			"JSON Schema 2020-12 in JSON or YAML, or - for standard input; `openmesh market schema example` prints one. It is\n" +
			"kept in the home. A name and version, once added, says the same for ever.",
		Example: "  openmesh market schema example > widget.json\n  openmesh market schema add acme/widget@v1.0.0 widget.json",
		PreRunE: func(_ *cobra.Command, args []string) (err error) {
			req.Name = args[0]
			req.Json, err = p.readJSON(args[1])
			return err
		},
		RunE: p.ask(timeToLook, aSchema().asking(func(ctx context.Context, d *api.Client, _ []string) error {
			s, err := d.Market.AddSchema(ctx, &req)
			if err != nil {
				return err
			}
			return p.showPlain(s, func(g *page) { g.text("%s is %s", s.Name, s.Cid) })
		})),
	}
}
