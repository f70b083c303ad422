package market

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/crypto"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/market/document"
	"openmesh/protocols/market/marketpb"
	"openmesh/protocols/wire"
)

// Limits on moves, in bytes.
const (
	MaxEnvelope   = 64 << 10
	MaxCheckpoint = 4 << 10
	MaxReason     = 256
)

const (
	moveVersion    = 1
	moveDomain     = "openmesh/market/move/1\x00"
	contractDomain = "openmesh/market/contract/1\x00"
)

// Move is what one agent says to another about a deal.
type Move struct {
	Kind              Kind
	RFP               Hash // of the request's move; zero in a request
	Prev              Hash // of the move that this one follows; zero in a request
	Author            identity.AgentID
	To                identity.AgentID // empty in a request
	At                time.Time        // by the author's clock; whole milliseconds, UTC
	Schema            string           // of Document
	Document          []byte           // canonical JSON: request or offer; of accept the contract
	ContractSignature []byte           // of accept and contract: see [SignContract]
	Checkpoint        []byte           // the author's newest audit checkpoint, signed; see [document.ReadCheckpoint]
	Reason            string           // for a person
}

// Signed is a move whose signature and document hold, and whose certificate was valid
// at the move's time. Whether the certificate is valid now, and the newest, is for an
// [identity.Verifier]. It is not changed once made.
type Signed struct {
	Move
	Hash        Hash // SHA-256 of what is signed; names the move
	Certificate *identity.Certificate
	Raw         []byte // the envelope: what is sent and stored

	request  *RFP
	offer    *Proposal
	contract *Contract

	checkpoint *Checkpoint // what Checkpoint says; nil without one
}

// Request returns the document of a request; nil of other moves.
func (s *Signed) Request() *RFP { return s.request }

// Offer returns the document of propose, counter and amend as v2.1.0, translated if
// it came as v1.0.0; nil of other moves.
func (s *Signed) Offer() *Proposal { return s.offer }

// Contract returns the contract that an accept carries; nil of other moves.
func (s *Signed) Contract() *Contract { return s.contract }

// Sign signs m with the host key that cert certifies, and checks it as [Parse] does,
// save cert, which is as [identity.ParseCertificate] returns it.
func Sign(m Move, key crypto.PrivKey, cert *identity.Certificate) (*Signed, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(&marketpb.Move{
		Version: moveVersion, Kind: marketpb.MoveKind(m.Kind), Rfp: bytesOf(m.RFP), Prev: bytesOf(m.Prev),
		Author: string(m.Author), To: string(m.To), At: m.At.UnixMilli(), Schema: m.Schema, Document: m.Document,
		ContractSignature: m.ContractSignature, Checkpoint: m.Checkpoint, Reason: m.Reason,
	})
	if err != nil {
		return nil, wire.Errorf(wire.InvalidArgument, "sign %s: %w", m.Kind, err)
	}
	signature, err := key.Sign(append([]byte(moveDomain), body...))
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", m.Kind, err)
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(&marketpb.Envelope{Body: body, Signature: signature, Certificate: cert.Raw})
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", m.Kind, err)
	}
	own := func(raw []byte) (*identity.Certificate, error) {
		if bytes.Equal(raw, cert.Raw) {
			return cert, nil
		}
		return identity.ParseCertificate(raw)
	}
	return ParseBy(raw, own)
}

func bytesOf(h Hash) []byte {
	if h.IsZero() {
		return nil
	}
	return h[:]
}

// Parse reads an envelope and checks all that can be known from it alone: limits,
// encoding, signature, that the author is who the certificate names and that it was
// valid at the move's time, the document by its schema, and that document and move
// agree. It keeps raw. Errors are [*wire.Error]: wire.TooLarge, wire.Malformed,
// wire.Unauthenticated, wire.KeyExpired, wire.Unsupported for another version of moves,
// wire.NoCommonSchema, wire.InvalidRequest with JSON pointers into the document.
func Parse(raw []byte) (*Signed, error) { return ParseBy(raw, identity.ParseCertificate) }

// ParseBy is Parse for who has another way to parse certificates, such as an
// [identity.Verifier], which does not verify again what it has verified before.
func ParseBy(raw []byte, certificate func(raw []byte) (*identity.Certificate, error)) (*Signed, error) {
	if len(raw) > MaxEnvelope {
		return nil, wire.Errorf(wire.TooLarge, "move of %d bytes, the limit is %d", len(raw), MaxEnvelope)
	}
	var env marketpb.Envelope
	if err := unmarshal(raw, &env); err != nil {
		return nil, wire.Errorf(wire.Malformed, "move: envelope: %w", err)
	}
	s, err := parseBody(env.Body)
	if err != nil {
		return nil, fmt.Errorf("move: %w", err)
	}
	s.Raw, s.Hash = raw, sha256.Sum256(append([]byte(moveDomain), env.Body...))
	if err := s.authenticate(&env, certificate); err != nil {
		return nil, fmt.Errorf("move %s: %w", s.Kind, err)
	}
	if err := s.read(); err != nil {
		return nil, fmt.Errorf("move %s: %w", s.Kind, err)
	}
	return s, nil
}

