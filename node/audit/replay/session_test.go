package replay_test

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"openmesh/node/audit"
	"openmesh/node/audit/replay"
	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/session"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// side is one end of a session, with what it recorded.
type side struct {
	agent   *protocoltest.Agent
	entries []audit.Entry
}

func newSide(t *testing.T) *side {
	return &side{agent: protocoltest.NewAgent(t, identity.MaxRealm, time.Now())}
}

func (s *side) record(e audit.Entry) {
	e.Index, e.Size = uint64(len(s.entries)), len(e.Payload)
	if e.At.IsZero() {
		e.At = time.Now()
	}
	s.entries = append(s.entries, e)
}

func (s *side) config() signal.Config {
	return signal.Config{
		Local:    func() signal.Local { return signal.Local{Certificate: s.agent.Certificate, Key: s.agent.Host} },
		Verifier: identity.NewVerifier(identity.MaxRealm, time.Now),
		Terms:    func() signal.Terms { return terms() },
		Timeout:  time.Minute,
		Admit: func(_ context.Context, _ *identity.Certificate, offered signal.Contract) error {
			if offered.Market != market {
				return wire.Denied
			}
			return nil
		},
		Record: func(m signal.Message) { s.record(replay.SignalEntry(m)) },
		Log:    zap.NewNop(),
	}
}

const market = "0123456789abcdef0123456789abcdef"

func terms() signal.Terms {
	return signal.Terms{Suites: signal.Suites(), Contract: signal.DefaultContract()}
}

func (s *side) move(id signal.ID, peer *side, states ...session.State) {
	at := time.Now()
	for i := 1; i < len(states); i++ {
		at = at.Add(time.Millisecond)
		s.record(replay.StateEntry(session.Event{Session: id, Agent: peer.agent.Agent, From: states[i-1], To: states[i], At: at}))
	}
}

// opened is a session as both sides recorded it.
func opened(t *testing.T, contract string) (initiator, responder *side, id string) {
	t.Helper()
	a, b := newSide(t), newSide(t)
	server := signal.NewServer(b.config())
	exchange := func(_ context.Context, offer []byte) ([]byte, error) { return server.Exchange("a", offer) }
	want := terms()
	want.Contract.Market = contract
	est, confirm, err := signal.Open(t.Context(), exchange, b.agent.Agent, want, a.config())
	if err != nil {
		return a, b, ""
	}
	if _, err := server.Confirm("", est.ID, confirm); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[*side]*side{a: b, b: a} {
		from.move(est.ID, to, session.Offered, session.Establishing, session.Active, session.Migrating, session.Active, session.Draining, session.Closed)
	}
	return a, b, est.ID.String()
}

func TestSession(t *testing.T) {
	t.Parallel()
	a, b, id := opened(t, market)
	for _, s := range []*side{a, b} {
		r := replay.Run(s.agent.Agent, id, s.entries)
		if !r.OK || len(r.Steps) != 3+6 || r.Outcome != "closed" || r.Divergence != "" {
			t.Errorf("Run() = %+v", r)
		}
		if r := replay.Run(s.agent.Agent, market, s.entries); !r.OK || len(r.Steps) != 9 {
			t.Errorf("by the contract that it was under: %+v", r)
		}
	}
	if r := replay.Run(a.agent.Agent, "no such", a.entries); r.OK || !strings.Contains(r.Divergence, "nothing") {
		t.Errorf("Run() of nothing = %+v", r)
	}
}

// A refusal is recorded by both sides, without a session.
func TestRefused(t *testing.T) {
	t.Parallel()
	a, b, _ := opened(t, strings.Repeat("f", 32))
	for _, s := range []*side{a, b} {
		if len(s.entries) != 1 || s.entries[0].Session != "" || !strings.Contains(s.entries[0].Note, "refused: denied") || len(s.entries[0].Payload) == 0 {
			t.Errorf("recorded: %+v", s.entries)
		}
	}
}

