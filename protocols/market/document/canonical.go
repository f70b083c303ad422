package document

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"openmesh/protocols/wire"
)

// MaxDepth bounds how many arrays and objects are within each other.
const MaxDepth = 32

// maxInteger is the largest integer that every JSON implementation has (I-JSON,
// RFC 7493): 2^53 - 1.
const maxInteger = 1<<53 - 1

// Canonical rewrites JSON in its canonical form (JSON Canonicalization Scheme, RFC
// 8785): no white space, members in the order of their names in UTF-16, strings with
// as few escapes as there can be. Numbers have to be integers of at most 53 bits,
// whose canonical form is that of all programs; a fraction belongs in a string.
// Names that occur twice and lone surrogates are refused.
//
// Errors are [*wire.Error]: wire.TooLarge for more than limit bytes, wire.Malformed
// for what is no JSON, wire.InvalidRequest with a pointer for what has no canonical
// form.
func Canonical(text []byte, limit int) ([]byte, error) {
	v, err := decode(text, limit)
	if err != nil {
		return nil, err
	}
	return appendValue(make([]byte, 0, len(text)), v), nil
}

// CheckCanonical reports where text is not in canonical form; errors are those of
// [Canonical], and wire.Malformed with the first byte that should be another.
func CheckCanonical(text []byte, limit int) error {
	_, err := decodeCanonical(text, limit)
	return err
}

func decodeCanonical(text []byte, limit int) (any, error) {
	v, err := decode(text, limit)
	if err != nil {
		return nil, err
	}
	want := appendValue(make([]byte, 0, len(text)), v)
	if i := firstDifference(text, want); i >= 0 {
		return nil, wire.Errorf(wire.Malformed, "not canonical JSON (RFC 8785) from byte %d on", i)
	}
	return v, nil
}

// firstDifference returns the index of the first byte that differs, or -1.
func firstDifference(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	if len(a) == len(b) {
		return -1
	}
	return n
}

// decode reads one JSON value: map[string]any, []any, json.Number (an integer),
// string, bool or nil.
func decode(text []byte, limit int) (any, error) {
	switch {
	case len(text) > limit:
		return nil, wire.Errorf(wire.TooLarge, "%d bytes of JSON, the limit is %d", len(text), limit)
	case !utf8.Valid(text) || !json.Valid(text):
		return nil, wire.Errorf(wire.Malformed, "not JSON in UTF-8")
	case loneSurrogate(text):
		return nil, wire.Errorf(wire.Malformed, "JSON with half of a surrogate pair")
	}
	r := reader{dec: json.NewDecoder(bytes.NewReader(text))}
	r.dec.UseNumber()
	return r.value()
}

// loneSurrogate reports whether a \u escape of valid JSON is half of a pair.
func loneSurrogate(text []byte) bool {
	for {
		i := bytes.IndexByte(text, '\\')
		if i < 0 {
			return false
		}
		text = text[i:]
		switch r := escaped(text); {
		case !utf16.IsSurrogate(r):
			text = text[2:]
		case utf16.DecodeRune(r, escaped(text[6:])) == utf8.RuneError:
			return true
		default:
			text = text[12:]
		}
	}
}

// escaped returns the code unit of the \u escape that text begins with, or 0.
func escaped(text []byte) rune {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return 0
	}
	n, err := strconv.ParseUint(string(text[2:6]), 16, 16)
	if err != nil {
		return 0
	}
	return rune(n)
}

// reader builds the value of valid JSON, and knows where it is.
type reader struct {
	dec  *json.Decoder
	path []string
}

func (r *reader) refuse(format string, args ...any) error {
	return refuse(pointer(r.path), format, args...)
}

func (r *reader) value() (any, error) {
	tok, err := r.dec.Token()
	if err != nil {
		return nil, wire.Errorf(wire.Malformed, "not JSON: %w", err)
	}
	switch tok := tok.(type) {
	case json.Delim:
		if len(r.path) == MaxDepth {
			return nil, r.refuse("more than %d values within each other", MaxDepth)
		}
		if tok == '{' {
			return r.object()
		}
		return r.array()
	case json.Number:
		return tok, r.integer(string(tok))
	}
	return tok, nil
}

func (r *reader) integer(s string) error {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n > maxInteger || n < -maxInteger || s == "-0" {
		return r.refuse("a number that is not an integer of 53 bits; write it as a string")
	}
	return nil
}

func (r *reader) object() (any, error) {
	out := map[string]any{}
	for r.dec.More() {
		tok, err := r.dec.Token()
		if err != nil {
			return nil, wire.Errorf(wire.Malformed, "not JSON: %w", err)
		}
		name := tok.(string)
		r.path = append(r.path, name)
		if _, twice := out[name]; twice {
			return nil, r.refuse("is there twice")
		}
		if out[name], err = r.value(); err != nil {
			return nil, err
		}
		r.path = r.path[:len(r.path)-1]
	}
	_, err := r.dec.Token()
	return out, err
}

func (r *reader) array() (any, error) {
	out := []any{}
	for r.dec.More() {
		r.path = append(r.path, strconv.Itoa(len(out)))
		v, err := r.value()
		if err != nil {
			return nil, err
		}
		out = append(out, v)
		r.path = r.path[:len(r.path)-1]
	}
	_, err := r.dec.Token()
	return out, err
}

// appendValue writes what decode returns.
func appendValue(b []byte, v any) []byte {
	switch v := v.(type) {
	case map[string]any:
		b = append(b, '{')
		for i, name := range slices.SortedFunc(maps.Keys(v), compareUTF16) {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendString(b, name), ':')
			b = appendValue(b, v[name])
		}
		return append(b, '}')
	case []any:
		b = append(b, '[')
		for i, e := range v {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendValue(b, e)
		}
		return append(b, ']')
	case string:
		return appendString(b, v)
	case json.Number:
		return append(b, v...)
	case bool:
		return strconv.AppendBool(b, v)
	}
	return append(b, "null"...)
}

func compareUTF16(a, b string) int {
	return slices.Compare(utf16.Encode([]rune(a)), utf16.Encode([]rune(b)))
}

// appendString writes a string as ECMAScript's JSON.stringify does.
func appendString(b []byte, s string) []byte {
	const short = "\b\t\n\f\r\"\\"
	const letters = `btnfr"\`
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case strings.IndexByte(short, c) >= 0:
			b = append(b, '\\', letters[strings.IndexByte(short, c)])
		case c < ' ':
			b = fmt.Appendf(b, `\u%04x`, c)
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}
