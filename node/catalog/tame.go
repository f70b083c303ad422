package catalog

import (
	"encoding/json"
	"strconv"
	"strings"

	"openmesh/protocols/wire"
)

// maxWork bounds the values of a schema after each reference in it has been
// replaced by what it refers to: about what validating one value costs.
const maxWork = 2000

// tame refuses schemas of strangers that could make validation take for ever. A
// reference may only be a pointer into the same document (#/$defs/item), none may
// lead back to itself, and written out in full the schema must stay small:
// otherwise forty lines, each referring twice to the next, are 2⁴⁰ checks.
// Schemas of the operator's own may do all that.
func tame(text []byte) error {
	var doc any
	if err := json.Unmarshal(text, &doc); err != nil {
		return wire.Errorf(wire.Malformed, "not JSON: %w", err)
	}
	w := &weigher{doc: doc, known: make(map[string]int)}
	n, err := w.weigh(doc, 0)
	if err == nil && n > maxWork {
		err = errHeavy()
	}
	return err
}

func errHeavy() error {
	return wire.Errorf(wire.Unsupported, "with its references written out the schema has more than %d values", maxWork)
}

// weigher counts values. What a pointer leads to is counted once.
type weigher struct {
	doc   any
	known map[string]int // by pointer; underWay while it is being counted
}

const (
	underWay = -1
	maxDepth = 64 // of values, references followed
)

func (w *weigher) weigh(v any, depth int) (int, error) {
	if depth > maxDepth {
		return 0, wire.Errorf(wire.Unsupported, "more than %d values within each other", maxDepth)
	}
	total := 1
	add := func(part any) error {
		n, err := w.weigh(part, depth+1)
		if total += n; err == nil && total > maxWork {
			err = errHeavy()
		}
		return err
	}
	switch v := v.(type) {
	case []any:
		for _, part := range v {
			if err := add(part); err != nil {
				return 0, err
			}
		}
	case map[string]any:
		for key, part := range v {
			if err := add(part); err != nil {
				return 0, err
			}
			n, err := w.reference(key, part, depth)
			if err != nil {
				return 0, err
			}
			total += n
		}
	}
	if total > maxWork {
		return 0, errHeavy()
	}
	return total, nil
}

// reference weighs what a member refers to, if it is a reference. A property that
// is merely called $ref has an object for a value, and is none.
func (w *weigher) reference(key string, value any, depth int) (int, error) {
	target, isText := value.(string)
	if !isText {
		return 0, nil
	}
	switch key {
	case "$dynamicRef", "$recursiveRef", "$id", "$anchor", "$dynamicAnchor", "$vocabulary":
		if key == "$id" && depth == 0 {
			return 0, nil // the document's own name
		}
		return 0, wire.Errorf(wire.Unsupported, "%s is not taken from peers", key)
	case "$ref":
		return w.follow(target, depth)
	}
	return 0, nil
}

func (w *weigher) follow(target string, depth int) (int, error) {
	n, ok := w.known[target]
	if n == underWay {
		return 0, wire.Errorf(wire.Unsupported, "the reference %.100q leads back to itself", target)
	}
	if ok {
		return n, nil
	}
	v, err := resolve(w.doc, target)
	if err != nil {
		return 0, err
	}
	w.known[target] = underWay
	n, err = w.weigh(v, depth+1)
	w.known[target] = n
	return n, err
}

// resolve follows a JSON pointer (RFC 6901) in a fragment. Escapes of URIs are
// refused rather than read: one pointer has then one spelling.
func resolve(doc any, target string) (any, error) {
	pointer, ok := strings.CutPrefix(target, "#")
	if !ok || pointer != "" && pointer[0] != '/' || strings.Contains(pointer, "%") {
		return nil, wire.Errorf(wire.Unsupported, "the reference %.100q is no plain pointer into the document", target)
	}
	if pointer == "" {
		return doc, nil
	}
	for step := range strings.SplitSeq(pointer[1:], "/") {
		step = strings.ReplaceAll(strings.ReplaceAll(step, "~1", "/"), "~0", "~")
		var err error
		if doc, err = member(doc, step); err != nil {
			return nil, err
		}
	}
	return doc, nil
}

func member(v any, step string) (any, error) {
	switch v := v.(type) {
	case map[string]any:
		if part, ok := v[step]; ok {
			return part, nil
		}
	case []any:
		if i, err := strconv.Atoi(step); err == nil && i >= 0 && i < len(v) {
			return v[i], nil
		}
	}
	return nil, wire.Errorf(wire.Malformed, "a reference leads nowhere, at %.100q", step)
}
