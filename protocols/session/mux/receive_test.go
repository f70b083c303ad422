package mux

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"openmesh/protocols/wire"
)

// rig is a mux whose frames a test carries by hand. The mux is the initiator's.
type rig struct {
	*Mux
	accepted []*Stream
	full     bool  // Post has no room
	fails    error // of Send

	mu   sync.Mutex
	sent []string
}

func newRig(cfg Config) *rig {
	r := new(rig)
	cfg.Initiator = true
	cfg.Send = func(t Type, parts ...[]byte) error {
		if r.fails == nil {
			r.record(t, slices.Concat(parts...))
		}
		return r.fails
	}
	cfg.Post = func(t Type, payload []byte) bool {
		if !r.full {
			r.record(t, payload)
		}
		return !r.full
	}
	cfg.Accept = func(s *Stream) { r.accepted = append(r.accepted, s) }
	r.Mux = New(cfg)
	return r
}

func (r *rig) record(t Type, payload []byte) {
	v, rest, err := parse(t, payload)
	line := fmt.Sprint(t)
	for _, n := range v[:t.numbers()] {
		line += fmt.Sprint(" ", n)
	}
	if len(rest) > 0 {
		line += " " + string(rest)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sent = append(r.sent, line); err != nil {
		r.sent = append(r.sent, err.Error())
	}
}

func number(c wire.Code) string { return strconv.Itoa(int(c)) }

// sentOnly checks what was sent since the last time.
func (r *rig) sentOnly(t *testing.T, want ...string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if got := strings.Join(r.sent, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("sent:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
	r.sent = nil
}

func (r *rig) receive(t Type, rest string, numbers ...uint64) error {
	return r.Receive(t, append(appendNumbers(nil, numbers...), rest...))
}

func (r *rig) must(t *testing.T, typ Type, rest string, numbers ...uint64) {
	t.Helper()
	if err := r.receive(typ, rest, numbers...); err != nil {
		t.Fatalf("%v %v: %v", typ, numbers, err)
	}
}

// in is one frame that a hostile or honest peer sends.
type in struct {
	typ     Type
	numbers []uint64
	rest    string
}

func open(id, credit uint64) in              { return in{TypeOpen, []uint64{id, credit}, ""} }
func data(id, offset uint64, rest string) in { return in{TypeData, []uint64{id, offset}, rest} }
func limit(id, offset uint64) in             { return in{TypeWindow, []uint64{id, offset}, ""} }
func end(id, final uint64, code wire.Code) in {
	return in{TypeEnd, []uint64{id, final, uint64(code)}, ""}
}

// Every frame but the last is accepted; of the last, the table says what the mux
// thinks. The window is 100 bytes.
func TestHostilePeers(t *testing.T) {
	t.Parallel()
	const huge = math.MaxUint64
	x := strings.Repeat("x", 100)
	for name, tc := range map[string]struct {
		frames []in
		want   wire.Code // 0: nothing wrong
	}{
		"all of the credit":               {[]in{open(2, 0), data(2, 0, x)}, 0},
		"more than the credit":            {[]in{open(2, 0), data(2, 0, x+"x")}, wire.PolicyViolation},
		"beyond the credit with a gap":    {[]in{open(2, 0), data(2, 100, "x")}, wire.PolicyViolation},
		"huge offset":                     {[]in{open(2, 0), data(2, maxNumber, "x")}, wire.PolicyViolation},
		"offset of 64 bits":               {[]in{open(2, 0), data(2, huge, "x")}, wire.Malformed},
		"end that overflows":              {[]in{open(2, 0), data(2, huge-1, "xx")}, wire.Malformed},
		"same bytes again":                {[]in{open(2, 0), data(2, 0, "abc"), data(2, 0, "abc")}, wire.Malformed},
		"other bytes at the same place":   {[]in{open(2, 0), data(2, 10, "abc"), data(2, 12, "xyz")}, wire.Malformed},
		"gap filled with too much":        {[]in{open(2, 0), data(2, 3, "def"), data(2, 0, "abcX")}, wire.Malformed},
		"gap filled":                      {[]in{open(2, 0), data(2, 3, "def"), data(2, 0, "abc")}, 0},
		"all around":                      {[]in{open(2, 0), data(2, 1, "b"), data(2, 0, "abc")}, wire.Malformed},
		"end before the data":             {[]in{open(2, 0), end(2, 3, 0), data(2, 0, "abc")}, 0},
		"data beyond the end":             {[]in{open(2, 0), end(2, 3, 0), data(2, 1, "bcd")}, wire.Malformed},
		"end below the data":              {[]in{open(2, 0), data(2, 0, "abc"), end(2, 2, 0)}, wire.Malformed},
		"end below data after a gap":      {[]in{open(2, 0), data(2, 50, "abc"), end(2, 52, 0)}, wire.Malformed},
		"end beyond the credit":           {[]in{open(2, 0), end(2, 101, 0)}, wire.PolicyViolation},
		"reset beyond the credit":         {[]in{open(2, 0), end(2, 101, wire.Denied)}, wire.PolicyViolation},
		"ended twice":                     {[]in{open(2, 0), end(2, 3, 0), end(2, 3, 0)}, wire.Malformed},
		"reset after the end":             {[]in{open(2, 0), end(2, 3, 0), end(2, 3, wire.Denied)}, 0},
		"reset elsewhere than the end":    {[]in{open(2, 0), end(2, 3, 0), end(2, 4, wire.Denied)}, wire.Malformed},
		"end with a code of 33 bits":      {[]in{open(2, 0), end(2, 0, 0), {TypeEnd, []uint64{2, 0, 1 << 32}, ""}}, wire.Malformed},
		"data of a stream that was reset": {[]in{open(2, 0), end(2, 50, wire.Denied), data(2, 0, x)}, 0},
		"window of a stream that ended":   {[]in{open(2, 0), end(2, 0, wire.Denied), limit(2, 5)}, 0},
		"end of a stream that was reset":  {[]in{open(2, 0), end(2, 0, wire.Denied), end(2, 0, 0)}, 0},
		"data of an unknown stream":       {[]in{open(2, 0), data(4, 0, "x")}, wire.Malformed},
		"data of a stream of ours to be":  {[]in{data(1, 0, "x")}, wire.Malformed},
		"window of an unknown stream":     {[]in{limit(2, 5)}, wire.Malformed},
		"end of an unknown stream":        {[]in{end(2, 0, 0)}, wire.Malformed},
		"stream 0":                        {[]in{data(0, 0, "x")}, wire.Malformed},
		"open of 0":                       {[]in{open(0, 0)}, wire.Malformed},
		"open of ours":                    {[]in{open(1, 0)}, wire.Malformed},
		"open of one that is there":       {[]in{open(2, 0), open(2, 0)}, wire.Malformed},
		"opens out of order":              {[]in{open(6, 0), open(2, 0), open(4, 0)}, 0},
		"open of the last id":             {[]in{open(maxNumber-1, 0)}, 0},
		"open beyond it":                  {[]in{open(maxNumber+1, 0)}, wire.Malformed},
		"window that shrinks":             {[]in{open(2, 50), limit(2, 10)}, 0},
		"endless window":                  {[]in{open(2, 50), limit(2, maxNumber)}, 0},
		"window beyond it":                {[]in{open(2, 50), limit(2, huge)}, wire.Malformed},
		"too much metadata":               {[]in{{TypeOpen, []uint64{2, 0}, strings.Repeat("m", MaxMeta+1)}}, wire.Malformed},
		"no data":                         {[]in{open(2, 0), data(2, 0, "")}, wire.Malformed},
		"window with a tail":              {[]in{open(2, 0), {TypeWindow, []uint64{2, 5}, "x"}}, wire.Malformed},
		"window without a limit":          {[]in{open(2, 0), {TypeWindow, []uint64{2}, ""}}, wire.Malformed},
		"nothing":                         {[]in{{TypeData, nil, ""}}, wire.Malformed},
		"endless number":                  {[]in{{TypeData, nil, strings.Repeat("\xff", 20)}}, wire.Malformed},
		"unknown type":                    {[]in{{TypeEnd + 1, []uint64{2, 0}, ""}}, wire.Malformed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(Config{Window: 100, MaxStreams: 3})
			last := len(tc.frames) - 1
			for _, f := range tc.frames[:last] {
				r.must(t, f.typ, f.rest, f.numbers...)
			}
			f := tc.frames[last]
			err := r.receive(f.typ, f.rest, f.numbers...)
			if tc.want == 0 && err != nil || tc.want != 0 && (err == nil || wire.CodeOf(err) != tc.want) {
				t.Errorf("%v; want %v", err, tc.want)
			}
			if err := r.check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// More streams than are taken: the peer is told; streams that end make room.
func TestOpenFlood(t *testing.T) {
	t.Parallel()
	r := newRig(Config{MaxStreams: 2, Window: 100})
	for id := uint64(2); id <= 8; id += 2 {
		r.must(t, TypeOpen, "", id, 0)
	}
	code := number(wire.ResourceExhausted)
	r.sentOnly(t, "stream-window 2 100", "stream-window 4 100", "stream-end 6 0 "+code, "stream-end 8 0 "+code)
	r.must(t, TypeData, "x", 6, 0) // was on its way
	r.accepted[0].Reset(wire.Denied)
	r.must(t, TypeOpen, "", 10, 0)
	if len(r.accepted) != 3 || r.Len() != 2 {
		t.Errorf("%d accepted, %d there", len(r.accepted), r.Len())
	}
}

// A peer that opens streams and reads nothing cannot make answers pile up.
func TestOpenFloodWithoutReading(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stuck := make(chan struct{})
		m := New(Config{
			MaxStreams: 2,
			Send:       func(Type, ...[]byte) error { <-stuck; return io.ErrClosedPipe },
			Post:       func(Type, []byte) bool { return false },
			Accept:     func(*Stream) {},
		})
		var err error
		id := uint64(1)
		for ; err == nil && id < 10*maxOwed; id += 2 {
			err = m.Receive(TypeOpen, appendNumbers(nil, id, 0))
		}
		if wire.CodeOf(err) != wire.PolicyViolation || id > 3*maxOwed {
			t.Errorf("stream %d: %v", id, err)
		}
		m.Close(0)
		close(stuck)
	})
}

// A peer that scatters single bytes holds no more than its credit in blocks.
func TestScatteredBytes(t *testing.T) {
	t.Parallel()
	r := newRig(Config{SessionWindow: 64 << 10, MaxStreams: 1})
	r.must(t, TypeOpen, "", 2, 0)
	s := r.accepted[0]
	for offset := uint64(1); offset < s.in.limit; offset += 2 {
		r.must(t, TypeData, "o", 2, offset)
	}
	if err := r.check(); err != nil {
		t.Error(err)
	}
	most := s.in.limit
	for offset := uint64(0); offset < most; offset += 2 {
		r.must(t, TypeData, "e", 2, offset)
	}
	got := make([]byte, most)
	if n, err := io.ReadFull(s, got); err != nil || string(got) != strings.Repeat("eo", int(most/2)) {
		t.Errorf("%d bytes: %v", n, err)
	}
	for i, b := range s.in.blocks {
		if b.data != nil || b.marks != nil {
			t.Errorf("block %d is left", i)
		}
	}
}

// The input is frames: a type, a length, a payload. Whatever they are, the books
// are right, and an error is the peer's.
func FuzzReceive(f *testing.F) {
	seed := func(frames ...in) {
		var b []byte
		for _, fr := range frames {
			payload := append(appendNumbers(nil, fr.numbers...), fr.rest...)
			b = append(append(b, byte(fr.typ), byte(len(payload))), payload...)
		}
		f.Add(b)
	}
	seed(open(2, 50), data(2, 3, "def"), data(2, 0, "abc"), end(2, 6, 0), limit(2, 100))
	seed(limit(1, 9), data(1, 0, "abc"), end(1, 9, wire.Denied), open(2, 0), limit(2, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newRig(Config{MaxStreams: 3, SessionWindow: 8 << 10})
		mine, _, err := r.begin(nil)
		if err != nil {
			t.Fatal(err)
		}
		for len(b) >= 2 {
			n := min(int(b[1]), len(b)-2)
			err := r.Receive(Type(b[0]%6), b[2:2+n])
			if code := wire.CodeOf(err); err != nil && code != wire.Malformed && code != wire.PolicyViolation {
				t.Fatalf("%v", err)
			}
			if err := r.check(); err != nil {
				t.Fatal(err)
			}
			if err != nil {
				return
			}
			readSome(mine, n)
			for _, s := range r.accepted {
				readSome(s, n)
			}
			b = b[2+n:]
		}
	})
}

// readSome reads what is there, if anything is.
func readSome(s *Stream, n int) {
	if s.in.ready() > 0 {
		s.Read(make([]byte, n))
	}
}

func BenchmarkThroughput(b *testing.B) {
	for _, size := range []int{100, 32 << 10, 1 << 20} {
		b.Run(strconv.Itoa(size), func(b *testing.B) { benchmarkThroughput(b, size) })
	}
}

// benchmarkThroughput carries frames straight from mux to mux.
func benchmarkThroughput(b *testing.B, size int) {
	var ends [2]*Mux
	accepted := make(chan *Stream, 1)
	for i := range ends {
		var scratch []byte
		ends[i] = New(Config{
			Initiator: i == 0,
			Send: func(t Type, parts ...[]byte) error {
				scratch = scratch[:0]
				for _, p := range parts {
					scratch = append(scratch, p...)
				}
				return ends[1-i].Receive(t, scratch)
			},
			Post:   func(t Type, payload []byte) bool { return ends[1-i].Receive(t, payload) == nil },
			Accept: func(s *Stream) { accepted <- s },
		})
	}
	s, err := ends[0].Open(b.Context(), nil)
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan int64, 1)
	go func() {
		n, _ := io.Copy(io.Discard, <-accepted)
		done <- n
	}()
	p := make([]byte, size)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Write(p); err != nil {
			b.Fatal(err)
		}
	}
	s.CloseWrite()
	if n := <-done; n != int64(b.N)*int64(size) {
		b.Errorf("%d bytes arrived", n)
	}
}

// Frames on the wire, as another implementation would write them.
func TestGoldenFrames(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		frame in
		want  []byte
	}{
		{open(1, 262144), []byte{1, 0x80, 0x80, 0x10}},
		{data(300, 5, "hi"), []byte{0xac, 2, 5, 'h', 'i'}},
		{limit(2, 128), []byte{2, 0x80, 1}},
		{end(2, 7, wire.Cancelled), binary.AppendUvarint([]byte{2, 7}, uint64(wire.Cancelled))},
	} {
		got := append(appendNumbers(nil, tc.frame.numbers...), tc.frame.rest...)
		if string(got) != string(tc.want) {
			t.Errorf("%v: % x, want % x", tc.frame.typ, got, tc.want)
		}
		v, rest, err := parse(tc.frame.typ, tc.want)
		if err != nil || !slices.Equal(v[:len(tc.frame.numbers)], tc.frame.numbers) || string(rest) != tc.frame.rest {
			t.Errorf("%v: parsed %v, %q, %v", tc.frame.typ, v, rest, err)
		}
	}
}
