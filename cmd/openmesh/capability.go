package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/handlers/capability"
	"openmesh/protocols/wire"
)

const maxDocument = 1 << 20 // bytes of a capability file

func newCapability(p *program) *cobra.Command {
	return p.noun("capability", "What this agent offers",
		newCapabilityAdd(p), newCapabilityList(p), newCapabilityRemove(p),
		newExample(p, "Print a capability file to start from", capability.Example))
}

func newCapabilityAdd(p *program) *cobra.Command {
	var req openmeshv1.AddCapabilityRequest
	return &cobra.Command{
		Use: "add FILE", Short: "Offer a capability, or replace one", Args: cobra.ExactArgs(1),
		Long: "Offer a capability, or replace one of the same name. FILE is YAML or JSON, or - for standard input;\n" +
			"`openmesh capability example` prints one. It is kept in the home and offered until it is removed.",
		Example: "  openmesh capability example > fx.yaml\n  openmesh capability add fx.yaml",
		PreRunE: func(_ *cobra.Command, args []string) error {
			var err error
			req.Document, req.BaseDir, err = p.readDocument(args[0])
			req.File = args[0]
			return err
		},
		RunE: p.ask(timeToReach, func(ctx context.Context, d *api.Client, _ []string) error {
			c, err := d.Directory.AddCapability(ctx, &req)
			if err != nil {
				return err
			}
			return p.show(c, func(g *page) { g.text("%s %s is offered (%s)", c.Name, c.Version, c.Visibility) })
		}),
	}
}

// readDocument reads a file, or standard input, and tells the folder that
// relative names in it start from.
func (p *program) readDocument(name string) (text, dir string, err error) {
	var raw []byte
	if name == "-" {
		dir, err = os.Getwd()
		if err == nil {
			raw, err = readAll(p.in, maxDocument)
		}
	} else {
		dir, err = filepath.Abs(filepath.Dir(name))
		if err == nil {
			raw, err = readFile(name, maxDocument)
		}
	}
	if err != nil {
		return "", "", wire.Errorf(wire.InvalidArgument, "read FILE: %w", err)
	}
	return string(raw), dir, nil
}

func newCapabilityList(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List what this agent offers", Args: cobra.NoArgs,
		RunE: p.ask(timeToLook, func(ctx context.Context, d *api.Client, _ []string) error {
			res, err := d.Directory.ListCapabilities(ctx, &openmeshv1.ListCapabilitiesRequest{})
			if err != nil {
				return err
			}
			return p.show(res, func(g *page) {
				var rows [][]string
				for _, c := range res.Capabilities {
					registered := g.when(c.RegisteredUntil, time.Now())
					if c.RegisteredUntil == "" {
						registered = "not yet"
					}
					rows = append(rows, []string{c.Name, c.Version, c.Domain, tags(c.Tags), c.Visibility, c.Handler, registered})
				}
				g.table(strings.Fields("NAME VERSION DOMAIN TAGS VISIBILITY HANDLER REGISTERED-UNTIL"), rows)
			})
		}),
	}
}

func tags(m map[string]string) string {
	var pairs []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		pairs = append(pairs, fmt.Sprintf("%s=%s", k, m[k]))
	}
	return strings.Join(pairs, ",")
}

func newCapabilityRemove(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "remove NAME", Short: "Stop offering a capability", Args: cobra.ExactArgs(1),
		ValidArgsFunction: p.completeOwnCapability,
		RunE: p.ask(timeToReach, func(ctx context.Context, d *api.Client, args []string) error {
			res, err := d.Directory.RemoveCapability(ctx, &openmeshv1.RemoveCapabilityRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return p.show(res, func(g *page) { g.text("%s is no longer offered", res.Name) })
		}),
	}
}
