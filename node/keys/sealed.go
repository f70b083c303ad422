package keys

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"

	"golang.org/x/crypto/argon2"

	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

const (
	magic         = "openmesh"
	formatVersion = 1

	saltSize   = 16
	headerSize = len(magic) + 1 + 4 + 4 + 1 + saltSize
	secretSize = ed25519.SeedSize + 2 + 8 + 4
	// sealedSize is the length of every sealed file.
	sealedSize = headerSize + 12 + secretSize + 16
)

// cost is what Argon2id spends on one guess of the passphrase.
type cost struct {
	passes uint32
	memory uint32 // KiB
	lanes  uint8
}

// standard is the second recommended option of RFC 9106 §4.
var standard = cost{passes: 3, memory: 64 << 10, lanes: 4}

// The most that a file may ask of its reader: a second or two, not a terabyte.
const (
	maxPasses = 16
	maxMemory = 256 << 10 // KiB
	maxLanes  = 16
)

func (c cost) allowed() bool {
	return c.passes >= 1 && c.passes <= maxPasses && c.memory >= 8*uint32(c.lanes) && c.memory <= maxMemory &&
		c.lanes >= 1 && c.lanes <= maxLanes
}

// secret is what a sealed file holds: all that an agent cannot do without.
type secret struct {
	root    ed25519.PrivateKey
	realm   identity.Realm
	nonce   uint64
	version uint32 // of the newest certificate when the file was sealed
}

func (s secret) marshal() []byte {
	b := make([]byte, 0, secretSize)
	b = append(b, s.root[:ed25519.SeedSize]...)
	b = binary.BigEndian.AppendUint16(b, uint16(s.realm))
	b = binary.BigEndian.AppendUint64(b, s.nonce)
	return binary.BigEndian.AppendUint32(b, s.version)
}

func unmarshalSecret(b []byte) secret {
	rest := b[ed25519.SeedSize:]
	return secret{
		root:    ed25519.NewKeyFromSeed(b[:ed25519.SeedSize]),
		realm:   identity.Realm(binary.BigEndian.Uint16(rest)),
		nonce:   binary.BigEndian.Uint64(rest[2:]),
		version: binary.BigEndian.Uint32(rest[10:]),
	}
}

// agent returns the agent that s is the secret of, or false if its nonce does
// not prove an address.
func (s secret) agent() (identity.AgentID, bool) {
	pub := s.root.Public().(ed25519.PublicKey)
	_, ok := identity.DeriveAddress(s.realm, pub, s.nonce)
	return identity.NewAgentID(pub), ok
}

// seal encrypts s under passphrase, in the format of the package comment.
func seal(c cost, passphrase []byte, s secret) ([]byte, error) {
	header := make([]byte, 0, sealedSize)
	header = append(header, magic...)
	header = append(header, formatVersion)
	header = binary.BigEndian.AppendUint32(header, c.passes)
	header = binary.BigEndian.AppendUint32(header, c.memory)
	header = append(header, c.lanes)
	header = header[:headerSize]
	rand.Read(header[headerSize-saltSize:])

	aead, err := c.aead(passphrase, header)
	if err != nil {
		return nil, err
	}
	plain := s.marshal()
	defer clear(plain)
	return aead.Seal(header, nil, plain, header), nil
}

// unseal opens a sealed file. The error is wire.Malformed or wire.Unsupported
// for what is no such file, wire.Denied for a wrong passphrase: which cannot be
// told from a file that was altered.
func unseal(passphrase, file []byte) (secret, error) {
	c, err := parseHeader(file)
	if err != nil {
		return secret{}, err
	}
	header, box := file[:headerSize], file[headerSize:]
	aead, err := c.aead(passphrase, header)
	if err != nil {
		return secret{}, err
	}
	plain, err := aead.Open(nil, nil, box, header)
	if err != nil {
		return secret{}, wire.Errorf(wire.Denied, "wrong passphrase, or the file was altered").
			WithHint("try the passphrase again; if it is right, restore the identity from a backup")
	}
	defer clear(plain)
	s := unmarshalSecret(plain)
	if _, ok := s.agent(); !ok {
		clear(s.root)
		return secret{}, wire.Errorf(wire.Malformed, "sealed identity proves no address")
	}
	return s, nil
}

// parseHeader checks all that can be checked without the passphrase, so that
// nothing is spent on a file that is not one of ours.
func parseHeader(file []byte) (cost, error) {
	if len(file) < len(magic)+1 || !bytes.HasPrefix(file, []byte(magic)) {
		return cost{}, wire.Errorf(wire.Malformed, "not a sealed OpenMesh identity")
	}
	if v := file[len(magic)]; v != formatVersion {
		return cost{}, wire.Errorf(wire.Unsupported, "sealed identity of format %d, this program knows %d", v, formatVersion)
	}
	if len(file) != sealedSize {
		return cost{}, wire.Errorf(wire.Malformed, "sealed identity has %d bytes, want %d", len(file), sealedSize)
	}
	p := file[len(magic)+1:]
	c := cost{binary.BigEndian.Uint32(p), binary.BigEndian.Uint32(p[4:]), p[8]}
	if !c.allowed() {
		return cost{}, wire.Errorf(wire.Malformed, "sealed identity asks for Argon2id with %d passes, %d KiB, %d lanes; at most %d, %d, %d are allowed",
			c.passes, c.memory, c.lanes, maxPasses, maxMemory, maxLanes)
	}
	return c, nil
}

// aead derives the file's key. The salt is new in every file, so no key is ever
// used for a second message; the AEAD puts a random nonce first all the same.
func (c cost) aead(passphrase, header []byte) (cipher.AEAD, error) {
	key := argon2.IDKey(passphrase, header[headerSize-saltSize:], c.passes, c.memory, c.lanes, 32)
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}
