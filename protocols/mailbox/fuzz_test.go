package mailbox

import (
	"bufio"
	"bytes"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox/mailboxpb"
	"openmesh/protocols/wire"
)

const someone identity.AgentID = "did:key:z6MkehRgf7yJbgaGfYsdoAsKdBPE3dj2CYhowQdcjqSJgvVd"

func encoded(f *testing.F, m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// What is taken for a letter can be asked for again by what it says.
func FuzzItem(f *testing.F) {
	f.Add(encoded(f, &mailboxpb.Item{Cursor: 7, Id: make([]byte, 16), Expires: 1 << 31}))
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, raw []byte) {
		l, cursor, err := parseItem(raw, someone)
		if err != nil {
			return
		}
		again, c, err := parseItem(mustMarshal(t, &mailboxpb.Item{Cursor: cursor, Id: l.ID[:], Expires: l.Expires.Unix()}), someone)
		if err != nil || c != cursor || again.Digest() != l.Digest() || l.Expires.Year() > 9999 {
			t.Errorf("%v, %v", l, err)
		}
	})
}

func FuzzDeposit(f *testing.F) {
	now := time.Unix(1<<31, 0)
	f.Add(encoded(f, &mailboxpb.Request{Request: &mailboxpb.Request_Deposit{Deposit: &mailboxpb.Deposit{Recipient: string(someone), Id: make([]byte, 16), Expires: now.Unix() + 5, Size: 9}}}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var req mailboxpb.Request
		if proto.Unmarshal(raw, &req) != nil || req.GetDeposit() == nil {
			return
		}
		l, err := newLetter(req.GetDeposit().Recipient, req.GetDeposit().Id, req.GetDeposit().Expires)
		if err != nil || l.current(now) != nil {
			return
		}
		if _, err := identity.ParseAgentID(string(l.Recipient)); err != nil || l.Expires.Sub(now) > MaxTTL+identity.ClockSkew || !l.Expires.After(now) {
			t.Errorf("accepted %+v", l)
		}
	})
}

func FuzzAck(f *testing.F) {
	f.Add(wire.AppendFrame(nil, encoded(f, &mailboxpb.Ack{Done: []uint64{1, 2}, Later: []uint64{3}})))
	f.Fuzz(func(t *testing.T, raw []byte) {
		ack, err := readAck(bufio.NewReader(bytes.NewReader(raw)))
		if err == nil && len(ack.Done)+len(ack.Later) > maxAck {
			t.Errorf("%d cursors", len(ack.Done)+len(ack.Later))
		}
		o := outlet{flight: map[uint64]int{1: 10}, bytes: 10, freed: make(chan struct{}, 1)}
		o.land(append(o.flying(ack.GetDone()), o.flying(ack.GetLater())...))
		if o.bytes != 10*len(o.flight) {
			t.Errorf("%d bytes in %d letters", o.bytes, len(o.flight))
		}
	})
}

// Sizes are steps: what is padded stays, and none shrinks or grows by over an eighth.
func FuzzPadded(f *testing.F) {
	f.Add(uint32(2049))
	f.Fuzz(func(t *testing.T, n uint32) {
		p := padded(int(n))
		if p < int(n) || padded(p) != p || p > minPadded && float64(p) > float64(n)*1.125 || padded(int(n)+1) < p {
			t.Errorf("padded(%d) = %d", n, p)
		}
	})
}

func mustMarshal(t *testing.T, m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
