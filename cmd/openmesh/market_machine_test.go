package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	deal "openmesh/protocols/market"
	"openmesh/protocols/wire"
)

// These tests hold two daemons to the table of the market: negotiations are brought to
// every state, and there each side tries every move. What the table has leads both to
// its next state. What it does not have is refused, and changes nothing on either side.

// scene is a way to a state.
type scene struct {
	path  string        // such as "seller propose, buyer counter"
	lapse time.Duration // then so much passes: an offer, or the request, expires
}

var scenes = []scene{
	{path: ""},
	{path: "seller propose"},
	{path: "seller propose, buyer counter"},
	{path: "seller propose, buyer counter, seller counter"},
	{path: "seller propose, seller amend"},
	{path: "seller propose, buyer counter, seller amend"},
	{path: "seller propose, buyer counter, buyer amend"},
	{path: "seller propose, buyer counter, seller counter, buyer amend"},
	{path: "seller propose, buyer accept"},
	{path: "seller propose, buyer counter, seller accept"},
	{path: "seller propose, buyer accept, seller fulfil"},
	{path: "seller propose, buyer counter, seller accept, buyer fulfil"},
	{path: "seller propose, buyer accept, seller fulfil, buyer fulfil"},
	{path: "seller propose, buyer accept, buyer fail"},
	{path: "seller propose, buyer accept, seller fulfil, buyer fail"},
	{path: "seller propose, seller withdraw"},
	{path: "seller propose, buyer counter, buyer withdraw"},
	{path: "seller reject"},
	{path: "seller propose, buyer reject"},
	{path: "buyer cancel"},
	{path: "seller propose, buyer cancel"},
	{path: "", lapse: lapse},
	{path: "seller propose", lapse: lapse},
	{path: "seller propose, buyer counter", lapse: lapse},
	{path: "seller propose, seller amend", lapse: lapse},
}

// lapse is how long an offer stands that is to expire; others stand for stands.
const (
	lapse  = 3 * time.Second
	stands = time.Hour
)

// moves are those that the local API has. The countersignature, and the news that an
// acceptance came too late, are what the offeror's node answers by itself.
var moves = []deal.Kind{deal.Propose, deal.Counter, deal.Amend, deal.Withdraw, deal.Accept, deal.Reject, deal.Fulfil, deal.Fail, deal.Cancel}

// play is where a scene has led, by the table alone.
type play struct {
	state            deal.State
	offeror, settled deal.Role
}

// after is the play after a move; ok is false if the table does not have it. An
// acceptance is concluded at once, as both nodes run.
func (p play) after(by deal.Role, k deal.Kind) (next play, rules []deal.Rule, ok bool) {
	r, ok := p.rule(by, k)
	if !ok {
		return p, nil, false
	}
	p.state = r.To
	switch k {
	case deal.Propose, deal.Counter, deal.Amend:
		p.offeror = by
	case deal.Fulfil, deal.Fail:
		p.settled = by
	case deal.Accept:
		next, more, _ := p.after(p.offeror, deal.Conclude)
		return next, append([]deal.Rule{r}, more...), true
	}
	return p, []deal.Rule{r}, true
}

func (p play) rule(by deal.Role, k deal.Kind) (deal.Rule, bool) {
	actor := map[deal.Actor]bool{
		deal.Offeror: by == p.offeror, deal.Offeree: by != p.offeror, deal.ByBuyer: by == deal.Buyer,
		deal.Either: true, deal.Second: by != p.settled,
	}
	all := deal.Table()
	i := slices.IndexFunc(all, func(r deal.Rule) bool { return r.From == p.state && r.Move == k && actor[r.By] })
	if i < 0 {
		return deal.Rule{}, false
	}
	return all[i], true
}

// machine is a test of the table; it remembers which rules were followed.
type machine struct {
	*trade
	mu       sync.Mutex
	followed map[deal.Rule]bool
	refused  int
}

func (m *machine) follow(rules ...deal.Rule) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range rules {
		m.followed[r] = true
	}
}

