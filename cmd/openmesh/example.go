package main

import (
	"bytes"
	"encoding/json"

	"github.com/spf13/cobra"
)

// newExample makes the example command of a noun whose commands take files. What it
// prints is JSON or YAML with comments; with --json it is the same without them.
func newExample(p *program, short string, example func() []byte) *cobra.Command {
	return newExamples(p, short, example, example)
}

// newExamples is newExample with another YAML for --json.
func newExamples(p *program, short string, example, bare func() []byte) *cobra.Command {
	return &cobra.Command{
		Use: "example", Short: short, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if p.json {
				return p.yaml(bare())
			}
			_, err := p.out.Write(example())
			return err
		},
	}
}

// yaml prints a document of YAML or JSON as JSON.
func (p *program) yaml(text []byte) error {
	doc, err := jsonOfYAML(text)
	if err != nil {
		return err
	}
	var line bytes.Buffer
	if err := json.Compact(&line, []byte(doc)); err != nil {
		return err
	}
	return p.document(line.Bytes())
}
