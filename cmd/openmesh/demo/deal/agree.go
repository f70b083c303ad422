package deal

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	openmeshv1 "openmesh/node/api/openmesh/v1"
)

// Request: the buyer asks for offers, and all sellers answer by themselves.
func (d *Deal) Request(ctx context.Context, r Report) error {
	const open = 10 * time.Minute
	quantity, start := len(numbers()), time.Now()
	doc, err := json.Marshal(map[string]any{
		"item": "Prime factors of a number", "quantity": quantity, "capability": Capability, "version": "^1",
		"price": map[string]any{"max": limit, "currency": currency}, "deadline": start.Add(open).UTC().Format(time.RFC3339),
	})
	if err != nil {
		return err
	}
	buyer := d.cfg.Buyer
	rfp, err := buyer.API.Market.PostRFP(ctx, &openmeshv1.PostRFPRequest{Json: string(doc)})
	if err != nil {
		return buyer.At(err)
	}
	d.rfp = rfp.Rfp
	var offers []*openmeshv1.Proposal
	if err := until(ctx, func() (err error) { offers, err = d.answers(ctx); return err }); err != nil {
		return err
	}
	lines := []string{fmt.Sprintf("%s asks whoever offers %s: the prime factors of %d numbers, for at most %s %s each", buyer.Name, Capability, quantity, limit, currency)}
	for _, s := range Stalls() {
		lines = append(lines, fmt.Sprintf("%s in %s offers to do it for %s %s", s.Name, s.Region, s.Price, currency))
	}
	r.Fact("rfp", d.rfp)
	r.Fact("proposals", summaries(offers))
	r.Fact("answered_ms", time.Since(start).Milliseconds())
	r.Say(append(lines, "nobody sat at a keyboard: market.sell in their configuration says how they sell")...)
	return nil
}

// answers are the offers for the request, once all sellers made the ones they should.
func (d *Deal) answers(ctx context.Context) ([]*openmeshv1.Proposal, error) {
	buyer := d.cfg.Buyer
	res, err := buyer.API.Market.ListProposals(ctx, &openmeshv1.ListProposalsRequest{Rfp: d.rfp})
	if err != nil {
		return nil, buyer.At(err)
	}
	for i, s := range Stalls() {
		of := slices.IndexFunc(res.Proposals, func(p *openmeshv1.Proposal) bool { return p.Seller == d.cfg.Sellers[i].Agent })
		if of < 0 {
			return nil, buyer.errorf("has no offer of %s", s.Name)
		}
		p := res.Proposals[of]
		if p.State != "proposed" || p.Price != s.Price || p.Currency != currency || int(p.Quantity) != len(numbers()) {
			return nil, buyer.errorf("has an offer of %s that is %s: %d for %s %s", s.Name, p.State, p.Quantity, p.Price, p.Currency)
		}
	}
	if len(res.Proposals) != len(d.cfg.Sellers) {
		return nil, buyer.errorf("has %d offers, want %d", len(res.Proposals), len(d.cfg.Sellers))
	}
	return res.Proposals, nil
}

func summaries(offers []*openmeshv1.Proposal) []map[string]any {
	all := []map[string]any{}
	for _, p := range offers {
		all = append(all, map[string]any{
			"proposal": p.Proposal, "seller": p.Seller, "price": p.Price, "currency": p.Currency, "quantity": p.Quantity, "state": p.State,
		})
	}
	return all
}

// choose returns the cheapest offer from the region that the buyer wants.
func (d *Deal) choose(ctx context.Context) (*openmeshv1.Proposal, error) {
	offers, err := d.answers(ctx)
	if err != nil {
		return nil, err
	}
	var best *openmeshv1.Proposal
	for _, p := range offers {
		full, err := d.cfg.Buyer.API.Market.ShowProposal(ctx, &openmeshv1.ShowProposalRequest{Proposal: p.Proposal})
		if err != nil {
			return nil, d.cfg.Buyer.At(err)
		}
		var doc struct{ Region string }
		if err := json.Unmarshal([]byte(full.Json), &doc); err != nil {
			return nil, d.cfg.Buyer.errorf("read the offer %s: %w", p.Proposal, err)
		}
		if strings.HasPrefix(doc.Region, wanted) && (best == nil || cheaper(full.Price, best.Price)) {
			best = full
		}
	}
	if best == nil || best.Seller != d.seller().Agent {
		return nil, d.cfg.Buyer.errorf("finds no offer of %s that is the cheapest from a region %s*", d.seller().Name, wanted)
	}
	return best, nil
}

// cheaper compares two amounts that have the same number of decimals.
func cheaper(a, b string) bool { return len(a) < len(b) || len(a) == len(b) && a < b }

// Haggle: the buyer wants to pay less, and the seller comes down by itself.
func (d *Deal) Haggle(ctx context.Context, r Report) error {
	buyer, seller := d.cfg.Buyer, d.seller()
	best, err := d.choose(ctx)
	if err != nil {
		return err
	}
	d.proposal = best.Proposal
	counter := fmt.Sprintf(`{"terms":{"price":{"amount":%q}}}`, bid)
	if _, err := buyer.API.Market.Counter(ctx, &openmeshv1.OfferRequest{Proposal: d.proposal, Json: counter}); err != nil {
		return buyer.At(err)
	}
	var p *openmeshv1.Proposal
	if err := until(ctx, func() (err error) { p, err = d.amended(ctx); return err }); err != nil {
		return err
	}
	if terms := changedTerms(p.Moves[len(p.Moves)-1]); !slices.Equal(terms, []string{"/terms/price/amount"}) {
		return buyer.errorf("was told that these terms are other ones now: %v", terms)
	}
	r.Fact("proposal", d.proposal)
	r.Fact("prices", []string{best.Price, bid, p.Price})
	r.Fact("moves", len(p.Moves))
	r.Say(fmt.Sprintf("%s wants the work done in Europe, where %s is the cheapest, and counters: %s %s", buyer.Name, seller.Name, bid, currency),
		fmt.Sprintf("%s would not sell below %s, and amends its offer: %s %s instead of %s", seller.Name, Stalls()[Chosen].Floor, p.Price, currency, best.Price))
	return nil
}

