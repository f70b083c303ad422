package session_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"openmesh/protocols/identity"
	"openmesh/protocols/session"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// Ids of market contracts.
var (
	contractA = strings.Repeat("a1", 16)
	contractB = strings.Repeat("b2", 16)
)

// registry admits sessions under the contracts that it has.
type registry struct {
	mu    sync.Mutex
	known map[string]error // what admission says
	asked []string
}

func (r *registry) admit(_ context.Context, _ *identity.Certificate, offered signal.Contract) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, offered.Market)
	err, ok := r.known[offered.Market]
	if !ok {
		return wire.NotFound
	}
	return err
}

func (r *registry) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.asked)
}

// selling is a node that keeps sessions and admits those under contracts of r.
func selling(r *registry) func(*session.Config) {
	return func(c *session.Config) { keep(c); c.Signal.Admit = r.admit }
}

func citing(id string, q signal.QoS) session.Want {
	return session.Want{Contract: signal.Contract{QoS: q, Market: id}}
}

// A session that cites a market contract is asked for before it begins, is under it
// on both sides, and is shared by those only who cite the same.
func TestSessionUnderMarketContract(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, deals := newWires(5*time.Millisecond), &registry{known: map[string]error{contractA: nil, contractB: nil}}
		var served sync.Map
		a := net.node(t, keep)
		b := net.node(t, func(c *session.Config) {
			selling(deals)(c)
			c.Handler = func(_ context.Context, in *session.Inbound) (*session.Response, error) {
				served.Store(string(in.Body), [3]any{in.Session.Contract().Market, in.Session.Opener(), in.Message})
				return &session.Response{Encoding: in.Encoding, Body: in.Body}, nil
			}
		})
		plain := a.open(t, b, session.Want{})
		if deals.count() != 0 {
			t.Error("admission was asked for a session that cites nothing")
		}
		underA, underB := a.open(t, b, citing(contractA, signal.AtMostOnce)), a.open(t, b, citing(contractB, signal.AtMostOnce))
		again := a.open(t, b, citing(contractA, signal.AtMostOnce))
		if underA != again || underA == plain || underA == underB || underB == plain || deals.count() != 2 {
			t.Errorf("sessions %v, %v, %v, %v; asked %v", plain.ID(), underA.ID(), again.ID(), underB.ID(), deals.asked)
		}
		if a.Session(b.agent.Agent) != plain {
			t.Error("who cites nothing gets a session that cites something")
		}
		durable := a.open(t, b, citing(contractA, signal.AtLeastOnce))
		for body, s := range map[string]*session.Session{`"plain"`: plain, `"a"`: underA, `"b"`: underB} {
			if _, _, err := s.Call(t.Context(), request(body)); err != nil {
				t.Error(err)
			}
		}
		seq, err := durable.Post(t.Context(), &delivery.Message{Capability: "test/echo", Encoding: 1, Body: []byte(`"durable"`)})
		if err != nil {
			t.Fatal(err)
		}
		if o, err := durable.Outcome(t.Context(), seq); err != nil || o.Status != delivery.Delivered {
			t.Errorf("%v, %v", o, err)
		}
		for body, want := range map[string][3]any{
			`"plain"`: {"", false, false}, `"a"`: {contractA, false, false}, `"b"`: {contractB, false, false}, `"durable"`: {contractA, false, true},
		} {
			if got, _ := served.Load(body); got != want {
				t.Errorf("%s was served as %v, want %v", body, got, want)
			}
		}
		if !durable.Opener() || durable.Info().Contract.Market != contractA {
			t.Errorf("the buyer has %+v", durable.Info().Contract)
		}
	})
}

