package mux

import (
	"math/bits"

	pool "github.com/libp2p/go-buffer-pool"
)

// blockSize is the unit in which received bytes are kept. What a peer can make
// us hold is its credit rounded up to blocks, however it scatters its bytes; a
// list of the pieces as they came would cost far more for pieces of one byte.
const blockSize = 4 << 10

// buffer holds the bytes of one direction that have come and were not taken,
// in any order of coming:
//
//	0 ─ taken ─ read ─ to be taken ─ have ─ with gaps ─ high
//
// The owner keeps high-read within the span that the buffer was made for.
type buffer struct {
	read   uint64  // bytes below were taken
	have   uint64  // bytes below have come, without a gap
	high   uint64  // end of the furthest byte that has come
	blocks []block // a ring; made when the first byte comes
}

// block is blockSize bytes at a multiple of blockSize. Marks tell which bytes at
// or above have are there; nil if none is.
type block struct {
	data  *[blockSize]byte
	marks *marks
}

// span returns how many blocks a window of n bytes can touch.
func span(n uint64) int { return int(n/blockSize) + 2 }

func (b *buffer) block(offset uint64) *block {
	return &b.blocks[offset/blockSize%uint64(len(b.blocks))]
}

// ready returns how many bytes can be taken.
func (b *buffer) ready() int { return int(b.have - b.read) }

// put stores data at offset, and reports false if some of it came before.
func (b *buffer) put(offset uint64, data []byte, window uint64) bool {
	end := offset + uint64(len(data))
	inOrder := offset == b.have && b.have == b.high
	if offset < b.have {
		return false
	}
	if b.blocks == nil {
		b.blocks = make([]block, span(window))
	}
	if !inOrder && !b.mark(offset, end) {
		return false
	}
	b.copyIn(offset, data)
	b.high = max(b.high, end)
	if inOrder {
		b.have = end
	} else {
		b.advance()
	}
	return true
}

func (b *buffer) copyIn(offset uint64, data []byte) {
	for len(data) > 0 {
		blk := b.block(offset)
		if blk.data == nil {
			blk.data = (*[blockSize]byte)(pool.Get(blockSize))
		}
		n := copy(blk.data[offset%blockSize:], data)
		data, offset = data[n:], offset+uint64(n)
	}
}

// mark notes that the bytes from offset to end have come, unless one of them had.
func (b *buffer) mark(offset, end uint64) bool {
	for offset < end {
		blk := b.block(offset)
		if blk.marks == nil {
			blk.marks = new(marks)
		}
		at := offset % blockSize
		n := min(blockSize-at, end-offset)
		if !blk.marks.set(int(at), int(at+n)) {
			return false
		}
		offset += n
	}
	return true
}

// advance moves have over what has come.
func (b *buffer) advance() {
	for b.have < b.high {
		blk := b.block(b.have)
		if blk.marks == nil {
			return
		}
		at := int(b.have % blockSize)
		end := blk.marks.run(at)
		b.have += uint64(end - at)
		if end < blockSize {
			return
		}
	}
}

// take moves bytes into p and returns how many.
func (b *buffer) take(p []byte) (n int) {
	for n < len(p) && b.read < b.have {
		at := b.read % blockSize
		end := min(blockSize, at+b.have-b.read)
		k := copy(p[n:], b.block(b.read).data[at:end])
		if n += k; at+uint64(k) == blockSize || b.read+uint64(k) == b.high {
			b.block(b.read).free()
		}
		b.read += uint64(k)
	}
	return n
}

// release gives all memory back.
func (b *buffer) release() {
	for i := range b.blocks {
		b.blocks[i].free()
	}
	b.blocks, b.read, b.have = nil, b.high, b.high
}

func (b *block) free() {
	if b.data != nil {
		pool.Put(b.data[:])
	}
	*b = block{}
}

// marks has a bit for each byte of a block.
type marks [blockSize / 64]uint64

// set sets the bits in [from, to), and reports false if one was set before.
func (m *marks) set(from, to int) bool {
	for from < to {
		low := from % 64
		n := min(64-low, to-from)
		mask := ^uint64(0) >> (64 - n) << low
		word := &m[from/64]
		if *word&mask != 0 {
			return false
		}
		*word |= mask
		from += n
	}
	return true
}

// run returns the first bit at or after from that is not set.
func (m *marks) run(from int) int {
	for from < blockSize {
		left := 64 - from%64
		n := bits.TrailingZeros64(^(m[from/64] >> (from % 64)))
		from += n
		if n < left {
			break
		}
	}
	return from
}
