package translate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"openmesh/protocols/schema/translate/rule"
)

// source reads a YAML or JSON file whose every error has a position. The first
// error stays in bad, and what is read after it is worthless: callers read all
// they want and look at bad once.
type source struct {
	file string
	bad  *Problem
}

// fail notes an error at node n.
func (s *source) fail(n ast.Node, hint, format string, args ...any) {
	if s.bad == nil {
		s.bad = &Problem{s.place(n), fmt.Sprintf(format, args...), hint}
	}
}

// place is the file:line:column of a node; a mapping is where its first key is.
func (s *source) place(n ast.Node) string {
	if m, ok := n.(ast.MapNode); ok {
		if it := m.MapRange(); it.Next() {
			n = it.Key()
		}
	}
	if n == nil || n.GetToken() == nil {
		return s.at(nil)
	}
	return s.at(n.GetToken().Position)
}

func (s *source) at(p *token.Position) string {
	if p == nil {
		return s.file + ":1:1"
	}
	return fmt.Sprintf("%s:%d:%d", s.file, p.Line, p.Column)
}

// parse reads the one document that text must be.
func (s *source) parse(text []byte) ast.Node {
	if len(text) > MaxFile {
		s.fail(nil, "", "%d bytes are more than %d", len(text), MaxFile)
		return nil
	}
	if !shallow(text) {
		s.fail(nil, "", "too many brackets or dashes within each other")
		return nil
	}
	if json.Valid(text) {
		text = bytes.ReplaceAll(text, []byte("\t"), []byte(" ")) // which YAML does not take for space
	}
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		var at yaml.Error
		if errors.As(err, &at) && at.GetToken() != nil {
			s.bad = &Problem{s.at(at.GetToken().Position), at.GetMessage(), ""}
			return nil
		}
		s.fail(nil, "", "not YAML")
		return nil
	}
	switch {
	case len(file.Docs) > 1:
		s.fail(file.Docs[1].Body, "", "a second document; a translation is one")
		return nil
	case len(file.Docs) == 0 || file.Docs[0].Body == nil:
		s.fail(nil, seeExample, "the file is empty")
		return nil
	}
	return file.Docs[0].Body
}

// shallow keeps from the parser what it takes quadratic time for.
func shallow(text []byte) bool {
	depth, deepest := 0, 0
	for _, c := range text {
		switch c {
		case '[', '{':
			depth++
		case ']', '}':
			depth--
		}
		deepest = max(deepest, depth)
	}
	for line := range bytes.Lines(text) {
		deepest = max(deepest, bytes.Count(line, []byte("- ")), bytes.Count(line, []byte("? ")))
	}
	return deepest <= 4*rule.MaxDepth
}

// fields returns the fields of n by name: the required ones and any of others.
func (s *source) fields(n ast.Node, required []string, others ...string) map[string]ast.Node {
	m, ok := n.(ast.MapNode)
	if !ok {
		s.fail(n, seeExample, "a mapping is wanted here, with %s", strings.Join(append(required, others...), ", "))
		return nil
	}
	out := map[string]ast.Node{}
	for it := m.MapRange(); it.Next(); {
		name := it.Key().GetToken().Value
		if !slices.Contains(required, name) && !slices.Contains(others, name) {
			s.fail(it.Key(), "Allowed: "+strings.Join(append(required, others...), ", ")+".", "unknown field %q", name)
		}
		out[name] = it.Value()
	}
	for _, name := range required {
		if _, there := out[name]; !there {
			s.fail(n, seeExample, "field %q is missing", name)
		}
	}
	return out
}

func (s *source) list(n ast.Node) []ast.Node {
	sequence, ok := n.(*ast.SequenceNode)
	if !ok {
		s.fail(n, "", "a list is wanted here")
		return nil
	}
	return sequence.Values
}

// text returns a scalar that is written as text.
func (s *source) text(n ast.Node) string {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value
	case *ast.LiteralNode:
		return n.Value.Value
	}
	s.fail(n, "Maybe in quotes.", "text is wanted here")
	return ""
}

// value returns n as a JSON value, as [rule.Decode] would, with the digits of
// numbers as they are written.
func (s *source) value(n ast.Node, depth int) any {
	if depth > rule.MaxDepth {
		s.fail(n, "", "more than %d values within each other", rule.MaxDepth)
		return nil
	}
	switch n := n.(type) {
	case ast.MapNode:
		out := map[string]any{}
		for it := n.MapRange(); it.Next(); {
			out[s.key(it.Key())] = s.value(it.Value(), depth+1)
		}
		return out
	case *ast.SequenceNode:
		out := []any{}
		for _, v := range n.Values {
			out = append(out, s.value(v, depth+1))
		}
		return out
	case *ast.NullNode:
		return nil
	case *ast.BoolNode:
		return n.Value
	case *ast.IntegerNode:
		return number(n, n.Value)
	case *ast.FloatNode:
		return number(n, n.Value)
	case *ast.LiteralNode:
		return n.Value.Value
	case *ast.StringNode:
		if n.Token.Type == token.StringType && isNumber(n.Value) { // too big for the parser
			return json.Number(n.Value)
		}
		return n.Value
	}
	s.fail(n, "Write it out.", "anchors, aliases, tags and non-finite numbers have no JSON form")
	return nil
}

// key returns the name of a field as it is written.
func (s *source) key(n ast.MapKeyNode) string {
	scalar, ok := n.(ast.ScalarNode)
	if !ok || n.IsMergeKey() {
		s.fail(n, "", "a name is wanted here")
		return ""
	}
	return scalar.GetToken().Value
}

// number keeps what is a JSON number, and translates 0x10 or 1_000.
func number(n ast.Node, v any) json.Number {
	if text := n.GetToken().Value; isNumber(text) {
		return json.Number(text)
	}
	return json.Number(fmt.Sprint(v))
}

func isNumber(s string) bool {
	return s != "" && (s[0] == '-' || s[0] >= '0' && s[0] <= '9') && json.Valid([]byte(s))
}
