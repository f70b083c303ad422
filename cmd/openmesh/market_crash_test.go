package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	deal "openmesh/protocols/market"
	"openmesh/protocols/wire"
)

// Whatever is killed, and whenever, both sides of a negotiation come to the same: what
// a daemon has acknowledged is there, what it has not can be said again, there is one
// contract, no more of it is used than was bought, and both logs are whole. In each
// round negotiations stand before every step of their course, all steps are made at
// once, and then one daemon is killed, or both.

// step is what a caller does in a negotiation.
type step struct {
	by   deal.Role
	move deal.Kind // 0: a call under the contract
}

// courses are negotiations from the first step to the last.
var courses = [][]step{
	{
		{deal.Buyer, deal.Request}, {deal.Seller, deal.Propose}, {deal.Buyer, deal.Counter}, {deal.Seller, deal.Amend},
		{deal.Buyer, deal.Accept}, {deal.Buyer, 0}, {deal.Seller, deal.Fulfil}, {deal.Buyer, deal.Fulfil},
	},
	{{deal.Buyer, deal.Request}, {deal.Seller, deal.Propose}, {deal.Buyer, deal.Counter}, {deal.Seller, deal.Accept}, {deal.Buyer, deal.Fail}},
	{{deal.Buyer, deal.Request}, {deal.Seller, deal.Propose}, {deal.Buyer, deal.Cancel}},
	{{deal.Buyer, deal.Request}, {deal.Seller, deal.Propose}, {deal.Seller, deal.Withdraw}},
	{{deal.Buyer, deal.Request}, {deal.Seller, deal.Propose}, {deal.Buyer, deal.Accept}, {deal.Buyer, 0}, {deal.Buyer, 0}, {deal.Buyer, 0}},
}

// moment is when a daemon is killed.
type moment uint8

const (
	asked     moment = iota // a little after the requests were sent
	concluded               // when the offeror's node has signed the first contract
	told                    // when all requests were answered
)

func (m moment) String() string { return [...]string{"asked", "concluded", "told"}[m] }

// loss is who is killed, and when.
type loss struct {
	when moment
	who  []deal.Role
}

// losses are those of a test: of all kinds, or of some.
func losses(full bool) []loss {
	buyer, seller, both := []deal.Role{deal.Buyer}, []deal.Role{deal.Seller}, []deal.Role{deal.Buyer, deal.Seller}
	short := []loss{{asked, both}, {concluded, seller}, {told, both}}
	if !full {
		return short
	}
	return append(short, loss{asked, buyer}, loss{asked, seller}, loss{concluded, buyer}, loss{concluded, both}, loss{told, buyer}, loss{told, seller})
}

func TestChaosMarket(t *testing.T) {
	if testing.Short() {
		t.Skip("takes too long with -short")
	}
	chaos(t, func(t *testing.T, s scale, random *rand.Rand) {
		tr := newTrade(t, "OPENMESH_NETWORKING_KEEPALIVE_INTERVAL=1s")
		ctx, cancel := context.WithTimeout(t.Context(), 2*s.limit)
		defer cancel()
		began, steps := time.Now(), 0
		for n, b := range losses(os.Getenv("OPENMESH_CHAOS") == "full") {
			r := &round{
				trade: tr, name: fmt.Sprintf("round %d, %s, kill %v", n, b.when, b.who), loss: b,
				after: time.Duration(random.IntN(30_000)) * time.Microsecond,
			}
			if err := r.run(ctx); err != nil {
				t.Fatalf("%s: %v%s", r.name, err, tr.lastWords())
			}
			steps += len(r.deals)
		}
		t.Logf("%d steps under which daemons were killed (buyer %d, seller %d times) in %v",
			steps, tr.sides[deal.Buyer].kills, tr.sides[deal.Seller].kills, time.Since(began).Round(time.Millisecond))
	})
}

// lastWords are the ends of the logs of both daemons.
func (tr *trade) lastWords() (text string) {
	for role, v := range tr.sides {
		lines := strings.Split(strings.TrimSpace((&daemon{log: v.home + ".log"}).logged()), "\n")
		text += fmt.Sprintf("\nthe end of the log of the %s:\n%s", role, strings.Join(lines[max(0, len(lines)-15):], "\n"))
	}
	return text
}

// round is one kill.
type round struct {
	*trade
	name string
	loss
	after time.Duration
	deals []*course
}

// course is a negotiation on its way.
type course struct {
	*dealing // nil before the request is known
	trade    *trade
	item     string
	steps    []step
	at       int    // the step under which daemons are killed
	said     error  // what the caller was told of it
	contract string // what it came to
}

