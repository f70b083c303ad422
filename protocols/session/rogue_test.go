package session_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/session"
	"openmesh/protocols/session/seal"
	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// anonymous is a conduit that does not prove who is at its other end, such as one
// through relays.
type anonymous struct{ *wireEnd }

func (anonymous) Peer() peer.ID { return "" }

// openNetwork is a network whose conduits are anonymous: whoever is on the path
// may write, read, hold back and cut what he likes.
type openNetwork struct{ wireNetwork }

func (n openNetwork) Dial(_ context.Context, r session.Route) (session.Conduit, error) {
	to, err := n.find(r.Peer)
	if err != nil {
		return nil, err
	}
	time.Sleep(2 * n.net.oneWay())
	if now, err := n.find(r.Peer); err != nil || now != to {
		return nil, fmt.Errorf("%s has gone", r.Peer)
	}
	a, b := n.net.pair("tcp", n.own.agent.Certificate.Peer, r.Peer)
	go to.Accept(anonymous{b})
	return anonymous{a}, nil
}

// exposed puts a node on such a network.
func exposed(c *session.Config) { c.Network = openNetwork{c.Network.(wireNetwork)} }

// alive lists the ends of conduits that are not broken.
func (w *wires) alive() []*wireEnd {
	w.mu.Lock()
	defer w.mu.Unlock()
	var ends []*wireEnd
	for e := range w.ends {
		ends = append(ends, e)
	}
	slices.SortFunc(ends, func(a, b *wireEnd) int {
		return bytes.Compare([]byte(a.owner+a.remote), []byte(b.owner+b.remote))
	})
	return ends
}

// record begins or ends the recording of all that passes.
func (w *wires) record(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tapes = on
}

// recorded is what was recorded so far.
func (w *wires) recorded() [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.tape)
}

// inject lets f arrive at every end of every conduit.
func (w *wires) inject(f []byte) {
	for _, e := range w.alive() {
		e.take(wire.AppendFrame(nil, f))
	}
}

// verdict is all that an attacker learns from a conduit.
type verdict struct {
	got   string
	reset wire.Code
	took  time.Duration
}

// strike opens a conduit to a node, as host from if that is not empty, sends raw
// bytes, ends it in order if asked to, and waits for the verdict; an hour means
// that the conduit lives.
func (w *wires) strike(to *wired, from peer.ID, raw []byte, eof bool) verdict {
	a, b := w.pair("ws", from, to.agent.Certificate.Peer)
	begin := time.Now()
	if from == "" {
		go to.Accept(anonymous{b})
	} else {
		go to.Accept(b)
	}
	b.take(raw)
	if eof {
		a.Close()
	}
	end := time.AfterFunc(time.Hour, func() { a.Reset(wire.Cancelled) })
	defer end.Stop()
	got, err := io.ReadAll(a)
	v := verdict{got: string(got), took: time.Since(begin)}
	if c, ok := err.(wire.Code); ok {
		v.reset = c
	}
	return v
}

// attachment is what begins a channel of a session that is there, and the frames
// that follow.
func attachment(id signal.ID, frames ...[]byte) []byte {
	b, _ := proto.Marshal(&sessionpb.Attach{Session: id[:]})
	out := wire.AppendFrame(nil, b)
	for _, f := range frames {
		out = wire.AppendFrame(out, f)
	}
	return out
}

// relabel changes the header of a frame as one who has no key can.
func relabel(f []byte, id signal.ID, epoch uint32, sequence uint64) []byte {
	if len(f) < seal.Overhead {
		return f
	}
	f = bytes.Clone(f)
	copy(f[2:], id[:])
	binary.BigEndian.PutUint32(f[18:], epoch)
	binary.BigEndian.PutUint64(f[22:], sequence)
	return f
}

// rogue is a peer that proves who it is and then does what it likes: it seals
// whatever it wants with the session's keys, and acknowledges nothing.
type rogue struct {
	agent  *protocoltest.Agent
	victim *wired
	est    *signal.Established
	keys   *seal.Keys
	end    *wireEnd // of the newest channel

	mu       sync.Mutex
	sequence uint64
	got      map[seal.Type]int // frames that came
	closed   wire.Code         // by the victim's close frame
}

