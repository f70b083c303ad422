// Package mailboxtest has what every [mailbox.Store] must do, as tests that each
// implementation runs, and one implementation in memory, for tests.
package mailboxtest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/libp2p/go-libp2p/core/peer"

	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox"
	"openmesh/protocols/wire"
)

// Run runs the suite. For each test fresh makes an empty place for a store, and
// returns what opens it; opened again, all must be there. A store that is opened
// belongs to the test that is given, and ends with it.
func Run(t *testing.T, fresh func(t *testing.T) (open func(t *testing.T) mailbox.Store)) {
	for name, test := range map[string]func(*testing.T, *bench){
		"register":     testRegister,
		"deposit":      testDeposit,
		"same letter":  testSame,
		"quota":        testQuota,
		"freed quota":  testFreed,
		"read limits":  testRead,
		"remove":       testRemove,
		"expire":       testExpire,
		"forget":       testForget,
		"last":         testLast,
		"register new": testRegisterAgain,
		"concurrent":   testConcurrent,
		"no gaps":      testOrder,
		"empty":        testEmpty,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := &bench{T: t, open: fresh(t)}
			b.Store = b.open(t)
			test(t, b)
		})
	}
}

// start is the time of the suite's letters.
func start() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

// plenty is a quota that is never reached.
func plenty() mailbox.Quota {
	return mailbox.Quota{Letters: 1 << 20, Bytes: 1 << 40}
}

type bench struct {
	*testing.T
	mailbox.Store
	open func(t *testing.T) mailbox.Store
}

// agent returns an agent that is registered until an hour after the start.
func (b *bench) agent(name string) identity.AgentID {
	b.Helper()
	a := Agent(b.Name() + name)
	b.ok(b.Register(b.Context(), a, 1, start().Add(time.Hour), 1<<20))
	return a
}

// Agent returns the agent of a name.
func Agent(name string) identity.AgentID {
	seed := sha256.Sum256([]byte(name))
	return identity.NewAgentID(ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey))
}

// Letter returns letter n of size bytes for an agent, brought by depositor.
func Letter(to identity.AgentID, n, size int, depositor string) mailbox.Entry {
	expires := start().Add(30 * time.Minute)
	return mailbox.Entry{Letter: mailbox.Letter{Recipient: to, ID: mailbox.ID{byte(n), byte(n >> 8), byte(n >> 16)}, Expires: expires, Body: bytes.Repeat([]byte{byte(n)}, size)},
		Depositor: peer.ID(depositor), Until: expires}
}

func (b *bench) ok(err error) {
	b.Helper()
	if err != nil {
		b.Error(err)
	}
}

func (b *bench) code(err error, want wire.Code) {
	b.Helper()
	if !errors.Is(err, want) {
		b.Errorf("error %v, want code %v", err, want)
	}
}

func (b *bench) deposit(es ...mailbox.Entry) {
	b.Helper()
	for _, e := range es {
		b.ok(b.Deposit(b.Context(), e, plenty(), start()))
	}
}

func (b *bench) read(a identity.AgentID, after uint64) []mailbox.Entry {
	b.Helper()
	got, err := b.Read(b.Context(), a, after, 1000, 1<<40, start())
	b.ok(err)
	return got
}

// ids returns the first byte of each id.
func ids(es []mailbox.Entry) (all []int) {
	for _, e := range es {
		all = append(all, int(e.ID[0]))
	}
	return all
}

// holds expects letters by the first bytes of their ids, also of the store
// opened again, and sums that agree.
func (b *bench) holds(a identity.AgentID, want ...int) {
	b.Helper()
	for range 2 {
		got := b.read(a, 0)
		if !slices.Equal(ids(got), want) {
			b.Errorf("holds %v, want %v", ids(got), want)
		}
		var sum int64
		for _, e := range got {
			sum += int64(len(e.Body))
		}
		box, err := b.Box(b.Context(), a)
		if err != nil || box.Letters != len(got) || box.Bytes != sum {
			b.Errorf("Box() = %+v, %v; it holds %d letters of %d bytes", box, err, len(got), sum)
		}
		b.Store = b.open(b.T)
	}
}

