package mailbox

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math/bits"
	"time"

	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// ID names a letter: 16 random bytes, chosen by its sender.
type ID [16]byte

// NewID returns a random id.
func NewID() (id ID) {
	rand.Read(id[:])
	return id
}

// String returns id in hex.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Letter is what a relay gets to see of a message. The same letter may be left
// with several relays.
type Letter struct {
	Recipient identity.AgentID
	ID        ID
	Expires   time.Time // whole seconds
	Body      []byte    // Sealed: at most MaxBody
}

// Digest names this very letter: two with one recipient and digest are the same,
// to the last bit. An id alone would not do, for anyone can use it again.
func (l *Letter) Digest() [sha256.Size]byte {
	h := sha256.New()
	h.Write(l.ID[:])
	var expires [8]byte
	binary.BigEndian.PutUint64(expires[:], uint64(l.Expires.Unix()))
	h.Write(expires[:])
	h.Write(l.Body)
	return [sha256.Size]byte(h.Sum(nil))
}

// newLetter returns what a Deposit or Item announces, without the body. Errors:
// wire.Malformed.
func newLetter(recipient string, id []byte, expires int64) (Letter, error) {
	agent, err := identity.ParseAgentID(recipient)
	if err != nil {
		return Letter{}, wire.Errorf(wire.Malformed, "letter: %w", err)
	}
	if len(id) != len(ID{}) {
		return Letter{}, wire.Errorf(wire.Malformed, "letter: id of %d bytes", len(id))
	}
	const year10000 = 253402300800
	if expires <= 0 || expires >= year10000 {
		return Letter{}, wire.Errorf(wire.Malformed, "letter: expires at %d", expires)
	}
	return Letter{Recipient: agent, ID: ID(id), Expires: time.Unix(expires, 0).UTC()}, nil
}

// current checks a letter's time. Errors: wire.Replayed for one that has
// expired, wire.InvalidArgument for one that stays too long.
func (l *Letter) current(now time.Time) error {
	if !now.Before(l.Expires) {
		return wire.Errorf(wire.Replayed, "letter %s expired at %s", l.ID, l.Expires.UTC().Format(time.RFC3339)).
			WithHint("Send it again with a later expiry, and check the clock.")
	}
	if l.Expires.Sub(now) > MaxTTL+identity.ClockSkew {
		return wire.Errorf(wire.InvalidArgument, "letter %s expires at %s, more than %v from now", l.ID, l.Expires.UTC().Format(time.RFC3339), MaxTTL).
			WithHint("Choose an earlier expiry, and check the clock.")
	}
	return nil
}

// aad is what a letter is sealed with, besides its content.
func (l *Letter) aad(version uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, version)
	b = binary.BigEndian.AppendUint64(b, uint64(l.Expires.Unix()))
	b = append(b, l.ID[:]...)
	return append(b, l.Recipient...)
}

// minPadded is the step for what is small: most letters look alike.
const minPadded = 2 << 10

// padded is the step that n bytes are padded to: Padmé, which keeps of n as many
// leading bits as log2 n has, so that of all sizes up to 4 MiB some 500 are left.
func padded(n int) int {
	if n <= minPadded {
		return minPadded
	}
	exponent := bits.Len(uint(n)) - 1
	mask := 1<<(exponent-bits.Len(uint(exponent))) - 1
	return (n + mask) &^ mask
}
