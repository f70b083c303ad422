// Package strategy sells by itself, within what a rule allows. It is pure: what
// this agent does depends on the rule and on what was said, not on chance or on
// who asks.
//
//	finance/fx-pricing price=12.00 floor=9.00 step=0.50 currency=EUR rounds=5
//
//	request                       propose 12.00, or what the buyer would pay at most
//	counteroffer of 11.50         accept: the next offer would be that
//	counteroffer of 10.00         amend to 11.50; then to 11.00, 10.50, …
//	after 5 offers, at least 9.00 accept: better than no deal
//	after 5 offers, less          amend to 9.00, the last word; after that reject
//
// A counteroffer that changes more than the price is answered with this agent's own
// terms, for a rule knows nothing of them.
package strategy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"openmesh/protocols/market"
	"openmesh/protocols/market/document"
)

// Decision is a move to make; of kind 0 none.
type Decision struct {
	Kind     market.Kind
	Document json.RawMessage // of an offer: what is not as in the request or in this agent's last offer
	Reason   string
}

// Situation is what was said about a request so far.
type Situation struct {
	Own    *document.Proposal // this agent's last offer; nil: it has made none
	Table  *document.Proposal // the buyer's, if that is on the table
	Offers int                // made by this agent
	Legal  []market.Kind      // what it may do now
}

// Sell decides for the seller, whose turn it is.
func Sell(r Rule, rfp *document.RFP, s Situation, now time.Time) Decision {
	switch {
	case s.Own == nil:
		return r.open(rfp, now)
	case s.Table == nil:
		return Decision{}
	}
	next := r.concession(s.Own.Terms.Price.Amount)
	theirs := s.Table.Terms.Price.Amount
	agreed, last := onlyPrice(s.Own, s.Table), s.Offers >= r.Rounds
	switch {
	case agreed && (theirs.Cmp(next) >= 0 || last && theirs.Cmp(r.Floor) >= 0):
		return Decision{Kind: market.Accept}
	case !last:
		return r.insist(s, next, now, "")
	case s.Own.Terms.Price.Amount.Cmp(r.Floor) > 0:
		return r.insist(s, r.Floor, now, "the last word")
	}
	return Decision{Kind: market.Reject, Reason: "no agreement on the terms"}
}

// open answers the request.
func (r Rule) open(rfp *document.RFP, now time.Time) Decision {
	price := r.Price
	if low := rfp.Price.Min; !low.IsZero() && price.Cmp(low) < 0 {
		price = low
	}
	if high := rfp.Price.Max; !high.IsZero() && price.Cmp(high) > 0 {
		price = high
	}
	if price.Cmp(r.Floor) < 0 {
		return Decision{Kind: market.Reject, Reason: "no offer within the price range"}
	}
	return decide(market.Propose, r.offer(price, now))
}

// concession is the price that follows price.
func (r Rule) concession(price document.Decimal) document.Decimal {
	if next := minus(price, r.Step); next.Cmp(r.Floor) > 0 {
		return next
	}
	return r.Floor
}

// onlyPrice reports whether two offers differ in nothing but price, validity and
// what is said beside the terms.
func onlyPrice(a, b *document.Proposal) bool {
	return a.Terms.Price.Currency == b.Terms.Price.Currency && a.Terms.Quantity == b.Terms.Quantity &&
		a.Terms.Delivery.By.Equal(b.Terms.Delivery.By) && a.Terms.Delivery.Terms == b.Terms.Delivery.Terms &&
		bytes.Equal(a.Details, b.Details)
}

// insist offers another price on this agent's terms: in place of its own offer or,
// once the buyer has changed his, as a counteroffer to that.
func (r Rule) insist(s Situation, price document.Decimal, now time.Time, note string) Decision {
	doc := r.offer(price, now)
	terms := doc["terms"].(map[string]any)
	terms["quantity"] = s.Own.Terms.Quantity
	terms["delivery"] = deliveryOf(s.Own.Terms.Delivery)
	doc["details"], doc["details_schema"], doc["note"] = nil, nil, nil
	if s.Own.Details != nil {
		doc["details"] = s.Own.Details
	}
	if s.Own.DetailsSchema != nil {
		doc["details_schema"] = s.Own.DetailsSchema
	}
	if note != "" {
		doc["note"] = note
	}
	if slices.Contains(s.Legal, market.Amend) {
		return decide(market.Amend, doc)
	}
	return decide(market.Counter, doc)
}

// deliveryOf is a delivery in which nothing of another one is left.
func deliveryOf(d document.Delivery) any {
	if d == (document.Delivery{}) {
		return nil
	}
	out := map[string]any{"by": nil, "terms": nil}
	if !d.By.IsZero() {
		out["by"] = d.By
	}
	if d.Terms != "" {
		out["terms"] = d.Terms
	}
	return out
}

// offer is a document that offers a price: a merge patch (RFC 7396), so that null
// takes out what another offer has there.
func (r Rule) offer(price document.Decimal, now time.Time) map[string]any {
	doc := map[string]any{
		"terms":       map[string]any{"price": document.Money{Amount: price, Currency: r.Currency}},
		"valid_until": now.Add(r.Valid).UTC().Truncate(time.Second),
	}
	if r.Region != "" {
		doc["region"] = r.Region
	}
	return doc
}

func decide(k market.Kind, doc map[string]any) Decision {
	b, err := json.Marshal(doc)
	if err != nil {
		panic(fmt.Sprintf("write an offer: %v", err)) // text, amounts and times always marshal
	}
	return Decision{Kind: k, Document: b}
}

// minus returns a - b, at least 0, with the decimals of the more exact one.
func minus(a, b document.Decimal) document.Decimal {
	decimals := max(decimalsOf(a), decimalsOf(b))
	x, y := scaled(a, decimals), scaled(b, decimals)
	if x.Sub(x, y); x.Sign() < 0 {
		return zero()
	}
	text := fmt.Sprintf("%0*d", decimals+1, x)
	if at := len(text) - decimals; decimals > 0 {
		text = text[:at] + "." + text[at:]
	}
	return must(text)
}

func decimalsOf(d document.Decimal) int {
	_, part, _ := strings.Cut(d.String(), ".")
	return len(part)
}

// scaled returns d × 10^decimals.
func scaled(d document.Decimal, decimals int) *big.Int {
	text := strings.Replace(d.String(), ".", "", 1) + strings.Repeat("0", decimals-decimalsOf(d))
	n, _ := new(big.Int).SetString(text, 10)
	return n
}

func zero() document.Decimal { return must("0") }

// must reads what was written here.
func must(text string) document.Decimal {
	d, err := document.ParseDecimal(text)
	if err != nil {
		panic(err)
	}
	return d
}