// What somebody who can write the whole log, its tree included, may do to it.
func TestSessionAltered(t *testing.T) {
	t.Parallel()
	a, b, id := opened(t, "")
	_, other, otherID := opened(t, "")
	offer, answer, confirm := 0, 1, 2
	for name, test := range map[string]struct {
		alter func(e []audit.Entry) []audit.Entry
		step  string
	}{
		"an offer of another":    {func(e []audit.Entry) []audit.Entry { e[offer].Payload = other.entries[0].Payload; return e }, "step 2, "},
		"an offer changed":       {func(e []audit.Entry) []audit.Entry { flip(&e[offer]); return e }, "step 1, "},
		"an answer changed":      {func(e []audit.Entry) []audit.Entry { flip(&e[answer]); return e }, "step 2, "},
		"a confirm changed":      {func(e []audit.Entry) []audit.Entry { flip(&e[confirm]); return e }, "step 3, "},
		"another peer":           {func(e []audit.Entry) []audit.Entry { e[offer].Agent = other.agent.Agent; return e }, "step 1, "},
		"under a contract":       {func(e []audit.Entry) []audit.Entry { e[offer].Ref = market; return e }, "step 2, "},
		"no offer":               {func(e []audit.Entry) []audit.Entry { return e[1:] }, "step 1, "},
		"no answer":              {func(e []audit.Entry) []audit.Entry { return slices.Delete(e, 1, 2) }, "step 1, "},
		"an outcome changed":     {func(e []audit.Entry) []audit.Entry { e[offer].Note = "refused"; return e }, "step 1, "},
		"a state left out":       {func(e []audit.Entry) []audit.Entry { return slices.Delete(e, 4, 5) }, "step 5, "},
		"a state that is not":    {func(e []audit.Entry) []audit.Entry { e[4].Note = "establishing -> closed"; return e }, "step 5, "},
		"a state of no sense":    {func(e []audit.Entry) []audit.Entry { e[4].Note = "hello"; return e }, "step 5, "},
		"an original is missing": {func(e []audit.Entry) []audit.Entry { e[answer].Payload = nil; return e }, "step 1, "},
	} {
		for _, s := range []*side{a, b} {
			entries := test.alter(clone(s.entries))
			r := replay.Run(s.agent.Agent, id, entries)
			if r.OK || !strings.HasPrefix(r.Divergence, test.step) {
				t.Errorf("%s: %q, want %s", name, r.Divergence, test.step)
			}
		}
	}
	if r := replay.Run(a.agent.Agent, otherID, rename(clone(a.entries), id, otherID)); r.OK || !strings.HasPrefix(r.Divergence, "step 2, ") {
		t.Errorf("another session: %+v", r.Divergence)
	}
	if r := replay.Run(other.agent.Agent, id, clone(a.entries)); r.OK {
		t.Error("another's log")
	}
}

// A session that is taken up after a restart begins its states again.
func TestRestart(t *testing.T) {
	t.Parallel()
	a, b := newSide(t), newSide(t)
	id := signal.ID{1}
	a.move(id, b, session.Offered, session.Establishing, session.Active)
	a.record(replay.StateEntry(session.Event{Session: id, From: session.Offered, To: session.Establishing, At: time.Now().Add(time.Second)}))
	a.record(replay.StateEntry(session.Event{Session: id, From: session.Establishing, To: session.Terminated, Reason: wire.KeyExpired, At: time.Now().Add(time.Minute)}))
	if r := replay.Run(a.agent.Agent, id.String(), a.entries); !r.OK || r.Outcome != "terminated" {
		t.Errorf("Run() = %+v", r)
	}
}

func clone(entries []audit.Entry) []audit.Entry {
	all := slices.Clone(entries)
	for i := range all {
		all[i].Payload = bytes.Clone(all[i].Payload)
	}
	return all
}

// flip changes a bit of the signature, which comes last, or what stands there.
func flip(e *audit.Entry) { e.Payload[len(e.Payload)-3] ^= 4 }

func rename(entries []audit.Entry, from, to string) []audit.Entry {
	for i := range entries {
		if entries[i].Session == from {
			entries[i].Session = to
		}
	}
	return entries
}
