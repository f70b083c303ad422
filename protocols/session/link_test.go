package session

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	pool "github.com/libp2p/go-buffer-pool"
	"pgregory.net/rapid"

	"openmesh/protocols/session/seal"
	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

func newTestKeys(t rapid.TB, initiator bool) *seal.Keys {
	t.Helper()
	k, err := seal.New(seal.Config{Suite: signal.Suites()[1], Initiator: initiator}, &[32]byte{1}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// pooled is s as the link takes it.
func pooled(s string) []byte {
	b := pool.Get(len(s))
	copy(b, s)
	return b
}

// pipe is a conduit that the test empties: what was written and did not arrive yet.
type pipe struct {
	tape
	broken bool
}

func (p *pipe) Write(b []byte) (int, error) {
	if p.broken {
		return 0, errors.New("broken")
	}
	return p.Buffer.Write(b)
}

// next is the frame that arrives next, or nil.
func (p *pipe) next() []byte {
	f, err := wire.ReadFrame(bufio.NewReader(bytes.NewReader(p.Bytes())), 1<<24)
	if err != nil {
		return nil
	}
	p.Next(len(wire.AppendFrame(nil, f)))
	return f
}

// linkModel is one direction of a session in rapid's hands: a link that sends, its
// channels, and a receiver that drops what it has seen.
type linkModel struct {
	link     *link
	receiver *seal.Keys
	channels []*channel
	reports  []report // what the receiver said, in flight
	sent     []string
	arrived  map[string]int
	now      time.Time
}

type report struct {
	newest  uint64
	missing []seal.Range
}

func newLinkModel(t *rapid.T) *linkModel {
	return &linkModel{link: newLink(newTestKeys(t, true)), receiver: newTestKeys(t, false), arrived: map[string]int{}, now: time.Now()}
}

func (m *linkModel) pipe(i int) *pipe { return m.channels[i].conduit.(*pipe) }

func (m *linkModel) pick(t *rapid.T) int {
	if len(m.channels) == 0 {
		t.Skip("no channel")
	}
	return rapid.IntRange(0, len(m.channels)-1).Draw(t, "channel")
}

func (m *linkModel) send(t *rapid.T) {
	if m.link.full() {
		t.Skip("full")
	}
	text := fmt.Sprint(len(m.sent))
	if _, _, err := m.link.send(m.link.opener(), seal.Data, pooled(text), false); err != nil {
		t.Fatal("not taken")
	}
	m.sent = append(m.sent, text)
}

// ping sends a frame that may get lost.
func (m *linkModel) ping(*rapid.T) {
	m.link.send(m.link.opener(), seal.Ping, pooled("12345678"), false)
}

func (m *linkModel) attach(t *rapid.T, primary bool) {
	ch := newChannel(&pipe{}, true, m.now)
	ok, resend := m.link.attach(ch, primary)
	if want := len(m.channels) < maxChannels; ok != want {
		t.Fatalf("attached: %t with %d channels", ok, len(m.channels))
	}
	if !ok {
		return
	}
	m.channels = append(m.channels, ch)
	if resend {
		m.link.resend(ch, nil)
	}
}

// drop loses a channel with all that is on it.
func (m *linkModel) drop(t *rapid.T) {
	i := m.pick(t)
	m.pipe(i).broken = true
	found, next, left := m.link.drop(m.channels[i], false)
	if !found || left != len(m.channels)-1 {
		t.Fatalf("drop: found %t, left %d of %d", found, left, len(m.channels))
	}
	m.channels = slices.Delete(m.channels, i, i+1)
	if next != nil {
		m.link.resend(next, nil)
	}
}

// arrive lets frames of one channel arrive.
func (m *linkModel) arrive(t *rapid.T) {
	p := m.pipe(m.pick(t))
	for range rapid.IntRange(1, 20).Draw(t, "frames") {
		m.take(t, p.next())
	}
}

func (m *linkModel) take(t *rapid.T, frame []byte) {
	if frame == nil {
		return
	}
	h, plain, err := m.receiver.Open(frame)
	switch {
	case errors.Is(err, wire.Replayed):
	case err != nil:
		t.Fatalf("open: %v", err)
	case h.Type == seal.Data:
		m.arrived[string(plain)]++
	}
}

// vanish loses one frame of a channel that lives.
func (m *linkModel) vanish(t *rapid.T) { m.pipe(m.pick(t)).next() }

// report has the receiver say what it has; the sender hears of it later.
func (m *linkModel) report(*rapid.T) {
	newest, missing := m.receiver.Received(3) // few gaps, so that the last one covers others
	m.reports = append(m.reports, report{newest, missing})
}

// hear lets any of the reports arrive, however old, once or again.
func (m *linkModel) hear(t *rapid.T) {
	if len(m.reports) == 0 || len(m.channels) == 0 {
		t.Skip("no report, or nothing to bring it")
	}
	r := m.reports[rapid.IntRange(0, len(m.reports)-1).Draw(t, "report")]
	m.link.received(m.channels[m.pick(t)], r.newest, r.missing)
}

func (m *linkModel) repair(t *rapid.T) {
	ch := m.channels[m.pick(t)]
	if late, any := m.link.overdue(m.now.Add(time.Hour), time.Minute); any {
		m.link.resend(ch, late)
	}
}

func (m *linkModel) choose(t *rapid.T) { m.link.choose(m.channels[m.pick(t)]) }

// check holds after every step.
func (m *linkModel) check(t *rapid.T) {
	l, bytes := m.link, 0
	for i, f := range l.kept {
		bytes += len(f.plain)
		if i > 0 && l.kept[i-1].sequence >= f.sequence {
			t.Fatalf("kept %d before %d", l.kept[i-1].sequence, f.sequence)
		}
	}
	if bytes != l.bytes || len(l.kept) > maxKept {
		t.Fatalf("%d frames of %d bytes are kept, counted are %d", len(l.kept), bytes, l.bytes)
	}
	if (l.active == nil) != (len(m.channels) == 0) || l.current.Load() != l.active || l.active != nil && !slices.Contains(m.channels, l.active) {
		t.Fatalf("the active channel is %p of %v", l.active, m.channels)
	}
	for text, n := range m.arrived {
		if n > 1 {
			t.Fatalf("%s arrived %d times", text, n)
		}
	}
}

// end loses whatever is under way, and then lets one channel work: all arrives.
func (m *linkModel) end(t *rapid.T) {
	for len(m.channels) > 0 {
		m.link.drop(m.channels[0], false)
		m.channels = m.channels[1:]
	}
	m.attach(t, false)
	for f := m.pipe(0).next(); f != nil; f = m.pipe(0).next() {
		m.take(t, f)
	}
	newest, missing := m.receiver.Received(maxGaps)
	m.link.received(m.channels[0], newest, missing)
	for _, text := range m.sent {
		if m.arrived[text] != 1 {
			t.Fatalf("%s arrived %d times", text, m.arrived[text])
		}
	}
	if n, _ := m.link.waiting(); n > 0 || m.link.bytes != 0 {
		t.Fatalf("%d frames of %d bytes are kept, all have arrived", n, m.link.bytes)
	}
}

// Whatever channels come, go and lose, in whatever order the receiver's reports
// arrive: no reliable frame is lost or arrives twice.
func TestLinkAgainstModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := newLinkModel(t)
		many := func(t *rapid.T) {
			for range rapid.IntRange(1, 200).Draw(t, "frames") {
				m.send(t)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"":          m.check,
			"send":      m.send,
			"send many": many,
			"ping":      m.ping,
			"attach":    func(t *rapid.T) { m.attach(t, false) },
			"take over": func(t *rapid.T) { m.attach(t, true) },
			"choose":    m.choose,
			"drop":      m.drop,
			"arrive":    m.arrive,
			"vanish":    m.vanish,
			"report":    m.report,
			"hear":      m.hear,
			"repair":    m.repair,
		})
		m.end(t)
	})
}

