package seal

import (
	"bytes"
	"crypto/hpke"
	"encoding/hex"
	"errors"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// classical is a suite whose keys are small and cheap.
var classical = signal.Suite{KEM: signal.X25519, KDF: signal.HKDFSHA256, AEAD: signal.AES256GCM}

func newKeys(t rapid.TB, c Config) *Keys {
	t.Helper()
	if c.Suite == (signal.Suite{}) {
		c.Suite = classical
	}
	k, err := New(c, &[32]byte{7}, start)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newPair(t rapid.TB, c Config) (initiator, responder *Keys) {
	c.Initiator = true
	initiator = newKeys(t, c)
	c.Initiator = false
	return initiator, newKeys(t, c)
}

// start is now: what ends an epoch on arrival of a frame looks at the clock.
var start = time.Now()

// change takes a pair through one change of keys, up to the proof that both have
// the new ones. Sequence numbers from n on are used.
func change(t rapid.TB, initiator, responder *Keys, n uint64) {
	t.Helper()
	m, err := initiator.Propose()
	if err != nil {
		t.Fatal(err)
	}
	reply, err := responder.Answer(m, start)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := initiator.Answer(reply, start); err != nil {
		t.Fatal(err)
	}
	for _, way := range [][2]*Keys{{initiator, responder}, {responder, initiator}} {
		if _, _, err := way[1].Open(way[0].Seal(nil, Ping, n, nil)); err != nil {
			t.Fatal(err)
		}
	}
}

// secrets returns every secret that a Keys still holds in its own fields.
func secrets(k *Keys) [][]byte {
	held := [][]byte{bytes.Clone(k.secret[:])}
	for _, s := range append([]*sealer{k.sending.Load()}, *k.opening.Load()...) {
		held = append(held, bytes.Clone(s.iv[:]))
	}
	return held
}

// After a change and the overlap nothing of the old epoch is left: neither its
// secret nor anything that opens its frames. And who had the old secret, but not
// the private keys of the change, derives none of the new keys from it.
func TestForwardSecrecy(t *testing.T) {
	t.Parallel()
	for _, suite := range signal.Suites() {
		a, b := newPair(t, Config{Suite: suite})
		for epoch := range uint32(3) {
			old := map[*Keys][]byte{a: bytes.Clone(a.secret[:]), b: bytes.Clone(b.secret[:])}
			was := append(secrets(a), secrets(b)...)
			late := a.Seal(nil, Data, uint64(10*epoch+5), []byte("late"))
			change(t, a, b, uint64(10*epoch+6))
			for name, k := range map[string]*Keys{"initiator": a, "responder": b} {
				if k.Sweep(start.Add(time.Hour)); len(*k.opening.Load()) != 1 || k.proposal != nil {
					t.Errorf("%s holds %d epochs, proposal %v", name, len(*k.opening.Load()), k.proposal)
				}
				for _, s := range secrets(k) {
					for _, before := range was {
						if bytes.Equal(s, before) {
							t.Errorf("%s still holds %x of epoch %d", name, s, epoch)
						}
					}
				}
				for e := range epoch + 3 { // by the old secret alone
					mine, theirs, err := deriveSealers(suite, old[k], e)
					if err != nil {
						t.Fatal(err)
					}
					if mine.iv == a.sending.Load().iv || theirs.iv == b.sending.Load().iv {
						t.Errorf("epoch %d follows from the secret of epoch %d", epoch+1, epoch)
					}
				}
			}
			if _, _, err := b.Open(late); !errors.Is(err, ErrStale) {
				t.Errorf("a frame of the erased epoch: %v", err)
			}
		}
		if a.secret != b.secret {
			t.Error("the two sides hold different secrets")
		}
	}
}

// Frames of the epoch before are opened while they may be on their way, and not
// for longer; frames of none are no session's.
func TestOverlapOfEpochs(t *testing.T) {
	t.Parallel()
	a, b := newPair(t, Config{Overlap: time.Minute})
	slow, slower := a.Seal(nil, Data, 1, []byte("slow")), a.Seal(nil, Data, 2, []byte("slower"))
	change(t, a, b, 3)
	b.Sweep(start.Add(30 * time.Second))
	if _, plain, err := b.Open(slow); err != nil || string(plain) != "slow" {
		t.Errorf("within the overlap: %q, %v", plain, err)
	}
	b.Sweep(time.Now().Add(61 * time.Second))
	if _, _, err := b.Open(slower); !errors.Is(err, ErrStale) {
		t.Errorf("after it: %v, want stale", err)
	}
	future := bytes.Clone(slower)
	future[21] = 9
	if _, _, err := b.Open(future); !errors.Is(err, wire.Unauthenticated) {
		t.Errorf("of an epoch to come: %v", err)
	}
}

// Old epochs stay until the peer has shown that it has the new one, however long.
func TestEpochStaysUntilThePeerHasTheNext(t *testing.T) {
	t.Parallel()
	a, b := newPair(t, Config{})
	m, _ := a.Propose()
	if _, err := b.Answer(m, start); err != nil { // the reply is lost
		t.Fatal(err)
	}
	b.Sweep(start.Add(24 * time.Hour))
	if _, _, err := b.Open(a.Seal(nil, Data, 1, nil)); err != nil || b.Epoch() != 0 {
		t.Errorf("a frame of the old epoch: %v; the responder seals epoch %d", err, b.Epoch())
	}
}

// It is time for new keys after the interval, or after so many frames or bytes of
// either direction; for the initiator only, and once.
func TestWhenKeysChange(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		cfg  Config
		use  func(a, b *Keys)
		at   time.Duration
		want bool
	}{
		{"at first", Config{Interval: time.Minute}, nil, 0, false},
		{"before the interval", Config{Interval: time.Minute}, nil, time.Minute - 1, false},
		{"after the interval", Config{Interval: time.Minute}, nil, time.Minute, true},
		{"frames below", Config{Frames: 3}, func(a, b *Keys) { send(a, b, 2, 1) }, 0, false},
		{"frames sent", Config{Frames: 3}, func(a, b *Keys) { send(a, b, 3, 1) }, 0, true},
		{"frames received", Config{Frames: 3}, func(a, b *Keys) { send(b, a, 3, 1) }, 0, true},
		{"bytes below", Config{Bytes: 1000}, func(a, b *Keys) { send(a, b, 9, 111) }, 0, false},
		{"bytes sent", Config{Bytes: 1000}, func(a, b *Keys) { send(a, b, 10, 100) }, 0, true},
		{"bytes received", Config{Bytes: 1000}, func(a, b *Keys) { send(b, a, 10, 100) }, 0, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			a, b := newPair(t, tc.cfg)
			if tc.use != nil {
				tc.use(a, b)
			}
			if got := a.Due(start.Add(tc.at)); got != tc.want || b.Due(start.Add(tc.at)) {
				t.Errorf("due: %t at the initiator, want %t; %t at the responder", got, tc.want, b.Due(start.Add(tc.at)))
			}
			if !tc.want {
				return
			}
			m, err := a.Propose()
			if err != nil || a.Due(start.Add(tc.at)) {
				t.Errorf("proposed: %v; due again: %t", err, a.Due(start.Add(tc.at)))
			}
			reply, err := b.Answer(m, start.Add(tc.at))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := a.Answer(reply, start.Add(tc.at)); err != nil || a.Due(start.Add(time.Hour)) {
				t.Errorf("answered: %v; due before the peer has the epoch: %t", err, a.Due(start.Add(time.Hour)))
			}
			send(a, b, 1, 1)
			send(b, a, 1, 1)
			if a.Due(start.Add(tc.at)) {
				t.Error("due at once after the change")
			}
		})
	}
}

