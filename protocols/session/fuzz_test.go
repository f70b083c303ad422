package session

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/session/delivery/deliverytest"
	"openmesh/protocols/session/seal"
	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

func encoded(f *testing.F, m proto.Message) []byte {
	f.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// plaintexts has one of every type of frame, and some at the edges.
func plaintexts(f *testing.F) map[seal.Type][][]byte {
	gaps := &sessionpb.Received{Newest: 100, Missing: []uint64{90, 95, 1, 5}}
	odd := &sessionpb.Received{Newest: math.MaxUint64, Missing: []uint64{5, 1, math.MaxUint64, 0, 7}}
	later := time.Now().Add(time.Hour)
	m := &delivery.Message{Sequence: 1, Key: "k", Capability: "test/x", Version: "^1", Encoding: 1, Body: []byte("{}"), Expires: later}
	mail := &delivery.Message{Sequence: 2, Body: []byte("hello"), Expires: later}
	ack := delivery.Ack{
		Delivered: []delivery.Range{{From: 1, To: 3}}, Working: []delivery.Range{{From: 5, To: delivery.MaxSequence}},
		Failed:    []delivery.Failure{{Sequence: 7, Attempt: 2, Code: wire.Denied, Pointers: []string{"/a"}}},
		Responses: []delivery.Response{{Sequence: 9, Encoding: 1, Body: []byte("{}")}},
	}
	window := binary.AppendUvarint(binary.AppendUvarint(nil, 1), 1<<10)
	zero := binary.AppendUvarint(binary.AppendUvarint(nil, 1), 0)
	return map[seal.Type][][]byte{
		seal.Data:         {{0}, {0, 'x'}, {}, delivery.AppendMessage(nil, m, 1, time.Now()), delivery.AppendMessage(nil, mail, 2, time.Now()), {200, 1}},
		seal.Ack:          {{}, delivery.AppendAck(nil, ack)},
		seal.Request:      {encoded(f, &sessionpb.Request{Id: 1, Capability: "x", Version: "^1", Timeout: 5, Encoding: 1, Traceparent: "00-1", IdempotencyKey: "k", Body: []byte("{}")})},
		seal.Response:     {encoded(f, &sessionpb.Response{Id: 1, Encoding: 1, Body: []byte("{}")})},
		seal.Error:        {encoded(f, &sessionpb.Error{Id: 1, Code: 0x103, Pointers: []string{"/a"}}), encoded(f, &sessionpb.Error{Id: 1, Cancel: true})},
		seal.StreamOpen:   {window, append(window, encoded(f, &sessionpb.StreamMeta{Meta: []byte("meta")})...)},
		seal.StreamData:   {append(zero, "bytes"...), window},
		seal.StreamWindow: {window},
		seal.StreamEnd:    {append(zero, 0), append(window, 0x83, 2)},
		seal.Ping:         {make([]byte, 8), {1}},
		seal.Pong:         {make([]byte, 8), binary.BigEndian.AppendUint64(nil, math.MaxUint64)},
		seal.Rekey: {
			encoded(f, &sessionpb.Rekey{Epoch: 1, PublicKey: make([]byte, 1216)}), encoded(f, &sessionpb.Rekey{Epoch: 1, Enc: make([]byte, 1120)}),
			encoded(f, &sessionpb.Rekey{Epoch: math.MaxUint32}),
		},
		seal.Rebind:       {encoded(f, &sessionpb.Rebind{Received: gaps, Primary: true}), encoded(f, &sessionpb.Rebind{})},
		seal.PolicyNotice: {encoded(f, &sessionpb.Notice{Effect: sessionpb.Notice_EFFECT_THROTTLE, Code: 0x104, Reason: "too fast"})},
		seal.Close:        {encoded(f, &sessionpb.Close{Code: 0x10f}), {}, encoded(f, &sessionpb.Close{Code: math.MaxUint32})},
		seal.Received:     {encoded(f, gaps), encoded(f, odd)},
		200:               {[]byte("of a later version")},
	}
}

// The far end of a session is authenticated, not trusted: whatever plaintext of
// whatever type it seals, nothing panics, and the session goes on or ends with a
// code.
func FuzzSealedPlaintext(f *testing.F) {
	for typ, plains := range plaintexts(f) {
		for _, plain := range plains {
			f.Add(byte(typ), plain)
		}
	}
	f.Fuzz(func(t *testing.T, typ byte, plain []byte) {
		if len(plain) > 1<<16 {
			return
		}
		a, b := newSides(t, 1)
		for _, way := range [][2]*side{{a, b}, {b, a}} {
			from, to := way[0], way[1]
			for sequence := range uint64(3) { // what is said twice may differ
				err := to.feed(from.link.opener().Seal(nil, seal.Type(typ), sequence+1, plain))
				if end := (broken{}); err != nil && (!errors.As(err, &end) || end.code != 0 && !end.code.Known()) {
					t.Errorf("the session ends with %v", err)
				}
				if to.in.next.in != nil {
					to.in.next.run()
				}
			}
			to.mail.in.Close()
			to.owner.group.Wait()
			to.owner.workers.close()
		}
	})
}

// Bytes from nobody in particular.
func FuzzReceive(f *testing.F) {
	a, _ := newSides(f, 1)
	a.send(f, "hello")
	f.Add(a.out.Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		_, b := newSides(t, 3)
		b.in.Reader = bufio.NewReader(bytes.NewReader(in))
		for b.receiveFrame(&b.in) == nil {
		}
		if len(b.got) != 0 {
			t.Errorf("data %q out of bytes that no key sealed", b.got)
		}
	})
}

