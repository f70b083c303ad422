package identity_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"openmesh/protocols/identity"
	"openmesh/protocols/identity/identitypb"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/wire"

	"github.com/libp2p/go-libp2p/core/record"
	"google.golang.org/protobuf/proto"
)

const lab = identity.FirstPrivateRealm

var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func TestParseAddress(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ in, want string }{
		{"0:A91F.0000.7C2E", "0:A91F.0000.7C2E"},
		{"65534:ffff.FFFF.fFfF", "65534:FFFF.FFFF.FFFF"},
		{"65535:0000.0000.0000", ""},
		{"00:0000.0000.0000", ""},
		{"+1:0000.0000.0000", ""},
		{"1:000.00000.0000", ""},
		{"1:0000-0000-0000", ""},
		{"1:0000.0000.000", ""},
		{"1:0000.0000.00G0", ""},
		{":0000.0000.0000", ""},
		{"1:0000.0000.+000", ""},
		{"", ""},
	} {
		a, err := identity.ParseAddress(tc.in)
		if tc.want == "" && err == nil || tc.want != "" && (err != nil || a.String() != tc.want) {
			t.Errorf("ParseAddress(%q) = %v, %v; want %q", tc.in, a, err, tc.want)
		}
	}
}

// A golden vector that another implementation can check itself against: the
// root key with the seed 00 01 … 1f, in realm 0 and in a private-use realm.
func TestGoldenIdentity(t *testing.T) {
	t.Parallel()
	seed, _ := hex.DecodeString("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
	pub := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	if got, want := identity.NewAgentID(pub), identity.AgentID("did:key:z6MkehRgf7yJbgaGfYsdoAsKdBPE3dj2CYhowQdcjqSJgvVd"); got != want {
		t.Errorf("agent id %s, want %s", got, want)
	}
	for _, tc := range []struct {
		realm identity.Realm
		nonce uint64
		want  string
	}{{0, goldenNonce0, goldenAddress0}, {lab, goldenNonceLab, goldenAddressLab}} {
		nonce, a, err := identity.SolveAddress(t.Context(), tc.realm, pub)
		if err != nil || nonce != tc.nonce || a.String() != tc.want {
			t.Errorf("realm %d: nonce %d, address %s, %v; want %d, %s", tc.realm, nonce, a, err, tc.nonce, tc.want)
		}
		if nonce > 0 {
			if a, ok := identity.DeriveAddress(tc.realm, pub, nonce-1); ok {
				t.Errorf("realm %d: nonce %d gives %s, but it does not solve the puzzle", tc.realm, nonce-1, a)
			}
		}
	}
}

func TestAgentIDIsCanonical(t *testing.T) {
	t.Parallel()
	good := protocoltest.NewAgent(t, lab, now).Agent
	if id, err := identity.ParseAgentID(string(good)); err != nil || id != good {
		t.Errorf("ParseAgentID(%s) = %s, %v", good, id, err)
	}
	for _, s := range []string{"", "did:key:", "did:key:z6Mk", string(good) + "1", string(good)[1:], "did:web:example.org", "did:key:m" + string(good)[9:]} {
		if _, err := identity.ParseAgentID(s); !errors.Is(err, identity.ErrInvalid) {
			t.Errorf("ParseAgentID(%q) = %v, want ErrInvalid", s, err)
		}
	}
}

// Each attack on a certificate and the code it meets.
func TestCertificateAttacks(t *testing.T) {
	t.Parallel()
	a, b := protocoltest.NewAgent(t, lab, now), protocoltest.NewAgent(t, lab, now)
	fields := func(change func(*identity.Certificate)) []byte {
		c := *a.Certificate
		change(&c)
		c2, err := identity.IssueCertificate(a.Root, c)
		if err != nil {
			return a.UncheckedCertificate(t, c)
		}
		return c2.Raw
	}
	flip := slices.Clone(a.Certificate.Raw)
	flip[len(flip)/2] ^= 1
	for _, tc := range []struct {
		name string
		raw  []byte
		want wire.Code
	}{
		{"one bit flipped", flip, wire.Unauthenticated},
		{"empty", nil, wire.Unauthenticated},
		{"oversize", make([]byte, identity.MaxCertificate+1), wire.TooLarge},
		{"copied address: nonce of another agent", fields(func(c *identity.Certificate) { c.Nonce = wrongNonce(a) }), wire.Unauthenticated},
		{"wrong-length mailbox key", fields(func(c *identity.Certificate) { c.MailboxKey = c.MailboxKey[1:] }), wire.Malformed},
		{"version 0", fields(func(c *identity.Certificate) { c.Version = 0 }), wire.Malformed},
		{"peer id of no key", fields(func(c *identity.Certificate) { c.Peer = "x" }), wire.Malformed},
		{"valid for ever", fields(func(c *identity.Certificate) { c.NotAfter = now.AddDate(100, 0, 0) }), wire.Malformed},
		{"ends before it begins", fields(func(c *identity.Certificate) { c.NotAfter = c.NotBefore }), wire.Malformed},
		{"expired", fields(func(c *identity.Certificate) { c.NotBefore, c.NotAfter = now.Add(-time.Hour), now }), wire.KeyExpired},
		{"not yet valid", fields(func(c *identity.Certificate) { c.NotBefore = now.Add(identity.ClockSkew + time.Second) }), wire.KeyExpired},
		{"of another realm", protocoltest.NewAgent(t, lab+1, now).Certificate.Raw, wire.Denied},
		{"presented by another peer", b.Certificate.Raw, wire.Unauthenticated},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := identity.NewVerifier(lab, func() time.Time { return now })
			c, err := v.VerifyPeer(tc.raw, a.Certificate.Peer)
			if wire.CodeOf(err) != tc.want {
				t.Errorf("VerifyPeer = %v, %v; want %s", c, err, tc.want)
			}
		})
	}
}