// ear gives a link a channel that only brings something.
func ear(l *link) *channel {
	ch := new(channel)
	l.channels = append(l.channels, ch)
	return ch
}

// What a peer says that it has is its word only: numbers and gaps that make no
// sense release nothing that they do not name, and break nothing.
func TestReceivedThatMakesNoSense(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		newest  uint64
		missing []seal.Range
		kept    int
	}{
		{newest: 0, kept: 10},
		{newest: 1 << 63, missing: []seal.Range{{First: 1, Last: 1<<63 - 1}}, kept: 10},
		{newest: 10, missing: []seal.Range{{First: 1, Last: 10}}, kept: 10},
		{newest: 5, missing: []seal.Range{{First: 4, Last: 4}, {First: 2, Last: 2}}, kept: 9}, // the first one is gone
		{newest: 1<<64 - 1, kept: 0},
	} {
		l := newLink(newTestKeys(t, true))
		for range 10 {
			l.send(l.opener(), seal.Data, pooled("x"), false)
		}
		l.received(ear(l), tc.newest, tc.missing)
		if n, _ := l.waiting(); n != tc.kept {
			t.Errorf("%+v: %d frames are kept, want %d", tc, n, tc.kept)
		}
	}
}

// The memory of a link is bounded by frames and by bytes. Who must not wait is
// refused then; others wait until the peer has some, or the link ends.
func TestFullLink(t *testing.T) {
	for _, tc := range []struct {
		name string
		size int
		fits int
	}{
		{"frames", 1, maxKept},
		{"bytes", 1 << 20, maxKeptBytes >> 20},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys := newTestKeys(t, true)
				l := newLink(keys)
				text := string(make([]byte, tc.size))
				for i := range tc.fits {
					if !l.post(keys, seal.Data, pooled(text), true) {
						t.Fatalf("frame %d is refused", i)
					}
				}
				if _, _, err := l.send(keys, seal.Data, pooled(text), false); err != errFull || l.post(keys, seal.Data, pooled(text), true) {
					t.Error("more is taken than fits")
				}
				if _, _, err := l.send(keys, seal.Ping, pooled("12345678"), false); err != nil {
					t.Error("what is not kept is refused")
				}
				taken := make(chan bool)
				for range 2 {
					go func() {
						_, _, err := l.send(keys, seal.Data, pooled(text), false)
						for err == errFull {
							<-l.vacancy()
							_, _, err = l.send(keys, seal.Data, pooled(text), false)
						}
						taken <- err == nil
					}()
				}
				synctest.Wait()
				select {
				case <-taken:
					t.Fatal("a sender does not wait")
				default:
				}
				l.received(ear(l), 1, nil)
				if !<-taken {
					t.Error("there is room, and the sender is refused")
				}
				l.close()
				if <-taken {
					t.Error("a closed link takes a frame")
				}
				if n, _ := l.waiting(); n != 0 || l.post(keys, seal.Data, pooled(text), false) {
					t.Errorf("a closed link keeps %d frames", n)
				}
			})
		})
	}
}