// The codes of admission reach who offers, and nothing is left behind; a node that
// keeps no contracts takes no session under one.
func TestMarketContractRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newWires(5 * time.Millisecond)
		deals := &registry{known: map[string]error{contractA: wire.Errorf(wire.Denied, "used up"), contractB: errors.New("disk full")}}
		a, b, without := net.node(t, keep), net.node(t, selling(deals)), net.node(t, keep)
		for _, tc := range []struct {
			to   *wired
			id   string
			want wire.Code
		}{
			{b, contractA, wire.Denied}, {b, contractB, wire.Internal}, {b, strings.Repeat("c3", 16), wire.NotFound},
			{without, contractA, wire.Unsupported}, {b, "c3", wire.InvalidArgument}, {b, strings.ToUpper(contractA), wire.InvalidArgument},
		} {
			for _, q := range []signal.QoS{signal.AtMostOnce, signal.ExactlyOnce} {
				if _, err := a.Open(t.Context(), tc.to.target(), citing(tc.id, q)); wire.CodeOf(err) != tc.want || err == nil {
					t.Errorf("%s: %v, want %s", tc.id, err, tc.want)
				}
			}
		}
		for _, n := range []*wired{a, b, without} {
			if s := n.Sessions(true); len(s) != 0 {
				t.Errorf("%d sessions", len(s))
			}
		}
	})
}

// A persistent session is under its contract after a restart of either side too.
// Going on with it is no new session: it is not asked for again.
func TestMarketContractSurvivesRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, deals := newWires(5*time.Millisecond), &registry{known: map[string]error{contractA: nil}}
		a, b := net.node(t, keep), net.node(t, selling(deals))
		s := a.open(t, b, citing(contractA, signal.AtLeastOnce))
		deals.mu.Lock()
		deals.known[contractA] = wire.Denied // it runs out
		deals.mu.Unlock()
		for _, crashing := range []*wired{a, b} {
			crashing.crash(t)
			synctest.Wait()
			deliverOne(t, a, s.ID())
			for _, n := range []*wired{a, b} {
				if s, info, err := n.Find(s.ID().String()); err != nil || info.Contract.Market != contractA || s.Opener() != (n == a) {
					t.Errorf("%+v, %v", info.Contract, err)
				}
			}
		}
		if deals.count() != 1 {
			t.Errorf("asked %d times", deals.count())
		}
		if at := a.open(t, b, citing(contractA, signal.AtLeastOnce)); at.ID() != s.ID() {
			t.Error("the session that was restored is not used")
		}
	})
}

// Who has a session cannot bring it under a contract, or another one, or out of
// it, by going on with it.
func TestResumeUnderAnotherContract(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, deals := newWires(5*time.Millisecond), &registry{known: map[string]error{contractA: nil, contractB: nil}}
		a, b := net.node(t, keep), net.node(t, selling(deals))
		for _, from := range []string{"", contractA} {
			s := a.open(t, b, citing(from, signal.AtLeastOnce))
			offer := func(_ context.Context, offer []byte) ([]byte, error) { return b.Exchange("buyer", offer) }
			for _, to := range []string{"", contractA, contractB} {
				if to == from {
					continue
				}
				terms := a.cfg.Signal.Terms()
				terms.Contract, terms.Resume = s.Contract(), s.ID()
				terms.Contract.Market = to
				for _, begin := range []bool{false, true} {
					terms.Begin = begin
					if _, _, err := signal.Open(t.Context(), offer, b.agent.Agent, terms, a.cfg.Signal); wire.CodeOf(err) != wire.Denied {
						t.Errorf("from %q to %q: %v", from, to, err)
					}
				}
			}
			deliverOne(t, a, s.ID())
		}
	})
}

