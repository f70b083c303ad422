// Package schema checks the bodies of requests and responses against the
// schema that a capability declares: a JSON Schema (draft 2020-12,
// https://json-schema.org/draft/2020-12) or a Protobuf message.
//
// A [Schema] is compiled once and then used by any number of goroutines. It
// does no I/O: references reach no further than the schema's own document and
// the built-in meta-schemas.
//
// Bodies come from peers and are bounded, by [MaxDepth] and by the length of
// their numbers. Schemas come from the node's own operator: they are bounded by
// [MaxSchema], but may ask for as much work as they like. One that refers to
// itself more than once for the same member takes time exponential in the depth
// of the body.
//
// What a body is checked for:
//
//	           JSON body                   Protobuf body
//	nil        well-formed JSON            refused
//	JSON       well-formed, fits           refused
//	Protobuf   ProtoJSON, no unknown       wire format, unknown
//	           fields                      fields allowed
package schema

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// Limits on schemas and bodies.
const (
	MaxSchema   = 32 << 10 // bytes of a schema: JSON text, or descriptor set
	MaxDepth    = 128      // arrays and objects, or messages, within each other
	MaxPointers = 16       // pointers reported for one body
	maxPointer  = 512      // bytes of one pointer; a longer one is cut to a parent
	maxNumber   = 1024     // bytes of a number
	maxExponent = 1024     // of a number, either sign
)

// ErrMalformed is wrapped by an [Invalid] whose body cannot be decoded at all.
var ErrMalformed = errors.New("malformed")

// Encoding is how a body is written. The numbers are those of the wire.
type Encoding uint32

// The encodings.
const (
	JSON     Encoding = 1
	Protobuf Encoding = 2
)

// String returns "json", "protobuf" or the number.
func (e Encoding) String() string {
	switch e {
	case JSON:
		return "json"
	case Protobuf:
		return "protobuf"
	}
	return fmt.Sprintf("encoding %d", uint32(e))
}

// Invalid reports a body that breaks its schema.
type Invalid struct {
	// Pointers (RFC 6901) lead to the offending values, or to where a required
	// one is missing: at least one, at most [MaxPointers], none twice, sorted
	// as text. A body that cannot be decoded has the one pointer "".
	Pointers []string
	// Reasons says for each pointer what is wrong; it quotes no values.
	Reasons []string
	// Err is the cause, if there is one.
	Err error
}

func (e *Invalid) Error() string {
	parts := make([]string, len(e.Pointers))
	for i, p := range e.Pointers {
		if p == "" {
			p = "the body"
		}
		parts[i] = p + ": " + e.Reasons[i]
	}
	return strings.Join(parts, "; ")
}

// Unwrap returns the cause.
func (e *Invalid) Unwrap() error { return e.Err }

// malformed is an Invalid for a body that cannot be decoded.
func malformed(format string, args ...any) *Invalid {
	return &Invalid{Pointers: []string{""}, Reasons: []string{fmt.Sprintf(format, args...)}, Err: ErrMalformed}
}

// Schema is a compiled schema. The nil Schema accepts any JSON.
type Schema struct {
	json  *jsonschema.Schema             // nil for Protobuf
	desc  protoreflect.MessageDescriptor // nil for JSON Schema
	types *dynamicpb.Types               // what extensions and Any may refer to
}

// IsProto reports whether s is a Protobuf message, so that bodies can be
// converted between encodings.
func (s *Schema) IsProto() bool { return s != nil && s.desc != nil }

// Validate checks body, which is in encoding enc. If the body breaks the
// schema, err is an [*Invalid] and pointers are its pointers; otherwise both
// are nil.
func (s *Schema) Validate(body []byte, enc Encoding) (pointers []string, err error) {
	if inv := s.check(body, enc); inv != nil {
		return inv.Pointers, inv
	}
	return nil, nil
}

func (s *Schema) check(body []byte, enc Encoding) *Invalid {
	switch {
	case s.IsProto():
		_, inv := s.message(body, enc)
		return inv
	case enc != JSON:
		return malformed("the schema says nothing of encoding %s", enc)
	}
	if s == nil && json.Valid(body) && utf8.Valid(body) {
		return nil // nothing to compare it with: need not be decoded
	}
	v, inv := decode(body)
	if inv != nil || s == nil {
		return inv
	}
	return validate(s.json, v)
}

// Convert checks body like [Schema.Validate] and returns it in encoding to,
// decoding it only once. The JSON is ProtoJSON
// (https://protobuf.dev/programming-guides/json). With from equal to to, the
// result is body itself. The error is an [*Invalid].
func (s *Schema) Convert(body []byte, from, to Encoding) ([]byte, error) {
	if !s.IsProto() || from == to {
		if to != from {
			return nil, malformed("no Protobuf schema to convert from %s to %s", from, to)
		}
		if inv := s.check(body, from); inv != nil {
			return nil, inv
		}
		return body, nil
	}
	m, inv := s.message(body, from)
	if inv != nil {
		return nil, inv
	}
	if to == Protobuf {
		return proto.MarshalOptions{Deterministic: true}.Marshal(m)
	}
	return s.text(m)
}
