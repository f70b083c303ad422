package capability

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"openmesh/node/nearest"
	"openmesh/protocols/schema"
	"openmesh/protocols/wire"
)

// document reads a YAML or JSON file whose every error has a position. The
// first error stays in err, and what is read after it is worthless: callers
// read all they want and look at err once.
type document struct {
	file string
	err  *wire.Error
}

// fail notes an error at node n.
func (d *document) fail(n ast.Node, hint, format string, args ...any) {
	d.failAt(position(n), hint, fmt.Sprintf(format, args...))
}

func (d *document) failAt(p *token.Position, hint, what string) {
	if d.err != nil {
		return
	}
	line, column := 1, 1
	if p != nil {
		line, column = p.Line, p.Column
	}
	d.err = wire.Errorf(wire.InvalidArgument, "%s:%d:%d: %s", d.file, line, column, what).WithHint("%s", hint)
}

// position of a mapping is that of its first key, not of the colon after it.
func position(n ast.Node) *token.Position {
	if m, ok := n.(ast.MapNode); ok {
		if it := m.MapRange(); it.Next() {
			n = it.Key()
		}
	}
	if n == nil || n.GetToken() == nil {
		return nil
	}
	return n.GetToken().Position
}

// parse reads the one YAML document that text must be.
func (d *document) parse(text []byte) ast.Node {
	if len(text) > MaxDocument {
		d.failAt(nil, "Shorten the schemas.", fmt.Sprintf("%d bytes are more than %d", len(text), MaxDocument))
		return nil
	}
	if !shallow(text) {
		d.failAt(nil, "", "too many brackets or dashes within each other")
		return nil
	}
	if json.Valid(text) {
		text = bytes.ReplaceAll(text, []byte("\t"), []byte(" ")) // which YAML does not take for space
	}
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		var at yaml.Error
		if !errors.As(err, &at) || at.GetToken() == nil {
			d.failAt(nil, "", err.Error())
			return nil
		}
		d.failAt(at.GetToken().Position, "", at.GetMessage())
		return nil
	}
	if len(file.Docs) != 1 || file.Docs[0].Body == nil {
		d.failAt(nil, "See: openmesh capability example", fmt.Sprintf("%d documents instead of one", len(file.Docs)))
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
	return deepest <= 2*schema.MaxDepth
}

// mapping returns the fields of n by name, which must be among allowed unless
// that is nil.
func (d *document) mapping(n ast.Node, allowed ...string) map[string]ast.Node {
	m, ok := n.(ast.MapNode)
	if !ok {
		d.fail(n, "", "a mapping is wanted here")
		return nil
	}
	fields := map[string]ast.Node{}
	for it := m.MapRange(); it.Next(); {
		key, ok := it.Key().(ast.ScalarNode)
		if !ok || it.Key().IsMergeKey() {
			d.fail(it.Key(), "", "a name is wanted here")
			return nil
		}
		name := key.GetToken().Value
		if allowed != nil && !slices.Contains(allowed, name) {
			d.fail(key, suggest(name, allowed), "unknown field %q", name)
		}
		fields[name] = it.Value()
	}
	return fields
}

// suggest is a hint for a misspelled word.
func suggest(word string, allowed []string) string {
	if meant := nearest.Word(strings.ToLower(word), allowed); meant != "" {
		return fmt.Sprintf("Did you mean %q?", meant)
	}
	return "Allowed: " + strings.Join(allowed, ", ") + "."
}

// text returns a scalar as it is written; nil is empty.
func (d *document) text(n ast.Node) string {
	switch n := n.(type) {
	case nil:
		return ""
	case *ast.StringNode:
		return n.Value
	case *ast.LiteralNode:
		return n.Value.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return n.GetToken().Value
	}
	d.fail(n, "", "text is wanted here")
	return ""
}

// word is text that must be there.
func (d *document) word(in ast.Node, fields map[string]ast.Node, name string) string {
	n, ok := fields[name]
	if !ok {
		d.fail(in, "See: openmesh capability example", "field %q is missing", name)
		return ""
	}
	s := d.text(n)
	if s == "" {
		d.fail(n, "", "%s is empty", name)
	}
	return s
}

