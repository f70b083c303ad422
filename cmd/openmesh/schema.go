package main

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	"openmesh/node/schemas"
	"openmesh/protocols/wire"
)

func newSchema(p *program) *cobra.Command {
	return p.noun("schema", "Translations between versions of schemas",
		newSchemaTranslate(p), newSchemaCheck(p), newSchemaList(p),
		newExample(p, "Print a translation file to start from", schemas.Example))
}

func newSchemaCheck(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "check FILE...", Short: "Find what is wrong with translation files", Args: cobra.MinimumNArgs(1),
		Long: "Find what is wrong with translation files, and run the examples that are in them, both ways. No daemon is\n" +
			"needed. FILE is YAML or JSON, or - for standard input. What a translation may lose is shown as well.",
		Example: "  openmesh schema example > proposal.yaml\n  openmesh schema check proposal.yaml",
		RunE: func(_ *cobra.Command, args []string) error {
			sources, err := p.readTranslations(args)
			if err != nil {
				return err
			}
			return p.checkTranslations(sources)
		},
	}
}

func (p *program) readTranslations(files []string) ([]schemas.Source, error) {
	var out []schemas.Source
	for _, file := range files {
		text, _, err := p.readDocument(file)
		if err != nil {
			return nil, err
		}
		out = append(out, schemas.Source{Name: file, Text: []byte(text)})
	}
	return out, nil
}

func (p *program) checkTranslations(sources []schemas.Source) error {
	var checked struct {
		OK    bool             `json:"ok"`
		Files []schemas.Report `json:"files"`
	}
	bad := 0
	for _, s := range sources {
		r := schemas.Check(s)
		if !r.OK {
			bad++
		}
		checked.Files = append(checked.Files, r)
	}
	checked.OK = bad == 0
	err := p.showValue(checked, func(g *page) {
		for _, r := range checked.Files {
			printTranslation(g, r)
		}
	})
	if err == nil && bad > 0 {
		err = wire.Errorf(wire.InvalidArgument, "%d of %d files cannot be used", bad, len(sources)).WithHint("correct the places above")
	}
	return err
}

func printTranslation(g *page, r schemas.Report) {
	if r.OK {
		g.fields("ok", fmt.Sprintf("%s: %s to %s, %d steps, %d examples", r.File, r.From, r.To, r.Steps, r.Examples))
	}
	for _, problem := range r.Problems {
		g.fields("fail", problem.Place+": "+problem.Message, "hint", problem.Hint)
	}
	for _, l := range r.ForwardLosses {
		g.fields("warn", fmt.Sprintf("forward: %s %s", l.Pointer, l.What))
	}
	for _, l := range r.BackwardLosses {
		g.fields("warn", fmt.Sprintf("backward: %s %s", l.Pointer, l.What))
	}
}

func newSchemaList(p *program) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the translations of this agent", Args: cobra.NoArgs,
		Long: "List the translations of this agent: the files in the folder " + schemas.Folder + " of its home.",
		RunE: func(*cobra.Command, []string) error {
			home, err := p.homeDir()
			if err != nil {
				return err
			}
			return p.listTranslations(filepath.Join(home, schemas.Folder))
		},
	}
}

func (p *program) listTranslations(folder string) error {
	registry, errs := schemas.Load(folder)
	listed := struct {
		Folder       string            `json:"folder"`
		Translations []schemas.Summary `json:"translations"`
		Unusable     []string          `json:"unusable"`
	}{folder, schemas.List(registry), []string{}}
	for _, err := range errs {
		listed.Unusable = append(listed.Unusable, api.Describe(err).Message)
	}
	return p.showValue(listed, func(g *page) {
		var rows [][]string
		for _, s := range listed.Translations {
			rows = append(rows, []string{s.From, s.To, strconv.Itoa(s.Steps), strconv.FormatBool(s.Lossless()), filepath.Base(s.File)})
		}
		g.table(strings.Fields("FROM TO STEPS LOSSLESS FILE"), rows)
		for _, what := range listed.Unusable {
			g.fields("warn", what)
		}
	})
}

func newSchemaTranslate(p *program) *cobra.Command {
	var files []string
	var from, to string
	cmd := &cobra.Command{
		Use: "translate DATA", Short: "Translate a document to another version of its schema", Args: cobra.ExactArgs(1),
		Long: "Translate a document to another version of its schema, through several translations if need be. No daemon\n" +
			"is needed. DATA is JSON, @FILE or - for standard input. Without --file the translations are those of this\n" +
			"agent. What the document loses is told on standard error.",
		Example: `  openmesh schema translate --from market/proposal@v1.0.0 --to market/proposal@v2.1.0 @proposal.json
  openmesh schema translate --file proposal.yaml --from a@v2.0.0 --to a@v1.0.0 '{"price":{"amount":"7"}}'`,
		RunE: func(_ *cobra.Command, args []string) error { return p.translate(files, from, to, args[0]) },
	}
	cmd.Flags().StringSliceVar(&files, "file", nil, "translation `file` to use, YAML or JSON; may be given more than once")
	cmd.Flags().StringVar(&from, "from", "", "`name@version` of the document")
	cmd.Flags().StringVar(&to, "to", "", "`name@version` wanted")
	return cmd
}

func (p *program) translate(files []string, from, to, arg string) error {
	if from == "" || to == "" {
		return usagef("--from and --to are needed, such as market/proposal@v1.0.0")
	}
	data, err := p.readData(arg)
	if err != nil {
		return err
	}
	registry, err := p.translations(files)
	if err != nil {
		return err
	}
	done, err := schemas.Translate(registry, []byte(data), from, to)
	if err != nil {
		return err
	}
	for _, l := range done.Losses {
		p.note("lost: %s %s", l.Pointer, l.What)
	}
	if p.json {
		return p.showValue(done, nil)
	}
	return p.document(done.Document)
}

// translations are those of the files or, without any, those of the home.
func (p *program) translations(files []string) (*schemas.Registry, error) {
	if len(files) > 0 {
		sources, err := p.readTranslations(files)
		if err != nil {
			return nil, err
		}
		return schemas.Gather(sources)
	}
	home, err := p.homeDir()
	if err != nil {
		return nil, err
	}
	registry, errs := schemas.Load(filepath.Join(home, schemas.Folder))
	for _, err := range errs {
		p.note("left out: %s", api.Describe(err).Message)
	}
	return registry, nil
}
