package keys

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"testing"

	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

func newSecret(t testing.TB) secret {
	t.Helper()
	pub, root, err := ed25519.GenerateKey(nil)
	check(t, err)
	nonce, _, err := identity.SolveAddress(t.Context(), lab, pub)
	check(t, err)
	return secret{root, lab, nonce, 7}
}

func TestSealedRoundTrip(t *testing.T) {
	t.Parallel()
	want := newSecret(t)
	file, err := seal(cheap, pass, want)
	check(t, err)
	got, err := unseal(pass, file)
	check(t, err)
	if !got.root.Equal(want.root) || got.realm != want.realm || got.nonce != want.nonce || got.version != want.version {
		t.Errorf("got %+v, want %+v", got, want)
	}
	again, err := seal(cheap, pass, want)
	check(t, err)
	if bytes.Equal(file[headerSize:], again[headerSize:]) {
		t.Error("sealing twice gives the same box")
	}
}

// Each byte of the file matters, and so does its end.
func TestAlteredFileIsRefused(t *testing.T) {
	t.Parallel()
	file, err := seal(cheap, pass, newSecret(t))
	check(t, err)
	for i := range file {
		bad := slices.Clone(file)
		bad[i] ^= 1
		if _, err := unseal(pass, bad); err == nil {
			t.Errorf("byte %d may be anything", i)
		}
		if _, err := unseal(pass, file[:i]); !errors.Is(err, wire.Malformed) {
			t.Errorf("cut to %d bytes: %v, want malformed", i, err)
		}
	}
	_, err = unseal(pass, append(slices.Clone(file), 0))
	wantCode(t, err, wire.Malformed)
	_, err = unseal(other, file)
	wantCode(t, err, wire.Denied)
	_, err = unseal(nil, file)
	wantCode(t, err, wire.Denied)
}

// No file makes its reader work for long, and none makes Argon2 panic.
func TestCostIsBounded(t *testing.T) {
	t.Parallel()
	file, err := seal(cheap, pass, newSecret(t))
	check(t, err)
	for _, tc := range []struct {
		cost
		want bool
	}{
		{cheap, true}, {standard, true}, {cost{maxPasses, maxMemory, maxLanes}, true},
		{cost{0, 64, 1}, false}, {cost{maxPasses + 1, 64, 1}, false},
		{cost{1, 64, 0}, false}, {cost{1, 1 << 12, maxLanes + 1}, false},
		{cost{1, 0, 1}, false}, {cost{1, 31, 4}, false}, {cost{1, maxMemory + 1, 1}, false}, {cost{1, 1 << 30, 1}, false},
	} {
		p := file[len(magic)+1:]
		binary.BigEndian.PutUint32(p, tc.passes)
		binary.BigEndian.PutUint32(p[4:], tc.memory)
		p[8] = tc.lanes
		if c, err := parseHeader(file); (err == nil) != tc.want || err == nil && c != tc.cost {
			t.Errorf("%+v: %v", tc.cost, err)
		}
	}
	file[len(magic)] = formatVersion + 1
	_, err = parseHeader(file)
	wantCode(t, err, wire.Unsupported)
}

// A file that opens but proves no address is of no use.
func TestSecretMustProveAnAddress(t *testing.T) {
	t.Parallel()
	s := newSecret(t)
	for _, ok := s.agent(); ok; _, ok = s.agent() {
		s.nonce++
	}
	file, err := seal(cheap, pass, s)
	check(t, err)
	_, err = unseal(pass, file)
	wantCode(t, err, wire.Malformed)
}

// goldenFile is the identity with the root seed 00 01 … 1f in realm 64512, at
// version 7, sealed under "correct horse battery staple" with 1 pass over 8 KiB
// in 1 lane. Another implementation must open it too.
const goldenFile = "6f70656e6d657368010000000100000008016d8df18aa4aa7a381c124b2a168d65fc0fbbc76777e2abf92f9ceec6d983e2606784c2cb" +
	"d67eb05e1d90604e69fafee11cd1b12854ad0a1926554f09b5c154b4b898f2e63ddd8d5425da5712518648adc7947ff9fcf940330cdb"

func TestGoldenFile(t *testing.T) {
	t.Parallel()
	file, err := hex.DecodeString(goldenFile)
	check(t, err)
	s, err := unseal(pass, file)
	check(t, err)
	if agent, _ := s.agent(); agent != "did:key:z6MkehRgf7yJbgaGfYsdoAsKdBPE3dj2CYhowQdcjqSJgvVd" || s.realm != lab || s.nonce != 813 || s.version != 7 {
		t.Errorf("opened %s in realm %d, nonce %d, version %d", agent, s.realm, s.nonce, s.version)
	}
}

func FuzzUnseal(f *testing.F) {
	file, err := hex.DecodeString(goldenFile)
	check(f, err)
	f.Add(file)
	f.Add(file[:headerSize])
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseHeader(b)
		if err != nil || c.memory > 1<<10 || c.passes > 2 { // too slow to fuzz
			return
		}
		if _, err := unseal(pass, b); err == nil && !bytes.Equal(b, file) {
			t.Errorf("opened %x", b)
		}
	})
}