// amended is the negotiation with the seller, once that has come down to what is agreed.
func (d *Deal) amended(ctx context.Context) (*openmeshv1.Proposal, error) {
	buyer := d.cfg.Buyer
	p, err := buyer.API.Market.ShowProposal(ctx, &openmeshv1.ShowProposalRequest{Proposal: d.proposal})
	if err != nil {
		return nil, buyer.At(err)
	}
	if p.State != "amended" || p.Price != agreed || p.Round != 3 || p.Turn != "buyer" {
		return nil, buyer.errorf("has the negotiation with %s %s at %s in round %d, want it amended to %s in round 3", d.seller().Name, p.State, p.Price, p.Round, agreed)
	}
	return p, nil
}

// changedTerms are the terms that a move changes, as JSON pointers.
func changedTerms(m *openmeshv1.Move) (terms []string) {
	for _, c := range m.Changes {
		if strings.HasPrefix(c.Path, "/terms/") {
			terms = append(terms, c.Path)
		}
	}
	return terms
}

// Sign: the buyer accepts, both sign the same contract, and the others are told that
// nothing is left to sell.
func (d *Deal) Sign(ctx context.Context, r Report) error {
	buyer, seller := d.cfg.Buyer, d.seller()
	done, err := buyer.API.Market.Accept(ctx, &openmeshv1.MoveRequest{Proposal: d.proposal})
	if err != nil {
		return buyer.At(err)
	}
	if err := until(ctx, func() error { return d.signed(ctx, done.Contract) }); err != nil {
		return err
	}
	others, err := d.turnDown(ctx)
	if err != nil {
		return err
	}
	c := d.contract
	r.Fact("contract", c.Contract)
	r.Fact("buyer", c.Buyer)
	r.Fact("seller", c.Seller)
	r.Fact("total", c.Total+" "+c.Currency)
	r.Fact("valid_until", c.ValidUntil)
	r.Say(fmt.Sprintf("%s accepts; %s and %s have signed contract %s", buyer.Name, buyer.Name, seller.Name, brief(c.Contract)),
		fmt.Sprintf("%d × %s %s = %s %s for %s; valid until %s", c.Quantity, c.Price, c.Currency, c.Total, c.Currency, c.Capability, c.ValidUntil),
		fmt.Sprintf("%s turns %s down, with thanks", buyer.Name, strings.Join(others, " and ")))
	return nil
}

// brief is as much of an id as people need.
func brief(id string) string { return id[:min(len(id), 8)] }

// signed checks that both sides have the same contract with both signatures, on the
// terms that were agreed on.
func (d *Deal) signed(ctx context.Context, id string) error {
	var text string
	for _, p := range []*Party{d.cfg.Buyer, d.seller()} {
		c, err := p.API.Market.ShowContract(ctx, &openmeshv1.ShowContractRequest{Contract: id})
		if err != nil {
			return p.At(err)
		}
		whole := len(c.Signatures) == 2 && c.Signatures[0].Ok && c.Signatures[1].Ok
		if c.State != "contracted" || !whole || c.Total != total || c.Buyer != d.cfg.Buyer.Agent || c.Seller != d.seller().Agent {
			return p.errorf("has contract %s as %s, for %s %s, signed by both: %t", id, c.State, c.Total, c.Currency, whole)
		}
		if text != "" && c.Json != text {
			return p.errorf("has signed another text: %s, not %s", c.Json, text)
		}
		text, d.contract = c.Json, c
	}
	return nil
}

// turnDown rejects the offers that were not accepted, and checks that the request is
// closed. It returns whose they were.
func (d *Deal) turnDown(ctx context.Context) (names []string, err error) {
	market := d.cfg.Buyer.API.Market
	res, err := market.ListProposals(ctx, &openmeshv1.ListProposalsRequest{Rfp: d.rfp})
	if err != nil {
		return nil, d.cfg.Buyer.At(err)
	}
	for _, p := range res.Proposals {
		if p.State != "proposed" {
			continue
		}
		if _, err := market.Reject(ctx, &openmeshv1.MoveRequest{Proposal: p.Proposal, Reason: "bought elsewhere, thank you"}); err != nil {
			return nil, d.cfg.Buyer.At(err)
		}
		names = append(names, d.nameOf(p.Seller))
	}
	rfp, err := market.ShowRFP(ctx, &openmeshv1.ShowRFPRequest{Rfp: d.rfp})
	if err != nil {
		return nil, d.cfg.Buyer.At(err)
	}
	if len(names) != len(d.cfg.Sellers)-1 || rfp.State != "closed" || int(rfp.Awarded) != len(numbers()) {
		return nil, d.cfg.Buyer.errorf("has turned down %v, and the request is %s with %d awarded", names, rfp.State, rfp.Awarded)
	}
	slices.Sort(names)
	return names, nil
}
