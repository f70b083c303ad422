package forward

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"

	"google.golang.org/protobuf/proto"

	"openmesh/protocols/forward/forwardpb"
	"openmesh/protocols/wire"
)

const (
	statusPlain = 80
	nonceSize   = 12
	saltSize    = 32

	// StatusSize is that of every status on the wire, in bytes.
	StatusSize = nonceSize + statusPlain + tagSize
)

// status is how a setup ended at the hop that tells.
type status struct {
	code wire.Code // 0: the target answers
	next bool      // it is about the hop after the one that tells
	salt []byte    // of the target
}

// seal returns the status as a cell that only the source opens.
func (s status) seal(k *keys) ([]byte, error) {
	b, err := proto.Marshal(&forwardpb.Status{Code: uint32(s.code), Next: s.next, Salt: s.salt})
	if err != nil {
		return nil, err
	}
	var plain [statusPlain]byte
	plain[0] = byte(len(b))
	copy(plain[1:], b)
	cell := make([]byte, nonceSize, StatusSize)
	rand.Read(cell)
	return newGCM(k.status[:]).Seal(cell, cell, plain[:], nil), nil
}

// openStatus opens the cell of the hop with these keys. Not ok says that another
// hop made it, or none.
func openStatus(k *keys, cell []byte) (s status, ok bool) {
	plain, err := newGCM(k.status[:]).Open(nil, cell[:nonceSize], cell[nonceSize:], nil)
	if err != nil {
		return status{}, false
	}
	return parseStatus(plain)
}

// parseStatus reads the statusPlain bytes of a cell.
func parseStatus(plain []byte) (s status, ok bool) {
	var m forwardpb.Status
	n := int(plain[0])
	if n > len(plain)-1 || proto.Unmarshal(plain[1:1+n], &m) != nil {
		return status{}, false
	}
	s = status{code: wire.Code(m.Code), next: m.Next, salt: m.Salt}
	if s.code == 0 && (s.next || len(s.salt) != saltSize) {
		return status{}, false
	}
	if s.code != 0 && !s.code.Known() {
		s.code = wire.Denied // of a newer peer
	}
	return s, true
}

// peelStatus finds which hop made the cell that came back along a path; cell is
// changed.
func peelStatus(shared []*keys, cell []byte) (s status, place int, ok bool) {
	for i, k := range shared {
		if s, ok := openStatus(k, cell); ok && (s.code != 0 || i == len(shared)-1) {
			return s, i, true
		}
		keystream(&k.wrap, cell, 0)
	}
	return status{}, 0, false
}

func newGCM(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err == nil {
		var g cipher.AEAD
		if g, err = cipher.NewGCM(block); err == nil {
			return g
		}
	}
	panic(err) // the size of the key is a constant
}

// direction is which way a reset travels.
type direction byte

const (
	ahead direction = iota // from the source
	back                   // to the source
)

// resetWord is the code of a reset that the hop with these keys begins, or, ahead,
// that the source begins for it.
func resetWord(k *keys, d direction, code wire.Code, next bool) uint32 {
	low := byte(0)
	if code.Known() {
		low = byte(code-wire.Internal) << 1
	}
	if next {
		low |= 1
	}
	return tag(k, d, low)<<8 | uint32(low)
}

func tag(k *keys, d direction, low byte) uint32 {
	h := hmac.New(sha256.New, k.reset[:])
	h.Write([]byte{byte(d), low})
	sum := h.Sum(nil)
	return uint32(sum[0])<<16 | uint32(sum[1])<<8 | uint32(sum[2])
}

// openReset reads a word whose masks are off, if the hop with these keys, or the
// source for it, made it. Others pass once in 2^24.
func openReset(k *keys, d direction, word uint32) (s status, ok bool) {
	low := byte(word)
	if !hmac.Equal(be24(tag(k, d, low)), be24(word>>8)) {
		return status{}, false
	}
	code := wire.Internal + wire.Code(low>>1)
	if !code.Known() {
		code = wire.Denied
	}
	return status{code: code, next: low&1 == 1}, true
}

// peelReset finds which hop made the word that came back along a path.
func peelReset(shared []*keys, word uint32) (s status, place int, ok bool) {
	for i, k := range shared {
		if s, ok := openReset(k, back, word); ok {
			return s, i, true
		}
		word ^= k.back
	}
	return status{}, 0, false
}

// sourceReset is the word of a reset for the target, under the masks that the
// relays will take off.
func sourceReset(shared []*keys, code wire.Code) uint32 {
	word := resetWord(shared[len(shared)-1], ahead, code, false)
	for _, k := range shared[:len(shared)-1] {
		word ^= k.ahead
	}
	return word
}

// foreign reports whether a reset was not begun or passed on by a hop of ours:
// its code is none, or one of libp2p's own.
func foreign(word uint32) bool { return word == 0 || word >= 0x1000 && word < 0x1100 }

func be24(n uint32) []byte { return []byte{byte(n >> 16), byte(n >> 8), byte(n)} }