// source is a conduit from which bytes come.
type source struct {
	tape
	in *bytes.Reader
}

func (s *source) Read(b []byte) (int, error) { return s.in.Read(b) }

// Whatever begins a channel, nobody without keys or a confirm that is awaited gets
// one.
func FuzzAttach(f *testing.F) {
	frame := make([]byte, seal.Overhead)
	frame[0], frame[1] = 1, byte(seal.Rebind)
	for _, m := range []*sessionpb.Attach{
		{Session: make([]byte, 16)}, {Session: append([]byte{1}, make([]byte, 15)...)}, {Session: make([]byte, 15)}, {},
		{Session: make([]byte, 16), Confirm: []byte("confirm")},
	} {
		f.Add(encoded(f, m), frame)
	}
	f.Fuzz(func(t *testing.T, attach, frame []byte) {
		b := newSide(t, 1, false)
		in := wire.AppendFrame(wire.AppendFrame(nil, attach), frame)
		ch := newChannel(&source{in: bytes.NewReader(in)}, false, time.Now())
		if s, _, err := b.owner.accept(newReader(ch)); err == nil {
			t.Errorf("%x and %x begin a channel of session %s", attach, frame, s.ID())
		}
	})
}

// A store may hold anything, such as what a later version wrote: a session is
// restored as it was saved, or not.
func FuzzRestore(f *testing.F) {
	peer := protocoltest.NewAgent(f, identity.FirstPrivateRealm, time.Now())
	good := &sessionpb.Saved{
		Session: make([]byte, 16), Agent: string(peer.Agent), Certificate: peer.Certificate.Raw, Initiator: true,
		Contract: signal.DefaultContract().Marshal(), Opened: 1, Used: math.MaxInt64, Exclusive: true,
		Protocols: []*sessionpb.SavedProtocol{{Name: "market/proposal", Version: "v1.0.0"}},
	}
	f.Add(encoded(f, good))
	f.Add(encoded(f, &sessionpb.Saved{}))
	good.Offered, good.Waits = true, true
	good.Through = []*sessionpb.SavedChain{{Agents: []string{"a", "b"}}, {}}
	f.Add(encoded(f, good))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, certain := range []bool{false, true} {
			if m := new(sessionpb.Saved); certain && proto.Unmarshal(b, m) == nil { // past the certificate
				m.Certificate = peer.Certificate.Raw
				b, _ = proto.Marshal(m)
			}
			s := restored(t, b)
			if s == nil {
				continue
			}
			want := Migrating
			if s.offered.Load() {
				want = Offered
			}
			if s.stateNow() != want || s.link.opener() != nil {
				t.Errorf("a session was restored that is %s, with keys: %t", s.stateNow(), s.link.opener() != nil)
			}
			if again := restored(t, s.saved()); again == nil || again.Contract() != s.Contract() || names(again.through) != names(s.through) || again.waits != s.waits {
				t.Errorf("what was restored is saved as %x", s.saved())
			}
		}
	})
}