func (d *document) list(n ast.Node) []ast.Node {
	if n == nil {
		return nil
	}
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		d.fail(n, "", "a list is wanted here")
		return nil
	}
	return s.Values
}

func (d *document) texts(n ast.Node) []string {
	var out []string
	for _, e := range d.list(n) {
		out = append(out, d.text(e))
	}
	return out
}

// dictionary returns text by name; nil is nil.
func (d *document) dictionary(n ast.Node) map[string]string {
	if n == nil {
		return nil
	}
	fields := d.mapping(n)
	out := make(map[string]string, len(fields))
	for name, v := range fields {
		out[name] = d.text(v)
	}
	return out
}

// flag is true or false; nil is false.
func (d *document) flag(n ast.Node) bool {
	if n == nil {
		return false
	}
	b, ok := n.(*ast.BoolNode)
	if !ok {
		d.fail(n, "Write true or false.", "true or false is wanted here")
		return false
	}
	return b.Value
}

func (d *document) timeout(n ast.Node) time.Duration {
	if n == nil {
		return DefaultTimeout
	}
	v, err := time.ParseDuration(d.text(n))
	if err != nil || v <= 0 {
		d.fail(n, "Such as 500ms, 60s or 2m.", "%q is not a positive duration", d.text(n))
	}
	return v
}

// json appends n as JSON to b, with numbers as they are written.
func (d *document) json(b *bytes.Buffer, n ast.Node, depth int) {
	if d.err != nil {
		return
	}
	if depth > schema.MaxDepth || b.Len() > schema.MaxSchema {
		d.fail(n, "", "more than %d bytes or than %d values within each other", schema.MaxSchema, schema.MaxDepth)
		return
	}
	switch n := n.(type) {
	case ast.MapNode:
		d.jsonObject(b, n, depth)
	case *ast.SequenceNode:
		b.WriteByte('[')
		for i, v := range n.Values {
			if i > 0 {
				b.WriteByte(',')
			}
			d.json(b, v, depth+1)
		}
		b.WriteByte(']')
	case *ast.NullNode:
		b.WriteString("null")
	case *ast.IntegerNode:
		d.jsonNumber(b, n, n.Value)
	case *ast.FloatNode:
		d.jsonNumber(b, n, n.Value)
	case *ast.BoolNode:
		d.jsonScalar(b, n.Value)
	case *ast.LiteralNode:
		d.jsonScalar(b, n.Value.Value)
	case *ast.StringNode:
		if n.Token.Type == token.StringType && isNumber(n.Value) { // too big for the parser
			b.WriteString(n.Value)
			return
		}
		d.jsonScalar(b, n.Value)
	default:
		d.fail(n, "Write it out.", "anchors, aliases, tags and non-finite numbers have no JSON form")
	}
}

func (d *document) jsonObject(b *bytes.Buffer, n ast.MapNode, depth int) {
	b.WriteByte('{')
	first := true
	for it := n.MapRange(); it.Next(); first = false {
		key, ok := it.Key().(ast.ScalarNode)
		if !ok || it.Key().IsMergeKey() {
			d.fail(it.Key(), "", "a name is wanted here")
			return
		}
		if !first {
			b.WriteByte(',')
		}
		d.jsonScalar(b, key.GetToken().Value)
		b.WriteByte(':')
		d.json(b, it.Value(), depth+1)
	}
	b.WriteByte('}')
}

// jsonNumber keeps what is a JSON number, and translates 0x10 or 1_000.
func (d *document) jsonNumber(b *bytes.Buffer, n ast.Node, value any) {
	if s := n.GetToken().Value; isNumber(s) {
		b.WriteString(s)
		return
	}
	d.jsonScalar(b, value)
}

func (d *document) jsonScalar(b *bytes.Buffer, v any) {
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		d.failAt(nil, "", err.Error())
		return
	}
	b.Truncate(b.Len() - 1) // the encoder's newline
}

func isNumber(s string) bool {
	return s != "" && (s[0] == '-' || s[0] >= '0' && s[0] <= '9') && json.Valid([]byte(s))
}
