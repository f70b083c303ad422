package rule

import (
	"bytes"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Decode reads one document. Objects become map[string]any, arrays []any,
// numbers [json.Number].
func Decode(text []byte) (any, error) {
	switch {
	case len(text) > MaxDocument:
		return nil, tooLarge("%d bytes are more than %d", len(text), MaxDocument)
	case !utf8.Valid(text):
		return nil, misfitf(nil, "is not UTF-8")
	case !json.Valid(text):
		return nil, misfitf(nil, "is not JSON")
	case loneSurrogate(text):
		return nil, misfitf(nil, "has half a surrogate pair in it")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	return read(d, nil)
}

// read reads the value at a place. The text is known to be JSON.
func read(d *json.Decoder, at Pointer) (any, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	open, nests := token.(json.Delim)
	if !nests {
		return token, nil
	}
	if len(at) == MaxDepth {
		return nil, misfitf(nil, "has more than %d values within each other", MaxDepth)
	}
	var v any
	if open == '{' {
		v, err = readObject(d, at)
	} else {
		v, err = readArray(d, at)
	}
	if err == nil {
		_, err = d.Token() // the closing bracket
	}
	return v, err
}

func readObject(d *json.Decoder, at Pointer) (any, error) {
	object := map[string]any{}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, _ := token.(string)
		here := append(at, name)
		if _, twice := object[name]; twice {
			return nil, misfitf(slices.Clone(here), "is there twice")
		}
		if object[name], err = read(d, here); err != nil {
			return nil, err
		}
	}
	return object, nil
}

func readArray(d *json.Decoder, at Pointer) (any, error) {
	array := []any{}
	for i := 0; d.More(); i++ {
		v, err := read(d, append(at, strconv.Itoa(i)))
		if err != nil {
			return nil, err
		}
		array = append(array, v)
	}
	return array, nil
}

// loneSurrogate finds an escape such as \ud83d without its other half, which
// the decoder would replace. The text is known to be JSON.
func loneSurrogate(text []byte) bool {
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			continue
		}
		if i++; text[i] != 'u' {
			continue
		}
		first := escaped(text[i+1:])
		if i += 4; !utf16.IsSurrogate(first) {
			continue
		}
		rest := text[i+1:]
		if !bytes.HasPrefix(rest, []byte(`\u`)) || utf16.DecodeRune(first, escaped(rest[2:])) == unicode.ReplacementChar {
			return true
		}
		i += 6
	}
	return false
}

// escaped reads the four hex digits that text starts with.
func escaped(text []byte) rune {
	n, err := strconv.ParseUint(string(text[:4]), 16, 16)
	if err != nil {
		return unicode.ReplacementChar
	}
	return rune(n)
}

// Encode writes a document, with its names sorted.
func Encode(root any) ([]byte, error) {
	if deeper(root, MaxDepth) {
		return nil, misfitf(nil, "has more than %d values within each other once translated", MaxDepth)
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	if err := e.Encode(root); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

// deeper reports whether more than most values are within each other.
func deeper(v any, most int) bool {
	var parts iter.Seq[any]
	switch v := v.(type) {
	case map[string]any:
		parts = maps.Values(v)
	case []any:
		parts = slices.Values(v)
	default:
		return false
	}
	if most == 0 {
		return true
	}
	for part := range parts {
		if deeper(part, most-1) {
			return true
		}
	}
	return false
}

// clone copies a value that is put into several documents.
func clone(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for name, member := range v {
			out[name] = clone(member)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, element := range v {
			out[i] = clone(element)
		}
		return out
	}
	return v
}

// sizeOf is how many bytes a value has, about.
func sizeOf(v any) int {
	text, err := Encode(v)
	if err != nil {
		return MaxDocument // to be refused
	}
	return len(text)
}

// equal compares JSON values.
func equal(a, b any) bool {
	switch a := a.(type) {
	case map[string]any:
		b, ok := b.(map[string]any)
		return ok && maps.EqualFunc(a, b, equal)
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, equal)
	case json.Number:
		b, ok := b.(json.Number)
		return ok && worth(a) == worth(b)
	}
	return a == b
}

// worth writes what a number is worth in one way only, digits and power of
// ten, without doing arithmetic on what a peer may have made a million digits.
func worth(n json.Number) string {
	text, negative := strings.CutPrefix(string(n), "-")
	mantissa, power, _ := strings.Cut(strings.ToLower(text), "e")
	exponent, err := strconv.Atoi(power)
	if err != nil && power != "" {
		return string(n) // beyond any use; equal to itself
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	digits := strings.TrimLeft(whole+fraction, "0")
	if digits == "" {
		return "0"
	}
	trimmed := strings.TrimRight(digits, "0")
	exponent += len(digits) - len(trimmed) - len(fraction)
	if negative {
		trimmed = "-" + trimmed
	}
	return trimmed + "e" + strconv.Itoa(exponent)
}

// Difference tells the first place where two documents are not equal, or "". at
// is where they stand; nil for whole ones.
func Difference(got, want any, at Pointer) string {
	if equal(got, want) {
		return ""
	}
	g, w := members(got), members(want)
	if g == nil || w == nil {
		return fmt.Sprintf("%s is %s, not %s", at.shown(), excerpt(got), excerpt(want))
	}
	names := slices.Collect(maps.Keys(w))
	names = slices.AppendSeq(names, maps.Keys(g))
	slices.Sort(names)
	for _, name := range names {
		here := at.join(name)
		if _, there := g[name]; !there {
			return fmt.Sprintf("%s is missing", here.shown())
		}
		if _, there := w[name]; !there {
			return fmt.Sprintf("%s is there, but not wanted", here.shown())
		}
		if d := Difference(g[name], w[name], here); d != "" {
			return d
		}
	}
	return fmt.Sprintf("%s is %s, not %s", at.shown(), excerpt(got), excerpt(want)) // {} and []
}

// members are the parts of an object or array by name; nil of a scalar.
func members(v any) map[string]any {
	switch v := v.(type) {
	case map[string]any:
		return v
	case []any:
		out := map[string]any{}
		for i, element := range v {
			out[strconv.Itoa(i)] = element
		}
		return out
	}
	return nil
}

// excerpt shows a value, which only an operator's own may be shown.
func excerpt(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return "?"
	}
	return fmt.Sprintf("%.80s", text)
}
