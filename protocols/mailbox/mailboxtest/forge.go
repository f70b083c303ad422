package mailboxtest

import (
	"crypto/hpke"
	"encoding/binary"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/record"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox"
	"openmesh/protocols/mailbox/mailboxpb"
	"openmesh/protocols/wire"
)

// SealAs is [mailbox.Seal] with an id that the sender has chosen, such as that of
// another's letter.
func SealAs(t testing.TB, id mailbox.ID, from *Identity, to *identity.Certificate, payload string, now, expires time.Time) *mailbox.Letter {
	t.Helper()
	l := &mailbox.Letter{Recipient: to.Agent, ID: id, Expires: time.Unix(expires.Unix(), 0).UTC()}
	Wrap(t, l, to, Sign(t, &mailboxpb.Content{
		Recipient: string(l.Recipient), Id: id[:], Created: now.Unix(), Expires: l.Expires.Unix(), Certificate: from.Cert.Raw, Payload: []byte(payload),
	}, from.Host, "openmesh-mailbox-letter", "/openmesh/mailbox-letter/v1"))
	return l
}

// anyRecord is content as libp2p's envelopes want it, under any domain.
type anyRecord struct {
	domain, codec string
	*mailboxpb.Content
}

func (r anyRecord) Domain() string                 { return r.domain }
func (r anyRecord) Codec() []byte                  { return []byte(r.codec) }
func (r anyRecord) MarshalRecord() ([]byte, error) { return proto.Marshal(r.Content) }
func (r anyRecord) UnmarshalRecord([]byte) error   { return nil }

// Sign returns the signed envelope of any content, true or not.
func Sign(t testing.TB, c *mailboxpb.Content, key crypto.PrivKey, domain, codec string) []byte {
	t.Helper()
	env, err := record.Seal(anyRecord{domain, codec, c}, key)
	check(t, err)
	raw, err := env.Marshal()
	check(t, err)
	return raw
}

// AAD is what a letter to a key of version is sealed with, as the comment of package
// mailbox says.
func AAD(l *mailbox.Letter, version uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, version)
	b = binary.BigEndian.AppendUint64(b, uint64(l.Expires.Unix()))
	return append(append(b, l.ID[:]...), l.Recipient...)
}

// Wrap seals an envelope, or what is none, into the body of l.
func Wrap(t testing.TB, l *mailbox.Letter, to *identity.Certificate, envelope []byte) {
	t.Helper()
	key, err := identity.MailboxKEM.NewPublicKey(to.MailboxKey)
	check(t, err)
	enc, s, err := hpke.NewSender(key, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte("openmesh/mailbox/v1"))
	check(t, err)
	ciphertext, err := s.Seal(AAD(l, to.Version), wire.AppendFrame(nil, envelope))
	check(t, err)
	l.Body, err = proto.Marshal(&mailboxpb.Sealed{KeyVersion: to.Version, Enc: enc, Ciphertext: ciphertext})
	check(t, err)
}
