package mailboxtest

import (
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/rand"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox"
	"openmesh/protocols/wire"
)

// Lab is the realm of identities.
const Lab = identity.FirstPrivateRealm

// Identity is an agent with its keys, mailbox keys by version included.
type Identity struct {
	Agent identity.AgentID
	Host  crypto.PrivKey
	Cert  *identity.Certificate // of Host
	Boxes map[uint32]hpke.PrivateKey

	root  ed25519.PrivateKey
	nonce uint64 // of the address
}

// NewIdentity makes an agent whose certificate is valid from an hour before now
// until a day after.
func NewIdentity(t testing.TB, now time.Time) *Identity {
	t.Helper()
	pub, root, err := ed25519.GenerateKey(nil)
	check(t, err)
	nonce, _, err := identity.SolveAddress(t.Context(), Lab, pub)
	check(t, err)
	host, _, err := crypto.GenerateEd25519Key(rand.Reader)
	check(t, err)
	i := &Identity{Agent: identity.NewAgentID(pub), Host: host, Boxes: map[uint32]hpke.PrivateKey{}, root: root, nonce: nonce}
	i.Certify(t, 1, now.Add(-time.Hour), now.Add(24*time.Hour))
	return i
}

// Rotate gives i a new host key and a new mailbox key.
func (i *Identity) Rotate(t testing.TB, version uint32, from, to time.Time) {
	t.Helper()
	host, _, err := crypto.GenerateEd25519Key(rand.Reader)
	check(t, err)
	i.Host = host
	i.Certify(t, version, from, to)
}

// Certify gives i a new mailbox key, and a certificate for it and the host key
// that it has.
func (i *Identity) Certify(t testing.TB, version uint32, from, to time.Time) {
	t.Helper()
	box, err := identity.MailboxKEM.GenerateKey()
	check(t, err)
	id, err := peer.IDFromPrivateKey(i.Host)
	check(t, err)
	i.Cert, err = identity.IssueCertificate(i.root, identity.Certificate{
		Version: version, Address: identity.Address{Realm: Lab}, Nonce: i.nonce, Peer: id, NotBefore: from, NotAfter: to,
		MailboxKEM: identity.MailboxKEM.ID(), MailboxKey: box.PublicKey().Bytes(),
	})
	check(t, err)
	i.Boxes[version] = box
}

// Sender returns i as one who writes letters.
func (i *Identity) Sender() mailbox.Sender { return mailbox.Sender{Host: i.Host, Certificate: i.Cert} }

// Recipient returns i as one who opens letters.
func (i *Identity) Recipient(now func() time.Time) mailbox.Recipient {
	return mailbox.Recipient{Agent: i.Agent, Verifier: identity.NewVerifier(Lab, now), Mailbox: func(v uint32) (hpke.PrivateKey, error) {
		if k := i.Boxes[v]; k != nil {
			return k, nil
		}
		return nil, wire.NotFound
	}}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
