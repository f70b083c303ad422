package audit

import (
	"fmt"
	"slices"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

// The tree is that of package tlog, hash by hash.
func TestTree(t *testing.T) {
	t.Parallel()
	var now tree
	var all []Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) (found []Hash, err error) {
		for _, i := range indexes {
			found = append(found, all[i])
		}
		return found, nil
	})
	for n := range int64(300) {
		root, err := tlog.TreeHash(n, reader)
		if err != nil || now.root() != root {
			t.Fatalf("root of %d: %v, want %v, %v", n, now.root(), root, err)
		}
		leaf := tlog.RecordHash([]byte(fmt.Sprint(n)))
		want, err := tlog.StoredHashesForRecordHash(n, leaf, reader)
		if err != nil {
			t.Fatal(err)
		}
		before := now
		next, hashes := now.add(leaf)
		if !slices.Equal(hashes, want) {
			t.Fatalf("leaf %d completes %v, want %v", n, hashes, want)
		}
		if again, _ := before.add(leaf); again.root() != next.root() {
			t.Fatalf("leaf %d: the tree before it is not what it was", n)
		}
		now, all = next, append(all, want...)
	}
}

// A tree of subtrees is the tree of their leaves.
func TestCover(t *testing.T) {
	t.Parallel()
	leaf := func(n uint64) Hash { return tlog.RecordHash([]byte(fmt.Sprint(n))) }
	build := func(from, to uint64, into tree) tree {
		for n := from; n < to; n++ {
			into, _ = into.add(leaf(n))
		}
		return into
	}
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Uint64Range(0, 200).Draw(t, "size")
		from := rapid.Uint64Range(0, size).Draw(t, "from")
		to := rapid.Uint64Range(from, size).Draw(t, "to")
		got := build(0, from, tree{})
		for _, s := range cover(from, to) {
			sub := build(s.n<<s.level, s.last()+1, tree{}) // hashes do not depend on where leaves are
			var err error
			if got, err = got.push(s.level, sub.root(), nil); err != nil {
				t.Fatal(err)
			}
		}
		if got = build(to, size, got); got.size != size || got.root() != build(0, size, tree{}).root() {
			t.Fatalf("%d leaves, of which %d to %d by subtrees", size, from, to)
		}
	})
	if _, err := build(0, 3, tree{}).push(1, Hash{}, nil); err == nil {
		t.Error("a subtree of two began at leaf 3")
	}
}
