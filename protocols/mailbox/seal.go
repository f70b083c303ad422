package mailbox

import (
	"bytes"
	"crypto/hpke"
	"encoding/binary"
	"errors"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox/mailboxpb"
	"openmesh/protocols/wire"
)

const (
	sealInfo      = "openmesh/mailbox/v1"
	contentDomain = "openmesh-mailbox-letter"
	contentCodec  = "/openmesh/mailbox-letter/v1"
)

// Sender is who writes a letter.
type Sender struct {
	Host        crypto.PrivKey        // host key
	Certificate *identity.Certificate // of Host
}

// Recipient is who opens letters.
type Recipient struct {
	Agent    identity.AgentID
	Verifier *identity.Verifier

	// Mailbox returns the private key of the certificate of that version, which may
	// have been superseded while the letter waited. The error for a key that is
	// gone is wire.NotFound; others may pass.
	Mailbox func(version uint32) (hpke.PrivateKey, error)
}

// Seal writes a letter with a new id to the agent of certificate to, signed by
// from. It may be left with relays until expires. Errors: wire.TooLarge,
// wire.InvalidArgument for an expiry that makes no sense, wire.KeyExpired if to
// has expired, wire.Unsupported for a KEM not known here.
func Seal(from Sender, to *identity.Certificate, payload []byte, now, expires time.Time) (*Letter, error) {
	l := &Letter{Recipient: to.Agent, ID: NewID(), Expires: time.Unix(expires.Unix(), 0).UTC()}
	if len(payload) > MaxPayload {
		return nil, wire.Errorf(wire.TooLarge, "seal letter: payload of %d bytes, the limit is %d", len(payload), MaxPayload).
			WithHint("Send it in parts, or as a stream when the recipient is there.")
	}
	if err := l.current(now); err != nil {
		return nil, wire.Errorf(wire.InvalidArgument, "seal letter: %w", err)
	}
	if err := to.Valid(now); err != nil {
		return nil, wire.Errorf(wire.KeyExpired, "seal letter: %w", err).WithHint("Resolve the agent again for its present certificate.")
	}
	if to.MailboxKEM != identity.MailboxKEM.ID() {
		return nil, wire.Errorf(wire.Unsupported, "seal letter: the recipient's mailbox key is of KEM %#04x", to.MailboxKEM)
	}
	envelope, err := sign(from, l, payload, now)
	if err != nil {
		return nil, err
	}
	plaintext := make([]byte, 0, padded(len(envelope)+4))
	plaintext = wire.AppendFrame(plaintext, envelope)
	return l, l.seal(to, plaintext[:padded(len(plaintext))])
}

// seal encrypts plaintext into the body.
func (l *Letter) seal(to *identity.Certificate, plaintext []byte) error {
	key, err := identity.MailboxKEM.NewPublicKey(to.MailboxKey)
	if err != nil {
		return wire.Errorf(wire.Malformed, "seal letter: mailbox key: %w", err)
	}
	enc, s, err := hpke.NewSender(key, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(sealInfo))
	if err != nil {
		return wire.Errorf(wire.Internal, "seal letter: %w", err)
	}
	ciphertext, err := s.Seal(l.aad(to.Version), plaintext)
	if err != nil {
		return wire.Errorf(wire.Internal, "seal letter: %w", err)
	}
	l.Body, err = proto.Marshal(&mailboxpb.Sealed{KeyVersion: to.Version, Enc: enc, Ciphertext: ciphertext})
	return err
}

// sign returns the signed envelope of a letter's content.
func sign(from Sender, l *Letter, payload []byte, now time.Time) ([]byte, error) {
	if id, err := peer.IDFromPrivateKey(from.Host); err != nil || id != from.Certificate.Peer {
		return nil, wire.Errorf(wire.InvalidArgument, "seal letter: the key is not the one that the sender's certificate is for")
	}
	env, err := record.Seal(content{&mailboxpb.Content{
		Recipient: string(l.Recipient), Id: l.ID[:], Created: now.Unix(), Expires: l.Expires.Unix(),
		Certificate: from.Certificate.Raw, Payload: payload,
	}}, from.Host)
	if err != nil {
		return nil, wire.Errorf(wire.Internal, "seal letter: %w", err)
	}
	return env.Marshal()
}

