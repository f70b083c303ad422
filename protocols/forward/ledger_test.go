package forward

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"openmesh/protocols/wire"
)

func newLedger(circuits, perSecond int, quota func(peer.ID) Quota) *ledger {
	return &ledger{circuits: circuits, quota: quota, all: rate.NewLimiter(rate.Limit(perSecond), perSecond), peers: make(map[peer.ID]*account)}
}

// take is of a setup whose envelope opens.
func take(l *ledger, p peer.ID, now time.Time) (*account, bool) {
	a, err := l.take(p, now)
	if err == nil {
		if err = l.charge(now); err != nil {
			l.release(a)
		}
	}
	if err != nil && !errors.Is(err, wire.ResourceExhausted) {
		panic(err)
	}
	return a, err == nil
}

func TestShares(t *testing.T) {
	t.Parallel()
	quota := map[peer.ID]int{"a": 2, "relay": 9}
	l := newLedger(4, 100, func(p peer.ID) Quota { return Quota{Circuits: quota[p]} })
	a1, ok1 := take(l, "a", noon)
	_, ok2 := take(l, "a", noon)
	if _, ok3 := take(l, "a", noon.Add(time.Minute)); !ok1 || !ok2 || ok3 {
		t.Errorf("of three circuits with a quota of two: %v, %v, %v", ok1, ok2, ok3)
	}
	take(l, "relay", noon)
	take(l, "relay", noon)
	if _, ok := take(l, "relay", noon); ok {
		t.Error("a fifth circuit of four in all")
	}
	l.release(a1)
	if _, ok := take(l, "relay", noon); !ok {
		t.Error("no circuit after one has ended")
	}
	quota["a"] = 0
	if _, ok := take(l, "a", noon.Add(time.Hour)); ok {
		t.Error("a circuit of a peer that may have none any more")
	}
}

// Spare circuits are only for when there are: what is left belongs to those who have
// few, and to those whose quota is large.
func TestSpare(t *testing.T) {
	t.Parallel()
	quota := map[peer.ID]Quota{"relay": {Circuits: 4, Spare: 50}, "relay2": {Circuits: 4, Spare: 50}, "known": {Circuits: 30, Spare: 30}}
	l := newLedger(100, 1<<20, func(p peer.ID) Quota {
		if q, ok := quota[p]; ok {
			return q
		}
		return Quota{Circuits: 4}
	})
	begin := func(p peer.ID) (n int) {
		for at := noon; n < 100; at = at.Add(time.Second) {
			if _, ok := take(l, p, at); !ok {
				break
			}
			n++
		}
		return n
	}
	for _, tc := range []struct {
		peer peer.ID
		want int
	}{{"relay", 50}, {"relay2", 4}, {"other", 4}, {"known", 30}, {"another", 4}} {
		if n := begin(tc.peer); n != tc.want {
			t.Errorf("%s has %d circuits, want %d", tc.peer, n, tc.want)
		}
	}
}

// Who has used up its own rate leaves that of all to the others.
func TestRates(t *testing.T) {
	t.Parallel()
	l := newLedger(1000, 64, func(peer.ID) Quota { return Quota{Circuits: 32} })
	begin := func(p peer.ID, times int, now time.Time) (n int) {
		for range times {
			if a, ok := take(l, p, now); ok {
				l.release(a)
				n++
			}
		}
		return n
	}
	if n := begin("a", 1000, noon); n != 16 {
		t.Errorf("%d setups of one peer at once", n)
	}
	for _, p := range []peer.ID{"b", "c", "d"} {
		if n := begin(p, 20, noon); n != 16 {
			t.Errorf("%d setups of another, of the 16 that are its own", n)
		}
	}
	if n := begin("e", 20, noon); n != 0 {
		t.Errorf("%d setups when there are none left", n)
	}
	if n := begin("a", 100, noon.Add(time.Second)); n != 16 {
		t.Errorf("%d setups a second later", n)
	}
}

func TestLedgerIsBounded(t *testing.T) {
	t.Parallel()
	const most = maxAccounts + 8
	l := newLedger(8, 1<<20, func(peer.ID) Quota { return Quota{Circuits: 1} })
	kept, _ := take(l, "kept", noon)
	for i := range 3 * most {
		if a, ok := take(l, peer.ID(fmt.Sprint(i)), noon); ok {
			l.release(a)
		}
	}
	if len(l.peers) > most || l.peers["kept"] != kept {
		t.Errorf("%d peers are remembered", len(l.peers))
	}
}

// An envelope is known for as long as it could be valid, and not for ever.
func TestSeen(t *testing.T) {
	t.Parallel()
	var s seen
	path := [16]byte{1}
	check(t, s.add(path, noon))
	for _, later := range []time.Duration{0, time.Minute, generation - 1, generation, 2*generation - 1} {
		if err := s.add(path, noon.Add(later)); !errors.Is(err, wire.Replayed) {
			t.Errorf("after %v: %v", later, err)
		}
	}
	check(t, s.add([16]byte{2}, noon.Add(3*generation)))
	check(t, s.add([16]byte{3}, noon.Add(4*generation)))
	if len(s.old)+len(s.new) != 2 {
		t.Errorf("%d are remembered", len(s.old)+len(s.new))
	}
}
