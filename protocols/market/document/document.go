// Package document is what agents sign when they trade: requests for proposals,
// offers and contracts. It says what such a document looks like, checks one, and
// writes one; it knows nothing of who sends it when.
//
// A document is JSON in canonical form ([Canonical], RFC 8785), so that equal
// documents have equal bytes and one hash. Its first gate is a JSON Schema
// ([Schemas]); what a schema cannot say, such as which codes are currencies, is
// checked after it. Both report JSON pointers.
//
//	market/rfp@v1.0.0       what is wanted, from whom, until when
//	market/proposal@v2.1.0  an offer: of a seller, or a buyer's counteroffer
//	market/proposal@v1.0.0  the same, flat and without details; read as v2.1.0
//	market/contract@v2.0.1  what both sides sign
//
// Amounts are [Decimal] text and all numbers are integers: nothing is rounded on
// the way. A price is for one unit; the total of a contract is price × quantity,
// exactly. Times are RFC 3339. Members that the schema does not name are refused,
// save within details and constraints.
package document

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// MaxDocument bounds a document, in bytes.
const MaxDocument = 32 << 10

// The schemas of documents.
const (
	SchemaRFP        = "market/rfp@v1.0.0"
	SchemaProposal   = "market/proposal@v2.1.0"
	SchemaProposalV1 = "market/proposal@v1.0.0"
	SchemaContract   = "market/contract@v2.0.1"
)

// Hash is a SHA-256. In documents it is written as 64 hexadecimal digits.
type Hash [sha256.Size]byte

// String returns 64 hexadecimal digits, lower case.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// ID returns the first half, 32 digits: what people are shown.
func (h Hash) ID() string { return hex.EncodeToString(h[:len(h)/2]) }

// IsZero reports whether there is no hash.
func (h Hash) IsZero() bool { return h == Hash{} }

// MarshalText writes 64 digits.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads 64 lower-case digits.
func (h *Hash) UnmarshalText(text []byte) error {
	p, err := ParseHash(string(text))
	*h = p
	return err
}

// ParseHash reads what String writes. The error is wire.Malformed.
func ParseHash(s string) (h Hash, err error) {
	if len(s) == hex.EncodedLen(len(h)) {
		if _, err = hex.Decode(h[:], []byte(s)); err == nil && h.String() == s {
			return h, nil
		}
	}
	return Hash{}, wire.Errorf(wire.Malformed, "hash %.70q: want 64 lower-case hexadecimal digits", s)
}

// RFP is a request for proposals: market/rfp@v1.0.0.
type RFP struct {
	Schema        string           `json:"schema"`
	Buyer         identity.AgentID `json:"buyer"`
	Item          string           `json:"item"`
	Quantity      int64            `json:"quantity"` // units, 1 to 10^9
	Price         PriceRange       `json:"price"`
	Delivery      Delivery         `json:"delivery,omitzero"`
	Deadline      time.Time        `json:"deadline"`          // the first offer has to come before
	Capability    string           `json:"capability"`        // what a seller has to offer
	Version       string           `json:"version,omitempty"` // semantic version range of it
	Constraints   Constraints      `json:"constraints,omitzero"`
	Details       json.RawMessage  `json:"details,omitempty"` // an object of the trade's own
	DetailsSchema *SchemaRef       `json:"details_schema,omitempty"`
	Created       time.Time        `json:"created"`
}

// PriceRange is what a buyer would pay for one unit; an end that is not given is open.
type PriceRange struct {
	Min      Decimal `json:"min,omitzero"`
	Max      Decimal `json:"max,omitzero"`
	Currency string  `json:"currency"` // ISO 4217
}

// Delivery says when and how.
type Delivery struct {
	By    time.Time `json:"by,omitzero"`
	Terms string    `json:"terms,omitempty"`
}

// Constraints narrow down who is asked. A list that is empty allows all; members
// beyond these are allowed in the document, and left to whoever knows them.
type Constraints struct {
	Regions       []string          `json:"regions,omitempty"`
	Jurisdictions []string          `json:"jurisdictions,omitempty"`
	Domains       []string          `json:"domains,omitempty"`
	Tags          map[string]string `json:"tags,omitempty"`
	MinTrust      Decimal           `json:"min_trust,omitzero"`  // 0 to 1
	MinUptime     Decimal           `json:"min_uptime,omitzero"` // percent
	MaxLatencyMS  int64             `json:"max_latency_ms,omitempty"`
}

