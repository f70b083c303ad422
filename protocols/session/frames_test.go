package session

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"openmesh/protocols/identity"
	"openmesh/protocols/session/seal"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// tape is a conduit that records what is written, as an attacker on the path
// would. Nothing comes from it.
type tape struct {
	bytes.Buffer
	reset wire.Code
}

func (t *tape) Read([]byte) (int, error) { return 0, io.EOF }
func (t *tape) Close() error             { return nil }
func (t *tape) Reset(c wire.Code)        { t.reset = c }
func (t *tape) Reserve(n int) error      { return nil }
func (t *tape) Release(int)              {}
func (t *tape) Path() Path               { return Path{Kind: "direct"} }
func (t *tape) Peer() peer.ID            { return "" }
func (t *tape) Abandon()                 {}

// side is one end of a session whose frames a test carries by hand.
type side struct {
	*Session
	out *tape
	got [][]byte // data received
	in  reader
}

func newSides(t testing.TB, secret byte) (initiator, responder *side) {
	t.Helper()
	return newSide(t, secret, true), newSide(t, secret, false)
}

func newSide(t testing.TB, secret byte, initiator bool) *side {
	t.Helper()
	sd := &side{out: &tape{}}
	owner := New(Config{
		Signal:  signal.Config{Verifier: identity.NewVerifier(0, time.Now), Log: zap.NewNop()},
		Data:    func(_ *Session, b []byte) { sd.got = append(sd.got, bytes.Clone(b)) },
		Handler: func(context.Context, *Inbound) (*Response, error) { return nil, wire.Internal },
		Log:     zap.NewNop(),
	})
	est := &signal.Established{
		ID: signal.ID{secret}, Peer: &identity.Certificate{Agent: "peer"}, Initiator: initiator,
		Suite: signal.Suites()[0], Contract: signal.DefaultContract(), Secret: [32]byte{secret},
	}
	ch := newChannel(sd.out, initiator, time.Now())
	s, err := owner.establish(est, ch, false, Route{})
	if err != nil {
		t.Fatal(err)
	}
	sd.in.channel = ch
	if est.Secret != [32]byte{} {
		t.Error("the session's secret was not erased")
	}
	sd.Session = s
	return sd
}

// frames returns what the side sent so far, frame by frame without lengths.
func (sd *side) frames(t testing.TB) [][]byte {
	t.Helper()
	var fs [][]byte
	r := bufio.NewReader(bytes.NewReader(sd.out.Bytes()))
	for {
		f, err := wire.ReadFrame(r, 1<<23)
		if err != nil {
			return fs
		}
		fs = append(fs, f)
	}
}

// read makes the side read one frame from in.
func (sd *side) read(in []byte) error {
	sd.in.Reader = bufio.NewReader(bytes.NewReader(in))
	return sd.receiveFrame(&sd.in)
}

// feed makes the side receive one frame.
func (sd *side) feed(frame []byte) error {
	return sd.read(wire.AppendFrame(nil, frame))
}

func (sd *side) send(t testing.TB, messages ...string) [][]byte {
	t.Helper()
	for _, m := range messages {
		if err := sd.Send([]byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	return sd.frames(t)
}

// No frame changes anything twice, in another session, in the other direction or
// with one bit changed; the honest ones arrive all the same, in any order.
func TestFrameAttacks(t *testing.T) {
	t.Parallel()
	a, b := newSides(t, 1)
	otherA, _ := newSides(t, 2)
	frames := a.send(t, "one", "two", "three")
	foreign := otherA.send(t, "foreign")[0]
	reflected := b.send(t, "from b")[0]
	relabelled := bytes.Clone(foreign)
	copy(relabelled[2:18], frames[0][2:18])
	laterEpoch := bytes.Clone(frames[0])
	binary.BigEndian.PutUint32(laterEpoch[18:], 1)
	hostile := [][]byte{
		foreign, relabelled, reflected, laterEpoch,
		frames[0][:seal.Overhead-1], {}, append(bytes.Clone(frames[0]), 0), frames[1][:len(frames[1])-1],
	}
	for bit := range 12 {
		f := bytes.Clone(frames[2])
		f[rand.IntN(len(f))] ^= 1 << (bit % 8)
		hostile = append(hostile, f)
	}
	for i, f := range hostile {
		b.in.rejected = 0 // this test is about each frame, not their number
		if err := b.feed(f); err != nil || len(b.got) != 0 {
			t.Fatalf("hostile frame %d: %v, got %q", i, err, b.got)
		}
	}
	b.in.rejected = 0
	for _, i := range []int{2, 0, 0, 1, 2, 1} { // reordered and replayed
		if err := b.feed(frames[i]); err != nil {
			t.Fatal(err)
		}
	}
	if want := [][]byte{[]byte("three"), []byte("one"), []byte("two")}; len(b.got) != 3 || !bytes.Equal(bytes.Join(b.got, nil), bytes.Join(want, nil)) {
		t.Errorf("got %q", b.got)
	}
}

// A peer that keeps sending what does not open loses its channel.
func TestRejectedFramesAreBounded(t *testing.T) {
	t.Parallel()
	_, b := newSides(t, 1)
	for range maxRejected {
		if err := b.feed(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.feed(make([]byte, 100)); err == nil {
		t.Error("the channel goes on")
	}
}

// The length is checked before memory is taken, and a cut frame is an end.
func TestFrameLengthIsBounded(t *testing.T) {
	t.Parallel()
	_, b := newSides(t, 1)
	for _, tc := range []struct {
		in   []byte
		want error
	}{
		{binary.AppendUvarint(nil, 1<<40), wire.TooLarge},
		{binary.AppendUvarint(nil, uint64(4<<20+maxMeta+seal.Overhead+1)), wire.TooLarge},
		{[]byte{0x80, 0x00}, wire.Malformed},
		{[]byte{100, 1, 2, 3}, io.ErrUnexpectedEOF},
	} {
		if err := b.read(tc.in); !errors.Is(err, tc.want) {
			t.Errorf("%x: %v, want %v", tc.in, err, tc.want)
		}
	}
}

// Every pair of states: the table alone decides, nothing leaves a final state,
// and from any other a session can be terminated.
func TestTransitionTable(t *testing.T) {
	t.Parallel()
	legal := map[[2]State]bool{}
	for _, tr := range transitions {
		legal[[2]State{tr.from, tr.to}] = true
	}
	for from := Offered; from <= Terminated; from++ {
		for to := Offered; to <= Terminated; to++ {
			next, err := from.next(to)
			want := legal[[2]State{from, to}] || to == Terminated && from < Closed
			if (err == nil) != want || err == nil && next != to || err != nil && (next != from || !errors.Is(err, wire.IllegalTransition)) {
				t.Errorf("%s → %s = %s, %v", from, to, next, err)
			}
			if want && from.Done() {
				t.Errorf("%s is final, but %s follows", from, to)
			}
		}
	}
}
