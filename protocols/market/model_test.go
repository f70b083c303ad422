package market_test

import (
	"bytes"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"openmesh/protocols/market"
	. "openmesh/protocols/market/markettest"
	"openmesh/protocols/wire"
)

// crossings counts pairs of moves that followed the same one and met.
type crossings struct {
	mu    sync.Mutex
	count map[string]int
}

func (c *crossings) add(a, b market.Kind) {
	pair := []string{a.String(), b.String()}
	slices.Sort(pair)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count == nil {
		c.count = map[string]int{}
	}
	c.count[strings.Join(pair, " × ")]++
}

// world is one buyer with several sellers, their clocks, and a network that loses,
// doubles, delays and reorders. What is not answered is sent again.
type world struct {
	t      *rapid.T
	agents []*Agent // the buyer first
	ahead  []time.Duration
	now    time.Time
	sides  []*side
	met    *crossings
	quota  int64 // units that the buyer wants
}

// side is one agent's view of a negotiation.
type side struct {
	w      *world
	agent  *Agent
	ahead  *time.Duration
	n      market.Negotiation
	peer   *side
	outbox []*market.Signed              // not answered yet
	made   map[market.Hash][]market.Hash // what was known when a move was made
	signed []string                      // contracts that this side became bound by
}

func (s *side) clock() time.Time  { return s.w.now.Add(*s.ahead) }
func (s *side) role() market.Role { return s.n.RoleOf(s.agent.ID) }

func newWorld(t *rapid.T, agents []*Agent, met *crossings) *world {
	w := &world{t: t, agents: agents, now: Start, met: met, quota: 100, ahead: make([]time.Duration, len(agents))}
	for i := range agents {
		w.ahead[i] = time.Duration(rapid.IntRange(0, 120).Draw(t, "ahead")) * time.Second
	}
	rfp := agents[0].Post(t, NewRFP(agents[0].ID, 4*time.Minute))
	for i, seller := range agents[1:] {
		n, err := market.NewNegotiation(rfp, seller.ID)
		if err != nil {
			t.Fatal(err)
		}
		a := &side{w: w, agent: agents[0], ahead: &w.ahead[0], n: n, made: map[market.Hash][]market.Hash{}}
		b := &side{w: w, agent: seller, ahead: &w.ahead[i+1], n: n, peer: a, made: map[market.Hash][]market.Hash{}}
		a.peer = b
		w.sides = append(w.sides, a, b)
	}
	return w
}

// free returns the units that the buyer has neither under contract nor reserved for
// acceptances of its own.
func (w *world) free() int64 {
	left := w.quota
	for _, s := range w.sides {
		if a := s.n.Agreement(); s.role() == market.Buyer && a != nil && !ended(s) && (a.Conclude != nil || a.Accept.Author == s.agent.ID) {
			left -= a.Contract.Terms.Quantity
		}
	}
	return left
}

// ended reports whether an acceptance came to nothing.
func ended(s *side) bool {
	st := s.n.State(s.clock())
	return st == market.Expired || st == market.Rejected
}

// act makes a move that the side may make now, as its owner might: with more patience
// fewer that end it all.
func (s *side) act(patience int) {
	legal := s.n.Legal(s.role(), s.clock())
	if len(legal) == 0 {
		return
	}
	k := rapid.SampledFrom(legal).Draw(s.w.t, "move")
	if (k == market.Reject || k == market.Cancel || k == market.Withdraw) && rapid.IntRange(0, patience).Draw(s.w.t, "patience") > 0 {
		return // or no negotiation would last
	}
	if k == market.Accept && s.role() == market.Buyer && s.n.Table().Offer().Terms.Quantity > s.w.free() {
		return
	}
	s.make(k)
}

func (s *side) make(k market.Kind) {
	o := Offer{Quantity: 10 * rapid.Int64Range(1, 8).Draw(s.w.t, "quantity"), Until: s.clock().Add(time.Duration(rapid.IntRange(1, 180).Draw(s.w.t, "valid")) * time.Second)}
	m := s.agent.Move(s.w.t, s.n, k, s.clock(), o)
	n, res, err := s.n.Next(m, s.clock())
	if err != nil {
		s.w.t.Fatalf("%s makes %s: %v", s.role(), k, err)
	}
	if res.Duplicate {
		return // the same as one that was made in the same second, and lost
	}
	for _, known := range s.n.Moves() {
		s.made[m.Hash] = append(s.made[m.Hash], known.Hash)
	}
	s.n = n
	s.outbox = append(s.outbox, m)
	s.bind()
}