// rogue sets a session with victim up.
func (w *wires) rogue(t *testing.T, victim *wired, change func(*signal.Contract)) *rogue {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r := &rogue{
		agent:  protocoltest.NewAgentFor(t, identity.FirstPrivateRealm, time.Now(), 50*24*time.Hour, key),
		victim: victim, got: map[seal.Type]int{},
	}
	cfg := signal.Config{
		Local:    func() signal.Local { return signal.Local{Certificate: r.agent.Certificate, Key: r.agent.Host} },
		Verifier: identity.NewVerifier(identity.FirstPrivateRealm, time.Now),
	}
	terms := signal.Terms{Suites: signal.Suites(), Contract: signal.DefaultContract()}
	if change != nil {
		change(&terms.Contract)
	}
	est, confirm, err := signal.Open(t.Context(), func(_ context.Context, offer []byte) ([]byte, error) {
		return victim.Exchange(string(r.agent.Agent), offer)
	}, victim.agent.Agent, terms, cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.est = est
	r.keys, err = seal.New(seal.Config{Session: est.ID, Suite: est.Suite, Initiator: true}, &est.Secret, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r.dial(confirm)
	time.Sleep(time.Second)
	return r
}

// dial opens a channel, and reads what comes over it until it ends.
func (r *rogue) dial(confirm []byte) *wireEnd {
	a, b := r.victim.net.pair("tcp", r.agent.Certificate.Peer, r.victim.agent.Certificate.Peer)
	go r.victim.Accept(b)
	go r.listen(a)
	r.end = a
	attach, _ := proto.Marshal(&sessionpb.Attach{Session: r.est.ID[:], Confirm: confirm})
	a.Write(wire.AppendFrame(nil, attach))
	if confirm == nil {
		r.message(seal.Rebind, &sessionpb.Rebind{Received: &sessionpb.Received{}})
	}
	return a
}

func (r *rogue) listen(end *wireEnd) {
	in := bufio.NewReader(end)
	for {
		f, err := wire.ReadFrame(in, 1<<23)
		if errors.Is(err, io.EOF) { // of this network it may overtake the last frames
			time.Sleep(time.Millisecond)
			f, err = wire.ReadFrame(in, 1<<23)
		}
		if err != nil {
			return
		}
		h, plain, err := r.keys.Open(f)
		if err != nil {
			continue
		}
		r.mu.Lock()
		r.got[h.Type]++
		if m := new(sessionpb.Close); h.Type == seal.Close && proto.Unmarshal(plain, m) == nil {
			r.closed = wire.Code(m.Code)
		}
		r.mu.Unlock()
	}
}

// heard returns how many frames of type t came, and the victim's last word.
func (r *rogue) heard(t seal.Type) (int, wire.Code) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got[t], r.closed
}

// kept returns how many frames came that their sender has to keep.
func (r *rogue) kept() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for t, got := range r.got {
		if t.Reliable() {
			n += got
		}
	}
	return n
}

// send seals plain and sends it over the newest channel.
func (r *rogue) send(t seal.Type, plain []byte) { r.sendOver(r.end, t, plain) }

func (r *rogue) sendOver(end *wireEnd, t seal.Type, plain []byte) {
	r.mu.Lock()
	r.sequence++
	f := r.keys.Seal(nil, t, r.sequence, plain)
	r.mu.Unlock()
	end.Write(wire.AppendFrame(nil, f))
}

func (r *rogue) message(t seal.Type, m proto.Message) {
	b, _ := proto.Marshal(m)
	r.send(t, b)
}

// state is how the victim sees the session.
func (r *rogue) state(t *testing.T) session.Info {
	t.Helper()
	_, i, err := r.victim.Find(r.est.ID.String())
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// hostOf is the host of a node; none for nil.
func hostOf(n *wired) peer.ID {
	if n == nil {
		return ""
	}
	return n.agent.Certificate.Peer
}
