package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hpke"
	"fmt"
	"math"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity/identitypb"
	"openmesh/protocols/wire"
)

const (
	// MaxCertificate bounds a serialized certificate, in bytes.
	MaxCertificate = 4 << 10

	// MaxValidity bounds how long a certificate may be valid.
	MaxValidity = 62 * 24 * time.Hour

	certificateDomain = "openmesh-key-certificate"
)

var certificateCodec = []byte("/openmesh/key-certificate/v1")

// MailboxKEM is the KEM of mailbox keys: X25519 with ML-KEM-768, for what is
// stored today must stay sealed tomorrow.
var MailboxKEM = hpke.MLKEM768X25519()

// Certificate binds a host key to an agent. One from [ParseCertificate] holds
// what its root key signed; whether it is valid now is for [Certificate.Valid].
type Certificate struct {
	Agent      AgentID
	Address    Address
	Version    uint32 // counts up; from 1
	Nonce      uint64 // solves the address puzzle
	Peer       peer.ID
	NotBefore  time.Time // whole seconds
	NotAfter   time.Time
	MailboxKEM uint16 // HPKE KEM code point (RFC 9180)
	MailboxKey []byte // serialized HPKE public key

	// Raw is the signed envelope: what is sent, stored and hashed.
	Raw []byte
}

// IssueCertificate signs c with the root key and returns it with Agent, Address
// and Raw filled in. c.Address.Realm and c.Nonce must solve the puzzle.
func IssueCertificate(root ed25519.PrivateKey, c Certificate) (*Certificate, error) {
	key, err := crypto.UnmarshalEd25519PrivateKey(root)
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	env, err := record.Seal(&certificateRecord{Certificate: &identitypb.Certificate{
		Version:    c.Version,
		Realm:      uint32(c.Address.Realm),
		Nonce:      c.Nonce,
		PeerId:     []byte(c.Peer),
		NotBefore:  c.NotBefore.Unix(),
		NotAfter:   c.NotAfter.Unix(),
		MailboxKem: uint32(c.MailboxKEM),
		MailboxKey: c.MailboxKey,
	}}, key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	raw, err := env.Marshal()
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	return ParseCertificate(raw)
}

// ParseCertificate verifies everything about a certificate but the time: the
// root key's signature, the address puzzle and the shape of every field. The
// envelope has to be written in the one way that has fields in order, each once,
// none unknown: so no byte of raw is without a signature. Fields of the payload
// that are not known here are signed, and let be. Its errors are
// wire.Unauthenticated, wire.Malformed or wire.TooLarge.
func ParseCertificate(raw []byte) (*Certificate, error) {
	if len(raw) > MaxCertificate {
		return nil, wire.Errorf(wire.TooLarge, "certificate of %d bytes", len(raw))
	}
	var rec certificateRecord
	env, err := record.ConsumeTypedEnvelope(raw, &rec)
	if err != nil {
		return nil, wire.Errorf(wire.Unauthenticated, "certificate: %w", err)
	}
	if string(env.PayloadType) != string(certificateCodec) {
		return nil, wire.Errorf(wire.Malformed, "certificate: payload type %q", env.PayloadType)
	}
	if again, err := env.Marshal(); err != nil || !bytes.Equal(again, raw) {
		return nil, wire.Errorf(wire.Malformed, "certificate: it is not in canonical encoding")
	}
	root, err := rawEd25519(env.PublicKey)
	if err != nil {
		return nil, wire.Errorf(wire.Malformed, "certificate: root key: %w", err)
	}
	return rec.check(root, raw)
}

func (r *certificateRecord) check(root ed25519.PublicKey, raw []byte) (*Certificate, error) {
	p := r.Certificate
	bad := func(what string) (*Certificate, error) {
		return nil, wire.Errorf(wire.Malformed, "certificate: %s", what)
	}
	if p.Realm > uint32(MaxRealm) {
		return bad("realm out of range")
	}
	addr, ok := DeriveAddress(Realm(p.Realm), root, p.Nonce)
	if !ok {
		return nil, wire.Errorf(wire.Unauthenticated, "certificate: nonce does not solve the address puzzle")
	}
	id, err := peer.IDFromBytes(p.PeerId)
	if err != nil {
		return bad("peer id")
	}
	host, err := id.ExtractPublicKey()
	if err != nil || host.Type() != crypto.Ed25519 {
		return bad("peer id is not that of an Ed25519 key")
	}
	if p.Version == 0 {
		return bad("version 0")
	}
	if p.NotBefore < 0 || p.NotAfter <= p.NotBefore || p.NotAfter-p.NotBefore > int64(MaxValidity/time.Second) {
		return bad("validity")
	}
	if p.MailboxKem > math.MaxUint16 || p.MailboxKem == uint32(MailboxKEM.ID()) && !validMailboxKey(p.MailboxKey) {
		return bad("mailbox key")
	}
	return &Certificate{
		Agent:      NewAgentID(root),
		Address:    addr,
		Version:    p.Version,
		Nonce:      p.Nonce,
		Peer:       id,
		NotBefore:  time.Unix(p.NotBefore, 0).UTC(),
		NotAfter:   time.Unix(p.NotAfter, 0).UTC(),
		MailboxKEM: uint16(p.MailboxKem),
		MailboxKey: p.MailboxKey,
		Raw:        raw,
	}, nil
}

func validMailboxKey(b []byte) bool {
	_, err := MailboxKEM.NewPublicKey(b)
	return err == nil
}

// ClockSkew is how far two honest clocks may differ.
const ClockSkew = 2 * time.Minute

// Valid reports whether c is within its validity at now, give or take
// [ClockSkew] at its beginning. The error is wire.KeyExpired.
func (c *Certificate) Valid(now time.Time) error {
	if now.Before(c.NotBefore.Add(-ClockSkew)) {
		return wire.Errorf(wire.KeyExpired, "certificate version %d of %s is not valid before %s", c.Version, c.Agent, c.NotBefore.Format(time.RFC3339))
	}
	if !now.Before(c.NotAfter) {
		return wire.Errorf(wire.KeyExpired, "certificate version %d of %s expired at %s", c.Version, c.Agent, c.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// HostKey returns the public key that c certifies.
func (c *Certificate) HostKey() crypto.PubKey {
	k, err := c.Peer.ExtractPublicKey()
	if err != nil {
		panic(err) // checked by ParseCertificate
	}
	return k
}

func rawEd25519(k crypto.PubKey) (ed25519.PublicKey, error) {
	if k.Type() != crypto.Ed25519 {
		return nil, fmt.Errorf("%s key, want Ed25519", k.Type())
	}
	return k.Raw()
}

// certificateRecord is the payload as libp2p's envelopes want it.
type certificateRecord struct{ *identitypb.Certificate }

func (*certificateRecord) Domain() string { return certificateDomain }
func (*certificateRecord) Codec() []byte  { return certificateCodec }

func (r *certificateRecord) MarshalRecord() ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(r.Certificate)
}

func (r *certificateRecord) UnmarshalRecord(b []byte) error {
	r.Certificate = new(identitypb.Certificate)
	return proto.Unmarshal(b, r.Certificate)
}