// restored is the session that a node makes of what its store has; nil if none.
func restored(t *testing.T, saved []byte) *Session {
	t.Helper()
	owner := newSide(t, 1, true).owner
	owner.cfg.Store = deliverytest.NewStore()
	owner.stopped = true // nobody dials
	id := signal.ID{9}
	if owner.restoreOne(context.Background(), id, saved) != nil {
		return nil
	}
	return owner.session(id)
}

// A letter says what its sender wants, to a session that it is of or to none: it does
// harm to no other, and begins at most the one that it names.
func FuzzLetter(f *testing.F) {
	peer, other := protocoltest.NewAgent(f, identity.FirstPrivateRealm, time.Now()), protocoltest.NewAgent(f, identity.FirstPrivateRealm, time.Now())
	now := time.Now()
	message := delivery.AppendMessage(nil, &delivery.Message{Sequence: 1, Key: "k", Capability: "a/b", Encoding: 1, Body: []byte("{}"), Expires: now.Add(time.Hour)}, 1, now)
	ack := delivery.AppendAck(nil, delivery.Ack{Delivered: []delivery.Range{{From: 1, To: 3}}})
	good := &sessionpb.Letter{
		Session: make([]byte, 16), Written: now.UnixMilli(), Messages: [][]byte{message}, Acks: [][]byte{ack},
		Invitation: &sessionpb.Invitation{
			Contract: persistent().Marshal(), Addrs: [][]byte{{1}}, Protocols: []*sessionpb.InvitationProtocol{{Name: "x", Versions: []string{"1"}}},
		},
	}
	f.Add(encoded(f, good))
	good.Invitation = nil
	f.Add(encoded(f, good))
	f.Add(encoded(f, &sessionpb.Letter{Session: append([]byte{9}, make([]byte, 15)...), Messages: [][]byte{message}, Written: math.MaxInt64}))
	f.Fuzz(func(t *testing.T, b []byte) {
		side := newSide(t, 1, true)
		owner := side.owner
		owner.cfg.Store = deliverytest.NewStore()
		owner.cfg.Signal.Terms = func() signal.Terms { return signal.Terms{Contract: persistent()} }
		close(owner.restored)
		owner.stopped = true // nobody dials
		theirs := owner.build(&signal.Established{ID: signal.ID{9}, Peer: other.Certificate, Contract: persistent()}, now)
		theirs.link = newLink(nil)
		if err := owner.begin(theirs); err != nil {
			t.Fatal(err)
		}
		said := make(chan error, 2)
		owner.TakeLetter(t.Context(), peer.Certificate, b, func(err error) { said <- err })
		if theirs.lettered.Load() || theirs.mail.in.Busy() > 0 {
			t.Errorf("a letter of %s got into a session with %s", peer.Agent, other.Agent)
		}
		for _, s := range owner.list() {
			if s != theirs && s != side.Session && (s.Peer().Agent != peer.Agent || !s.persistent()) {
				t.Errorf("a letter began %+v", s.Info())
			}
		}
		if len(said) > 1 {
			t.Error("it is told twice what became of a letter")
		}
		if len(owner.list()) > 3 {
			t.Errorf("a letter began %d sessions", len(owner.list())-2)
		}
	})
}

func persistent() signal.Contract {
	c := signal.DefaultContract()
	c.QoS, c.Persistent = signal.ExactlyOnce, true
	return c
}