func testRegister(t *testing.T, b *bench) {
	ctx, a := t.Context(), Agent(t.Name())
	_, err := b.Box(ctx, a)
	b.code(err, wire.NotFound)
	b.code(b.Deposit(ctx, Letter(a, 1, 10, "d"), plenty(), start()), wire.NotFound)
	b.ok(b.Register(ctx, a, 2, start().Add(time.Hour), 1<<20))
	b.code(b.Register(ctx, a, 1, start().Add(3*time.Hour), 1<<20), wire.KeySuperseded)
	b.ok(b.Register(ctx, a, 2, start().Add(2*time.Hour), 1<<20))
	b.ok(b.Register(ctx, a, 3, start().Add(90*time.Minute), 0)) // it is there already
	b.Store = b.open(t)
	box, err := b.Box(ctx, a)
	if err != nil || box.Version != 3 || !box.Expires.Equal(start().Add(90*time.Minute)) {
		t.Errorf("Box() = %+v, %v", box, err)
	}
	b.code(b.Register(ctx, Agent("another"+t.Name()), 1, start(), 1), wire.ResourceExhausted)
	b.code(b.Deposit(ctx, Letter(a, 1, 10, "d"), plenty(), start().Add(90*time.Minute)), wire.NotFound)
	b.ok(b.Deposit(ctx, Letter(a, 1, 10, "d"), plenty(), start().Add(90*time.Minute-time.Second)))
}

func testDeposit(t *testing.T, b *bench) {
	a, other := b.agent("a"), b.agent("b")
	one, two, three := Letter(a, 1, 10, "d"), Letter(a, 2, 0, "e"), Letter(other, 3, 5<<20, "d\xff")
	two.Until = two.Until.Add(-time.Minute)
	b.deposit(one, three, two)
	b.holds(a, 1, 2)
	b.holds(other, 3)
	got := append(b.read(a, 0), b.read(other, 0)...)
	if len(got) != 3 || got[0].Cursor == 0 || got[0].Cursor >= got[1].Cursor {
		t.Fatalf("cursors of %v", got)
	}
	for i, want := range []mailbox.Entry{one, two, three} {
		want.Cursor = got[i].Cursor
		if diff := cmp.Diff(want, got[i], cmp.Comparer(bytes.Equal)); diff != "" {
			t.Error(diff)
		}
	}
}

// A letter that is there stays as it is, also if the mailbox is full; one that
// differs in anything is another.
func testSame(t *testing.T, b *bench) {
	a := b.agent("")
	one := Letter(a, 1, 10, "d")
	b.deposit(one)
	again := one
	again.Depositor, again.Until = "e", one.Until.Add(-time.Minute)
	b.ok(b.Deposit(t.Context(), again, mailbox.Quota{}, start()))
	b.holds(a, 1)
	if got := b.read(a, 0); got[0].Depositor != "d" || !got[0].Until.Equal(one.Until) {
		t.Errorf("changed to %+v", got[0])
	}
	later, altered := one, one
	later.Expires = one.Expires.Add(time.Second)
	altered.Body = []byte("altered")
	b.deposit(later, altered)
	b.holds(a, 1, 1, 1)
}

func testQuota(t *testing.T, b *bench) {
	q := mailbox.Quota{Letters: 4, Bytes: 100, Share: 1}
	for name, test := range map[string][]struct {
		size      int
		depositor string
		full      bool
	}{
		"letters":         {{1, "a", false}, {1, "a", false}, {1, "a", true}, {1, "b", false}, {1, "b", true}, {1, "c", false}, {1, "d", true}},
		"bytes":           {{50, "a", false}, {1, "a", true}, {51, "b", true}, {26, "b", true}, {25, "b", false}, {13, "c", true}, {12, "c", false}, {0, "d", false}},
		"an empty one":    {{101, "a", true}, {100, "a", false}, {1, "b", true}},
		"bytes in pieces": {{40, "a", false}, {11, "a", true}, {10, "a", false}, {31, "b", true}, {20, "b", false}},
	} {
		a := b.agent(name)
		var held []int
		for i, l := range test {
			err := b.Deposit(t.Context(), Letter(a, i, l.size, l.depositor), q, start())
			if l.full != errors.Is(err, wire.ResourceExhausted) || !l.full && err != nil {
				t.Errorf("%s: letter %d: %v, want refused: %v", name, i, err, l.full)
			}
			if !l.full {
				held = append(held, i)
			}
		}
		b.holds(a, held...)
	}
}

func testFreed(t *testing.T, b *bench) {
	a, q := b.agent(""), mailbox.Quota{Letters: 2, Bytes: 100}
	for n := 0; n < 10; n++ {
		b.ok(b.Deposit(t.Context(), Letter(a, n, 50, "d"), q, start()))
		if n == 0 {
			continue
		}
		b.code(b.Deposit(t.Context(), Letter(a, 100, 50, "d"), q, start()), wire.ResourceExhausted)
		removed, err := b.Remove(t.Context(), a, []uint64{b.read(a, 0)[0].Cursor})
		if removed != 1 || err != nil {
			t.Errorf("Remove() = %d, %v", removed, err)
		}
	}
	b.holds(a, 9)
}

