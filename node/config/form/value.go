// Package form knows how settings are written: as YAML scalars, lists and maps,
// or on one line in the environment and flags. A [Codec] turns what was written
// into a Go value and back, and says what is allowed.
package form

import (
	"fmt"
	"strings"
)

// Place is where a value was written.
type Place struct {
	Source       string // file name, "environment variable X" or "flag x"
	Line, Column int    // from 1; 0 where the source is no file
}

// String returns "source:line:column", or the source alone.
func (p Place) String() string {
	if p.Line == 0 {
		return p.Source
	}
	return fmt.Sprintf("%s:%d:%d", p.Source, p.Line, p.Column)
}

// Shape is the form of a value.
type Shape int

// The shapes.
const (
	Scalar  Shape = iota
	Listing       // values without names
	Mapping       // values with names
	Nothing       // YAML null
	Foreign       // YAML that configuration has no use for
)

// String describes the shape, such as "a list".
func (s Shape) String() string {
	return [...]string{"one value", "a list", "a map", "nothing", "an anchor, alias or tag"}[s]
}

// Value is a setting as it is written, before it is understood.
type Value struct {
	At    Place
	Shape Shape
	Name  string  // in a mapping
	Text  string  // of a scalar
	Items []Value // of a listing or mapping
}

// ParseText reads the one-line form that the environment and flags use:
// "a,b" is a list, "x=a,b;y=c" a map of lists. An entry of a map without "=" stays
// a scalar, for the codec to refuse.
func ParseText(text string, s Shape, at Place) Value {
	v := Value{At: at, Shape: s, Text: text}
	switch s {
	case Listing:
		v.Text, v.Items = "", split(text, ",", at)
	case Mapping:
		v.Text, v.Items = "", split(text, ";", at)
		for i, item := range v.Items {
			if name, members, ok := strings.Cut(item.Text, "="); ok {
				v.Items[i] = ParseText(members, Listing, at)
				v.Items[i].Name = strings.TrimSpace(name)
			}
		}
	}
	return v
}

// split cuts text into scalars; blank text is none.
func split(text, sep string, at Place) []Value {
	if strings.TrimSpace(text) == "" {
		return nil
	}
	var items []Value
	for part := range strings.SplitSeq(text, sep) {
		items = append(items, Value{At: at, Text: strings.TrimSpace(part)})
	}
	return items
}

// String is the inverse of [ParseText].
func (v Value) String() string {
	var parts []string
	for _, item := range v.Items {
		parts = append(parts, item.String())
	}
	switch v.Shape {
	case Listing:
		members := strings.Join(parts, ",")
		if v.Name != "" {
			return v.Name + "=" + members
		}
		return members
	case Mapping:
		return strings.Join(parts, ";")
	}
	return v.Text
}
