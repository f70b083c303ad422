package seal

// Window is how far behind the newest frame one may arrive; at a message per
// frame, more than two paths of different length reorder.
const Window = 4096

// replayFilter drops frames seen before. It is a bitmap over the last Window
// sequence numbers (RFC 6479). The zero value has seen nothing; the first
// sequence number is 1.
type replayFilter struct {
	newest uint64
	bits   [Window/64 + 1]uint64 // one spare word: it is cleared ahead of use
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
	return f.newest-sequence < Window && !f.seen(sequence)
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

// seen reports whether sequence, which is within the window, was marked.
func (f *replayFilter) seen(sequence uint64) bool {
	return f.bits[f.word(sequence)]&(1<<(sequence%64)) != 0
}

func (f *replayFilter) word(sequence uint64) uint64 { return sequence / 64 % uint64(len(f.bits)) }

// Range are the sequence numbers from First to Last, both included.
type Range struct{ First, Last uint64 }

// missing lists what was not seen up to the newest, within the window, the most
// recent gaps first, at most limit. The last one reaches down to 1 if there are
// more. What is older can never arrive: it is not worth asking for.
func (f *replayFilter) missing(limit int) []Range {
	var gaps []Range
	var gap Range
	for seq := f.newest; seq > 0 && f.newest-seq < Window; seq-- {
		switch {
		case !f.seen(seq) && gap.Last == 0:
			gap = Range{seq, seq}
		case !f.seen(seq):
			gap.First = seq
		case gap.Last != 0:
			if gaps = append(gaps, gap); len(gaps) == limit {
				gaps[limit-1].First = 1
				return gaps
			}
			gap = Range{}
		}
	}
	if gap.Last != 0 {
		gaps = append(gaps, gap)
	}
	return gaps
}
