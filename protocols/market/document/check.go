package document

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/Masterminds/semver/v3"
	"github.com/ipfs/go-cid"

	"openmesh/protocols/identity"
	"openmesh/protocols/schema"
	"openmesh/protocols/wire"
)

// ParseRFP reads a request. Errors are those of [Check].
func ParseRFP(doc []byte) (*RFP, error) { return parse[RFP](SchemaRFP, doc) }

// ParseContract reads a contract. Errors are those of [Check].
func ParseContract(doc []byte) (*Contract, error) { return parse[Contract](SchemaContract, doc) }

// ParseProposal reads an offer of either version, and returns it as v2.1.0.
// Errors are those of [Check].
func ParseProposal(schema string, doc []byte) (*Proposal, error) {
	if schema != SchemaProposalV1 {
		return parse[Proposal](SchemaProposal, doc)
	}
	if err := Check(schema, doc); err != nil {
		return nil, err
	}
	newer, err := upgrade(doc)
	if err != nil {
		return nil, err
	}
	return parse[Proposal](SchemaProposal, newer)
}

func parse[T any](schema string, doc []byte) (*T, error) {
	if err := Check(schema, doc); err != nil {
		return nil, err
	}
	v := new(T)
	if err := json.Unmarshal(doc, v); err != nil {
		return nil, wire.Errorf(wire.InvalidRequest, "%s: %w", schema, err)
	}
	return v, nil
}

// Check checks a document: canonical form, the built-in schema of that name, and
// what the schema cannot say. Errors are [*wire.Error]: wire.Malformed and
// wire.TooLarge as with [CheckCanonical]; wire.InvalidRequest with JSON pointers;
// wire.NoCommonSchema for a schema that is not built in.
func Check(name string, doc []byte) error {
	s, ok := compiled()[name]
	if !ok {
		return wire.Errorf(wire.NoCommonSchema, "documents of schema %.140q are not known here", name).
			WithHint("Known are %s.", strings.Join(names(), ", "))
	}
	v, err := decodeCanonical(doc, MaxDocument)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if _, err := s.Validate(doc, schema.JSON); err != nil {
		return invalid(name, "", err)
	}
	return semantics(name, v)
}

// ValidateDetails checks the details of a request or offer against the JSON Schema
// that they name, given its text. Errors are [*wire.Error]: wire.InvalidRequest with
// pointers into the document, wire.InvalidArgument for a text that is no schema.
func ValidateDetails(text []byte, details json.RawMessage) error {
	s, err := schema.CompileJSON(text)
	if err != nil {
		return wire.Errorf(wire.InvalidArgument, "schema of details: %w", err)
	}
	if _, err := s.Validate(details, schema.JSON); err != nil {
		return invalid("details", "/details", err)
	}
	return nil
}

// invalid reports a violation of a schema by a value at the given place.
func invalid(what, at string, err error) error {
	refused := wire.Errorf(wire.InvalidRequest, "%s: %w", what, err)
	if bad, ok := errors.AsType[*schema.Invalid](err); ok {
		for _, p := range bad.Pointers {
			refused.Pointers = append(refused.Pointers, at+p)
		}
	}
	return refused
}

// refuse is an error about the value at a JSON pointer.
func refuse(at string, format string, args ...any) *wire.Error {
	err := wire.Errorf(wire.InvalidRequest, "%s: "+format, append([]any{place(at)}, args...)...)
	err.Pointers = []string{at}
	return err
}

func place(at string) string {
	if at == "" {
		return "the document"
	}
	return at
}

// rule is what a value has to be that is there.
type rule struct {
	at string
	ok func(string) bool
	is string
}

// rules returns what the schema of that name cannot say of single values.
func rules(name string) []rule {
	timeAt := func(at string) rule { return rule{at, isTime, "a time such as 2026-01-02T03:04:05Z (RFC 3339)"} }
	agentAt := func(at string) rule { return rule{at, isAgent, "an agent id"} }
	currencyAt := func(at string) rule { return rule{at, IsCurrency, "a currency code of ISO 4217"} }
	schemaAt := rule{"/details_schema/cid", isCID, "a CIDv1 (raw, sha2-256)"}
	versionAt := func(at string) rule { return rule{at, isRange, "a range of semantic versions"} }
	switch name {
	case SchemaRFP:
		return []rule{agentAt("/buyer"), currencyAt("/price/currency"), timeAt("/delivery/by"), timeAt("/deadline"),
			timeAt("/created"), versionAt("/version"), schemaAt}
	case SchemaProposal:
		return []rule{agentAt("/seller"), agentAt("/buyer"), currencyAt("/terms/price/currency"),
			timeAt("/terms/delivery/by"), timeAt("/valid_until"), schemaAt}
	case SchemaProposalV1:
		return []rule{agentAt("/seller"), agentAt("/buyer"), currencyAt("/currency"), timeAt("/delivery_by"), timeAt("/expires")}
	}
	return []rule{agentAt("/seller/agent"), agentAt("/buyer/agent"), {"/seller/address", isAddress, "an address"},
		{"/buyer/address", isAddress, "an address"}, currencyAt("/terms/price/currency"), timeAt("/terms/delivery/by"),
		versionAt("/terms/version"), timeAt("/valid_from"), timeAt("/valid_until")}
}

func semantics(name string, v any) error {
	var bad *wire.Error
	add := func(at, is string) {
		if bad == nil {
			bad = refuse(at, "is not %s", is)
			bad.Message = name + ": " + bad.Message
			return
		}
		bad.Pointers = append(bad.Pointers, at)
	}
	for _, r := range rules(name) {
		if s, there := text(v, r.at); there && !r.ok(s) {
			add(r.at, r.is)
		}
	}
	if bad == nil {
		relations(name, v, add)
	}
	if bad == nil {
		return nil
	}
	return bad
}

// relations checks values against each other.
func relations(name string, v any, add func(at, is string)) {
	later := func(at, than string) {
		a, _ := text(v, at)
		b, _ := text(v, than)
		if !stamp(a).After(stamp(b)) {
			add(at, "later than "+than)
		}
	}
	switch name {
	case SchemaRFP:
		later("/deadline", "/created")
		low, _ := text(v, "/price/min")
		high, bounded := text(v, "/price/max")
		if bounded && (Decimal{low}).Cmp(Decimal{high}) > 0 {
			add("/price/max", "at least /price/min")
		}
	case SchemaContract:
		later("/valid_until", "/valid_from")
	}
}

// text finds the string at a pointer through objects.
func text(v any, at string) (string, bool) {
	for _, name := range strings.Split(at, "/")[1:] {
		object, _ := v.(map[string]any)
		v = object[name]
	}
	s, ok := v.(string)
	return s, ok
}

func isTime(s string) bool {
	var t time.Time
	return t.UnmarshalText([]byte(s)) == nil // stricter than time.Parse
}

func stamp(s string) time.Time {
	t, _ := time.Parse(time.RFC3339, s)
	return t
}

func isAgent(s string) bool {
	_, err := identity.ParseAgentID(s)
	return err == nil
}

func isAddress(s string) bool {
	a, err := identity.ParseAddress(s)
	return err == nil && a.String() == s
}

func isRange(s string) bool {
	_, err := semver.NewConstraint(s)
	return err == nil
}

func isCID(s string) bool {
	c, err := cid.Decode(s)
	return err == nil && c.Version() == 1 && c.Prefix() == prefix && c.String() == s
}
