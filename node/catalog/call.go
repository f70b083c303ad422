package catalog

import (
	"bytes"
	"encoding/json"

	"openmesh/protocols/wire"
)

// Capability is the reserved capability by which agents ask each other for
// schemas: {"cid": "bafk…"} → {"schema": "{…}"}. Bodies are at most [MaxBody]
// bytes; the text of a schema travels as a string, so that its bytes stay as
// they are.
const Capability = "openmesh/schema"

// MaxBody bounds a request and a response, in bytes: a schema with its quotes
// escaped.
const MaxBody = 64 << 10

type request struct {
	CID string `json:"cid"`
}

type response struct {
	Schema *string `json:"schema"`
}

// Question returns the body of a request for a CID.
func Question(id string) []byte {
	b, err := json.Marshal(request{id})
	if err != nil {
		panic(err) // a string can always be encoded
	}
	return b
}

// Answer returns the body of the response to a request. The error is
// wire.Malformed, wire.TooLarge or one of [Catalog.Serve].
func (g *Catalog) Answer(body []byte) ([]byte, error) {
	if len(body) > MaxBody {
		return nil, wire.Errorf(wire.TooLarge, "a request for a schema of %d bytes", len(body))
	}
	var r request
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, wire.Errorf(wire.Malformed, "a request for a schema is not JSON: %w", err)
	}
	text, err := g.Serve(r.CID)
	if err != nil {
		return nil, err
	}
	s, out := string(text), new(bytes.Buffer)
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false) // it would make six bytes of a <
	if err := enc.Encode(response{&s}); err != nil {
		return nil, wire.Errorf(wire.Internal, "answer with schema %s: %w", r.CID, err)
	}
	if out.Len() > MaxBody {
		return nil, wire.Errorf(wire.TooLarge, "schema %s with its quotes escaped has %d bytes; the limit is %d", r.CID, out.Len(), MaxBody)
	}
	return out.Bytes(), nil
}

// ReadAnswer returns the text in the body of a response: what a peer says, to be
// compared with the CID by [Catalog.Fetch]. The error is wire.InvalidResponse.
func ReadAnswer(body []byte) ([]byte, error) {
	if len(body) > MaxBody {
		return nil, wire.Errorf(wire.InvalidResponse, "an answer of %d bytes; the limit is %d", len(body), MaxBody)
	}
	var r response
	if err := json.Unmarshal(body, &r); err != nil || r.Schema == nil {
		return nil, wire.Errorf(wire.InvalidResponse, "the answer is not {\"schema\": text}")
	}
	return []byte(*r.Schema), nil
}
