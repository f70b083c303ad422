package audit

import (
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// Hash is a hash of the tree: of a leaf, a node or the root.
type Hash = tlog.Hash

// tree is the right edge of a Merkle tree (RFC 6962): all that is needed to add
// leaves and to know the root. It is a value: add leaves the one before as it was.
type tree struct {
	size uint64
	edge []Hash // of perfect subtrees, largest first: one for each 1 in size
}

// add returns the tree with one leaf more, and the hashes of the perfect subtrees
// that the leaf completes, itself first.
func (t tree) add(leaf Hash) (tree, []Hash) {
	done := []Hash{leaf}
	next, err := t.push(0, leaf, &done)
	if err != nil {
		panic(err) // a leaf fits everywhere
	}
	return next, done
}

// push returns the tree with a perfect subtree of 2^level leaves more. It can only
// stand where a multiple of so many stand before it.
func (t tree) push(level int, h Hash, done *[]Hash) (tree, error) {
	if level < 0 || level > 62 || t.size&(1<<level-1) != 0 {
		return t, fmt.Errorf("a subtree of 2^%d leaves cannot begin at leaf %d", level, t.size)
	}
	edge := t.edge
	for n := t.size >> level; n&1 == 1; n >>= 1 {
		h = tlog.NodeHash(edge[len(edge)-1], h)
		edge = edge[:len(edge)-1]
		if done != nil {
			*done = append(*done, h)
		}
	}
	grown := make([]Hash, len(edge)+1)
	copy(grown, edge)
	grown[len(edge)] = h
	return tree{t.size + 1<<level, grown}, nil
}

// root is the hash of the whole tree.
func (t tree) root() Hash {
	if t.size == 0 {
		return emptyRoot()
	}
	h := t.edge[len(t.edge)-1]
	for i := len(t.edge) - 2; i >= 0; i-- {
		h = tlog.NodeHash(t.edge[i], h)
	}
	return h
}

// emptyRoot is the hash of a tree without leaves, that of the empty string.
func emptyRoot() Hash {
	h, err := tlog.TreeHash(0, nil)
	if err != nil {
		panic(err)
	}
	return h
}

// subtree names a perfect subtree: leaves from n<<level up to (n+1)<<level.
type subtree struct {
	level int
	n     uint64
}

// last is the leaf that completes it.
func (s subtree) last() uint64 { return (s.n+1)<<s.level - 1 }

// cover returns the largest perfect subtrees whose leaves are from, from+1, …, to-1,
// in order.
func cover(from, to uint64) []subtree {
	var all []subtree
	for from < to {
		level := bits.Len64(to-from) - 1
		if from != 0 {
			level = min(level, bits.TrailingZeros64(from))
		}
		all = append(all, subtree{level, from >> level})
		from += 1 << level
	}
	return all
}