func testRead(t *testing.T, b *bench) {
	a := b.agent("")
	for n := range 6 {
		b.deposit(Letter(a, n, 10, "d"))
	}
	all := b.read(a, 0)
	for _, test := range []struct {
		after uint64
		limit int
		bytes int64
		want  []int
	}{
		{0, 2, 100, []int{0, 1}},
		{0, 10, 35, []int{0, 1, 2}},
		{0, 10, 30, []int{0, 1, 2}},
		{0, 10, 1, []int{0}},
		{all[2].Cursor, 2, 100, []int{3, 4}},
		{all[5].Cursor, 2, 100, nil},
		{1<<63 + 5, 2, 100, nil},
	} {
		got, err := b.Read(t.Context(), a, test.after, test.limit, test.bytes, start())
		if err != nil || !slices.Equal(ids(got), test.want) {
			t.Errorf("Read(%d, %d, %d) = %v, %v; want %v", test.after, test.limit, test.bytes, ids(got), err, test.want)
		}
	}
	if got, err := b.Read(t.Context(), a, 0, 10, 100, start().Add(30*time.Minute)); len(got) != 0 || err != nil {
		t.Errorf("of letters that have expired it reads %v, %v", ids(got), err)
	}
	if got := b.read(Agent("nobody"), 0); got != nil {
		t.Errorf("for nobody it reads %v", ids(got))
	}
}

func testRemove(t *testing.T, b *bench) {
	a, other := b.agent("a"), b.agent("b")
	for n := range 4 {
		b.deposit(Letter(a, n, 10, "d"))
	}
	b.deposit(Letter(other, 9, 10, "d"))
	all := b.read(a, 0)
	for _, test := range []struct {
		cursors []uint64
		want    int
	}{
		{nil, 0},
		{[]uint64{all[2].Cursor, all[0].Cursor, all[2].Cursor}, 2},
		{[]uint64{all[0].Cursor, all[3].Cursor + 1, 0, 1 << 63}, 0},
	} {
		n, err := b.Remove(t.Context(), a, test.cursors)
		if n != test.want || err != nil {
			t.Errorf("Remove(%v) = %d, %v; want %d", test.cursors, n, err, test.want)
		}
	}
	b.holds(a, 1, 3)
	b.holds(other, 9)
	b.deposit(Letter(a, 5, 10, "d"))
	if got := b.read(a, all[3].Cursor); len(got) != 1 || got[0].ID[0] != 5 {
		t.Errorf("after cursor %d it reads %v", all[3].Cursor, ids(got))
	}
}

func testExpire(t *testing.T, b *bench) {
	ctx, a := t.Context(), b.agent("a")
	gone := Agent("gone" + t.Name())
	b.ok(b.Register(ctx, gone, 1, start().Add(time.Minute), 1<<20))
	for n := range 5 {
		l := Letter(a, n, 10, "d")
		l.Until = start().Add(time.Duration(n) * time.Minute)
		b.deposit(l)
	}
	late := Letter(gone, 7, 10, "d")
	late.Until = start().Add(3 * time.Minute)
	b.deposit(late)
	expire := func(at time.Duration, most, want int) {
		t.Helper()
		if n, err := b.Expire(ctx, start().Add(at), most); n != want || err != nil {
			t.Errorf("Expire(%v, %d) = %d, %v; want %d", at, most, n, err, want)
		}
	}
	expire(-time.Second, 10, 0)
	expire(2*time.Minute, 2, 2)
	expire(2*time.Minute, 2, 1)
	b.holds(a, 3, 4)
	b.holds(gone, 7) // the registration has expired, its letter has not
	expire(time.Hour, 10, 3)
	expire(time.Hour, 10, 0)
	for _, agent := range []identity.AgentID{a, gone} {
		_, err := b.Box(ctx, agent)
		b.code(err, wire.NotFound)
	}
}

func testForget(t *testing.T, b *bench) {
	a, other := b.agent("a"), b.agent("b")
	b.deposit(Letter(a, 1, 10, "d"), Letter(other, 2, 10, "d"))
	b.ok(b.Forget(t.Context(), a))
	b.ok(b.Forget(t.Context(), a))
	_, err := b.Box(t.Context(), a)
	b.code(err, wire.NotFound)
	if got := b.read(a, 0); got != nil {
		t.Errorf("it has still %v", ids(got))
	}
	b.holds(other, 2)
}

