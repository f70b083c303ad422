package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/identity"
	deal "openmesh/protocols/market"
	"openmesh/protocols/market/document"
	"openmesh/protocols/wire"
)

// trade is a mesh in which one agent buys and another sells: daemons in processes of
// their own, on loopback.
type trade struct {
	*lab
	sides map[deal.Role]*victim
	work  *handlerServer // what the seller sells
}

// sold is the capability that the seller has.
const sold = "text/translation"

func newTrade(t *testing.T, env ...string) *trade {
	tr := &trade{lab: newLab(t, env...), sides: map[deal.Role]*victim{}, work: newHandlerServer(`{"text":"done"}`, 0)}
	t.Cleanup(tr.work.unplug)
	tr.backbone()
	tr.sides[deal.Buyer] = tr.agent("buyer")
	tr.sides[deal.Seller] = tr.seller("seller")
	return tr
}

// seller starts an agent that sells, once the buyer can find it.
func (tr *trade) seller(name string) *victim {
	tr.t.Helper()
	v := tr.agent(name)
	file := filepath.Join(tr.dir, "work.yaml")
	text := "{name: " + sold + ", version: 1.0.0, handler: {http: {url: " + tr.work.URL + "/}}}"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		tr.t.Fatal(err)
	}
	tr.run(name, "capability", "add", file)
	return v
}

func (tr *trade) agent(name string) *victim {
	tr.t.Helper()
	tr.run(name, "init")
	v := &victim{home: filepath.Join(tr.dir, name), env: tr.env, buried: func() {}}
	if err := v.start(); err != nil {
		tr.t.Fatal(err)
	}
	tr.t.Cleanup(v.kill)
	return v
}

// dealing is a negotiation as both sides name it. Each has a request of its own.
type dealing struct {
	*trade
	rfp, id string
	seller  *victim
}

// units is how much each request asks for.
const units = 3

// post has the buyer ask, and returns once the seller has heard. The item tells one
// request from another.
func (tr *trade) post(ctx context.Context, item string, deadline time.Duration) (*dealing, error) {
	rfp, err := tr.sides[deal.Buyer].api().Market.PostRFP(ctx, &openmeshv1.PostRFPRequest{Json: requestOf(item, deadline)})
	if err != nil {
		return nil, fmt.Errorf("post %s: %w", item, err)
	}
	d, err := tr.dealing(rfp, tr.sides[deal.Seller])
	if err == nil {
		err = d.heard(ctx)
	}
	return d, err
}

func requestOf(item string, deadline time.Duration) string {
	b, err := json.Marshal(map[string]any{
		"item": item, "quantity": units, "price": map[string]string{"min": "1.00", "max": "20.00", "currency": "EUR"},
		"deadline": time.Now().UTC().Add(deadline).Format(time.RFC3339Nano), "capability": sold,
	})
	if err != nil {
		panic(err) // of plain values
	}
	return string(b)
}

func (tr *trade) dealing(rfp *openmeshv1.RFP, seller *victim) (*dealing, error) {
	hash, err := document.ParseHash(rfp.Hash)
	return &dealing{trade: tr, rfp: rfp.Rfp, id: deal.NegotiationID(hash, identity.AgentID(seller.agent)), seller: seller}, err
}

// side is who plays a role in this negotiation.
func (d *dealing) side(r deal.Role) *victim {
	if r == deal.Seller {
		return d.seller
	}
	return d.sides[r]
}

func (d *dealing) heard(ctx context.Context) error {
	return until(ctx, "the seller has not heard of request "+d.rfp, func() (bool, error) {
		_, err := d.seller.api().Market.ShowRFP(ctx, &openmeshv1.ShowRFPRequest{Rfp: d.rfp})
		return err == nil, unless(err, wire.NotFound, wire.Unreachable)
	})
}

// until waits for something that comes by itself, or an error that is no reason to
// go on.
func until(ctx context.Context, what string, check func() (bool, error)) error {
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		ok, err := check()
		if ok || err != nil && ctx.Err() == nil {
			return err
		}
		if pause(ctx, wait); ctx.Err() != nil {
			return fmt.Errorf("%s: %w", what, ctx.Err())
		}
	}
}

// unless returns err if it has none of the codes.
func unless(err error, codes ...wire.Code) error {
	if err == nil || slices.Contains(codes, wire.CodeOf(err)) {
		return nil
	}
	return err
}

// offered is the document of an offer at a price, which stands for so long.
func offered(price string, stands time.Duration) string {
	return fmt.Sprintf(`{"terms":{"price":{"amount":%q}},"valid_until":%q}`, price, time.Now().UTC().Add(stands).Format(time.RFC3339Nano))
}