func TestMarketMachine(t *testing.T) {
	if testing.Short() {
		t.Skip("takes too long with -short")
	}
	t.Parallel()
	m := &machine{trade: newTrade(t), followed: map[deal.Rule]bool{}}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	began := time.Now()
	var tries []func() error
	for _, s := range scenes {
		tries = append(tries, func() error { return m.refuse(ctx, s) })
		for _, by := range []deal.Role{deal.Buyer, deal.Seller} {
			for _, k := range moves {
				if _, _, ok := m.expected(s).after(by, k); ok {
					tries = append(tries, func() error { return m.allow(ctx, s, by, k) })
				}
			}
		}
	}
	err := inParallel(tries, 32, func(try func() error) error {
		if err := try(); err != nil {
			t.Error(err)
		}
		return nil
	})
	if err == nil {
		err = m.silence(ctx)
	}
	if err != nil {
		t.Error(err)
	}
	for _, r := range deal.Table() {
		if !m.followed[r] {
			t.Errorf("nothing followed the rule %v", r)
		}
	}
	for _, v := range m.sides {
		if _, err := verified(ctx, v); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d negotiations, %d moves refused, in %v", len(tries), m.refused, time.Since(began).Round(time.Millisecond))
}

// expected is where the table leads along a scene's path.
func (m *machine) expected(s scene) play {
	p := play{state: deal.Requested, offeror: deal.Buyer}
	for by, k := range s.steps() {
		p, _, _ = p.after(by, k)
	}
	if s.lapse > 0 {
		p.state = deal.Expired
	}
	return p
}

func (s scene) steps() func(yield func(deal.Role, deal.Kind) bool) {
	return func(yield func(deal.Role, deal.Kind) bool) {
		for step := range strings.SplitSeq(s.path, ", ") {
			who, what, ok := strings.Cut(step, " ")
			k, err := deal.ParseKind(what)
			if !ok || err != nil {
				return // the path is empty
			}
			by := deal.Seller
			if who == deal.Buyer.String() {
				by = deal.Buyer
			}
			if !yield(by, k) {
				return
			}
		}
	}
}

// reach brings a new negotiation along a path.
func (m *machine) reach(ctx context.Context, s scene) (d *dealing, p play, err error) {
	p = play{state: deal.Requested, offeror: deal.Buyer}
	name := fmt.Sprintf("%q lapse %v", s.path, s.lapse)
	deadline, valid := stands, stands
	if s.lapse > 0 && s.path == "" {
		deadline = s.lapse
	} else if s.lapse > 0 {
		valid = s.lapse
	}
	if d, err = m.post(ctx, name, deadline); err != nil {
		return d, p, err
	}
	for by, k := range s.steps() {
		var rules []deal.Rule
		p, rules, _ = p.after(by, k)
		if err = m.step(ctx, d, by, k, valid, p.state); err != nil {
			return d, p, fmt.Errorf("%s: %w", name, err)
		}
		m.follow(rules...)
	}
	if s.lapse > 0 {
		rule, _ := p.ruleOfClock()
		p.state = deal.Expired
		_, err = d.agree(ctx, deal.Expired)
		m.follow(rule)
	}
	return d, p, err
}

func (p play) ruleOfClock() (deal.Rule, bool) {
	all := deal.Table()
	i := slices.IndexFunc(all, func(r deal.Rule) bool { return r.From == p.state && r.By == deal.Clock })
	if i < 0 {
		return deal.Rule{}, false
	}
	return all[i], true
}

// step makes a legal move; both sides come to the state.
func (m *machine) step(ctx context.Context, d *dealing, by deal.Role, k deal.Kind, valid time.Duration, to deal.State) error {
	before, err := d.standing(ctx, by)
	if err != nil {
		return err
	}
	if _, err := d.move(ctx, by, k, valid); err != nil {
		return fmt.Errorf("%s by the %s in %s: %w", k, by, before.state, err)
	}
	after, err := d.agree(ctx, to)
	added := 1
	if k == deal.Accept {
		added = 2
	}
	if err == nil && after.moves != before.moves+added {
		err = fmt.Errorf("%s by the %s made %d moves of %d", k, by, after.moves, before.moves)
	}
	return err
}

// allow tries a move that the table has, after a scene.
func (m *machine) allow(ctx context.Context, s scene, by deal.Role, k deal.Kind) error {
	d, p, err := m.reach(ctx, s)
	if err != nil {
		return err
	}
	next, rules, _ := p.after(by, k)
	if err := m.step(ctx, d, by, k, stands, next.state); err != nil {
		return fmt.Errorf("%q: %w", s.path, err)
	}
	m.follow(rules...)
	return nil
}

// refuse tries all that the table does not have, after a scene.
func (m *machine) refuse(ctx context.Context, s scene) error {
	d, p, err := m.reach(ctx, s)
	if err != nil {
		return err
	}
	for _, k := range moves { // cancelling comes last: it ends the request
		for _, by := range []deal.Role{deal.Buyer, deal.Seller} {
			if _, legal := p.rule(by, k); legal {
				continue
			}
			if err := m.tryIllegal(ctx, d, p, by, k, deal.Buyer, deal.Seller); err != nil {
				return fmt.Errorf("%q: %w", s.path, err)
			}
		}
	}
	return nil
}

// tryIllegal tries one illegal move. The sides named are asked whether anything changed.
func (m *machine) tryIllegal(ctx context.Context, d *dealing, p play, by deal.Role, k deal.Kind, ask ...deal.Role) error {
	before, err := d.known(ctx, ask)
	if err != nil {
		return err
	}
	_, errMove := d.move(ctx, by, k, stands)
	after, err := d.known(ctx, ask)
	if err != nil {
		return err
	}
	may := by == deal.Buyer && k == deal.Cancel && errMove == nil // that of the request
	if !may && !slices.Contains(refusals(p, by, k), wire.CodeOf(errMove)) {
		return fmt.Errorf("%s by the %s in state %s: %v", k, by, p.state, errMove)
	}
	if !slices.Equal(before, after) {
		return fmt.Errorf("%s by the %s in state %s was refused (%v), and yet changed %+v to %+v", k, by, p.state, errMove, before, after)
	}
	m.mu.Lock()
	m.refused++
	m.mu.Unlock()
	return nil
}

// refusals are the codes with which an illegal move may be refused. A negotiation in
// which nothing was said is not found by its id. A request is cancelled by its buyer
// alone, who may always do that once: what is agreed under it stays.
func refusals(p play, by deal.Role, k deal.Kind) []wire.Code {
	switch {
	case k == deal.Cancel && by == deal.Seller:
		return []wire.Code{wire.Denied}
	case p.offeror == deal.Buyer:
		return []wire.Code{wire.IllegalTransition, wire.NotFound}
	}
	return []wire.Code{wire.IllegalTransition}
}

// knowledge is what a side knows and has recorded of a negotiation.
type knowledge struct {
	standing
	recorded int
}

func (d *dealing) known(ctx context.Context, sides []deal.Role) (all []knowledge, err error) {
	for _, by := range sides {
		s, err := d.standing(ctx, by)
		if err != nil {
			return nil, err
		}
		n, err := d.recorded(ctx, by)
		if err != nil {
			return nil, err
		}
		all = append(all, knowledge{s, n})
	}
	return all, nil
}

// silence has one side accept while the other, whose offer it is, stands still. So
// long the acceptor is bound: it can do nothing. Then the offeror answers, by itself.
func (m *machine) silence(ctx context.Context) error {
	rival := m.seller("rival")
	for _, offeror := range []deal.Role{deal.Seller, deal.Buyer} {
		intime, err := m.offeredBy(ctx, offeror, stands)
		if err != nil {
			return err
		}
		late, err := m.offeredBy(ctx, offeror, lapse)
		if err != nil {
			return err
		}
		still := m.sides[offeror]
		if err := still.signal(syscall.SIGSTOP); err != nil {
			return err
		}
		bound, err := m.bind(ctx, offeror.Other(), intime, late)
		if err != nil {
			return errors.Join(err, still.signal(syscall.SIGCONT))
		}
		pause(ctx, lapse)
		if err := still.signal(syscall.SIGCONT); err != nil {
			return err
		}
		if err := m.released(ctx, bound, map[*dealing]deal.State{intime: deal.Contracted, late: deal.Expired}); err != nil {
			return err
		}
	}
	return m.rivals(ctx, rival)
}

// offeredBy is a negotiation with an offer of that side on the table.
func (m *machine) offeredBy(ctx context.Context, by deal.Role, valid time.Duration) (*dealing, error) {
	d, err := m.post(ctx, fmt.Sprintf("offer of the %s for %v", by, valid), stands)
	if err == nil {
		err = m.step(ctx, d, deal.Seller, deal.Propose, valid, deal.Proposed)
	}
	if err == nil && by == deal.Buyer {
		err = m.step(ctx, d, deal.Buyer, deal.Counter, valid, deal.Countered)
	}
	return d, err
}

// answers are what came of acceptances.
type answers chan error

// bind has a side accept, which cannot be answered, and tries all else.
func (m *machine) bind(ctx context.Context, by deal.Role, ds ...*dealing) (answers, error) {
	said := make(answers, len(ds))
	for _, d := range ds {
		go func() {
			_, err := d.move(ctx, by, deal.Accept, stands)
			said <- err
		}()
		err := until(ctx, "not accepted", func() (bool, error) {
			s, err := d.standing(ctx, by)
			return s.state == deal.Accepted.String(), err
		})
		if err != nil {
			return said, err
		}
		p := play{state: deal.Accepted, offeror: by.Other()}
		for _, k := range moves {
			if k == deal.Cancel {
				continue // what it does to the request would be a reason to say no
			}
			if err := m.tryIllegal(ctx, d, p, by, k, by); err != nil {
				return said, fmt.Errorf("while the other side is silent: %w", err)
			}
		}
	}
	return said, nil
}

// released waits for the answers of the offeror's node.
func (m *machine) released(ctx context.Context, said answers, to map[*dealing]deal.State) error {
	for range cap(said) {
		if err := <-said; err != nil {
			return fmt.Errorf("accept: %w", err)
		}
	}
	for d, state := range to {
		if _, err := d.agree(ctx, state); err != nil {
			return err
		}
		for _, r := range deal.Table() {
			if r.From == deal.Accepted && r.To == state {
				m.follow(r)
			}
		}
	}
	return nil
}

// rivals accept the same offer for the whole quantity while the buyer stands still:
// one of them gets it.
func (m *machine) rivals(ctx context.Context, rival *victim) error {
	rfp, err := m.sides[deal.Buyer].api().Market.PostRFP(ctx, &openmeshv1.PostRFPRequest{Json: requestOf("for one", stands)})
	if err != nil {
		return err
	}
	var both []*dealing
	for _, seller := range []*victim{m.sides[deal.Seller], rival} {
		d, err := m.dealing(rfp, seller)
		if err == nil {
			err = d.heard(ctx)
		}
		if err == nil {
			err = m.step(ctx, d, deal.Seller, deal.Propose, stands, deal.Proposed)
		}
		if err == nil {
			err = m.step(ctx, d, deal.Buyer, deal.Counter, stands, deal.Countered)
		}
		if err != nil {
			return err
		}
		both = append(both, d)
	}
	buyer := m.sides[deal.Buyer]
	if err := buyer.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	said, err := m.bind(ctx, deal.Seller, both...)
	if err := errors.Join(err, buyer.signal(syscall.SIGCONT)); err != nil {
		return err
	}
	if err := m.released(ctx, said, nil); err != nil {
		return err
	}
	won := make(map[string]*dealing)
	for _, d := range both {
		s, err := d.agree(ctx, deal.Contracted, deal.Rejected)
		if err != nil {
			return err
		}
		won[s.state] = d
	}
	if len(won) != 2 {
		return fmt.Errorf("of two acceptances of all that is wanted, both came to %v", won)
	}
	return m.released(ctx, nil, map[*dealing]deal.State{won["contracted"]: deal.Contracted, won["rejected"]: deal.Rejected})
}

// signal stops a daemon, or lets it go on.
func (v *victim) signal(s syscall.Signal) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.daemon.cmd.Process.Signal(s)
}