// send has n frames of size bytes go from one to the other.
func send(from, to *Keys, n int, size int) {
	base, _ := to.Received(1)
	for i := range n {
		to.Open(from.Seal(nil, Data, base+1+uint64(i), make([]byte, size)))
	}
}

// Whatever the peer says of a change of keys that is not its turn, its role or its
// form is refused, and the epoch stays.
func TestRekeyRefused(t *testing.T) {
	t.Parallel()
	low := make([]byte, 32) // of order 1: the shared secret would be 0
	for _, tc := range []struct {
		name      string
		initiator bool // whose message it is
		proposed  bool // the initiator has proposed
		m         *sessionpb.Rekey
		want      wire.Code
	}{
		{"same epoch", true, false, &sessionpb.Rekey{Epoch: 0}, wire.PolicyViolation},
		{"epoch left out", true, false, &sessionpb.Rekey{Epoch: 2}, wire.PolicyViolation},
		{"last epoch", true, false, &sessionpb.Rekey{Epoch: 1<<32 - 1}, wire.PolicyViolation},
		{"no key", true, false, &sessionpb.Rekey{Epoch: 1}, wire.Malformed},
		{"short key", true, false, &sessionpb.Rekey{Epoch: 1, PublicKey: make([]byte, 31)}, wire.Malformed},
		{"long key", true, false, &sessionpb.Rekey{Epoch: 1, PublicKey: make([]byte, 33)}, wire.Malformed},
		{"low-order key", true, false, &sessionpb.Rekey{Epoch: 1, PublicKey: low}, wire.Malformed},
		{"responder's part from the initiator", true, false, &sessionpb.Rekey{Epoch: 1, Enc: low}, wire.Malformed},
		{"answer without a question", false, false, &sessionpb.Rekey{Epoch: 1, Enc: low}, wire.PolicyViolation},
		{"proposal of the responder", false, false, &sessionpb.Rekey{Epoch: 1, PublicKey: make([]byte, 32)}, wire.PolicyViolation},
		{"answer to another epoch", false, true, &sessionpb.Rekey{Epoch: 2, Enc: low}, wire.PolicyViolation},
		{"no encapsulated key", false, true, &sessionpb.Rekey{Epoch: 1}, wire.Malformed},
		{"short encapsulated key", false, true, &sessionpb.Rekey{Epoch: 1, Enc: make([]byte, 31)}, wire.Malformed},
		{"long encapsulated key", false, true, &sessionpb.Rekey{Epoch: 1, Enc: make([]byte, 33)}, wire.Malformed},
		{"low-order encapsulated key", false, true, &sessionpb.Rekey{Epoch: 1, Enc: low}, wire.Malformed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			a, b := newPair(t, Config{})
			victim := b
			if !tc.initiator {
				victim = a
			}
			if tc.proposed {
				if _, err := a.Propose(); err != nil {
					t.Fatal(err)
				}
			}
			before := bytes.Clone(victim.secret[:])
			reply, err := victim.Answer(tc.m, start)
			if wire.CodeOf(err) != tc.want || reply != nil {
				t.Errorf("Answer = %v, %v; want %s", reply, err, tc.want)
			}
			if victim.Epoch() != 0 || victim.newest() != 0 || !bytes.Equal(before, victim.secret[:]) {
				t.Errorf("the keys changed: epoch %d of %d", victim.Epoch(), victim.newest())
			}
		})
	}
}