// SchemaRef names a JSON Schema and the bytes that are meant by that name.
type SchemaRef struct {
	Name string `json:"name"`
	CID  string `json:"cid"` // see [CID]
}

// Proposal is an offer, of a seller or as a buyer's counteroffer:
// market/proposal@v2.1.0.
type Proposal struct {
	Schema        string           `json:"schema"`
	RFP           Hash             `json:"rfp"` // hash of the request's move
	Seller        identity.AgentID `json:"seller"`
	Buyer         identity.AgentID `json:"buyer"`
	Terms         Terms            `json:"terms"`
	ValidUntil    time.Time        `json:"valid_until"` // the offer stands before that
	Region        string           `json:"region,omitempty"`
	Note          string           `json:"note,omitempty"`
	Details       json.RawMessage  `json:"details,omitempty"`
	DetailsSchema *SchemaRef       `json:"details_schema,omitempty"`
}

// Terms are what an offer offers.
type Terms struct {
	Price    Money    `json:"price"`    // for one unit
	Quantity int64    `json:"quantity"` // units, 1 to 10^9
	Delivery Delivery `json:"delivery,omitzero"`
}

// Money is an amount with its currency.
type Money struct {
	Amount   Decimal `json:"amount"`
	Currency string  `json:"currency"` // ISO 4217
}

// Contract is what both sides sign: market/contract@v2.0.1.
type Contract struct {
	Schema      string        `json:"schema"`
	RFP         Hash          `json:"rfp"`      // hash of the request's move
	Proposal    Hash          `json:"proposal"` // hash of the accepted offer's move
	Buyer       Party         `json:"buyer"`
	Seller      Party         `json:"seller"`
	Terms       ContractTerms `json:"terms"`
	ValidFrom   time.Time     `json:"valid_from"` // when the offer was accepted
	ValidUntil  time.Time     `json:"valid_until"`
	Checkpoints Checkpoints   `json:"checkpoints"`
	Offeror     string        `json:"offeror"` // whose offer was accepted: buyer or seller
}

// Party is a side of a contract, and the key under which it agreed to the terms:
// that of its offer, or of its acceptance.
type Party struct {
	Agent       identity.AgentID `json:"agent"`
	Address     string           `json:"address"`
	KeyVersion  uint32           `json:"key_version"`
	Certificate Hash             `json:"certificate"` // SHA-256 of the raw certificate
}

// NewParty returns the party that cert speaks for.
func NewParty(cert *identity.Certificate) Party {
	return Party{cert.Agent, cert.Address.String(), cert.Version, sha256.Sum256(cert.Raw)}
}

// ContractTerms are what is to be done for how much.
type ContractTerms struct {
	Item       string   `json:"item"`
	Quantity   int64    `json:"quantity"`
	Price      Money    `json:"price"` // for one unit
	Total      Decimal  `json:"total"` // price × quantity, exactly
	Delivery   Delivery `json:"delivery,omitzero"`
	Capability string   `json:"capability"`
	Version    string   `json:"version,omitempty"`
}

// Canonical returns the document's bytes, checked.
func (r *RFP) Canonical() ([]byte, error) { return encode(SchemaRFP, r) }

// Canonical returns the document's bytes, checked.
func (p *Proposal) Canonical() ([]byte, error) { return encode(SchemaProposal, p) }

// Canonical returns the document's bytes, checked.
func (c *Contract) Canonical() ([]byte, error) { return encode(SchemaContract, c) }

// Unchecked returns the document's bytes, to compare a checked document with.
func (c *Contract) Unchecked() ([]byte, error) { return write(SchemaContract, c) }

func encode(schema string, v any) ([]byte, error) {
	doc, err := write(schema, v)
	if err != nil {
		return nil, err
	}
	return doc, Check(schema, doc)
}

func write(schema string, v any) ([]byte, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, wire.Errorf(wire.InvalidRequest, "write %s: %w", schema, err)
	}
	doc, err := Canonical(text, MaxDocument)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", schema, err)
	}
	return doc, nil
}

// Total returns price × quantity.
func (t Terms) Total() Decimal { return t.Price.Amount.Mul(t.Quantity) }

// ContractID returns the id of the contract whose canonical document is doc: half
// of its SHA-256, 32 hexadecimal digits.
func ContractID(doc []byte) string { return Hash(sha256.Sum256(doc)).ID() }
