package config

import (
	"bytes"
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"openmesh/node/config/form"
)

// Render returns the effective configuration as YAML, every key with its value,
// secrets masked. [Load] reads it to an equal configuration, but for the secrets.
func (c *Config) Render() []byte {
	var w writer
	for _, k := range c.keys() {
		w.enter(k)
		w.put(k, k.show(), "")
	}
	return w.Bytes()
}

// Template returns a configuration file that explains every key: those in
// overrides (dotted key → value as in a flag) are set, the others are comments
// with their defaults. An override that [Load] would refuse is written as it is,
// for Load to refuse it with its place.
func Template(overrides map[string]string) []byte {
	c := new(Config)
	c.reset()
	w := writer{comments: true}
	w.WriteString("# Configuration of an OpenMesh node. Where # and a key stand together, it is the default;\n# remove the # to change it.\n" +
		"# Environment variables (OPENMESH_NETWORKING_MAX_TUNNELS=512) and flags override this file.\n")
	left := maps.Clone(overrides)
	for _, k := range c.keys() {
		w.enter(k)
		w.explain(k)
		if text, ok := overrides[k.Name]; ok {
			w.put(k, k.parse(text, form.Place{}), "")
		} else {
			w.put(k, k.write(), "#")
		}
		delete(left, k.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(left)) {
		fmt.Fprintf(&w, "%s: %s\n", strconv.Quote(name), strconv.Quote(left[name]))
	}
	return w.Bytes()
}

// writer writes keys as YAML, in the order of the table.
type writer struct {
	bytes.Buffer
	comments bool   // explain sections
	section  string // the one that is open
}

// enter opens the sections of k that are not open yet.
func (w *writer) enter(k Key) {
	path := strings.Split(k.section(), ".")
	for i := range path {
		section := strings.Join(path[:i+1], ".")
		if section == w.section || strings.HasPrefix(w.section, section+".") {
			continue
		}
		indent := strings.Repeat("  ", i)
		if w.comments {
			fmt.Fprintf(w, "\n%s# %s\n", indent, about(section))
		}
		fmt.Fprintf(w, "%s%s:\n", indent, path[i])
	}
	w.section = k.section()
}

// explain writes what k is as a comment.
func (w *writer) explain(k Key) {
	indent := k.indent()
	fmt.Fprintf(w, "%s# %s\n%s# %s: %s\n", indent, k.Doc, indent, k.Type, k.Allowed)
	if k.Unbuilt != "" {
		fmt.Fprintf(w, "%s# No effect yet: %s.\n", indent, k.Unbuilt)
	}
}

// indent returns the indentation of k in its sections.
func (k Key) indent() string { return strings.Repeat("  ", strings.Count(k.Name, ".")) }

// put writes k with a value; mark comes after each line's indentation.
func (w *writer) put(k Key, v form.Value, mark string) {
	w.node(k.indent(), mark, k.leaf()+":", v, k.plain)
}

// node writes v after head, a list or map below it.
func (w *writer) node(indent, mark, head string, v form.Value, plain bool) {
	if len(v.Items) == 0 {
		fmt.Fprintf(w, "%s%s%s %s\n", indent, mark, head, oneLine(v, plain))
		return
	}
	fmt.Fprintf(w, "%s%s%s\n", indent, mark, head)
	for _, item := range v.Items {
		below := "-"
		if v.Shape == form.Mapping {
			below = strconv.Quote(item.Name) + ":"
		}
		w.node(indent+"  ", mark, below, item, plain)
	}
}

// oneLine returns v as YAML, where it has no items.
func oneLine(v form.Value, plain bool) string {
	switch {
	case v.Shape == form.Listing:
		return "[]"
	case v.Shape == form.Mapping:
		return "{}"
	case plain && v.Text != "":
		return v.Text
	}
	return strconv.Quote(v.Text)
}

//go:embed reference.tmpl
var referenceText string

// Reference returns the reference of all keys as Markdown: this package's
// README.md.
func Reference() []byte {
	type section struct {
		Name, About string
		Keys        []Key
	}
	var sections []section
	for _, k := range Keys() {
		if len(sections) == 0 || sections[len(sections)-1].Name != k.section() {
			sections = append(sections, section{Name: k.section(), About: about(k.section())})
		}
		last := &sections[len(sections)-1]
		last.Keys = append(last.Keys, k)
	}
	var b bytes.Buffer
	t := template.Must(template.New("reference").Parse(referenceText))
	if err := t.Execute(&b, sections); err != nil {
		panic("reference: " + err.Error()) // the template does not fit Key; a test runs it
	}
	return b.Bytes()
}