func (r *round) run(ctx context.Context) error {
	for i, steps := range courses {
		for at := range steps {
			item := fmt.Sprintf("%s, course %d, step %d", r.name, i, at)
			r.deals = append(r.deals, &course{trade: r.trade, item: item, steps: steps, at: at})
		}
	}
	if err := r.each(func(c *course) error { return c.proceed(ctx, c.steps[:c.at]) }); err != nil {
		return fmt.Errorf("before the kill: %w", err)
	}
	if err := r.strike(ctx); err != nil {
		return fmt.Errorf("the kill: %w", err)
	}
	if err := r.each(func(c *course) error { return c.check(ctx) }); err != nil {
		return err
	}
	for role, v := range r.sides {
		if err := r.contracts(ctx, role); err != nil {
			return fmt.Errorf("at the %s: %w", role, err)
		}
		if _, err := verified(ctx, v); err != nil {
			return err
		}
	}
	return nil
}

func (r *round) each(do func(*course) error) error {
	return inParallel(r.deals, len(r.deals), func(c *course) error {
		if err := do(c); err != nil {
			return fmt.Errorf("%s: %w", c.item, err)
		}
		return nil
	})
}

// strike makes the next step of every negotiation, kills, and starts again.
func (r *round) strike(ctx context.Context) error {
	signed := make(chan struct{})
	if r.when == concluded {
		stop, err := r.watch(ctx, signed)
		if err != nil {
			return err
		}
		defer stop()
	}
	var callers errgroup.Group
	for _, c := range r.deals {
		callers.Go(func() error {
			c.said = c.make(ctx, c.at)
			return nil
		})
	}
	switch r.when {
	case asked:
		pause(ctx, r.after)
	case concluded:
		select {
		case <-signed:
		case <-ctx.Done():
			return ctx.Err()
		}
	case told:
		_ = callers.Wait() // none of them fails
	}
	var reaper errgroup.Group
	for _, role := range r.who {
		reaper.Go(func() error {
			r.sides[role].kill()
			return r.sides[role].start()
		})
	}
	return errors.Join(reaper.Wait(), callers.Wait())
}

// watch closes a channel when the seller has signed a contract.
func (r *round) watch(ctx context.Context, signed chan<- struct{}) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	events, err := r.sides[deal.Seller].api().Market.Watch(ctx, &openmeshv1.WatchMarketRequest{})
	if err != nil {
		cancel()
		return nil, err
	}
	events.ResponseHeader() // has come once it hears
	go func() {
		for events.Receive() {
			if events.Msg().Event == deal.Conclude.String() {
				close(signed)
				return
			}
		}
	}()
	return cancel, nil
}

// make makes a step, once.
func (c *course) make(ctx context.Context, i int) error {
	s := c.steps[i]
	switch s.move {
	case deal.Request:
		_, err := c.trade.sides[deal.Buyer].api().Market.PostRFP(ctx, &openmeshv1.PostRFPRequest{Json: requestOf(c.item, stands)})
		return err
	case 0:
		return c.call(ctx, i)
	}
	_, err := c.move(ctx, s.by, s.move, stands)
	return err
}

// call calls the seller under the contract. One with the key of another, that of the
// same step, takes no unit again.
func (c *course) call(ctx context.Context, i int) error {
	p, err := c.standing(ctx, deal.Buyer)
	if err != nil {
		return err
	}
	_, err = c.side(deal.Buyer).api().Session.Call(ctx, &openmeshv1.CallRequest{
		Contract: p.contract, Capability: sold, Qos: "at-least-once", IdempotencyKey: fmt.Sprintf("%s, call %d", c.item, i), TimeoutMs: 30_000, Body: &openmeshv1.CallRequest_Json{Json: "{}"},
	})
	return err
}

// made reports whether a step has been made, as its caller's daemon knows.
func (c *course) made(ctx context.Context, i int) (bool, error) {
	if s := c.steps[i]; s.move == 0 {
		return false, nil // made again, it must not count again
	} else if s.move == deal.Request {
		return c.find(ctx)
	}
	p, err := c.standing(ctx, c.steps[i].by)
	left := 1 // of this kind, those of the other side included
	for _, s := range c.steps[:i] {
		if s.move == c.steps[i].move {
			left++
		}
	}
	for kind := range strings.FieldsSeq(p.kinds) {
		if kind == c.steps[i].move.String() {
			left--
		}
	}
	return left <= 0, err
}

