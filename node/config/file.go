package config

import (
	"bytes"
	"errors"
	"strings"
	"unicode"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"openmesh/node/config/form"
)

// file reads a YAML document: maps of sections down to keys.
func (r *reader) file(name string, data []byte) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	// Duplicates are allowed here to be found below, all of them.
	f, err := parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		r.syntax(name, err)
		return
	}
	w := walker{reader: r, file: name}
	docs := 0
	for _, doc := range f.Docs {
		if doc.Body == nil {
			continue
		}
		if docs++; docs > 1 {
			r.fail(w.at(doc.Body, form.Place{}), "", "a second document; a configuration is one")
			return
		}
		w.top(doc.Body)
	}
}

// syntax reports what the YAML parser refuses. Only its message is shown: its
// excerpt of the file may hold a secret.
func (r *reader) syntax(name string, err error) {
	at := form.Place{Source: name}
	var s *yaml.SyntaxError
	if !errors.As(err, &s) || s.Token == nil || s.Token.Position == nil {
		r.fail(at, "", "not YAML")
		return
	}
	at.Line, at.Column = s.Token.Position.Line, s.Token.Position.Column
	r.fail(at, "", "not YAML: %s", s.Message)
}

// walker goes through the YAML of one file.
type walker struct {
	*reader
	file string
}

// top reads the document.
func (w walker) top(n ast.Node) {
	entries, ok := mapEntries(n)
	if !ok {
		if _, null := n.(*ast.NullNode); !null {
			w.fail(w.at(n, form.Place{}), "", "a configuration is a map of sections, such as node: and networking:")
		}
		return
	}
	w.section("", entries)
}

// section reads the entries of the section called prefix ("" or "name.").
func (w walker) section(prefix string, entries []*ast.MappingValueNode) {
	first := map[string]form.Place{}
	for _, e := range entries {
		text := keyText(e.Key)
		name, at := prefix+text, w.at(e.Key, form.Place{Source: w.file})
		if before, twice := first[name]; twice {
			w.fail(at, name, "is there already, in line %d", before.Line)
		} else {
			first[name] = at
		}
		if strings.Contains(text, ".") && w.byName[name].Name != "" {
			w.fail(at, name, "write sections as maps, not with dots")
			continue
		}
		w.entry(name, at, e.Value)
	}
}

// entry reads what follows the name of a key or section.
func (w walker) entry(name string, at form.Place, n ast.Node) {
	if k, ok := w.byName[name]; ok {
		w.set(k, w.value(n, at))
		return
	}
	entries, isMap := mapEntries(n)
	_, isNull := n.(*ast.NullNode)
	switch {
	case w.sections[name] && isMap:
		w.section(name+".", entries)
	case w.sections[name] && (isNull || n == nil):
	case w.sections[name]:
		w.fail(w.at(n, at), name, "is a section; below it come its keys, such as %s", w.firstIn(name))
	default:
		w.unknown(at, name)
	}
}

// value turns YAML into a value. Scalars keep the text that was written, so
// that no, 0x10 or 1e3 are what they look like, and each codec decides.
func (w walker) value(n ast.Node, parent form.Place) form.Value {
	v := form.Value{At: w.at(n, parent), Shape: form.Scalar}
	switch n := n.(type) {
	case nil, *ast.NullNode:
		v.Shape = form.Nothing
	case *ast.StringNode:
		v.Text = n.Value
	case *ast.LiteralNode:
		v.Text = n.Value.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		v.Text = n.GetToken().Value
	case *ast.SequenceNode:
		v.Shape = form.Listing
		for _, item := range n.Values {
			v.Items = append(v.Items, w.value(item, v.At))
		}
	case *ast.MappingNode, *ast.MappingValueNode:
		v.Shape = form.Mapping
		entries, _ := mapEntries(n)
		for _, e := range entries {
			item := w.value(e.Value, v.At)
			item.Name, item.At = keyText(e.Key), w.at(e.Key, v.At)
			v.Items = append(v.Items, item)
		}
	default:
		v.Shape = form.Foreign
	}
	return v
}

// at returns where n begins, or parent if n does not know.
func (w walker) at(n ast.Node, parent form.Place) form.Place {
	if n == nil || n.GetToken() == nil || n.GetToken().Position == nil {
		parent.Source = w.file
		return parent
	}
	p := n.GetToken().Position
	return form.Place{Source: w.file, Line: p.Line, Column: p.Column}
}

// mapEntries returns the entries if n is a map.
func mapEntries(n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch n := n.(type) {
	case *ast.MappingNode:
		return n.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, true
	}
	return nil, false
}

// keyText returns a key as it was written; one that cannot be right is quoted.
func keyText(n ast.MapKeyNode) string {
	text := n.String()
	if s, ok := n.(*ast.StringNode); ok {
		text = s.Value
	}
	if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) || len(text) > 100 {
		return quote(text)
	}
	return text
}
