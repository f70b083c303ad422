package signal

import (
	"crypto/hpke"
	"fmt"
	"math"

	"openmesh/protocols/signal/signalpb"
)

// Suite names a KEM, a KDF and an AEAD by their code points in the registry of
// RFC 9180.
type Suite struct{ KEM, KDF, AEAD uint16 }

// Code points (RFC 9180 section 7; draft-connolly-cfrg-xwing-kem for 0x647a).
const (
	X25519           uint16 = 0x0020
	X25519MLKEM768   uint16 = 0x647a
	HKDFSHA256       uint16 = 0x0001
	AES256GCM        uint16 = 0x0002
	ChaCha20Poly1305 uint16 = 0x0003
)

// Suites lists what this implementation speaks, best first: safe against a
// recorder with a later quantum computer before not, AES before ChaCha.
func Suites() []Suite {
	return []Suite{
		{X25519MLKEM768, HKDFSHA256, AES256GCM},
		{X25519MLKEM768, HKDFSHA256, ChaCha20Poly1305},
		{X25519, HKDFSHA256, AES256GCM},
		{X25519, HKDFSHA256, ChaCha20Poly1305},
	}
}

// String returns a name such as "x25519-mlkem768+hkdf-sha256+aes-256-gcm".
func (s Suite) String() string {
	return codeName(s.KEM, map[uint16]string{X25519: "x25519", X25519MLKEM768: "x25519-mlkem768"}) + "+" +
		codeName(s.KDF, map[uint16]string{HKDFSHA256: "hkdf-sha256"}) + "+" +
		codeName(s.AEAD, map[uint16]string{AES256GCM: "aes-256-gcm", ChaCha20Poly1305: "chacha20-poly1305"})
}

func codeName(c uint16, names map[uint16]string) string {
	if n, ok := names[c]; ok {
		return n
	}
	return fmt.Sprintf("%#04x", c)
}

// hpke returns the algorithms of s, which must be one of [Suites].
func (s Suite) hpke() (hpke.KDF, hpke.AEAD, error) {
	kdf, err := hpke.NewKDF(s.KDF)
	if err != nil {
		return nil, nil, err
	}
	aead, err := hpke.NewAEAD(s.AEAD)
	return kdf, aead, err
}

func (s Suite) message() *signalpb.Suite {
	return &signalpb.Suite{Kem: uint32(s.KEM), Kdf: uint32(s.KDF), Aead: uint32(s.AEAD)}
}

// suiteOf returns the suite in m, or false if a number is no code point.
func suiteOf(m *signalpb.Suite) (Suite, bool) {
	if m.GetKem() > math.MaxUint16 || m.GetKdf() > math.MaxUint16 || m.GetAead() > math.MaxUint16 {
		return Suite{}, false
	}
	return Suite{uint16(m.GetKem()), uint16(m.GetKdf()), uint16(m.GetAead())}, true
}
