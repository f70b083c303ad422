package forward

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"openmesh/protocols/wire"
)

// writerOf returns what it is given as records; reader opens them.
func writerOf(t testing.TB, to io.Writer) *recordWriter {
	return &recordWriter{w: to, sealer: testSealer(t, 1, "source")}
}

func readerOf(t testing.TB, from io.Reader) *recordReader {
	return newRecordReader(from, testSealer(t, 1, "source"))
}

func testSealer(t testing.TB, salt byte, writer string) *sealer {
	s, err := writerSealer(&keys{records: [32]byte{1}}, bytes.Repeat([]byte{salt}, saltSize), writer)
	check(t, err)
	return s
}

// records splits a stream of them.
func records(b []byte) (all [][]byte) {
	for len(b) > 0 {
		n := headerSize + int(b[0])<<8 + int(b[1])
		all, b = append(all, b[:n]), b[n:]
	}
	return all
}

// What is written in any pieces is read in any pieces.
func TestRecordsCarryBytes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		var sent, line bytes.Buffer
		w := writerOf(t, &line)
		for _, n := range rapid.SliceOfN(rapid.IntRange(0, 3*maxPlain), 0, 4).Draw(rt, "writes") {
			b := bytes.Repeat([]byte{byte(n)}, n)
			sent.Write(b)
			if got, err := w.Write(b); got != n || err != nil {
				rt.Fatalf("Write = %d, %v", got, err)
			}
		}
		check(t, w.end())
		check(t, w.end())
		if _, err := w.Write([]byte{1}); !errors.Is(err, wire.SessionClosed) {
			rt.Fatalf("Write after the end: %v", err)
		}
		r := readerOf(t, &line)
		buf := make([]byte, rapid.SampledFrom([]int{1000, maxPlain, 4 * maxPlain}).Draw(rt, "read"))
		var got []byte
		for {
			n, err := r.Read(buf)
			got = append(got, buf[:n]...)
			if err == io.EOF {
				break
			}
			if err != nil {
				rt.Fatal(err)
			}
		}
		if !bytes.Equal(got, sent.Bytes()) {
			rt.Fatalf("read %d bytes, wrote %d", len(got), sent.Len())
		}
	})
}

// Whatever a relay does to the records, the reader notices.
func TestRecordsThatWereTouched(t *testing.T) {
	t.Parallel()
	var line bytes.Buffer
	w := writerOf(t, &line)
	for _, s := range []string{"one", "two", "three"} {
		_, err := w.Write([]byte(s))
		check(t, err)
	}
	check(t, w.end())
	whole := records(line.Bytes())
	flip := func(record, at int) [][]byte {
		rs := slices.Clone(whole)
		rs[record] = bytes.Clone(rs[record])
		rs[record][at] ^= 1
		return rs
	}
	for name, tc := range map[string]struct {
		records [][]byte
		want    error
		before  string // what is read all the same
	}{
		"untouched":       {whole, nil, "onetwothree"},
		"no end":          {whole[:3], io.ErrUnexpectedEOF, "onetwothree"},
		"cut in a record": {append(slices.Clone(whole[:1]), whole[1][:7]), io.ErrUnexpectedEOF, "one"},
		"cut in a header": {append(slices.Clone(whole[:1]), whole[1][:1]), io.ErrUnexpectedEOF, "one"},
		"cut away":        {nil, io.ErrUnexpectedEOF, ""},
		"changed":         {flip(1, 3), wire.Unauthenticated, "one"},
		"tag changed":     {flip(0, len(whole[0])-1), wire.Unauthenticated, ""},
		"length changed":  {flip(1, 1), wire.Unauthenticated, "one"},
		"one missing":     {append(slices.Clone(whole[:1]), whole[2:]...), wire.Unauthenticated, "one"},
		"twice":           {append(slices.Clone(whole[:1]), whole...), wire.Unauthenticated, "one"},
		"end too early":   {append(slices.Clone(whole[:1]), whole[3]), wire.Unauthenticated, "one"},
		"too short":       {[][]byte{{0, tagSize - 1}}, wire.Malformed, ""},
		"too long":        {[][]byte{{0xff, 0xff}}, wire.Malformed, ""},
	} {
		r := readerOf(t, bytes.NewReader(slices.Concat(tc.records...)))
		got, err := io.ReadAll(r)
		if string(got) != tc.before || !errors.Is(err, tc.want) {
			t.Errorf("%s: read %q, %v; want %q, %v", name, got, err, tc.before, tc.want)
		}
		if _, again := r.Read(make([]byte, 1)); tc.want != nil && !errors.Is(again, tc.want) {
			t.Errorf("%s: the next Read gives %v", name, again)
		}
	}
}

