package session

// window is how far behind the newest frame one may arrive; at a message per
// frame, more than two paths of different length reorder.
const window = 4096

// replayFilter drops frames seen before. It is a bitmap over the last window
// sequence numbers (RFC 6479). The zero value has seen nothing; the first
// sequence number is 1.
type replayFilter struct {
	newest uint64
	bits   [window/64 + 1]uint64 // one spare word: it is cleared ahead of use
}

// fresh reports whether sequence was not seen and is not too old. It changes
// nothing: only an authenticated frame may.
func (f *replayFilter) fresh(sequence uint64) bool {
	if sequence == 0 {
		return false
	}
	if sequence > f.newest {
		return true
	}
	return f.newest-sequence < window && f.bits[f.word(sequence)]&(1<<(sequence%64)) == 0
}

// mark records sequence, which must be fresh.
func (f *replayFilter) mark(sequence uint64) {
	if sequence > f.newest {
		from, to := f.newest/64, sequence/64
		for i := range min(to-from, uint64(len(f.bits))) {
			f.bits[(to-i)%uint64(len(f.bits))] = 0
		}
		f.newest = sequence
	}
	f.bits[f.word(sequence)] |= 1 << (sequence % 64)
}

func (f *replayFilter) word(sequence uint64) uint64 { return sequence / 64 % uint64(len(f.bits)) }