// A second proposal before the first is in use is refused: else a peer could have
// this side gather epochs.
func TestRekeyTwice(t *testing.T) {
	t.Parallel()
	a, b := newPair(t, Config{})
	m, _ := a.Propose()
	if _, err := b.Answer(m, start); err != nil {
		t.Fatal(err)
	}
	for _, epoch := range []uint32{1, 2} {
		m.Epoch = epoch
		if _, err := b.Answer(m, start); !errors.Is(err, wire.PolicyViolation) {
			t.Errorf("epoch %d: %v", epoch, err)
		}
	}
	if n := len(*b.opening.Load()); n != 2 {
		t.Errorf("%d epochs are held", n)
	}
}

// With a secret erased nothing opens and nothing new is derived from what is left.
func TestErase(t *testing.T) {
	t.Parallel()
	a, b := newPair(t, Config{})
	m, _ := a.Propose()
	reply, _ := b.Answer(m, start)
	a.Answer(reply, start)
	first := a.Seal(nil, Ping, 1, nil) // would have b seal the new epoch
	for name, k := range map[string]*Keys{"initiator": a, "responder": b} {
		k.Erase()
		if k.secret != [32]byte{} || k.Due(start.Add(time.Hour)) {
			t.Errorf("%s: secret %x, due %t", name, k.secret, k.Due(start.Add(time.Hour)))
		}
		if _, err := k.Propose(); err == nil {
			t.Errorf("%s proposes", name)
		}
		if _, err := k.Answer(&sessionpb.Rekey{Epoch: k.newest() + 1, PublicKey: m.PublicKey}, start); err == nil {
			t.Errorf("%s answers", name)
		}
	}
	if _, _, err := b.Open(first); err == nil || b.Epoch() != 0 {
		t.Errorf("a frame opens: %v; epoch %d", err, b.Epoch())
	}
}

