package deal

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/wire"
)

// Exclude: who is no party to the contract gets nothing for it, also by a daemon, the
// impostor's, that takes any contract for its own.
func (d *Deal) Exclude(ctx context.Context, r Report, impostor *Party) error {
	seller, passer := d.seller(), d.cfg.Passer
	if err := d.refused(ctx, passer, "", wire.Denied); err != nil {
		return err
	}
	if err := d.refused(ctx, passer, d.contract.Contract, wire.NotFound); err != nil {
		return err
	}
	if err := d.refused(ctx, impostor, d.contract.Contract, wire.NotFound); err != nil {
		return err
	}
	if err := d.heard(ctx, impostor); err != nil {
		return err
	}
	if err := d.used(ctx, 0); err != nil {
		return err
	}
	r.Fact("without_contract", wire.Denied.String())
	r.Fact("with_the_contract_of_another", wire.NotFound.String())
	r.Fact("used", 0)
	r.Say(fmt.Sprintf("%s calls %s without a contract: %s", passer.Name, seller.Name, wire.Denied),
		fmt.Sprintf("%s, whose daemon was changed to take any contract for its own, cites %s: %s, says %s", impostor.Name, brief(d.contract.Contract), wire.NotFound, seller.Name),
		"nothing of the contract is used")
	return nil
}

// refused lets a party call the seller, who must refuse with this code.
func (d *Deal) refused(ctx context.Context, p *Party, contract string, want wire.Code) error {
	res, err := d.call(ctx, p, contract, numbers()[0])
	if err == nil {
		return p.errorf("was answered %s", res.GetJson())
	}
	if code := wire.CodeOf(err); code != want {
		return p.errorf("was refused with %s, want %s: %w", code, want, err)
	}
	return nil
}

// heard checks that it is the seller who refused a party: its log has, or will have in a
// moment, what that one said.
func (d *Deal) heard(ctx context.Context, p *Party) error {
	seller := d.seller()
	return until(ctx, func() error {
		res, err := seller.API.Audit.List(ctx, &openmeshv1.ListAuditRequest{Kind: "signal", Last: true})
		if err == nil && !slices.ContainsFunc(res.Entries, func(e *openmeshv1.AuditEntry) bool { return e.Agent == p.Agent && e.Direction == "received" }) {
			err = fmt.Errorf("has no offer of a session by %s in its log", p.Name)
		}
		return seller.At(err)
	})
}

func (d *Deal) call(ctx context.Context, p *Party, contract, number string) (*openmeshv1.CallResponse, error) {
	body, err := json.Marshal(map[string]string{"number": number})
	if err != nil {
		return nil, err
	}
	return p.API.Session.Call(ctx, &openmeshv1.CallRequest{
		Target: d.seller().Agent, Capability: Capability, Contract: contract, Body: &openmeshv1.CallRequest_Json{Json: string(body)},
	})
}

// used checks how many units of the contract the seller says are used.
func (d *Deal) used(ctx context.Context, want int) error {
	seller := d.seller()
	c, err := seller.API.Market.ShowContract(ctx, &openmeshv1.ShowContractRequest{Contract: d.contract.Contract})
	if err == nil && int(c.Used) != want {
		err = fmt.Errorf("says %d of %d units are used, want %d", c.Used, c.Quantity, want)
	}
	return seller.At(err)
}

// Work: the buyer gets what it bought, and nothing more.
func (d *Deal) Work(ctx context.Context, r Report) error {
	buyer, seller := d.cfg.Buyer, d.seller()
	var lines []string
	answers := map[string][]string{}
	for i, number := range numbers() {
		factors, err := d.factors(ctx, number)
		if err != nil {
			return err
		}
		if err := d.used(ctx, i+1); err != nil {
			return err
		}
		answers[number] = factors
		lines = append(lines, fmt.Sprintf("%s = %s  (%d of %d)", number, strings.Join(factors, " × "), i+1, len(numbers())))
	}
	if err := d.refused(ctx, buyer, d.contract.Contract, wire.Denied); err != nil {
		return err
	}
	if err := d.used(ctx, len(numbers())); err != nil {
		return err
	}
	r.Fact("answers", answers)
	r.Fact("used", len(numbers()))
	r.Fact("one_more", wire.Denied.String())
	r.Say(append(append([]string{fmt.Sprintf("%s works for %s, who multiplies to see that it is right:", seller.Name, buyer.Name)}, lines...),
		fmt.Sprintf("%s asks once more: %s, the contract is used up", buyer.Name, wire.Denied))...)
	return nil
}

// factors has a number factored under the contract.
func (d *Deal) factors(ctx context.Context, number string) ([]string, error) {
	buyer := d.cfg.Buyer
	res, err := d.call(ctx, buyer, d.contract.Contract, number)
	if err != nil {
		return nil, buyer.At(err)
	}
	var answer struct{ Factors []string }
	if err := json.Unmarshal([]byte(res.GetJson()), &answer); err != nil {
		return nil, buyer.errorf("read the answer %.100q: %w", res.GetJson(), err)
	}
	if res.Agent != d.seller().Agent {
		return nil, buyer.errorf("was answered by %s", d.nameOf(res.Agent))
	}
	return answer.Factors, buyer.At(check(number, answer.Factors))
}

// Settle: both say that the work was done, and the contract is fulfilled.
func (d *Deal) Settle(ctx context.Context, r Report) error {
	for _, p := range []*Party{d.seller(), d.cfg.Buyer} {
		_, err := p.API.Market.Settle(ctx, &openmeshv1.SettleRequest{Proposal: d.contract.Contract, Outcome: "fulfilled"})
		if err != nil {
			return p.At(err)
		}
	}
	for _, p := range []*Party{d.seller(), d.cfg.Buyer} {
		err := until(ctx, func() error {
			c, err := p.API.Market.ShowContract(ctx, &openmeshv1.ShowContractRequest{Contract: d.contract.Contract})
			if err == nil && (c.State != "fulfilled" || len(c.Settlements) != 2) {
				err = fmt.Errorf("has contract %s as %s, settled by %d", c.Contract, c.State, len(c.Settlements))
			}
			return p.At(err)
		})
		if err != nil {
			return err
		}
	}
	r.Fact("state", "fulfilled")
	r.Say(fmt.Sprintf("%s and %s both sign that the work was done: contract %s is fulfilled", d.seller().Name, d.cfg.Buyer.Name, brief(d.contract.Contract)))
	return nil
}
