package market

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"openmesh/node/audit"
	"openmesh/node/store"
	"openmesh/protocols/identity"
	deal "openmesh/protocols/market"
	"openmesh/protocols/market/document"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/wire"
)

// world is agents that reach each other without a network, but with its faults. Each
// has a database of its own, and can be stopped and started again.
type world struct {
	t     *testing.T
	fault func(from, to identity.AgentID, n int) fault // nil: none
	lapse func(to identity.AgentID, key string) bool   // whether a message has expired, whatever becomes of it; may be nil

	mu      sync.Mutex
	sides   map[identity.AgentID]*side
	posts   int
	expired map[string]bool // keys of messages
}

type fault uint8

const (
	none     fault = iota
	lost           // the move does not arrive
	unheard        // its receipt does not
	repeated       // it arrives twice
	denied         // the other side will not have it
	silent         // no answer comes in time, though the message may arrive yet
	expired        // its message expires, and that is the outcome of its key for ever
	bare           // its receipt comes without the moves in it
)

// details checks the details of a document.
type details = func(ctx context.Context, from identity.AgentID, name, cid string, details []byte) error

// side is one agent.
type side struct {
	*protocoltest.Agent
	w      *world
	name   string
	file   string
	decide Decider
	detail details
	rounds int           // that it considers; 0: the default
	speaks string        // version of proposals; "": the newest
	most   int           // requests of others that it keeps; 0: the default
	shouts time.Duration // how long a broadcast takes
	looks  time.Duration // and a search for providers

	db     *store.Store
	log    *audit.Log
	known  *identity.Verifier
	engine *Engine // nil: it is off
	cancel context.CancelFunc
	done   chan error
}

// within runs f in virtual time, in a world that ends with it.
func within(t *testing.T, f func(*testing.T, *world)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, sides: make(map[identity.AgentID]*side), expired: make(map[string]bool)}
		f(t, w)
		for _, s := range w.sides {
			s.stop()
		}
	})
}

// fails has the network do what f says from now on.
func (w *world) fails(f func(from, to identity.AgentID, n int) fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = f
}

func (w *world) agent(name string) *side {
	host, _, err := crypto.GenerateEd25519Key(rand.Reader)
	check(w.t, err)
	s := &side{Agent: protocoltest.NewAgentFor(w.t, 64512, time.Now(), 28*24*time.Hour, host), w: w, name: name, file: filepath.Join(w.t.TempDir(), name+".db")}
	s.start()
	return s
}