// Golden change of keys for other implementations: the initiator of the session
// with id 01 00 … and secret 07 00 … has proposed the private key below for epoch
// 1, and the responder has answered with the encapsulated key below.
func TestGoldenRekey(t *testing.T) {
	t.Parallel()
	const (
		private = "b8809f940cf64c1089e721a0725dc9a30cb8cb80e9f58e9d686b37d3d47ca671"
		enc     = "19e55ce72a0b923e0ace9e628ff34152399254a36b3da00cc94c09df4d5de054"
		secret  = "b4109a2f006a9cee48522a12cae3372ba58e4537596996122503eb96bd51eb5d"
		frame   = "01010100000000000000000000000000000000000001000000000000000984f6c7bb20d40a27bb90d2456a3e7bf494" // its first frame of epoch 1 and ninth of all, the data "x"
	)
	kem, err := hpke.NewKEM(signal.X25519)
	if err != nil {
		t.Fatal(err)
	}
	k := newKeys(t, Config{Session: signal.ID{1}, Initiator: true})
	if k.proposal, err = kem.NewPrivateKey(unhex(t, private)); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Answer(&sessionpb.Rekey{Epoch: 1, Enc: unhex(t, enc)}, start); err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(k.secret[:]); got != secret {
		t.Errorf("secret %s, want %s", got, secret)
	}
	if got := hex.EncodeToString(k.Seal(nil, Data, 9, []byte("x"))); got != frame {
		t.Errorf("frame %s, want %s", got, frame)
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What is reported as missing, with any bound on the gaps, is all that is missing
// within the window, and may be more only in the last gap.
func TestReceivedAgainstModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var f replayFilter
		seen := map[uint64]bool{}
		at := uint64(1)
		for range rapid.IntRange(0, 200).Draw(t, "frames") {
			at += rapid.OneOf(rapid.Just(uint64(1)), rapid.Uint64Range(1, 5), rapid.Uint64Range(1, 2*Window)).Draw(t, "step")
			seq := at - min(at-1, rapid.Uint64Range(0, 8).Draw(t, "back"))
			if f.fresh(seq) {
				f.mark(seq)
				seen[seq] = true
			}
		}
		limit := rapid.IntRange(1, 70).Draw(t, "limit")
		gaps := f.missing(limit)
		last := f.newest + 1
		for i, g := range gaps {
			if g.First > g.Last || g.Last+1 >= last+1 || g.Last >= last {
				t.Fatalf("gap %d: %+v after %d", i, g, last)
			}
			last = g.First
		}
		if len(gaps) > limit {
			t.Fatalf("%d gaps, the limit is %d", len(gaps), limit)
		}
		for seq := f.newest - min(f.newest, Window-1); seq <= f.newest; seq++ {
			within := seq > 0 && contains(gaps, seq)
			coarse := len(gaps) == limit && seq <= gaps[limit-1].Last
			if seq > 0 && within == seen[seq] && !coarse {
				t.Fatalf("%d was seen: %t; reported missing: %t, in %v", seq, seen[seq], within, gaps)
			}
			if seq > 0 && !seen[seq] && !within {
				t.Fatalf("%d is missing and not reported in %v", seq, gaps)
			}
		}
	})
}

func contains(gaps []Range, seq uint64) bool {
	for _, g := range gaps {
		if g.First <= seq && seq <= g.Last {
			return true
		}
	}
	return false
}

// Every field of Keys is known to the tests of erasure.
func TestFieldsOfKeys(t *testing.T) {
	t.Parallel()
	known := map[string]bool{"cfg": true, "sending": true, "opening": true, "mu": true, "seen": true, "secret": true, "since": true, "settled": true, "proposal": true, "erased": true}
	typ := reflect.TypeFor[Keys]()
	for i := range typ.NumField() {
		if name := typ.Field(i).Name; !known[name] {
			t.Errorf("field %s: does it hold a secret that has to be erased?", name)
		}
	}
}
