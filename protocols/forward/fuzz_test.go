package forward

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"openmesh/protocols/wire"
)

func FuzzEnvelope(f *testing.F) {
	hosts, p := chain(f, 2)
	envelope, _, err := newEnvelope(p, "/inner/1", noon)
	check(f, err)
	f.Add([]byte{}, 0)
	f.Add([]byte("x"), encSize+3)
	f.Fuzz(func(t *testing.T, change []byte, at int) {
		b := bytes.Clone(envelope)
		for i, c := range change {
			b[uint(at+i)%EnvelopeSize] ^= c
		}
		o, err := hosts[0].open(b)
		if bytes.Equal(b, envelope) {
			if err != nil || o.err != nil {
				t.Fatalf("the envelope itself: %v", err)
			}
		} else if !errors.Is(err, wire.Unauthenticated) {
			t.Fatalf("one that was changed: %v", err)
		}
	})
}

// A layer that parses is one that can be written again as it was understood.
func FuzzLayer(f *testing.F) {
	h := newHost(f)
	for _, l := range []layer{{expires: noon, protocol: "/inner/1"}, {expires: noon, next: h.Peer, addrs: h.Addrs}} {
		b, err := l.marshal()
		check(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = append(b, make([]byte, layerSize)...)[:layerSize]
		l, err := parseLayer(b)
		if err != nil {
			if !errors.Is(err, wire.Malformed) {
				t.Fatal(err)
			}
			return
		}
		if (l.next == "") == (l.protocol == "") || len(l.addrs) > MaxAddrs {
			t.Fatalf("%+v", l)
		}
		again, err := l.marshal()
		check(t, err)
		if l2, err := parseLayer(again); err != nil || l2.next != l.next || l2.protocol != l.protocol || !l2.expires.Equal(l.expires) {
			t.Fatalf("%+v became %+v, %v", l, l2, err)
		}
	})
}

func FuzzStatus(f *testing.F) {
	shared := sharedKeys(f, 3)
	cell, err := status{code: wire.Denied}.seal(shared[2])
	check(f, err)
	f.Add(cell, make([]byte, statusPlain))
	f.Fuzz(func(t *testing.T, cell, plain []byte) {
		cell = append(cell, make([]byte, StatusSize)...)[:StatusSize]
		if s, _, ok := peelStatus(shared, bytes.Clone(cell)); ok {
			t.Fatalf("a status of nobody: %+v", s)
		}
		s, ok := parseStatus(append(plain, make([]byte, statusPlain)...)[:statusPlain])
		if ok && s.code == 0 && (len(s.salt) != saltSize || s.next) {
			t.Fatalf("%+v", s)
		}
	})
}

func FuzzReset(f *testing.F) {
	shared := sharedKeys(f, 5)
	var peers []peer.ID
	for range shared {
		peers = append(peers, newHost(f).Peer)
	}
	f.Add(uint32(0))
	f.Add(resetWord(shared[0], back, wire.Denied, true))
	f.Fuzz(func(t *testing.T, word uint32) {
		for _, c := range []*Conn{{shared: shared, peers: peers}, {shared: shared[:1]}} {
			if err := c.explainReset(word); !errors.As(err, new(wire.Code)) || err.Error() == "" {
				t.Fatalf("%#x: %v", word, err)
			}
		}
	})
}

// Whatever comes in place of records, nothing is read that was not written, and
// not in another order.
func FuzzRecords(f *testing.F) {
	var line bytes.Buffer
	w := writerOf(f, &line)
	want := []byte("the first record, the second, the third")
	for _, part := range [][]byte{want[:17], want[17:29], want[29:]} {
		_, err := w.Write(part)
		check(f, err)
	}
	check(f, w.end())
	f.Add(line.Bytes(), 7)
	f.Add(line.Bytes()[:30], 64)
	f.Add([]byte{0xff, 0xff}, 1)
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		r := readerOf(t, bytes.NewReader(b))
		buf := make([]byte, 1+uint(size)%100)
		var got []byte
		for {
			n, err := r.Read(buf)
			got = append(got, buf[:n]...)
			if err == io.EOF && !bytes.Equal(got, want) {
				t.Fatalf("an end after %q", got)
			}
			if err != nil {
				break
			}
		}
		if !bytes.HasPrefix(want, got) {
			t.Fatalf("read %q", got)
		}
	})
}
