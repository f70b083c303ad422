package descriptor

import (
	"bytes"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// kind is one sort of signed document. Its domain string keeps a signature of
// one sort from passing for another.
type kind struct {
	name   string
	domain string
	codec  string
	limit  int // bytes of the envelope
}

// The two sorts of signed documents. They are constants in all but name.
func descriptorKind() kind {
	return kind{"descriptor", "openmesh-descriptor", "/openmesh/descriptor/v1", MaxDescriptor}
}

func recordKind() kind {
	return kind{"agent record", "openmesh-agent-record", "/openmesh/agent-record/v1", MaxRecord}
}

// payload is a message as libp2p's envelopes want it.
type payload struct {
	kind
	msg proto.Message
}

func (p payload) Domain() string { return p.domain }
func (p payload) Codec() []byte  { return []byte(p.codec) }

func (p payload) MarshalRecord() ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(p.msg)
}

func (p payload) UnmarshalRecord(b []byte) error { return proto.Unmarshal(b, p.msg) }

// seal signs msg with the host key that cert certifies.
func (k kind) seal(host crypto.PrivKey, cert *identity.Certificate, msg proto.Message) ([]byte, error) {
	if id, err := peer.IDFromPrivateKey(host); err != nil || id != cert.Peer {
		return nil, wire.Errorf(wire.InvalidArgument, "seal %s: the key is not the one that the certificate is for", k.name)
	}
	env, err := record.Seal(payload{k, msg}, host)
	if err != nil {
		return nil, wire.Errorf(wire.Internal, "seal %s: %w", k.name, err)
	}
	raw, err := env.Marshal()
	if err != nil {
		return nil, wire.Errorf(wire.Internal, "seal %s: %w", k.name, err)
	}
	if len(raw) > k.limit {
		return nil, wire.Errorf(wire.TooLarge, "seal %s: %d bytes, the limit is %d", k.name, len(raw), k.limit)
	}
	return raw, nil
}

// open verifies the envelope's signature and reads its payload into msg. The
// result is the key that signed; whose it is, is for [kind.signer].
func (k kind) open(raw []byte, msg proto.Message) (crypto.PubKey, error) {
	if len(raw) > k.limit {
		return nil, wire.Errorf(wire.TooLarge, "%s of %d bytes, the limit is %d", k.name, len(raw), k.limit)
	}
	env, err := record.ConsumeTypedEnvelope(raw, payload{k, msg})
	if err != nil {
		return nil, wire.Errorf(wire.Unauthenticated, "%s: %w", k.name, err)
	}
	if !bytes.Equal(env.PayloadType, []byte(k.codec)) {
		return nil, wire.Errorf(wire.Malformed, "%s: payload type %.40q", k.name, env.PayloadType)
	}
	return env.PublicKey, nil
}

// claims is what both documents say of their signer.
type claims interface {
	GetAgent() string
	GetAddress() string
	GetCertificate() []byte
	GetSequence() uint64
	GetIssued() int64
	GetExpires() int64
}

// signer checks that key, certificate, agent and address belong together, and
// that now is within the document's validity.
func (k kind) signer(key crypto.PubKey, c claims, v *identity.Verifier, now time.Time) (*identity.Certificate, error) {
	cert, err := v.Verify(c.GetCertificate())
	if err != nil {
		return nil, wire.Errorf(wire.CodeOf(err), "%s: %w", k.name, err)
	}
	if !key.Equals(cert.HostKey()) {
		return nil, wire.Errorf(wire.Unauthenticated, "%s: signed by another key than the certified one", k.name)
	}
	if c.GetAgent() != string(cert.Agent) || c.GetAddress() != cert.Address.String() {
		return nil, wire.Errorf(wire.Unauthenticated, "%s: agent or address is not that of the certificate", k.name)
	}
	return cert, k.current(c, now)
}

func (k kind) current(c claims, now time.Time) error {
	issued, expires := time.Unix(c.GetIssued(), 0), time.Unix(c.GetExpires(), 0)
	switch {
	case c.GetSequence() == 0:
		return wire.Errorf(wire.Malformed, "%s: sequence 0", k.name)
	case c.GetIssued() < 0 || !expires.After(issued) || expires.Sub(issued) > MaxLifetime:
		return wire.Errorf(wire.Malformed, "%s: issued and expires make no lifetime within (0, %v]", k.name, MaxLifetime)
	case now.Before(issued.Add(-identity.ClockSkew)):
		return wire.Errorf(wire.Replayed, "%s: not valid before %s", k.name, issued.UTC().Format(time.RFC3339))
	case !now.Before(expires):
		return wire.Errorf(wire.Replayed, "%s: expired at %s", k.name, expires.UTC().Format(time.RFC3339))
	}
	return nil
}
