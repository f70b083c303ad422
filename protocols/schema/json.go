package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
)

// CompileJSON compiles a JSON Schema, draft 2020-12. Formats are annotations, as
// that draft has it; patterns are RE2 (https://github.com/google/re2/wiki/Syntax).
// Errors say what in the schema is wrong, and may quote it.
func CompileJSON(text []byte) (*Schema, error) {
	if len(text) > MaxSchema {
		return nil, fmt.Errorf("compile JSON schema: %d bytes are more than %d", len(text), MaxSchema)
	}
	doc, inv := decode(text)
	if inv != nil {
		return nil, fmt.Errorf("compile JSON schema: %w", inv)
	}
	s, err := compile(doc)
	if err != nil {
		return nil, fmt.Errorf("compile JSON schema: %w", err)
	}
	return &Schema{json: s}, nil
}

func compile(doc any) (*jsonschema.Schema, error) {
	const url = "mem:///schema"
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.UseLoader(closed{})
	if err := c.AddResource(url, doc); err != nil {
		return nil, err
	}
	s, err := c.Compile(url)
	if err != nil {
		return nil, explain(err)
	}
	if s.DraftVersion != 2020 {
		return nil, fmt.Errorf("draft %d is not supported: only 2020-12 is", s.DraftVersion)
	}
	return s, nil
}

// closed refuses to load anything.
type closed struct{}

func (closed) Load(url string) (any, error) {
	return nil, fmt.Errorf("%s is outside of the document", url)
}

// explain makes one line of a meta-schema violation.
func explain(err error) error {
	const longest = 200
	violation, ok := errors.AsType[*jsonschema.SchemaValidationError](err)
	if !ok {
		return err
	}
	v, ok := errors.AsType[*jsonschema.ValidationError](violation.Err)
	if !ok {
		return err
	}
	for len(v.Causes) > 0 {
		v = v.Causes[0]
	}
	what := v.ErrorKind.LocalizedString(message.NewPrinter(language.English))
	return fmt.Errorf("not a schema at %q: %.*s", pointer(v.InstanceLocation), longest, what)
}

// decode reads one JSON value (RFC 8259) that is all of body. Numbers become
// [json.Number].
func decode(body []byte) (any, *Invalid) {
	if !utf8.Valid(body) {
		return nil, malformed("not UTF-8")
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return nil, malformed("not JSON: %v", err)
	}
	if err := bound(v, 0); err != nil {
		return nil, malformed("%v", err)
	}
	return v, nil
}

// bound checks that v is not too deep, and its numbers not too long: they are
// compared exactly, so that 1e999999 would cost a million digits, and
// [math/big.Rat], which the library relies on, refuses still larger exponents.
func bound(v any, depth int) error {
	var parts iter.Seq[any]
	switch v := v.(type) {
	case json.Number:
		return boundNumber(string(v))
	case []any:
		parts = slices.Values(v)
	case map[string]any:
		parts = maps.Values(v)
	default:
		return nil
	}
	if depth == MaxDepth {
		return fmt.Errorf("more than %d values within each other", MaxDepth)
	}
	for part := range parts {
		if err := bound(part, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func boundNumber(s string) error {
	ok := len(s) <= maxNumber
	if i := strings.IndexAny(s, "eE"); ok && i >= 0 {
		n, err := strconv.Atoi(s[i+1:])
		ok = err == nil && -maxExponent <= n && n <= maxExponent
	}
	if !ok {
		return fmt.Errorf("a number of more than %d bytes or with an exponent beyond ±%d", maxNumber, maxExponent)
	}
	return nil
}

// validate evaluates a decoded body.
func validate(s *jsonschema.Schema, v any) *Invalid {
	err := s.Validate(v)
	if err == nil {
		return nil
	}
	tree, ok := errors.AsType[*jsonschema.ValidationError](err)
	if !ok {
		return &Invalid{Pointers: []string{""}, Reasons: []string{"cannot be evaluated"}, Err: err}
	}
	inv := new(Invalid) // without the cause, which quotes values
	inv.collect(tree, nil)
	return inv
}

// collect adds the leaves of tree, an error within a value at the place around.
func (e *Invalid) collect(tree *jsonschema.ValidationError, around []string) {
	at, why := tree.InstanceLocation, "is not allowed"
	var members []string
	switch k := tree.ErrorKind.(type) {
	case *kind.Required:
		members, why = k.Missing, "is missing"
	case *kind.DependentRequired:
		members, why = k.Missing, "is missing"
	case *kind.Dependency:
		members, why = k.Missing, "is missing"
	case *kind.AdditionalProperties:
		members = k.Properties
	case *kind.PropertyNames:
		why = "has a name that is not allowed"
		// The library goes on to write over this place, all but its length.
		if len(at) == len(around) {
			members = []string{k.Property}
		}
		at = around
	default:
		for _, cause := range tree.Causes {
			e.collect(cause, at)
		}
		if len(tree.Causes) > 0 {
			return
		}
		if path := k.KeywordPath(); len(path) > 0 {
			why = fmt.Sprintf("breaks %q", path[0])
		}
	}
	if members == nil {
		e.add(pointer(at), why)
	}
	for _, name := range members {
		e.add(pointer(append(slices.Clip(at), name)), why)
	}
}

// add keeps the first [MaxPointers] in order, and one reason for each, so that
// the report does not depend on the order of evaluation, which is random.
func (e *Invalid) add(p, why string) {
	i, known := slices.BinarySearch(e.Pointers, p)
	if known {
		e.Reasons[i] = min(e.Reasons[i], why)
		return
	}
	e.Pointers, e.Reasons = slices.Insert(e.Pointers, i, p), slices.Insert(e.Reasons, i, why)
	n := min(len(e.Pointers), MaxPointers)
	e.Pointers, e.Reasons = e.Pointers[:n], e.Reasons[:n]
}

// pointer joins steps as in RFC 6901.
func pointer(steps []string) string {
	var b strings.Builder
	for _, s := range steps {
		s = strings.ReplaceAll(strings.ReplaceAll(s, "~", "~0"), "/", "~1")
		if b.Len()+1+len(s) > maxPointer {
			break
		}
		b.WriteByte('/')
		b.WriteString(s)
	}
	return b.String()
}
