// Package schemas keeps the translations between versions of schemas that an
// agent's operator has put into its home, and checks files for the command line.
// What a file can say is told by [openmesh/protocols/schema/translate].
package schemas

import (
	"encoding/json"

	"go.uber.org/zap"

	"openmesh/protocols/schema/translate"
)

// Folder is where translation files are, in the agent's home: *.yaml, *.yml and
// *.json.
const Folder = "translations"

// Registry is a set of translations.
type Registry = translate.Registry

// Open reads the translations of a folder, which may not be there. A file that
// cannot be used is logged and left out: it must not keep the daemon from
// running.
func Open(dir string, log *zap.Logger) *Registry {
	g, errs := Load(dir)
	for _, err := range errs {
		log.Warn("translation left out", zap.Error(err))
	}
	if n := len(g.Translations()); n > 0 {
		log.Info("translations between schema versions", zap.Int("count", n), zap.String("folder", dir))
	}
	return g
}

// Load is Open for those who tell the errors themselves: one for each file that
// cannot be used.
func Load(dir string) (*Registry, []error) {
	g := translate.NewRegistry()
	return g, g.Load(dir)
}

// Example returns a valid translation file to start from.
func Example() []byte { return translate.ExampleFile() }

// Source is the text of a translation file with its name.
type Source struct {
	Name string
	Text []byte
}

// Gather makes a registry of files. The error is that of the first that cannot
// be used, with its place.
func Gather(sources []Source) (*Registry, error) {
	g := translate.NewRegistry()
	for _, s := range sources {
		if err := g.Add(s.Text, s.Name); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// Summary says what a translation is between, and what it may lose.
type Summary struct {
	File           string           `json:"file"`
	From           string           `json:"from"` // such as market/proposal@v1.0.0
	To             string           `json:"to"`
	Steps          int              `json:"steps"`
	Examples       int              `json:"examples"`
	ForwardLosses  []translate.Loss `json:"forward_losses"`
	BackwardLosses []translate.Loss `json:"backward_losses"`
}

// Lossless reports whether nothing is lost either way.
func (s Summary) Lossless() bool { return len(s.ForwardLosses)+len(s.BackwardLosses) == 0 }

// Report is what [Check] finds. From and To are empty if the file cannot be read.
type Report struct {
	Summary
	OK       bool                `json:"ok"`
	Problems []translate.Problem `json:"problems"`
}

// Check reads a file and runs its examples both ways.
func Check(s Source) Report {
	r := Report{Summary: Summary{File: s.Name}, Problems: append([]translate.Problem{}, translate.Check(s.Text, s.Name)...)}
	r.OK = len(r.Problems) == 0
	if t, err := translate.Parse(s.Text, s.Name); err == nil {
		r.Summary = summarize(t)
	}
	return r
}

// List returns a summary of each translation, in the order of the registry.
func List(g *Registry) []Summary {
	out := []Summary{}
	for _, t := range g.Translations() {
		out = append(out, summarize(t))
	}
	return out
}

func summarize(t *translate.Translation) Summary {
	forward, backward := t.Losses()
	return Summary{
		File: t.File, From: t.From.String(), To: t.To.String(), Steps: t.Steps, Examples: len(t.Examples),
		ForwardLosses: append([]translate.Loss{}, forward...), BackwardLosses: append([]translate.Loss{}, backward...),
	}
}

// Translated is a document in another version.
type Translated struct {
	Document json.RawMessage  `json:"document"`
	Path     []string         `json:"path"` // the versions that it went through
	Losses   []translate.Loss `json:"losses"`
}

// Translate is [translate.Registry.Translate] with the way that the document took.
func Translate(g *Registry, doc []byte, from, to string) (Translated, error) {
	path, err := g.Path(from, to)
	if err != nil {
		return Translated{}, err
	}
	out, losses, err := g.Translate(doc, from, to)
	if err != nil {
		return Translated{}, err
	}
	done := Translated{Document: out, Losses: append([]translate.Loss{}, losses...)}
	for _, ref := range path {
		done.Path = append(done.Path, ref.String())
	}
	return done, nil
}