func (s *side) start() {
	t := s.w.t
	t.Helper()
	db, err := store.Open(t.Context(), store.Config{Path: s.file, Owner: string(s.Agent.Agent)})
	check(t, err)
	signer := func() (crypto.PrivKey, *identity.Certificate) { return s.Host, s.Certificate }
	log, err := audit.Open(t.Context(), audit.Config{DB: db, Agent: s.Agent.Agent, Signer: signer})
	check(t, err)
	verifier := identity.NewVerifier(64512, time.Now)
	from := func(session string, raw []byte) (*identity.Certificate, error) {
		return verifier.VerifyFormer(raw, s.w.present(session))
	}
	e := New(Config{
		Agent: s.Agent.Agent, Signer: signer, Verify: verifier.Verify, VerifyFrom: from, DB: db, Log: log, Peers: s,
		Offers: func(identity.AgentID, string, string) bool { return true }, Decide: s.decide, Details: s.detail, MaxOpen: s.most, MaxRounds: s.rounds, Logger: zap.NewNop(),
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	<-e.Loaded()
	s.w.mu.Lock()
	s.db, s.log, s.known, s.cancel, s.done, s.engine = db, log, verifier, cancel, done, e
	s.w.sides[s.Agent.Agent] = s
	s.w.mu.Unlock()
}

func (s *side) stop() {
	s.w.mu.Lock()
	e := s.engine
	s.engine = nil
	s.w.mu.Unlock()
	if e == nil {
		return
	}
	s.cancel()
	check(s.w.t, <-s.done)
	check(s.w.t, s.db.Close())
}

func (s *side) restart() { s.stop(); s.start() }

// rotate has an agent sign with another key from its next start on.
func (s *side) rotate() {
	t := s.w.t
	t.Helper()
	host, _, err := crypto.GenerateEd25519Key(rand.Reader)
	check(t, err)
	next := *s.Certificate
	next.Version++
	next.Peer, err = peer.IDFromPrivateKey(host)
	check(t, err)
	cert, err := identity.IssueCertificate(s.Root, next)
	check(t, err)
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.Host, s.Certificate = host, cert
}

// present is the certificate that an agent has opened a session with: sessions have the
// id of the agent at the other end.
func (w *world) present(session string) *identity.Certificate {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sides[identity.AgentID(session)].Certificate
}

// meets has two agents see each other's certificates, with which a session begins.
func (s *side) meets(peer *side) bool {
	_, theirs := s.known.Verify(peer.Certificate.Raw)
	_, own := peer.known.Verify(s.Certificate.Raw)
	return theirs == nil && own == nil
}

// Post implements [Peers].
func (s *side) Post(ctx context.Context, to identity.AgentID, key string, move []byte) (Reply, error) {
	w := s.w
	w.mu.Lock()
	if w.lapse != nil && w.lapse(to, key) {
		w.mu.Unlock()
		return Reply{}, wire.Errorf(wire.DeadlineExceeded, "the message to %s has expired", to)
	}
	w.posts++
	f := none
	if w.fault != nil {
		f = w.fault(s.Agent.Agent, to, w.posts)
	}
	if f == expired {
		w.expired[key] = true
	}
	gone := w.expired[key]
	var e *Engine
	if peer := w.sides[to]; peer != nil && peer.engine != nil && s.meets(peer) {
		e = peer.engine
	}
	w.mu.Unlock()
	if e == nil || f == lost {
		return Reply{}, wire.Errorf(wire.Unreachable, "%s is away", to)
	}
	if gone {
		return Reply{}, wire.Errorf(wire.DeadlineExceeded, "the message to %s expired before it was delivered", to)
	}
	if f == silent {
		<-ctx.Done()
		return Reply{}, wire.Errorf(wire.DeadlineExceeded, "no answer from %s within the deadline", to)
	}
	if f == denied {
		return Reply{}, wire.Errorf(wire.Denied, "%s denies", to)
	}
	receipt, err := e.Receive(ctx, s.Agent.Agent, string(s.Agent.Agent), slices.Clone(move))
	if f == repeated {
		receipt, err = e.Receive(ctx, s.Agent.Agent, string(s.Agent.Agent), slices.Clone(move))
	}
	if err == nil && f == unheard {
		err = wire.Errorf(wire.Unreachable, "the answer of %s was lost", to)
	}
	if err != nil {
		return Reply{}, err
	}
	if f == bare {
		receipt.Moves = nil
	}
	return Reply{Body: receipt.Encode(), Session: string(to)}, nil
}

// Providers implements [Peers]: all others that are on.
func (s *side) Providers(ctx context.Context, _ *deal.RFP, _ int) ([]identity.AgentID, error) {
	s.w.mu.Lock()
	looks := s.looks
	s.w.mu.Unlock()
	select {
	case <-time.After(looks):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	var all []identity.AgentID
	for id, other := range s.w.sides {
		if other != s && other.engine != nil {
			all = append(all, id)
		}
	}
	return all, nil
}

// Broadcast implements [Peers].
func (s *side) Broadcast(ctx context.Context, _ *deal.RFP, _ []byte) {
	select {
	case <-time.After(s.shouts):
	case <-ctx.Done():
	}
}

// Speaks implements [Peers].
func (s *side) Speaks(identity.AgentID) string { return cmp.Or(s.speaks, document.SchemaProposal) }

// post posts a request for so many units, open for an hour.
func (s *side) post(quantity int) string {
	s.w.t.Helper()
	state, err := s.engine.PostRFP(s.w.t.Context(), rfp(quantity, time.Hour))
	check(s.w.t, err)
	return state.Move.Hash.ID()
}

func rfp(quantity int, open time.Duration) []byte {
	return text(map[string]any{
		"item": "quotes", "quantity": quantity, "price": map[string]any{"max": "10", "currency": "EUR"}, "capability": "fx/quote",
		"deadline": time.Now().Add(open).UTC().Format(time.RFC3339),
	})
}

func price(amount string) []byte {
	return text(map[string]any{"terms": map[string]any{"price": map[string]any{"amount": amount}}})
}

func text(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// proposes has a seller answer a request, and returns the negotiation's id.
func (s *side) proposes(rfp, amount string) string {
	s.w.t.Helper()
	d, err := s.engine.Propose(s.w.t.Context(), rfp, price(amount))
	check(s.w.t, err)
	return d.Negotiation.ID()
}

// sign signs a move of this agent that its engine does not know.
func (s *side) sign(m deal.Move) *deal.Signed {
	s.w.t.Helper()
	m.Author, m.At = s.Agent.Agent, m.At.UTC().Truncate(time.Millisecond)
	signed, err := deal.Sign(m, s.Host, s.Certificate)
	check(s.w.t, err)
	return signed
}

func (s *side) negotiation(id string) deal.Negotiation {
	s.w.t.Helper()
	n, err := s.engine.Negotiation(s.w.t.Context(), id)
	check(s.w.t, err)
	return n.Negotiation
}

// deadline is that of a request which s has.
func (s *side) deadline(rfp string) time.Time {
	s.w.t.Helper()
	r, err := s.engine.Request(s.w.t.Context(), rfp)
	check(s.w.t, err)
	return r.Move.Request().Deadline
}

// state is that of a negotiation at one side; "" if it does not know it.
func (s *side) state(id string) string {
	s.w.t.Helper()
	n, err := s.engine.Negotiation(s.w.t.Context(), id)
	if wire.CodeOf(err) == wire.NotFound {
		return ""
	}
	check(s.w.t, err)
	return n.Negotiation.State(time.Now()).String()
}

// reach waits until a negotiation is in a state at both sides.
func reach(t *testing.T, id, state string, sides ...*side) {
	t.Helper()
	until(t, fmt.Sprintf("negotiation %s: %s", id[:8], state), func() (string, bool) {
		var seen []string
		for _, s := range sides {
			seen = append(seen, s.name+": "+s.state(id))
		}
		return fmt.Sprint(seen), !slices.ContainsFunc(sides, func(s *side) bool { return s.state(id) != state })
	})
}

// has waits until a seller has a request.
func (s *side) has(rfp string) {
	s.w.t.Helper()
	until(s.w.t, "the request is at "+s.name, func() (string, bool) {
		_, err := s.engine.Request(s.w.t.Context(), rfp)
		return fmt.Sprint(err), err == nil
	})
}

// until waits, in virtual time, for what is to come.
func until(t *testing.T, what string, there func() (seen string, ok bool)) {
	t.Helper()
	var seen string
	for end := time.Now().Add(time.Hour); time.Now().Before(end); {
		var ok bool
		if seen, ok = there(); ok {
			return
		}
		<-time.After(100 * time.Millisecond)
	}
	t.Fatalf("not seen: %s; but %s", what, seen)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused checks that something was refused with a code.
func refused(t *testing.T, err error, code wire.Code) {
	t.Helper()
	if wire.CodeOf(err) != code || err == nil {
		t.Errorf("%v, want %s", err, code)
	}
}