// Open returns who wrote a letter, and what. The sender's certificate is
// verified as of when it wrote; by now it may have been superseded. Errors:
// wire.Internal if the private key could not be had for now; any other code
// means that this copy of the letter is and stays worthless: wire.NotFound if the
// key is gone, wire.Replayed for an expired letter, wire.Unauthenticated,
// wire.Malformed, wire.TooLarge, wire.KeyExpired, wire.Denied for another realm.
func Open(r Recipient, l *Letter, now time.Time) (*identity.Certificate, []byte, error) {
	if l.Recipient != r.Agent {
		return nil, nil, wire.Errorf(wire.Unauthenticated, "open letter %s: it is for %s", l.ID, l.Recipient)
	}
	if len(l.Body) > MaxBody {
		return nil, nil, wire.Errorf(wire.TooLarge, "open letter %s: body of %d bytes", l.ID, len(l.Body))
	}
	if !now.Before(l.Expires) {
		return nil, nil, wire.Errorf(wire.Replayed, "open letter %s: it expired at %s", l.ID, l.Expires.Format(time.RFC3339))
	}
	envelope, err := r.decrypt(l)
	if err != nil {
		return nil, nil, wire.Errorf(wire.CodeOf(err), "open letter %s: %w", l.ID, err)
	}
	sender, payload, err := verify(r.Verifier, l, envelope, now)
	if err != nil {
		return nil, nil, wire.Errorf(wire.CodeOf(err), "open letter %s: %w", l.ID, err)
	}
	return sender, payload, nil
}

// decrypt returns the envelope in a letter's body.
func (r Recipient) decrypt(l *Letter) ([]byte, error) {
	var sealed mailboxpb.Sealed
	if err := proto.Unmarshal(l.Body, &sealed); err != nil {
		return nil, wire.Errorf(wire.Malformed, "body: %w", err)
	}
	key, err := r.Mailbox(sealed.KeyVersion)
	if err != nil {
		return nil, wire.Errorf(wire.CodeOf(err), "mailbox key of version %d: %w", sealed.KeyVersion, err)
	}
	hr, err := hpke.NewRecipient(sealed.Enc, key, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(sealInfo))
	if err != nil {
		return nil, wire.Errorf(wire.Unauthenticated, "encapsulated key: %w", err)
	}
	plaintext, err := hr.Open(l.aad(sealed.KeyVersion), sealed.Ciphertext)
	if err != nil {
		return nil, wire.Errorf(wire.Unauthenticated, "body: %w", err)
	}
	n, start := binary.Uvarint(plaintext)
	if start <= 0 || n > uint64(len(plaintext)-start) {
		return nil, wire.Errorf(wire.Malformed, "content: it is cut")
	}
	return plaintext[start:][:n], nil
}

// verify checks who signed an envelope, and that it is the content of l.
func verify(v *identity.Verifier, l *Letter, envelope []byte, now time.Time) (*identity.Certificate, []byte, error) {
	c := content{new(mailboxpb.Content)}
	env, err := record.ConsumeTypedEnvelope(envelope, c)
	if err != nil {
		return nil, nil, wire.Errorf(wire.Unauthenticated, "content: %w", err)
	}
	if string(env.PayloadType) != contentCodec {
		return nil, nil, wire.Errorf(wire.Malformed, "content: payload type %.40q", env.PayloadType)
	}
	if c.Recipient != string(l.Recipient) || !bytes.Equal(c.Id, l.ID[:]) || c.Content.Expires != l.Expires.Unix() {
		return nil, nil, wire.Errorf(wire.Unauthenticated, "content: it was signed for another letter")
	}
	created := time.Unix(c.Created, 0)
	if created.After(now.Add(identity.ClockSkew)) || l.Expires.Sub(created) > MaxTTL+identity.ClockSkew {
		return nil, nil, wire.Errorf(wire.Unauthenticated, "content: it was created at %s, and expires at %s", created.UTC().Format(time.RFC3339), l.Expires.Format(time.RFC3339))
	}
	sender, err := validAt(v, c.Certificate, created)
	if err != nil {
		return nil, nil, wire.Errorf(wire.CodeOf(err), "sender: %w", err)
	}
	if !env.PublicKey.Equals(sender.HostKey()) {
		return nil, nil, wire.Errorf(wire.Unauthenticated, "content: signed by another key than the certified one")
	}
	return sender, c.Payload, nil
}

// validAt verifies a certificate that was valid at created. By now it may have
// expired or been superseded.
func validAt(v *identity.Verifier, raw []byte, created time.Time) (*identity.Certificate, error) {
	c, err := v.Verify(raw)
	if errors.Is(err, wire.KeyExpired) || errors.Is(err, wire.KeySuperseded) {
		c, err = identity.ParseCertificate(raw)
	}
	if err != nil {
		return nil, err
	}
	return c, c.Valid(created)
}

// content is a Content as libp2p's envelopes want it.
type content struct{ *mailboxpb.Content }

func (content) Domain() string { return contentDomain }
func (content) Codec() []byte  { return []byte(contentCodec) }

func (c content) MarshalRecord() ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(c.Content)
}

func (c content) UnmarshalRecord(b []byte) error { return proto.Unmarshal(b, c.Content) }