// move has a side make a move over its local API. Cancelling is of the request.
func (d *dealing) move(ctx context.Context, by deal.Role, k deal.Kind, stands time.Duration) (*openmeshv1.MoveResponse, error) {
	m := d.side(by).api().Market
	plain := &openmeshv1.MoveRequest{Proposal: d.id, Reason: "because"}
	offer := &openmeshv1.OfferRequest{Proposal: d.id, Json: offered("9.00", stands)}
	settle := &openmeshv1.SettleRequest{Proposal: d.id, Outcome: map[deal.Kind]string{deal.Fulfil: "fulfilled", deal.Fail: "failed"}[k]}
	switch k {
	case deal.Propose:
		return m.Propose(ctx, &openmeshv1.ProposeRequest{Rfp: d.rfp, Json: offered("10.00", stands)})
	case deal.Counter:
		offer.Json = offered("7.00", stands)
		return m.Counter(ctx, offer)
	case deal.Amend:
		return m.Amend(ctx, offer)
	case deal.Withdraw:
		return m.Withdraw(ctx, plain)
	case deal.Accept:
		return m.Accept(ctx, plain)
	case deal.Reject:
		return d.reject(ctx, by, plain)
	case deal.Cancel:
		_, err := m.CancelRFP(ctx, &openmeshv1.CancelRFPRequest{Rfp: d.rfp, Reason: "because"})
		return &openmeshv1.MoveResponse{Proposal: d.id}, err
	case deal.Fulfil, deal.Fail:
		return m.Settle(ctx, settle)
	}
	return nil, wire.Errorf(wire.InvalidArgument, "nobody can %s", k)
}

// reject names the request where nothing was said about it yet.
func (d *dealing) reject(ctx context.Context, by deal.Role, r *openmeshv1.MoveRequest) (*openmeshv1.MoveResponse, error) {
	m := d.side(by).api().Market
	resp, err := m.Reject(ctx, r)
	if wire.CodeOf(err) == wire.NotFound {
		return m.Reject(ctx, &openmeshv1.MoveRequest{Proposal: d.rfp, Reason: r.Reason})
	}
	return resp, err
}

// standing is what one side knows of a negotiation: all that must be the same on both.
type standing struct {
	state, head, contract string
	moves                 int // that count, the request included
	kinds                 string
}

// standing asks a side. Before anything was said, it knows the request.
func (d *dealing) standing(ctx context.Context, by deal.Role) (standing, error) {
	p, err := d.side(by).api().Market.ShowProposal(ctx, &openmeshv1.ShowProposalRequest{Proposal: d.id})
	if wire.CodeOf(err) == wire.NotFound {
		return d.unsaid(ctx, by)
	}
	if err != nil {
		return standing{}, err
	}
	s := standing{state: p.State, contract: p.Contract}
	for _, m := range p.Moves {
		if !m.Superseded {
			s.moves++
			s.head = m.Hash
			s.kinds += " " + m.Move
		}
	}
	if s.moves == 1 {
		s.head = ""
	}
	return s, nil
}

// unsaid is how a negotiation stands in which nothing was said: as its request does.
func (d *dealing) unsaid(ctx context.Context, by deal.Role) (standing, error) {
	r, err := d.side(by).api().Market.ShowRFP(ctx, &openmeshv1.ShowRFPRequest{Rfp: d.rfp})
	if r.GetState() == "open" {
		r.State = deal.Requested.String()
	}
	return standing{state: r.GetState(), moves: 1, kinds: " rfp"}, err
}

// agree waits until both sides stand where one of the states is, and know the same.
func (d *dealing) agree(ctx context.Context, states ...deal.State) (standing, error) {
	var buyer, seller standing
	err := until(ctx, "the sides do not agree", func() (ok bool, err error) {
		if buyer, err = d.standing(ctx, deal.Buyer); err == nil {
			seller, err = d.standing(ctx, deal.Seller)
		}
		ok = err == nil && buyer == seller && slices.ContainsFunc(states, func(s deal.State) bool { return s.String() == buyer.state })
		return ok, unless(err, wire.Unreachable)
	})
	if err != nil {
		err = fmt.Errorf("negotiation %s: want %v; buyer: %+v; seller: %+v: %w", d.id, states, buyer, seller, err)
	}
	return buyer, err
}

// recorded counts the moves of a negotiation in a side's audit log.
func (d *dealing) recorded(ctx context.Context, by deal.Role) (n int, err error) {
	log, err := d.side(by).api().Audit.List(ctx, &openmeshv1.ListAuditRequest{Of: d.id, Kind: "market", Limit: 1000})
	for _, e := range log.GetEntries() {
		if e.Kind != "market.receipt" && e.Ref == d.id {
			n++
		}
	}
	return n, unless(err, wire.NotFound)
}

// verified has a side verify its audit log.
func verified(ctx context.Context, v *victim) (*openmeshv1.VerifyAuditResponse, error) {
	r, err := v.api().Audit.Verify(ctx, &openmeshv1.VerifyAuditRequest{})
	if err == nil && !r.Ok {
		err = fmt.Errorf("the log of %s: entry %d: %s", filepath.Base(v.home), r.Bad.GetIndex(), r.Bad.GetReason())
	}
	return r, err
}

// inParallel does something for each of many, so many at a time.
func inParallel[T any](all []T, most int, do func(T) error) error {
	var group errgroup.Group
	group.SetLimit(most)
	for _, one := range all {
		group.Go(func() error { return do(one) })
	}
	return group.Wait()
}

// quantile is the time within which that part of all was done; it sorts them.
func quantile(took []time.Duration, part float64) time.Duration {
	slices.SortFunc(took, cmp.Compare)
	return took[int(part*float64(len(took)-1))].Round(time.Millisecond)
}

// named are distinct items.
func named(what string, n int) (all []string) {
	for i := range n {
		all = append(all, what+" "+strconv.Itoa(i))
	}
	return all
}