func wrongNonce(a *protocoltest.Agent) uint64 {
	pub, _ := a.Agent.PublicKey()
	for n := a.Certificate.Nonce + 1; ; n++ {
		if _, ok := identity.DeriveAddress(lab, pub, n); !ok {
			return n
		}
	}
}

// After a newer certificate was seen, the older key is refused; the same one
// again is fine, and so is a newer one still.
func TestSupersededKeyIsRefused(t *testing.T) {
	t.Parallel()
	a := protocoltest.NewAgent(t, lab, now)
	v := identity.NewVerifier(lab, func() time.Time { return now })
	v1, v2, v2b, v3 := a.Certificate, a.Rotate(t, 2, now), a.Rotate(t, 2, now), a.Rotate(t, 3, now)
	for _, step := range []struct {
		c    *identity.Certificate
		want error
	}{{v1, nil}, {v1, nil}, {v2, nil}, {v1, wire.KeySuperseded}, {v2, nil}, {v2b, wire.KeySuperseded}, {v3, nil}, {v2, wire.KeySuperseded}} {
		if _, err := v.Verify(step.c.Raw); !errors.Is(err, step.want) {
			t.Errorf("version %d: %v, want %v", step.c.Version, err, step.want)
		}
	}
}

// A former key is good for what the holder of the newest one shows, and for nobody
// else: not for who has stolen it, whatever he presents.
func TestFormerKey(t *testing.T) {
	t.Parallel()
	a, b := protocoltest.NewAgent(t, lab, now), protocoltest.NewAgent(t, lab, now)
	elsewhere := protocoltest.NewAgent(t, lab+1, now)
	v1, v2, v2b, v3 := a.Certificate, a.Rotate(t, 2, now), a.Rotate(t, 2, now), a.Rotate(t, 3, now)
	later := v1.NotAfter
	v4 := a.Rotate(t, 4, later)
	for _, tc := range []struct {
		name         string
		known        *identity.Certificate
		raw, present *identity.Certificate
		at           time.Time
		want         error
	}{
		{"the newest", v2, v2, v2, now, nil},
		{"not the newest yet", v1, v2, v1, now, nil},
		{"superseded", v2, v1, v2, now, nil},
		{"long superseded", v3, v1, v3, now, nil},
		{"expired and superseded", v4, v1, v4, later, nil},
		{"shown by its thief", v2, v1, v1, now, wire.KeySuperseded},
		{"shown by the thief of another", v3, v1, v2, now, wire.KeySuperseded},
		{"shown under an expired one", v2, v1, v2, later, wire.KeyExpired},
		{"shown by another agent", v2, v1, b.Certificate, now, wire.KeySuperseded},
		{"twice the same version", v2, v2b, v2, now, wire.KeySuperseded},
		{"expired without another", v1, v1, v1, later, wire.KeyExpired},
		{"of another realm", v1, elsewhere.Certificate, elsewhere.Rotate(t, 2, now), now, wire.Denied},
	} {
		clock := tc.at
		v := identity.NewVerifier(lab, func() time.Time { return clock })
		if _, err := v.Verify(tc.known.Raw); err != nil && tc.known.Valid(clock) == nil {
			t.Fatal(err)
		}
		c, err := v.VerifyFormer(tc.raw.Raw, tc.present)
		if !errors.Is(err, tc.want) || tc.want == nil && c.Version != tc.raw.Version {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
	broken := slices.Clone(v1.Raw)
	broken[len(broken)-1] ^= 1
	v := identity.NewVerifier(lab, func() time.Time { return now })
	if _, err := v.VerifyFormer(broken, v2); !errors.Is(err, wire.Unauthenticated) {
		t.Errorf("damaged: %v", err)
	}
}

// The verifier's clock decides each time, also for a certificate it has cached.
func TestCachedCertificateExpires(t *testing.T) {
	t.Parallel()
	a := protocoltest.NewAgent(t, lab, now)
	clock := now
	v := identity.NewVerifier(lab, func() time.Time { return clock })
	if _, err := v.Verify(a.Certificate.Raw); err != nil {
		t.Fatal(err)
	}
	clock = a.Certificate.NotAfter
	if _, err := v.Verify(a.Certificate.Raw); !errors.Is(err, wire.KeyExpired) {
		t.Errorf("Verify at expiry = %v, want key_expired", err)
	}
}

// A certificate with a field from a later version of the protocol verifies.
func TestUnknownFieldsAreSigned(t *testing.T) {
	t.Parallel()
	a := protocoltest.NewAgent(t, lab, now)
	p := a.CertificateMessage(*a.Certificate)
	p.ProtoReflect().SetUnknown([]byte{0xfa, 0x07, 0x01, 'x'}) // field 127
	if _, err := identity.ParseCertificate(a.SealCertificate(t, p)); err != nil {
		t.Error(err)
	}
}

// A certificate has one form: no bytes can be added to it that its root key has not
// signed.
func TestCertificateHasOneForm(t *testing.T) {
	t.Parallel()
	raw := protocoltest.NewAgent(t, lab, now).Certificate.Raw
	insert := func(at int, b ...byte) []byte { return slices.Insert(slices.Clone(raw), at, b...) }
	if raw[0] != 0x0a || raw[1] >= 0x80 || raw[2] != 0x08 { // public_key, its length, its type
		t.Fatalf("an envelope begins with %x", raw[:3])
	}
	key := raw[:2+raw[1]]
	within := insert(len(key), 0x78, 1)
	within[1] += 2
	long := insert(2, raw[1]&0x7f)
	long[1], long[2] = raw[1]|0x80, 0
	forms := map[string][]byte{
		"the key last":            append(slices.Clone(raw[len(key):]), key...),
		"the key twice":           append(slices.Clone(key), raw...),
		"a field within the key":  within,
		"a length in two bytes":   long,
		"an unknown group":        insert(0, 0x7b, 0x7c),
		"bytes under a new field": append(slices.Clone(raw), 0x7a, 3, 'a', 'b', 'c'),
	}
	for at := range len(raw) + 1 {
		forms[fmt.Sprintf("a field at %d", at)] = insert(at, 0x78, 1)
	}
	for name, form := range forms {
		if _, err := identity.ParseCertificate(form); !errors.Is(err, wire.Malformed) && !errors.Is(err, wire.Unauthenticated) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseCertificate(f *testing.F) {
	a := protocoltest.NewAgent(f, lab, now)
	f.Add(a.Certificate.Raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := identity.ParseCertificate(raw)
		if err == nil && (c.Peer.Validate() != nil || c.Version == 0) {
			t.Errorf("accepted %+v", c)
		}
		if err == nil {
			env, err := record.UnmarshalEnvelope(raw)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := env.Marshal(); err != nil || !bytes.Equal(again, raw) {
				t.Errorf("accepted %x, which is written %x, %v", raw, again, err)
			}
		}
		// The same bytes with a signature that holds reach the field checks.
		var p identitypb.Certificate
		if proto.Unmarshal(raw, &p) == nil {
			identity.ParseCertificate(a.SealCertificate(t, &p))
		}
	})
}

func FuzzParseAddress(f *testing.F) {
	f.Add("0:A91F.0000.7C2E")
	f.Fuzz(func(t *testing.T, s string) {
		if a, err := identity.ParseAddress(s); err == nil {
			if b, err := identity.ParseAddress(a.String()); err != nil || a != b {
				t.Errorf("%q parsed as %v, which parses as %v, %v", s, a, b, err)
			}
		}
	})
}

const (
	goldenNonce0     = 1105881
	goldenAddress0   = "0:93E6.DFA2.AD9C"
	goldenNonceLab   = 813
	goldenAddressLab = "64512:57C9.AE7C.786D"
)