// ParseFrom is ParseBy for a move that comes from its author, who is at the other end
// of a session. A move may be older than the author's key, which is replaced from time
// to time: it was signed before, and comes again after. So certificate may take former
// keys, as [identity.Verifier.VerifyFormer] does with the session's certificate. A move
// that was heard from others is for ParseBy with [identity.Verifier.Verify]. The error
// for a move of another author is wire.Unauthenticated.
func ParseFrom(raw []byte, author identity.AgentID, certificate func(raw []byte) (*identity.Certificate, error)) (*Signed, error) {
	s, err := ParseBy(raw, certificate)
	if err != nil {
		return nil, err
	}
	if s.Author != author {
		return nil, wire.Errorf(wire.Unauthenticated, "move %s of %s, sent by %s", s.Kind, s.Author, author)
	}
	return s, nil
}

// unmarshal reads a message and refuses all but the one encoding that Go writes:
// known fields, each once, in order. So no byte can be changed unseen.
func unmarshal(raw []byte, m proto.Message) error {
	if err := proto.Unmarshal(raw, m); err != nil {
		return err
	}
	if len(m.ProtoReflect().GetUnknown()) > 0 {
		return fmt.Errorf("has unknown fields")
	}
	again, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err == nil && !bytes.Equal(again, raw) {
		err = fmt.Errorf("is not in canonical encoding")
	}
	return err
}

func parseBody(body []byte) (*Signed, error) {
	var p marketpb.Move
	if err := proto.Unmarshal(body, &p); err != nil {
		return nil, wire.Errorf(wire.Malformed, "body: %w", err)
	}
	if p.Version != moveVersion {
		return nil, wire.Errorf(wire.Unsupported, "version %d of moves; this is version %d", p.Version, moveVersion)
	}
	if err := unmarshal(body, &p); err != nil {
		return nil, wire.Errorf(wire.Malformed, "body: %w", err)
	}
	if p.Kind < 1 || int(p.Kind) >= len(kinds) {
		return nil, wire.Errorf(wire.Malformed, "kind %d", p.Kind)
	}
	m := Move{
		Kind: Kind(p.Kind), Author: identity.AgentID(p.Author), To: identity.AgentID(p.To), At: time.UnixMilli(p.At).UTC(),
		Schema: p.Schema, Document: p.Document, ContractSignature: p.ContractSignature, Checkpoint: p.Checkpoint, Reason: p.Reason,
	}
	if err := m.link(&p); err != nil {
		return nil, err
	}
	return &Signed{Move: m}, m.shape()
}

// link reads the hashes and parties, which a request does not have.
func (m *Move) link(p *marketpb.Move) error {
	if _, err := identity.ParseAgentID(p.Author); err != nil {
		return wire.Errorf(wire.Malformed, "author: %w", err)
	}
	if m.Kind == Request {
		if len(p.Rfp) > 0 || len(p.Prev) > 0 || p.To != "" {
			return wire.Errorf(wire.Malformed, "a request that follows a move, or is to one agent")
		}
		return nil
	}
	if _, err := identity.ParseAgentID(p.To); err != nil || p.To == p.Author {
		return wire.Errorf(wire.Malformed, "%s is not to another agent", m.Kind)
	}
	if len(p.Rfp) != sha256.Size || len(p.Prev) != sha256.Size || Hash(p.Rfp).IsZero() || Hash(p.Prev).IsZero() {
		return wire.Errorf(wire.Malformed, "%s without the hashes of the request and of the move before it", m.Kind)
	}
	m.RFP, m.Prev = Hash(p.Rfp), Hash(p.Prev)
	return nil
}

// shape checks which fields there are, and their sizes.
func (m *Move) shape() error {
	documented := m.Kind == Request || m.Kind.offers() || m.Kind == Accept
	signature := 0
	if m.Kind == Accept || m.Kind == Conclude {
		signature = ed25519.SignatureSize
	}
	switch {
	case m.At.UnixMilli() <= 0 || m.At.Year() > 9999:
		return wire.Errorf(wire.Malformed, "time is out of range")
	case documented != (len(m.Document) > 0) || documented != (m.Schema != ""):
		return wire.Errorf(wire.Malformed, "%s with or without a document, as it must not be", m.Kind)
	case len(m.ContractSignature) != signature:
		return wire.Errorf(wire.Malformed, "%s with a contract signature of %d bytes", m.Kind, len(m.ContractSignature))
	case len(m.Document) > document.MaxDocument || len(m.Checkpoint) > MaxCheckpoint || len(m.Reason) > MaxReason:
		return wire.Errorf(wire.TooLarge, "document, checkpoint or reason over its limit").
			WithHint("At most %d, %d and %d bytes.", document.MaxDocument, MaxCheckpoint, MaxReason)
	case !utf8.ValidString(m.Reason):
		return wire.Errorf(wire.Malformed, "reason is not UTF-8")
	}
	return nil
}