// An offer by mail is asked for as one over the wire: when its letter is read, or
// when the two meet.
func TestMarketContractByMail(t *testing.T) {
	for name, tc := range map[string]struct {
		says error
		lose bool // the letter
		want delivery.Status
	}{
		"admitted":                     {nil, false, delivery.Delivered},
		"admitted, letter lost":        {nil, true, delivery.Delivered},
		"refused":                      {wire.Denied, false, delivery.Failed},
		"refused, letter lost":         {wire.Denied, true, delivery.Failed},
		"cannot be decided at present": {errors.New("disk full"), false, delivery.Pending},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net, post, deals := newWires(5*time.Millisecond), newOffice(), &registry{known: map[string]error{contractA: tc.says}}
				a, b := net.postal(t, post, nil), net.postal(t, post, nil)
				b.stop(false)
				b.cfg.Signal.Admit = deals.admit
				s, err := a.Open(t.Context(), b.mailTarget(), citing(contractA, signal.AtLeastOnce))
				if err != nil {
					t.Fatal(err)
				}
				a.post(t, s.ID(), "key")
				time.Sleep(10 * time.Second)
				letters := post.letters(b)
				if tc.want == delivery.Pending {
					a.stop(false) // who cannot say it again
				}
				b.start(t)
				for _, l := range letters {
					if tc.lose {
						break
					}
					err := b.take(t, l.from, l.Payload)
					if again := wire.CodeOf(err).Retry() && err != nil; again != (tc.want == delivery.Pending) || (err == nil) != (tc.says == nil) {
						t.Errorf("letter: %v", err)
					}
				}
				if deals.count() == 0 && !tc.lose {
					t.Error("admission was not asked")
				}
				if tc.want == delivery.Pending {
					return
				}
				time.Sleep(time.Minute)
				if o := a.outcome(t, s.ID(), "key", time.Second); o.Status != tc.want || tc.says != nil && o.Code != wire.Denied {
					t.Errorf("%+v", o)
				}
				for _, i := range b.Sessions(true) {
					if i.Contract.Market != contractA {
						t.Errorf("session under %q", i.Contract.Market)
					}
				}
				if n := len(b.Sessions(true)); (n == 1) != (tc.says == nil) {
					t.Errorf("%d sessions", n)
				}
			})
		})
	}
}

// A letter cannot turn a session that is there to another contract.
func TestLetterDoesNotChangeTheContract(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, post, deals := newWires(5*time.Millisecond), newOffice(), &registry{known: map[string]error{contractA: nil}}
		a, b := net.postal(t, post, nil), net.postal(t, post, nil)
		b.stop(false)
		b.cfg.Signal.Admit = deals.admit
		s, err := a.Open(t.Context(), b.mailTarget(), citing("", signal.AtLeastOnce))
		if err != nil {
			t.Fatal(err)
		}
		a.post(t, s.ID(), "key")
		time.Sleep(10 * time.Second)
		b.start(t)
		post.collect(t, b, 1)
		time.Sleep(time.Minute)
		forged := invitationUnder(t, s, contractA)
		if err := b.take(t, a.agent.Certificate, forged); err != nil {
			t.Errorf("letter: %v", err)
		}
		if _, info, err := b.Find(s.ID().String()); err != nil || info.Contract.Market != "" || deals.count() != 0 {
			t.Errorf("%+v, %v", info.Contract, err)
		}
	})
}

// Over libp2p, as everybody does it.
func TestMarketContractOverSimnet(t *testing.T) {
	deals := &registry{known: map[string]error{contractA: nil}}
	pair(t, echo, func(c *session.Config) { c.Signal.Admit = deals.admit }, func(t *testing.T, a, b *node) {
		target := session.Target{Agent: b.agent.Agent, Route: session.Route{Peer: b.host.ID()}}
		s, err := a.Open(t.Context(), target, citing(contractA, signal.AtMostOnce))
		if err != nil {
			t.Fatal(err)
		}
		if resp, _, err := s.Call(t.Context(), request("hello")); err != nil || string(resp.Body) != "hello" {
			t.Errorf("%v, %v", resp, err)
		}
		if _, err := a.Open(t.Context(), target, citing(contractB, signal.AtMostOnce)); wire.CodeOf(err) != wire.NotFound {
			t.Errorf("unknown contract: %v", err)
		}
		if infos := b.Sessions(false); len(infos) != 1 || infos[0].Contract.Market != contractA {
			t.Errorf("the seller has %+v", infos)
		}
	})
}

// invitationUnder is a letter that offers session s under another contract.
func invitationUnder(t *testing.T, s *session.Session, id string) []byte {
	t.Helper()
	c := s.Contract()
	c.Market, c.Persistent = id, true
	sid := s.ID()
	b, err := proto.Marshal(&sessionpb.Letter{Session: sid[:], Invitation: &sessionpb.Invitation{Contract: c.Marshal()}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}