// bind notes the contract that a move made binding.
func (s *side) bind() {
	if a := s.n.Agreement(); a != nil && a.Conclude != nil && !slices.Contains(s.signed, a.ID) {
		s.signed = append(s.signed, a.ID)
	}
}

// deliver brings a move to the other side, which may happen any number of times, and
// reports whether the move needs no more of that.
func (s *side) deliver(m *market.Signed) bool {
	to := s.peer
	to.meet(m, s)
	n, res, err := to.n.Next(m, to.clock())
	switch wire.CodeOf(err) {
	case wire.HandlerUnavailable:
		return false
	case wire.IllegalTransition:
		return true
	}
	if err != nil {
		s.w.t.Fatalf("%s takes %s: %v", to.role(), m.Kind, err)
	}
	to.n = n
	to.outbox = slices.DeleteFunc(to.outbox, func(o *market.Signed) bool { return slices.Contains(res.Superseded, o) })
	to.bind()
	if to.n.State(to.clock()) == market.Accepted && to.n.Offeror() == to.role() && !res.Duplicate {
		to.answer()
	}
	return true
}

// meet counts moves that followed the same one without knowledge of each other.
func (to *side) meet(m *market.Signed, from *side) {
	for _, own := range to.n.Moves() {
		mutual := slices.Contains(to.made[own.Hash], m.Hash) || slices.Contains(from.made[m.Hash], own.Hash)
		if own.Author == to.agent.ID && own.Prev == m.Prev && !mutual {
			to.w.met.add(own.Kind, m.Kind)
		}
	}
}

// answer is what the offeror does at once when its offer is accepted.
func (s *side) answer() {
	terms := s.n.Table().Offer()
	switch {
	case !s.clock().Before(terms.ValidUntil):
		s.make(market.Expire)
	case s.role() == market.Buyer && terms.Terms.Quantity > s.w.free():
		s.make(market.Reject)
	default:
		s.make(market.Conclude)
	}
}

// haste is the patience of both sides when they move at once: none once there are
// offers enough.
func (s *side) haste() int {
	if s.n.Round() < 2 {
		return 50
	}
	return 1
}

// step is anything that can happen.
func (w *world) step() {
	s := w.sides[rapid.IntRange(0, len(w.sides)-1).Draw(w.t, "side")]
	switch rapid.IntRange(0, 15).Draw(w.t, "step") {
	case 0, 1:
		s.act(9)
	case 2, 3: // both at once: what is under way crosses
		s.act(s.haste())
		s.peer.act(s.haste())
	case 6, 7: // once both see the same, an acceptance crosses a change of mind
		s.flush()
		s.peer.flush()
		if s.n.Round() > 1 && slices.Contains(s.n.Legal(s.role(), s.clock()), market.Accept) && s.n.Table().Offer().Terms.Quantity <= w.free() {
			s.make(market.Accept)
			s.peer.act(0)
		} else if s.n.State(s.clock()) == market.Contracted && s.peer.n.State(s.peer.clock()) == market.Contracted {
			s.act(0)
			s.peer.act(0)
		}
	case 4: // to the edge of a deadline
		if d := s.n.Deadline(); !d.IsZero() {
			at := d.Add(-*s.ahead + time.Duration(rapid.IntRange(-1000, 1000).Draw(w.t, "edge"))*time.Millisecond)
			if at.After(w.now) && at.Sub(w.now) < 3*time.Minute {
				w.now = at
			}
		}
	case 5:
		w.now = w.now.Add(time.Duration(rapid.IntRange(1, 20000).Draw(w.t, "pause")) * time.Millisecond)
	default: // any that is under way; the answer may be lost
		if len(s.outbox) > 0 {
			m := s.outbox[rapid.IntRange(0, len(s.outbox)-1).Draw(w.t, "message")]
			if s.deliver(m) && rapid.Bool().Draw(w.t, "answered") {
				s.outbox = slices.DeleteFunc(s.outbox, func(o *market.Signed) bool { return o == m })
			}
		}
	}
	w.safe()
}

// safe is what holds at every moment.
func (w *world) safe() {
	if w.free() < 0 {
		w.t.Fatalf("the buyer awarded %d units too many", -w.free())
	}
	for _, s := range w.sides {
		if len(s.signed) > 1 {
			w.t.Fatalf("the %s has two contracts: %v", s.role(), s.signed)
		}
		if a := s.n.Agreement(); len(s.signed) == 1 && (a == nil || a.Conclude == nil || a.ID != s.signed[0]) {
			w.t.Fatalf("the %s has lost its contract", s.role())
		}
	}
}