// authenticate checks who made the move, with a certificate that was valid at the
// move's own time. Files are verified by the same rule years later, so that nobody can
// be brought to sign what none of them could prove.
func (s *Signed) authenticate(env *marketpb.Envelope, certificate func([]byte) (*identity.Certificate, error)) (err error) {
	if s.Certificate, err = certificate(env.Certificate); err != nil {
		return err
	}
	if s.Certificate.Agent != s.Author {
		return wire.Errorf(wire.Unauthenticated, "author %s, certificate of %s", s.Author, s.Certificate.Agent)
	}
	if err := s.Certificate.Valid(s.At); err != nil {
		return err
	}
	return verify(s.Certificate, moveDomain, env.Body, env.Signature)
}

// read decodes checkpoint and document, and checks that the move means what it says.
func (s *Signed) read() (err error) {
	if len(s.Checkpoint) > 0 {
		if s.checkpoint, err = document.ReadCheckpoint(s.Author, s.Checkpoint); err != nil {
			return err
		}
	}
	switch {
	case s.Kind == Request:
		return s.readRequest()
	case s.Kind.offers():
		return s.readOffer()
	case s.Kind == Accept:
		return s.readContract()
	}
	return nil
}

func (s *Signed) readRequest() (err error) {
	if s.Schema != document.SchemaRFP {
		return unknownSchema(s.Schema, document.SchemaRFP)
	}
	if s.request, err = document.ParseRFP(s.Document); err != nil {
		return err
	}
	return s.agree(claim{"/buyer", s.request.Buyer == s.Author}, claim{"/deadline", s.request.Deadline.After(s.At)})
}

func (s *Signed) readOffer() (err error) {
	if s.Schema != document.SchemaProposal && s.Schema != document.SchemaProposalV1 {
		return unknownSchema(s.Schema, document.SchemaProposal+" or "+document.SchemaProposalV1)
	}
	if s.offer, err = document.ParseProposal(s.Schema, s.Document); err != nil {
		return err
	}
	until := "/valid_until"
	if s.Schema == document.SchemaProposalV1 {
		until = "/expires"
	}
	return s.agree(claim{"/rfp", s.offer.RFP == s.RFP}, claim{until, s.offer.ValidUntil.After(s.At)},
		claim{"/seller", s.between(s.offer.Seller, s.offer.Buyer)})
}

func (s *Signed) readContract() (err error) {
	if s.Schema != document.SchemaContract {
		return unknownSchema(s.Schema, document.SchemaContract)
	}
	if s.contract, err = document.ParseContract(s.Document); err != nil {
		return err
	}
	c := s.contract
	if err := s.agree(claim{"/rfp", c.RFP == s.RFP}, claim{"/proposal", c.Proposal == s.Prev},
		claim{"/valid_from", c.ValidFrom.Equal(s.At)}, claim{"/seller", s.between(c.Seller.Agent, c.Buyer.Agent)}); err != nil {
		return err
	}
	return VerifyContract(s.Document, s.ContractSignature, s.Certificate)
}

// between reports whether author and recipient are these two.
func (s *Signed) between(a, b identity.AgentID) bool {
	return s.Author == a && s.To == b || s.Author == b && s.To == a
}

// claim is whether the value at a JSON pointer agrees with the move.
type claim struct {
	at string
	ok bool
}

func (s *Signed) agree(claims ...claim) error {
	var bad []string
	for _, c := range claims {
		if !c.ok {
			bad = append(bad, c.at)
		}
	}
	if bad == nil {
		return nil
	}
	err := wire.Errorf(wire.InvalidRequest, "the document's %s contradicts the move's parties, request or time", bad[0])
	err.Pointers = bad
	return err
}

func unknownSchema(name, want string) error {
	return wire.Errorf(wire.NoCommonSchema, "schema %.140q; want %s", name, want)
}

// SignContract signs a canonical contract with a host key: Ed25519 over
// "openmesh/market/contract/1", a zero byte, and the document.
func SignContract(doc []byte, key crypto.PrivKey) ([]byte, error) {
	signature, err := key.Sign(append([]byte(contractDomain), doc...))
	if err != nil {
		return nil, fmt.Errorf("sign contract: %w", err)
	}
	return signature, nil
}

// VerifyContract verifies a signature of [SignContract]. The error is
// wire.Unauthenticated.
func VerifyContract(doc, signature []byte, cert *identity.Certificate) error {
	if err := verify(cert, contractDomain, doc, signature); err != nil {
		return fmt.Errorf("contract %s: %w", document.ContractID(doc), err)
	}
	return nil
}

func verify(cert *identity.Certificate, domain string, text, signature []byte) error {
	ok, err := cert.HostKey().Verify(append([]byte(domain), text...), signature)
	if err != nil || !ok {
		return wire.Errorf(wire.Unauthenticated, "signature of %s does not hold", cert.Agent)
	}
	return nil
}