func testLast(t *testing.T, b *bench) {
	a, other := b.agent("a"), b.agent("b")
	b.deposit(Letter(a, 1, 10, "d"), Letter(a, 2, 10, "d"), Letter(other, 3, 10, "d"))
	all := b.read(a, 0)
	_, err := b.Remove(t.Context(), a, []uint64{all[1].Cursor})
	b.ok(err)
	many := []identity.AgentID{a, Agent("nobody")}
	for n := range 700 {
		many = append(many, Agent(fmt.Sprint("nobody ", n)))
	}
	got, err := b.Last(t.Context(), append(many, other))
	want := map[identity.AgentID]uint64{a: all[1].Cursor, other: b.read(other, 0)[0].Cursor}
	if err != nil || !cmp.Equal(got, want) {
		t.Errorf("Last() = %v, %v; want %v", got, err, want)
	}
	if got, err := b.Last(t.Context(), nil); len(got) != 0 || err != nil {
		t.Errorf("Last(nil) = %v, %v", got, err)
	}
}

// Renewing a registration changes nothing about the letters.
func testRegisterAgain(t *testing.T, b *bench) {
	a := b.agent("")
	b.deposit(Letter(a, 1, 10, "d"))
	b.ok(b.Register(t.Context(), a, 2, start().Add(2*time.Hour), 1<<20))
	b.deposit(Letter(a, 2, 10, "d"))
	b.holds(a, 1, 2)
}

// Many deposit at once, the same and others, for several recipients, while
// others delete: the sums stay exact and the quota holds.
func testConcurrent(t *testing.T, b *bench) {
	agents := []identity.AgentID{b.agent("a"), b.agent("b"), b.agent("c")}
	second := b.open(t) // as another relay has it
	q := plenty()
	q.Letters = 40
	var all sync.WaitGroup
	for w := range 16 {
		all.Go(func() {
			s := []mailbox.Store{b.Store, second}[w%2]
			for n := range 12 {
				a := agents[(w+n)%3]
				if err := s.Deposit(t.Context(), Letter(a, w/2*12+n, 100+n, fmt.Sprint(w%5)), q, start()); err != nil && !errors.Is(err, wire.ResourceExhausted) {
					t.Errorf("Deposit() = %v", err)
				}
				if n%4 == 3 {
					got, err := s.Read(t.Context(), a, 0, 1, 1<<20, start())
					b.ok(err)
					if len(got) == 1 {
						_, err := s.Remove(t.Context(), a, []uint64{got[0].Cursor})
						b.ok(err)
					}
				}
			}
		})
	}
	all.Wait()
	for _, a := range agents {
		got := b.read(a, 0)
		if len(got) > q.Letters || len(got) == 0 {
			t.Errorf("%d letters, the quota is %d", len(got), q.Letters)
		}
		b.holds(a, ids(got)...)
		seen := map[[32]byte]bool{}
		for _, e := range got {
			if d := e.Digest(); seen[d] {
				t.Errorf("a letter is there twice")
			} else {
				seen[d] = true
			}
		}
	}
}

// Whoever reads from cursor to cursor while several relays write sees every
// letter.
func testOrder(t *testing.T, b *bench) {
	a, second := b.agent(""), b.open(t)
	const writers, each = 8, 25
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for n := range each {
				b.ok([]mailbox.Store{b.Store, second}[w%2].Deposit(t.Context(), Letter(a, w*each+n, 10, fmt.Sprint(w)), plenty(), start()))
			}
		})
	}
	done := make(chan struct{})
	go func() { defer close(done); all.Wait() }()
	after, count := uint64(0), 0
	for finished := false; ; {
		got, err := b.Read(t.Context(), a, after, 7, 1<<20, start())
		b.ok(err)
		for _, e := range got {
			after = e.Cursor
			count++
		}
		if len(got) == 0 && finished {
			break
		}
		select {
		case <-done:
			finished = true
		default:
		}
	}
	if count != writers*each {
		t.Errorf("read %d letters from cursor to cursor, %d were stored", count, writers*each)
	}
}

func testEmpty(t *testing.T, b *bench) {
	if _, err := b.Usage(t.Context()); err != nil {
		t.Error(err)
	}
	if n, err := b.Expire(t.Context(), start().AddDate(-10, 0, 0), 10); n != 0 || err != nil {
		t.Errorf("Expire() = %d, %v", n, err)
	}
}
