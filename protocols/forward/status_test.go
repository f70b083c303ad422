package forward

import (
	"bytes"
	"crypto/rand"
	"slices"
	"strings"
	"testing"

	"openmesh/protocols/wire"
)

// sharedKeys are those of a source with n hops.
func sharedKeys(t testing.TB, n int) []*keys {
	all := make([]*keys, n)
	for i := range all {
		var err error
		all[i], err = exportKeys(random{})
		check(t, err)
	}
	return all
}

type random struct{}

func (random) Export(_ string, n int) ([]byte, error) {
	b := make([]byte, n)
	rand.Read(b)
	return b, nil
}

// The source finds out which hop made a status, whatever hops it came through; no
// two of them hold the same bytes.
func TestStatusTellsItsMaker(t *testing.T) {
	t.Parallel()
	shared := sharedKeys(t, 5)
	for maker := range shared {
		want := status{code: wire.Denied, next: maker%2 == 1}
		if maker == 4 {
			want = status{salt: bytes.Repeat([]byte{7}, saltSize)}
		}
		cell, err := want.seal(shared[maker])
		check(t, err)
		for i := maker - 1; i >= 0; i-- {
			before := bytes.Clone(cell)
			keystream(&shared[i].wrap, cell, 0)
			if len(cell) != StatusSize || bytes.Equal(before, cell) {
				t.Fatal("a relay passed a status on as it came")
			}
		}
		got, place, ok := peelStatus(shared, cell)
		if !ok || place != maker || got.code != want.code || got.next != want.next || !bytes.Equal(got.salt, want.salt) {
			t.Errorf("hop %d: %+v of hop %d", maker, got, place)
		}
		cell[StatusSize/2] ^= 1
		if _, _, ok := peelStatus(shared, cell); ok {
			t.Error("a status that was changed opens")
		}
	}
}

// Only the target can say that it answers.
func TestRelayCannotAnswer(t *testing.T) {
	t.Parallel()
	shared := sharedKeys(t, 3)
	cell, err := status{salt: make([]byte, saltSize)}.seal(shared[0])
	check(t, err)
	if _, place, ok := peelStatus(shared, cell); ok {
		t.Errorf("the answer of relay %d counts as the target's", place+1)
	}
}

func TestResetTellsItsMaker(t *testing.T) {
	t.Parallel()
	shared := sharedKeys(t, 5)
	for maker := range shared {
		for _, code := range wire.Codes() {
			word := resetWord(shared[maker], back, code, maker == 2)
			for _, k := range slices.Backward(shared[:maker]) {
				word ^= k.back
			}
			if s, place, ok := peelReset(shared, word); !ok || place != maker || s.code != code || s.next != (maker == 2) {
				t.Errorf("hop %d, %s: %+v of hop %d", maker, code, s, place)
			}
		}
	}
	word := sourceReset(shared, wire.Cancelled)
	for i, k := range shared {
		s, ok := openReset(k, ahead, word)
		if ok != (i == 4) || ok && s.code != wire.Cancelled {
			t.Errorf("hop %d reads %+v, %v", i+1, s, ok)
		}
		word ^= k.ahead
	}
	if _, _, ok := peelReset(shared, resetWord(shared[4], ahead, wire.Denied, false)); ok {
		t.Error("a reset of one direction counts in the other")
	}
}

func TestFaultsNameTheHop(t *testing.T) {
	t.Parallel()
	hosts, _ := chain(t, 3)
	var peers []string
	f := Fault{}
	for _, h := range hosts {
		peers = append(peers, h.Peer.String())
		f.peers = append(f.peers, h.Peer)
	}
	for _, tc := range []struct {
		by   int
		s    status
		lost bool
		want string
	}{
		{0, status{code: wire.Unreachable, next: true}, false, "this node could not reach relay 1 of 3 (0)"},
		{2, status{code: wire.Unreachable, next: true}, false, "relay 2 of 3 (1) could not reach relay 3 of 3 (2)"},
		{2, status{code: wire.Unsupported, next: true}, false, "relay 2 of 3 (1) was refused by relay 3 of 3 (2): unsupported"},
		{3, status{code: wire.Unreachable, next: true}, true, "relay 3 of 3 (2) lost the target (3)"},
		{1, status{code: wire.ResourceExhausted}, false, "relay 1 of 3 (0) refused: resource_exhausted"},
		{4, status{code: wire.SessionClosed}, true, "the target (3) ended the circuit: session_closed"},
	} {
		got := newFault(f.peers, tc.by, tc.s, tc.lost).Error()
		for i, p := range peers {
			got = strings.ReplaceAll(got, p, string(rune('0'+i)))
		}
		if got != tc.want {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
}
