package identity

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"runtime"
	"strconv"
	"strings"
	"sync"
)

// Realm numbers a mesh. Realms never mix.
type Realm uint16

const (
	// MaxRealm is the highest realm.
	MaxRealm Realm = 65534
	// FirstPrivateRealm starts the private-use range, whose addresses are cheap
	// to make: for laboratories and tests.
	FirstPrivateRealm Realm = 64512
)

// puzzleBits is how many leading zero bits the address puzzle wants.
func (r Realm) puzzleBits() int {
	if r >= FirstPrivateRealm {
		return 8
	}
	return 20
}

// Address is the 48-bit name of an agent within a realm.
type Address struct {
	Realm Realm
	Bits  uint64 // the low 48 bits
}

// String returns the canonical form, such as 0:A91F.0000.7C2E.
func (a Address) String() string {
	var buf [5 + 1 + 14]byte // on the path of every call: no fmt
	b := append(strconv.AppendUint(buf[:0], uint64(a.Realm), 10), ':')
	for shift := 44; shift >= 0; shift -= 4 {
		b = append(b, "0123456789ABCDEF"[a.Bits>>shift&0xf])
		if shift == 32 || shift == 16 {
			b = append(b, '.')
		}
	}
	return string(b)
}

// Hex returns the 48 bits as 12 lower-case hex digits, as used in DHT keys.
func (a Address) Hex() string { return fmt.Sprintf("%012x", a.Bits) }

// ParseAddress reads the canonical form, in either case.
func ParseAddress(s string) (Address, error) {
	bad := func() (Address, error) {
		return Address{}, fmt.Errorf("%w: address %.40q: want R:XXXX.XXXX.XXXX, such as 0:A91F.0000.7C2E", ErrInvalid, s)
	}
	realm, rest, ok := strings.Cut(s, ":")
	if !ok || len(realm) > 1 && realm[0] == '0' || len(rest) != 14 || rest[4] != '.' || rest[9] != '.' {
		return bad()
	}
	r, err := strconv.ParseUint(realm, 10, 16)
	if err != nil || Realm(r) > MaxRealm || realm[0] == '+' {
		return bad()
	}
	b, err := strconv.ParseUint(rest[0:4]+rest[5:9]+rest[10:14], 16, 48)
	if err != nil {
		return bad()
	}
	return Address{Realm(r), b}, nil
}

// digest is d of the package comment.
type digest [sha256.Size]byte

func addressDigest(r Realm, root ed25519.PublicKey, nonce uint64) digest {
	const domain = "openmesh/address/v1"
	var b [len(domain) + 2 + ed25519.PublicKeySize + 8]byte
	n := copy(b[:], domain)
	binary.BigEndian.PutUint16(b[n:], uint16(r))
	copy(b[n+2:], root)
	binary.BigEndian.PutUint64(b[n+2+ed25519.PublicKeySize:], nonce)
	return sha256.Sum256(b[:])
}

func (d digest) solves(zeros int) bool {
	h := sha256.Sum256(append(d[:], "pow"...))
	return bits.LeadingZeros64(binary.BigEndian.Uint64(h[:])) >= zeros
}

func (d digest) address(r Realm) Address {
	h := sha256.Sum256(d[:])
	return Address{r, binary.BigEndian.Uint64(h[:]) >> 16}
}

// DeriveAddress returns the address that nonce proves for the root key in realm
// r, or false if nonce does not solve the puzzle.
func DeriveAddress(r Realm, root ed25519.PublicKey, nonce uint64) (Address, bool) {
	if r > MaxRealm || len(root) != ed25519.PublicKeySize {
		return Address{}, false
	}
	d := addressDigest(r, root, nonce)
	if !d.solves(r.puzzleBits()) {
		return Address{}, false
	}
	return d.address(r), true
}

// SolveAddress finds the nonce that solves the puzzle: about a million hashes,
// a fraction of a second on all cores. The result is the smallest nonce of the
// first batch that has one, so the same root key gets the same address again.
func SolveAddress(ctx context.Context, r Realm, root ed25519.PublicKey) (nonce uint64, a Address, err error) {
	const batch = 1 << 16
	workers := uint64(runtime.GOMAXPROCS(0))
	for start := uint64(0); ctx.Err() == nil; start += workers * batch {
		found := make([]uint64, workers)
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() { found[w] = searchNonce(r, root, start+w*batch, batch) })
		}
		wg.Wait()
		for _, n := range found {
			if n != notFound {
				a, _ := DeriveAddress(r, root, n)
				return n, a, nil
			}
		}
	}
	return 0, Address{}, fmt.Errorf("solve address puzzle: %w", ctx.Err())
}

const notFound = ^uint64(0)

func searchNonce(r Realm, root ed25519.PublicKey, from, count uint64) uint64 {
	zeros := r.puzzleBits()
	for n := from; n < from+count; n++ {
		if addressDigest(r, root, n).solves(zeros) {
			return n
		}
	}
	return notFound
}
