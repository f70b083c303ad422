package descriptor_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"

	"openmesh/protocols/descriptor"
	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/identity"
)

var update = flag.Bool("update", false, "write golden vectors anew")

// Golden vectors of a sealed descriptor and a DHT value, in hex: the agent whose
// root key has the seed 01 01 … 01 and its host key 02 02 … 02, in the first
// private-use realm. Another implementation must accept them at the time of
// this file's now; a change of their bytes is a change of the protocol.
func TestGoldenDocuments(t *testing.T) {
	t.Parallel()
	host, cert := goldenAgent(t)
	d, err := descriptor.Seal(host, cert, body())
	if err != nil {
		t.Fatal(err)
	}
	r, err := descriptor.SealRecord(host, cert, goldenRecord())
	if err != nil {
		t.Fatal(err)
	}
	raw := golden(t, "testdata/descriptor.hex", d.Raw)
	if got, err := descriptor.Verify(raw, verifier(), cert.Peer, now); err != nil || got.Body.Sequence != 7 {
		t.Errorf("Verify = %v, %v", got, err)
	}
	raw = golden(t, "testdata/value.hex", descriptor.Value{r}.Marshal())
	for _, key := range []string{descriptor.AddressKey(cert.Address), descriptor.AgentKey(cert.Agent)} {
		if _, err := descriptor.VerifyValue(key, raw, verifier(), now); err != nil {
			t.Errorf("VerifyValue(%s): %v", key, err)
		}
	}
}

func golden(t *testing.T, file string, got []byte) []byte {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(hex.EncodeToString(got)+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: sealed anew it is\n%x", file, got)
	}
	return want
}

func goldenRecord() *descriptorpb.AgentRecord {
	return &descriptorpb.AgentRecord{
		Addrs:     [][]byte{multiaddr.StringCast("/ip4/192.0.2.1/udp/4747/quic-v1").Bytes()},
		Mailboxes: []string{"/ip4/192.0.2.2/tcp/4747"},
		Sequence:  7, Issued: now.Unix(), Expires: now.Add(time.Hour).Unix(),
	}
}

func goldenAgent(t testing.TB) (crypto.PrivKey, *identity.Certificate) {
	t.Helper()
	root := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize))
	host, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{2}, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(host)
	if err != nil {
		t.Fatal(err)
	}
	var nonce uint64 // the smallest, so that all who repeat this find the same
	addr, ok := identity.DeriveAddress(lab, root.Public().(ed25519.PublicKey), nonce)
	for ; !ok; nonce++ {
		addr, ok = identity.DeriveAddress(lab, root.Public().(ed25519.PublicKey), nonce+1)
	}
	kem, err := identity.MailboxKEM.DeriveKeyPair(bytes.Repeat([]byte{3}, 32))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := identity.IssueCertificate(root, identity.Certificate{
		Address: addr, Nonce: nonce, Version: 1, Peer: id,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		MailboxKEM: identity.MailboxKEM.ID(), MailboxKey: kem.PublicKey().Bytes(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return host, cert
}
