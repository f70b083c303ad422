package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// sealer is one direction of one epoch: an AEAD key and the IV that a frame's
// sequence number is mixed into. A nonce is never used for two plaintexts because
// a sequence number never is.
type sealer struct {
	epoch  uint32
	aead   cipher.AEAD
	iv     [12]byte
	frames atomic.Uint64
	bytes  atomic.Uint64
	until  time.Time // when it is erased; zero: not yet
}

// deriveSealers returns the sealers for both directions of epoch from its
// secret, which stays the caller's to erase.
func deriveSealers(suite signal.Suite, secret []byte, epoch uint32) (initiator, responder *sealer, err error) {
	if initiator, err = deriveSealer(suite, secret, "initiator", epoch); err != nil {
		return nil, nil, err
	}
	responder, err = deriveSealer(suite, secret, "responder", epoch)
	return initiator, responder, err
}

func deriveSealer(suite signal.Suite, secret []byte, from string, epoch uint32) (*sealer, error) {
	info := fmt.Sprintf("openmesh/session/v1/%s/%d/", from, epoch)
	key, err := hkdf.Expand(sha256.New, secret, info+"key", 32)
	if err != nil {
		return nil, fmt.Errorf("derive session keys: %w", err)
	}
	defer clear(key)
	iv, err := hkdf.Expand(sha256.New, secret, info+"iv", 12)
	if err != nil {
		return nil, fmt.Errorf("derive session keys: %w", err)
	}
	aead, err := newAEAD(suite.AEAD, key)
	if err != nil {
		return nil, fmt.Errorf("derive session keys: %w", err)
	}
	return &sealer{epoch: epoch, aead: aead, iv: [12]byte(iv)}, nil
}

func newAEAD(code uint16, key []byte) (cipher.AEAD, error) {
	switch code {
	case signal.AES256GCM:
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		return cipher.NewGCM(block)
	case signal.ChaCha20Poly1305:
		return chacha20poly1305.New(key)
	}
	return nil, wire.Errorf(wire.Unsupported, "AEAD %#04x", code)
}

func (s *sealer) nonce(sequence uint64) (n [12]byte) {
	n = s.iv
	binary.BigEndian.PutUint64(n[4:], binary.BigEndian.Uint64(n[4:])^sequence)
	return n
}

// seal appends a frame to dst. Plain is not changed and must not overlap with
// dst's room.
func (s *sealer) seal(dst []byte, h Header, plain []byte) []byte {
	start := len(dst)
	dst = h.append(dst)
	n := s.nonce(h.Sequence)
	s.count(len(plain))
	return s.aead.Seal(dst, n[:], plain, dst[start:])
}

// open decrypts a frame in place and returns its plaintext.
func (s *sealer) open(frame []byte, sequence uint64) ([]byte, error) {
	n := s.nonce(sequence)
	body := frame[HeaderSize:]
	plain, err := s.aead.Open(body[:0], n[:], body, frame[:HeaderSize])
	if err != nil {
		return nil, wire.Unauthenticated
	}
	s.count(len(plain))
	return plain, nil
}

func (s *sealer) count(n int) {
	s.frames.Add(1)
	s.bytes.Add(uint64(n))
}
