package translate

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"openmesh/protocols/schema/translate/rule"
	"openmesh/protocols/wire"
)

// Limits on a registry.
const (
	MaxHops  = 4   // translations in a chain
	MaxFiles = 256 // files of a folder
)

// Registry is a set of translations, which it chains. Fill it, then use it from
// any number of goroutines; a changed set is a new Registry.
type Registry struct {
	translations []*Translation
	links        map[Ref][]link // both ways, the highest versions first
}

// link leads to a version.
type link struct {
	to    Ref
	steps []rule.Step
}

// NewRegistry returns an empty registry.
func NewRegistry() *Registry { return &Registry{links: map[Ref][]link{}} }

// Load adds the files *.yaml, *.yml and *.json of a folder, in the order of
// their names. A file that cannot be added is one of the errors, and does not
// keep the others out. A folder that is not there is empty.
func (g *Registry) Load(folder string) []error {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return []error{fmt.Errorf("load translations: %w", err)}
	}
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool {
		return e.IsDir() || strings.HasPrefix(e.Name(), ".") ||
			!slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name()))
	})
	if len(entries) > MaxFiles {
		return []error{wire.Errorf(wire.TooLarge, "load translations: %d files in %s are more than %d", len(entries), folder, MaxFiles)}
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(folder, e.Name())
		text, err := ReadFile(path)
		if err == nil {
			err = g.Add(text, path)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// ReadFile reads a translation file of at most [MaxFile] bytes.
func ReadFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, wire.Errorf(wire.InvalidArgument, "read translation: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	switch {
	case err != nil:
		return nil, wire.Errorf(wire.InvalidArgument, "read translation: %w", err)
	case len(text) > MaxFile:
		return nil, wire.Errorf(wire.TooLarge, "read translation: %s is of more than %d bytes", path, MaxFile)
	}
	return text, nil
}

// Add adds a translation, for both ways. A file whose own examples fail is
// refused, as is a second one between the same versions. Errors are
// [*wire.Error] with code [wire.InvalidArgument] or [wire.AlreadyExists].
func (g *Registry) Add(file []byte, name string) error {
	if problems := Check(file, name); problems != nil {
		first := problems[0]
		return wire.Errorf(wire.InvalidArgument, "%s: %s", first.Place, first.Message).WithHint("%s", first.Hint)
	}
	t, err := Parse(file, name)
	if err != nil {
		return err
	}
	for _, other := range g.translations {
		if other.From == t.From && other.To == t.To || other.From == t.To && other.To == t.From {
			return wire.Errorf(wire.AlreadyExists, "%s: %s to %s is translated by %s", name, t.From, t.To, other.File).
				WithHint("A translation goes both ways: remove one of the files.")
		}
	}
	g.translations = append(g.translations, t)
	g.link(t.From, link{t.To, t.there})
	g.link(t.To, link{t.From, t.back})
	return nil
}

func (g *Registry) link(from Ref, l link) {
	links := append(g.links[from], l)
	slices.SortFunc(links, func(a, b link) int { return compareVersions(b.to.Version, a.to.Version) })
	g.links[from] = links
}

// Translations returns all, in the order in which they were added.
func (g *Registry) Translations() []*Translation { return slices.Clone(g.translations) }

// Has reports whether [Registry.Translate] can translate between two versions,
// as [ParseRef] reads them.
func (g *Registry) Has(from, to string) bool {
	_, err := g.Path(from, to)
	return err == nil
}

// Path returns the versions that a document goes through, both ends included:
// the shortest chain of at most [MaxHops] translations and, of several, the one
// through the highest versions. Errors are [*wire.Error]: [wire.NoCommonSchema]
// where no chain leads there, [wire.InvalidArgument].
func (g *Registry) Path(from, to string) ([]Ref, error) {
	a, b, err := parseRefs(from, to)
	if err != nil {
		return nil, err
	}
	chain, err := g.chain(a, b)
	if err != nil {
		return nil, err
	}
	path := []Ref{a}
	for _, l := range chain {
		path = append(path, l.to)
	}
	return path, nil
}

func parseRefs(from, to string) (a, b Ref, err error) {
	if a, err = ParseRef(from); err == nil {
		b, err = ParseRef(to)
	}
	return a, b, err
}

// Translate rewrites a document from one version to another, such as
// market/proposal@v1.0.0. With from equal to to, the result is doc itself.
// Losses are what this document lost on the way, at most [rule.MaxLosses].
//
// Errors are [*wire.Error]: [wire.NoCommonSchema] as with [Registry.Path];
// [wire.InvalidRequest] for a document that a rule does not accept, with a JSON
// pointer into doc; [wire.TooLarge] for one over a limit of package rule, or
// whose result would be more than twice as large and [rule.MaxGrowth].
func (g *Registry) Translate(doc []byte, from, to string) (out []byte, losses []Loss, err error) {
	a, b, err := parseRefs(from, to)
	if err != nil {
		return nil, nil, err
	}
	chain, err := g.chain(a, b)
	if err != nil {
		return nil, nil, err
	}
	if len(chain) == 0 {
		return doc, nil, nil
	}
	var steps []rule.Step
	for _, l := range chain {
		steps = append(steps, l.steps...)
	}
	return translate(doc, steps, a, b)
}

// chain finds the links between two versions.
func (g *Registry) chain(from, to Ref) ([]link, error) {
	if chain, ok := g.chains(from)[to]; ok {
		return chain, nil
	}
	return nil, wire.Errorf(wire.NoCommonSchema, "no translation from %s to %s: documents of the first become %s; what becomes the second is %s",
		from, to, listed(g.reach(from)), listed(g.reach(to))).
		WithHint("Write a translation: openmesh schema example")
}

// chains finds the shortest chain to every version that from can become.
func (g *Registry) chains(from Ref) map[Ref][]link {
	found := map[Ref][]link{from: nil}
	edge := []Ref{from}
	for range MaxHops {
		var next []Ref
		for _, at := range edge {
			for _, l := range g.links[at] {
				if _, known := found[l.to]; !known {
					found[l.to] = append(slices.Clip(found[at]), l)
					next = append(next, l.to)
				}
			}
		}
		edge = next
	}
	return found
}

// reach returns the other versions that documents of a version can become, the
// highest first. As translations go both ways, they can become that as well.
func (g *Registry) reach(from Ref) []string {
	var out []string
	for to := range g.chains(from) {
		if to != from {
			out = append(out, to.Version)
		}
	}
	highestFirst(out)
	return out
}