// find looks for the request, which its caller knows by its item.
func (c *course) find(ctx context.Context) (bool, error) {
	if c.dealing != nil {
		return true, nil
	}
	list, err := c.trade.sides[deal.Buyer].api().Market.ListRFPs(ctx, &openmeshv1.ListRFPsRequest{Direction: "sent", Limit: 1000})
	var mine []*openmeshv1.RFP
	for _, r := range list.GetRfps() {
		if r.Item == c.item {
			mine = append(mine, r)
		}
	}
	if err != nil || len(mine) == 0 {
		return false, err
	}
	if len(mine) > 1 {
		return false, fmt.Errorf("%d requests of one", len(mine))
	}
	if c.dealing, err = c.trade.dealing(mine[0], c.trade.sides[deal.Seller]); err != nil {
		return false, err
	}
	return true, c.heard(ctx)
}

// proceed makes steps, each until it is made, as a caller does who does not know.
func (c *course) proceed(ctx context.Context, steps []step) error {
	for i, s := range steps {
		err := until(ctx, fmt.Sprintf("%v is not made", s), func() (bool, error) {
			ok, err := c.made(ctx, i)
			if !ok && err == nil {
				err = c.make(ctx, i)
				ok = err == nil && s.move == 0
			}
			return ok, unless(err, wire.Unreachable, wire.SessionClosed, wire.IllegalTransition)
		})
		if err == nil && s.move != deal.Request {
			err = c.both(ctx, i)
		}
		if err != nil {
			return fmt.Errorf("step %d, %v: %w", i, s, err)
		}
	}
	return nil
}

// both waits until both sides know of a step.
func (c *course) both(ctx context.Context, i int) error {
	return until(ctx, "the other side has not heard", func() (bool, error) {
		buyer, err := c.standing(ctx, deal.Buyer)
		if err != nil {
			return false, unless(err, wire.Unreachable)
		}
		seller, err := c.standing(ctx, deal.Seller)
		return err == nil && buyer == seller && !(c.steps[i].move == deal.Accept && buyer.contract == ""), unless(err, wire.Unreachable)
	})
}

// check finds what became of the step, goes on to the end, and looks at what is there.
func (c *course) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if c.said == nil && c.steps[c.at].move != 0 {
		ok, err := c.made(ctx, c.at)
		if err != nil || !ok {
			return fmt.Errorf("acknowledged and lost (%v)", err)
		}
	} else if err := unless(c.said, wire.Unreachable, wire.SessionClosed); err != nil {
		return fmt.Errorf("the caller was told: %w", err)
	}
	if err := c.proceed(ctx, c.steps); err != nil {
		return err
	}
	return c.ended(ctx)
}

// ended checks a negotiation that has come to its end.
func (c *course) ended(ctx context.Context) error {
	end, err := c.agree(ctx, deal.Contracted, deal.Fulfilled, deal.Failed, deal.Cancelled, deal.Withdrawn)
	if err != nil {
		return err
	}
	if c.calls() == units {
		if err := c.call(ctx, len(c.steps)); wire.CodeOf(err) != wire.Denied {
			return fmt.Errorf("a call more than the contract has units: %v", err)
		}
	}
	want := []string{""}
	for _, s := range c.steps {
		if s.move != 0 {
			want = append(want, s.move.String())
		}
		if s.move == deal.Accept {
			want = append(want, deal.Conclude.String())
		}
	}
	if got := strings.Join(want, " "); end.kinds != got {
		return fmt.Errorf("the moves are%s, want%s", end.kinds, got)
	}
	for _, by := range []deal.Role{deal.Buyer, deal.Seller} {
		if n, err := c.recorded(ctx, by); err != nil || n != end.moves-1 {
			return fmt.Errorf("the log of the %s has %d moves, want %d (%v)", by, n, end.moves-1, err)
		}
	}
	c.contract = end.contract
	return nil
}

// contracts checks that a side has one contract of each negotiation that came to one,
// and that no more of it is used than there were calls.
func (r *round) contracts(ctx context.Context, by deal.Role) error {
	list, err := r.sides[by].api().Market.ListContracts(ctx, &openmeshv1.ListContractsRequest{All: true, Limit: 1000})
	if err != nil {
		return err
	}
	found := make(map[string][]*openmeshv1.MarketContract) // by negotiation
	for _, m := range list.Contracts {
		found[m.Proposal] = append(found[m.Proposal], m)
	}
	for _, c := range r.deals {
		switch mine := found[c.id]; {
		case c.contract == "" && len(mine) == 0:
		case len(mine) != 1 || mine[0].Contract != c.contract:
			return fmt.Errorf("%s: contracts %v, want %q", c.item, mine, c.contract)
		case by == deal.Seller && mine[0].Used != uint64(c.calls()):
			return fmt.Errorf("%s: %d units are used, want %d", c.item, mine[0].Used, c.calls())
		}
	}
	return nil
}

// calls is how many different calls a course has.
func (c *course) calls() (n int) {
	for _, s := range c.steps {
		if s.move == 0 {
			n++
		}
	}
	return n
}