// Under new keys a link begins anew: sequence numbers count from 1, nothing of
// before is sent, and the old secret is gone.
func TestRenewedLink(t *testing.T) {
	t.Parallel()
	old := newTestKeys(t, true)
	l := newLink(old)
	l.send(old, seal.Data, pooled("before"), false)
	fresh, err := seal.New(seal.Config{Suite: signal.Suites()[1], Initiator: true}, &[32]byte{2}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	l.renew(fresh)
	ch := newChannel(&pipe{}, true, time.Now())
	l.attach(ch, true)
	l.resend(ch, nil)
	if _, _, err := l.send(old, seal.Data, pooled("late"), false); err != errEnded || l.post(old, seal.Data, pooled("late"), false) {
		t.Errorf("a frame of before the renewal is taken: %v", err)
	}
	late := newChannel(&pipe{}, false, time.Now())
	late.keys = old
	if ok, _ := l.attach(late, false); ok {
		t.Error("a channel of before the renewal is taken")
	}
	l.send(fresh, seal.Data, pooled("after"), false)
	peer, err := seal.New(seal.Config{Suite: signal.Suites()[1]}, &[32]byte{2}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	h, plain, err := peer.Open(ch.conduit.(*pipe).next())
	if err != nil || string(plain) != "after" || h.Sequence != 1 {
		t.Errorf("first frame %+v %q, %v", h, plain, err)
	}
	if _, err := old.Propose(); err == nil {
		t.Error("the old keys go on")
	}
}

// A rekey that arrives while the session loses its keys, or after, changes nothing.
func TestRekeyWithoutKeys(t *testing.T) {
	t.Parallel()
	a, b := newSides(t, 1)
	m, err := a.link.opener().Propose()
	if err != nil {
		t.Fatal(err)
	}
	plain, err := marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	gone := b.link.opener()
	b.link.renew(nil)
	if err := b.rekey(gone, plain, time.Now()); err != nil {
		t.Errorf("without keys: %v", err)
	}
	b.link.renew(gone)
	if err := b.rekey(gone, plain, time.Now()); err != nil || gone.Epoch() != 0 {
		t.Errorf("with keys that are erased: %v, epoch %d", err, gone.Epoch())
	}
}

// What the peer said under keys that are gone has no effect on the session's present
// life: its requests, streams and violations were of the former one.
func TestFramesOfBeforeARenewal(t *testing.T) {
	t.Parallel()
	_, b := newSides(t, 1)
	b.in.keys = b.link.opener()
	fresh := newTestKeys(t, false)
	b.link.renew(fresh)
	b.interrupt(fresh, wire.SessionClosed)
	request, err := marshal(&sessionpb.Request{Id: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.dispatch(&b.in, seal.Header{Type: seal.Request}, request, time.Now()); b.in.next.in != nil || b.inbox.len() > 0 {
		t.Errorf("a request is taken: %v", err)
	}
	if err := b.dispatch(&b.in, seal.Header{Type: seal.StreamData}, []byte{7, 0, 1}, time.Now()); err != nil {
		t.Errorf("data of a stream: %v", err)
	}
	b.ended(&b.in, broken{code: wire.PolicyViolation})
	b.ended(&b.in, broken{byPeer: true})
	if state := b.stateNow(); state.Done() || b.link.opener() != fresh {
		t.Errorf("the session is %s", state)
	}
}
