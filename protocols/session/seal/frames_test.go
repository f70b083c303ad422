package seal

import (
	"bytes"
	"encoding/hex"
	"testing"

	"pgregory.net/rapid"

	"openmesh/protocols/signal"
)

// Golden frames for other implementations: what the initiator of the session with
// id 01 00 … and secret 07 07 … sends as its ninth frame, the data "x".
func TestGoldenFrames(t *testing.T) {
	t.Parallel()
	for aead, want := range map[uint16]string{
		signal.AES256GCM:        "010101000000000000000000000000000000000000000000000000000009c65f86ab45a9eabbae63b8b536cd00cac8",
		signal.ChaCha20Poly1305: "0101010000000000000000000000000000000000000000000000000000093fde9c3fc8f4390fe7e90a1202f0d05a1a",
	} {
		suite := signal.Suite{KEM: signal.X25519MLKEM768, KDF: signal.HKDFSHA256, AEAD: aead}
		initiator, _, err := deriveSealers(suite, bytes.Repeat([]byte{7}, 32), 0)
		if err != nil {
			t.Fatal(err)
		}
		frame := initiator.seal(nil, Header{Type: Data, Session: signal.ID{1}, Sequence: 9}, []byte("x"))
		if got := hex.EncodeToString(frame); got != want {
			t.Errorf("AEAD %#04x: frame %s, want %s", aead, got, want)
		}
	}
}

// No two directions or epochs share an IV, and a frame opens only with the key of
// its direction and the number it was sealed with.
func TestKeysDifferByDirectionAndEpoch(t *testing.T) {
	t.Parallel()
	secret := bytes.Repeat([]byte{7}, 32)
	seen := map[[12]byte]string{}
	for _, suite := range signal.Suites()[:2] {
		for epoch := range uint32(3) {
			a, b, err := deriveSealers(suite, secret, epoch)
			if err != nil {
				t.Fatal(err)
			}
			for name, s := range map[string]*sealer{"initiator": a, "responder": b} {
				if suite == signal.Suites()[0] {
					if other, ok := seen[s.iv]; ok {
						t.Errorf("epoch %d %s has the IV of %s", epoch, name, other)
					}
					seen[s.iv] = name
				}
			}
			frame := a.seal(nil, Header{Type: Data, Epoch: epoch, Sequence: 9}, []byte("x"))
			if _, err := b.open(bytes.Clone(frame), 9); err == nil {
				t.Error("the other direction's key opens the frame")
			}
			if _, err := a.open(bytes.Clone(frame), 10); err == nil {
				t.Error("another sequence number opens the frame")
			}
		}
	}
}

// The filter agrees with a plain set of what was seen, for any order of numbers.
func TestReplayFilterAgainstModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var f replayFilter
		seen := map[uint64]bool{}
		at := uint64(1)
		for range rapid.IntRange(1, 300).Draw(t, "n") {
			step := rapid.OneOf(rapid.Int64Range(-5, 5), rapid.Int64Range(-Window-70, Window+70)).Draw(t, "step")
			seq := uint64(max(int64(at)+step, 0))
			want := seq > 0 && !seen[seq] && (seq > f.newest || f.newest-seq < Window)
			if got := f.fresh(seq); got != want {
				t.Fatalf("fresh(%d) = %v with newest %d, want %v", seq, got, f.newest, want)
			}
			if want {
				f.mark(seq)
				seen[seq] = true
				at = max(at, seq)
			}
		}
	})
}

func BenchmarkSealOpen(bm *testing.B) {
	for name, size := range map[string]int{"256B": 256, "64KiB": 64 << 10} {
		bm.Run(name, func(bm *testing.B) {
			s, err := deriveSealer(signal.Suites()[0], bytes.Repeat([]byte{7}, 32), "initiator", 0)
			if err != nil {
				bm.Fatal(err)
			}
			plain, buf := make([]byte, size), make([]byte, 0, size+Overhead)
			bm.SetBytes(int64(size))
			for seq := uint64(1); bm.Loop(); seq++ {
				if _, err := s.open(s.seal(buf, Header{Sequence: seq}, plain), seq); err != nil {
					bm.Fatal(err)
				}
			}
		})
	}
}