func TestRecordsOfOtherKeys(t *testing.T) {
	t.Parallel()
	var line bytes.Buffer
	_, err := writerOf(t, &line).Write([]byte("x"))
	check(t, err)
	for name, s := range map[string]*sealer{"the other direction": testSealer(t, 1, "target"), "another salt": testSealer(t, 2, "source")} {
		if _, err := newRecordReader(bytes.NewReader(line.Bytes()), s).Read(make([]byte, 9)); !errors.Is(err, wire.Unauthenticated) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Both sides change the key after the same record, and the old one is of no use.
func TestRecordKeyChanges(t *testing.T) {
	t.Parallel()
	w, r := testSealer(t, 1, "source"), testSealer(t, 1, "source")
	old := w.secret
	first := bytes.Clone(old)
	w.count, r.count = recordsInKey-2, recordsInKey-2
	for i := range 4 {
		rec, err := w.seal(nil, []byte{byte(i)})
		check(t, err)
		if got, err := r.open(nil, rec[headerSize:]); err != nil || got[0] != byte(i) {
			t.Fatalf("record %d: %v, %v", i, got, err)
		}
	}
	if w.count != 2 || bytes.Equal(w.secret, first) || !bytes.Equal(old, make([]byte, len(old))) {
		t.Error("the secret stayed")
	}
}

// stutter fails with a timeout before every byte.
type stutter struct {
	r    io.Reader
	turn bool
}

func (s *stutter) Read(b []byte) (int, error) {
	if s.turn = !s.turn; s.turn {
		return 0, os.ErrDeadlineExceeded
	}
	return s.r.Read(b[:1])
}

func TestDeadlineInARecordLosesNothing(t *testing.T) {
	t.Parallel()
	var line bytes.Buffer
	w := writerOf(t, &line)
	want := bytes.Repeat([]byte("0123456789"), 100)
	_, err := w.Write(want)
	check(t, err)
	check(t, w.end())
	r := readerOf(t, &stutter{r: &line})
	var got []byte
	for buf := make([]byte, 64); ; {
		n, err := r.Read(buf)
		got = append(got, buf[:n]...)
		if err == io.EOF {
			break
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, want) {
		t.Errorf("read %d bytes, want %d", len(got), len(want))
	}
}

// A write that was cut leaves half a record behind: nothing may follow it.
func TestWriteErrorIsFinal(t *testing.T) {
	t.Parallel()
	fail := errors.New("no more")
	w := writerOf(t, &failOnce{err: fail})
	for range 2 {
		if _, err := w.Write([]byte("x")); !errors.Is(err, fail) {
			t.Errorf("Write: %v", err)
		}
	}
	r := readerOf(t, iotest.ErrReader(fail))
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, fail) {
		t.Errorf("Read: %v", err)
	}
}

type failOnce struct{ err error }

func (f *failOnce) Write(b []byte) (int, error) {
	err := f.err
	f.err = nil
	return 0, err
}

func BenchmarkRecords(b *testing.B) {
	var line bytes.Buffer
	w, r := writerOf(b, &line), readerOf(b, &line)
	plain, buf := make([]byte, maxPlain), make([]byte, maxPlain)
	b.SetBytes(maxPlain)
	for b.Loop() {
		_, err := w.Write(plain)
		check(b, err)
		_, err = io.ReadFull(r, buf)
		check(b, err)
	}
}