// flush delivers what the side has under way.
func (s *side) flush() {
	for range len(s.outbox) {
		s.outbox = slices.DeleteFunc(slices.Clone(s.outbox), s.deliver)
	}
}

// drain delivers all that is under way while time goes on, then lets all deadlines
// pass.
func (w *world) drain() {
	for range 100 {
		w.now = w.now.Add(10 * time.Second)
		for _, s := range w.sides {
			s.outbox = slices.DeleteFunc(slices.Clone(s.outbox), s.deliver)
		}
	}
	w.now = w.now.Add(time.Hour)
	for _, s := range w.sides {
		if len(s.outbox) > 0 {
			w.t.Fatalf("the %s cannot deliver %s", s.role(), s.outbox[0].Kind)
		}
	}
}

// agree compares both views of each negotiation.
func (w *world) agree() {
	for i := 0; i < len(w.sides); i += 2 {
		a, b := w.sides[i], w.sides[i+1]
		if x, y := a.n.State(a.clock()), b.n.State(b.clock()); x != y {
			w.t.Fatalf("buyer: %s, seller: %s\n%s\n%s", x, y, told(a), told(b))
		}
		x, y := a.n.Agreement(), b.n.Agreement()
		if (x == nil) != (y == nil) || x != nil && (!bytes.Equal(x.Document, y.Document) || x.ID != y.ID) {
			w.t.Fatalf("different contracts\n%s\n%s", told(a), told(b))
		}
		if a.n.State(a.clock()) == market.Accepted {
			w.t.Fatalf("an acceptance was not answered\n%s", told(a))
		}
		w.accepted(a)
		w.stored(a)
		w.stored(b)
	}
}

// accepted checks that a contract follows an accept of the other side.
func (w *world) accepted(s *side) {
	moves := s.n.Moves()
	for i, m := range moves {
		if m.Kind == market.Conclude && (i == 0 || moves[i-1].Kind != market.Accept || moves[i-1].Author == m.Author) {
			w.t.Fatalf("a contract without acceptance\n%s", told(s))
		}
	}
}

// stored checks that a negotiation comes back from its encoding.
func (w *world) stored(s *side) {
	b, err := s.n.Encode()
	if err != nil {
		w.t.Fatal(err)
	}
	again, err := market.DecodeNegotiation(b)
	if err != nil || again.Head() != s.n.Head() || again.State(w.now) != s.n.State(w.now) || len(again.Superseded()) != len(s.n.Superseded()) {
		w.t.Fatalf("comes back as another: %v\n%s", err, told(s))
	}
}

func told(s *side) string {
	var out []string
	for _, m := range s.n.Moves() {
		out = append(out, s.n.RoleOf(m.Author).String()+" "+m.Kind.String()+" "+m.At.Format("15:04:05.000"))
	}
	return s.role().String() + ": " + strings.Join(out, ", ")
}

// Whatever the network does and the clocks show, both sides end with the same, and no
// contract is made twice, without acceptance or beyond what the buyer wants.
func TestBothSidesAgree(t *testing.T) {
	t.Parallel()
	worlds := 3 // for each draw
	if testing.Short() {
		worlds = 1
	}
	agents := threeAgents(t)
	rapid.Check(t, func(t *rapid.T) {
		for range worlds {
			live(t, agents, new(crossings))
		}
	})
}

// The same, in worlds that are always the same: all that may cross does in some.
func TestCrossingsAreReached(t *testing.T) {
	t.Parallel()
	met, agents := new(crossings), threeAgents(t)
	world := rapid.Custom(func(t *rapid.T) bool {
		live(t, agents, met)
		return true
	})
	for seed := range 400 {
		world.Example(seed)
	}
	for _, pair := range []string{"accept × withdraw", "accept × amend", "amend × counter", "counter × withdraw", "accept × cancel", "fail × fulfil"} {
		if met.count[pair] == 0 {
			t.Errorf("%s was not reached, but %v", pair, met.count)
		}
	}
}

func threeAgents(t *testing.T) []*Agent {
	return []*Agent{NewAgent(t, 1), NewAgent(t, 2), NewAgent(t, 3)}
}

// live has a world from its beginning to its end.
func live(t *rapid.T, agents []*Agent, met *crossings) {
	w := newWorld(t, agents, met)
	for range rapid.IntRange(20, 80).Draw(t, "steps") {
		w.step()
	}
	w.drain()
	w.agree()
}
