// Package protocoltest has what tests of protocols share: identities and peers
// that misbehave.
package protocoltest

import (
	"crypto/ed25519"
	"crypto/rand"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/identity/identitypb"
)

// Agent is an identity with all of its secrets.
type Agent struct {
	Agent       identity.AgentID
	Root        ed25519.PrivateKey
	Host        crypto.PrivKey
	Certificate *identity.Certificate // version 1, valid for a day around now
	validity    time.Duration         // from now on
}

// NewAgent makes an agent in realm r, preferably a private-use one.
func NewAgent(t testing.TB, r identity.Realm, now time.Time) *Agent {
	t.Helper()
	host, _, err := crypto.GenerateEd25519Key(rand.Reader)
	check(t, err)
	return NewAgentAt(t, r, now, host)
}

// NewAgentAt makes an agent whose host key is host, such as that of a libp2p
// host that is there.
func NewAgentAt(t testing.TB, r identity.Realm, now time.Time, host crypto.PrivKey) *Agent {
	t.Helper()
	return NewAgentFor(t, r, now, 12*time.Hour, host)
}

// NewAgentFor is NewAgentAt with a certificate that is valid for so long.
func NewAgentFor(t testing.TB, r identity.Realm, now time.Time, validity time.Duration, host crypto.PrivKey) *Agent {
	t.Helper()
	pub, root, err := ed25519.GenerateKey(rand.Reader)
	check(t, err)
	nonce, addr, err := identity.SolveAddress(t.Context(), r, pub)
	check(t, err)
	a := &Agent{Agent: identity.NewAgentID(pub), Root: root, Host: host, validity: validity}
	a.Certificate = &identity.Certificate{Address: addr, Nonce: nonce}
	a.Certificate = a.issue(t, host, 1, now)
	return a
}

// Rotate returns a certificate of the given version for a new host key.
func (a *Agent) Rotate(t testing.TB, version uint32, now time.Time) *identity.Certificate {
	t.Helper()
	host, _, err := crypto.GenerateEd25519Key(rand.Reader)
	check(t, err)
	return a.issue(t, host, version, now)
}

func (a *Agent) issue(t testing.TB, host crypto.PrivKey, version uint32, now time.Time) *identity.Certificate {
	t.Helper()
	id, err := peer.IDFromPrivateKey(host)
	check(t, err)
	kem, err := identity.MailboxKEM.GenerateKey()
	check(t, err)
	c, err := identity.IssueCertificate(a.Root, identity.Certificate{
		Version: version, Address: a.Certificate.Address, Nonce: a.Certificate.Nonce, Peer: id,
		NotBefore: now.Add(-12 * time.Hour), NotAfter: now.Add(a.validity),
		MailboxKEM: identity.MailboxKEM.ID(), MailboxKey: kem.PublicKey().Bytes(),
	})
	check(t, err)
	return c
}

// CertificateMessage returns c's fields as they are on the wire.
func (a *Agent) CertificateMessage(c identity.Certificate) *identitypb.Certificate {
	return &identitypb.Certificate{
		Version: c.Version, Realm: uint32(c.Address.Realm), Nonce: c.Nonce, PeerId: []byte(c.Peer),
		NotBefore: c.NotBefore.Unix(), NotAfter: c.NotAfter.Unix(),
		MailboxKem: uint32(c.MailboxKEM), MailboxKey: c.MailboxKey,
	}
}

// UncheckedCertificate signs c whatever is in it, as a liar would.
func (a *Agent) UncheckedCertificate(t testing.TB, c identity.Certificate) []byte {
	t.Helper()
	return a.SealCertificate(t, a.CertificateMessage(c))
}

// SealCertificate signs p with the root key.
func (a *Agent) SealCertificate(t testing.TB, p *identitypb.Certificate) []byte {
	t.Helper()
	key, err := crypto.UnmarshalEd25519PrivateKey(a.Root)
	check(t, err)
	env, err := record.Seal(certificateRecord{p}, key)
	check(t, err)
	raw, err := env.Marshal()
	check(t, err)
	return raw
}

type certificateRecord struct{ p *identitypb.Certificate }

func (certificateRecord) Domain() string                   { return "openmesh-key-certificate" }
func (certificateRecord) Codec() []byte                    { return []byte("/openmesh/key-certificate/v1") }
func (r certificateRecord) MarshalRecord() ([]byte, error) { return proto.Marshal(r.p) }
func (certificateRecord) UnmarshalRecord([]byte) error     { return nil }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
