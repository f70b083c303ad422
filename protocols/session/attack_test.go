package session_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"io"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
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

// rogue is a peer that proves who it is and then does what it likes: it seals
// whatever it wants with the session's keys.
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
	over     bool
}

// rogue sets a session with victim up.
func (w *wires) rogue(t *testing.T, victim *wired, contract signal.Contract) *rogue {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	must(t, err)
	r := &rogue{
		agent:  protocoltest.NewAgentFor(t, identity.FirstPrivateRealm, time.Now(), 50*24*time.Hour, key),
		victim: victim, got: map[seal.Type]int{},
	}
	cfg := signal.Config{
		Local:    func() signal.Local { return signal.Local{Certificate: r.agent.Certificate, Key: r.agent.Host} },
		Verifier: identity.NewVerifier(identity.FirstPrivateRealm, time.Now),
	}
	terms := signal.Terms{Suites: signal.Suites(), Contract: contract}
	est, confirm, err := signal.Open(t.Context(), func(_ context.Context, offer []byte) ([]byte, error) {
		return victim.Exchange(string(r.agent.Agent), offer)
	}, victim.agent.Agent, terms, cfg)
	must(t, err)
	r.est = est
	r.keys, err = seal.New(seal.Config{Session: est.ID, Suite: est.Suite, Initiator: true, Interval: time.Hour}, &est.Secret, time.Now())
	must(t, err)
	r.dial(confirm)
	return r
}

// dial opens a channel, and reads what comes over it until it ends.
func (r *rogue) dial(confirm []byte) *wireEnd {
	w := r.victim.net
	a, b := w.pair("tcp", r.agent.Certificate.Peer, r.victim.agent.Certificate.Peer)
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
			r.closed, r.over = wire.Code(m.Code), true
		}
		r.mu.Unlock()
	}
}

func (r *rogue) heard(t seal.Type) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got[t]
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

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var _ = io.EOF
var _ = runtime.GC
var _ = synctest.Wait
var _ peer.ID
var _ session.State
