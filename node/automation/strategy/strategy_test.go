package strategy_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"openmesh/node/automation/strategy"
	"openmesh/protocols/market"
	"openmesh/protocols/market/document"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

const fx = "finance/fx-pricing price=12.00 floor=9.00 step=0.50 currency=EUR rounds=3"

func rule(t *testing.T, text string) strategy.Rule {
	t.Helper()
	r, err := strategy.ParseRule(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func decimal(t *testing.T, s string) document.Decimal {
	t.Helper()
	if s == "" {
		return document.Decimal{}
	}
	d, err := document.ParseDecimal(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func request(t *testing.T, low, high string) *document.RFP {
	return &document.RFP{
		Capability: "finance/fx-pricing", Quantity: 10,
		Price: document.PriceRange{Min: decimal(t, low), Max: decimal(t, high), Currency: "EUR"},
	}
}

func offer(t *testing.T, price string) *document.Proposal {
	return &document.Proposal{Terms: document.Terms{Price: document.Money{Amount: decimal(t, price), Currency: "EUR"}, Quantity: 10}}
}

// said is a decision in short: the move and its price.
func said(d strategy.Decision) string {
	var doc struct {
		Terms struct{ Price struct{ Amount string } }
	}
	_ = json.Unmarshal(d.Document, &doc)
	if d.Kind == 0 {
		return "wait"
	}
	return strings.TrimSpace(d.Kind.String() + " " + doc.Terms.Price.Amount)
}

func TestFirstOffer(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ low, high, want string }{
		{"", "", "propose 12.00"},
		{"1", "20", "propose 12.00"},
		{"", "12.00", "propose 12.00"},
		{"", "10.25", "propose 10.25"},
		{"", "9", "propose 9"},
		{"", "8.99999999", "reject"},
		{"13.5", "", "propose 13.5"},
	} {
		d := strategy.Sell(rule(t, fx), request(t, tc.low, tc.high), strategy.Situation{}, now)
		if said(d) != tc.want {
			t.Errorf("%s to %s: %s, want %s", tc.low, tc.high, said(d), tc.want)
		}
	}
	d := strategy.Sell(rule(t, fx+" region=eu-central valid=90s"), request(t, "", ""), strategy.Situation{}, now)
	want := `{"region":"eu-central","terms":{"price":{"amount":"12.00","currency":"EUR"}},"valid_until":"2026-11-22T12:01:30Z"}`
	if string(d.Document) != want {
		t.Errorf("%s", d.Document)
	}
}

// A buyer's counteroffers, one after another, and what each is answered with.
func TestNegotiation(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		rule     string
		counters string
		want     string
	}{
		"meets the next step":        {fx, "11.50", "accept"},
		"offers more than asked":     {fx, "15", "accept"},
		"climbs":                     {fx, "10 10.50 10.99", "amend 11.50, amend 11.00, accept"},
		"climbs to the step":         {fx, "10 11.00", "amend 11.50, accept"},
		"stays above the floor":      {fx, "9 9 9", "amend 11.50, amend 11.00, accept"},
		"stays below the floor":      {fx, "5 5 5 5 5", "amend 11.50, amend 11.00, amend 9.00, reject"},
		"takes the last word":        {fx, "5 5 5 9.00", "amend 11.50, amend 11.00, amend 9.00, accept"},
		"wide steps":                 {"finance price=12 floor=9 step=2 currency=EUR", "5 5 5 5 5", "amend 10, amend 9, amend 9, amend 9, reject"},
		"firm":                       {"finance price=12 currency=EUR rounds=2", "11 11 12", "amend 12, reject"},
		"odd decimals":               {"finance price=1 floor=0.1 step=0.333 currency=EUR", "0.001 0.001", "amend 0.667, amend 0.334"},
		"a step beyond the price":    {"finance price=1 floor=0 step=5 currency=EUR rounds=1", "0.5", "accept"},
		"a step beyond all of it":    {"finance price=1 floor=0 step=5 currency=EUR rounds=9", "0", "accept"},
		"one round, below the floor": {"finance price=3 floor=2 step=1 currency=EUR rounds=1", "1 1", "amend 2, reject"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rule(t, tc.rule)
			rfp := request(t, "", "")
			s := strategy.Situation{Own: offer(t, r.Price.String()), Offers: 1, Legal: []market.Kind{market.Counter, market.Accept, market.Amend}}
			var all []string
			for _, price := range strings.Fields(tc.counters) {
				s.Table = offer(t, price)
				d := strategy.Sell(r, rfp, s, now)
				all = append(all, said(d))
				if d.Kind != market.Amend {
					break
				}
				_, amount, _ := strings.Cut(said(d), " ")
				if decimal(t, amount).Cmp(r.Floor) < 0 {
					t.Errorf("%s is below the floor", amount)
				}
				s.Own, s.Offers = offer(t, amount), s.Offers+1
			}
			if got := strings.Join(all, ", "); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

// Whatever else a buyer changes, the price alone does not buy it.
func TestOtherTermsAreNotAccepted(t *testing.T) {
	t.Parallel()
	r := rule(t, fx)
	own := offer(t, "12.00")
	own.Terms.Delivery, own.Details = document.Delivery{Terms: "by post"}, json.RawMessage(`{"a":1}`)
	for name, change := range map[string]func(*document.Proposal){
		"quantity": func(p *document.Proposal) { p.Terms.Quantity = 1_000_000_000 },
		"currency": func(p *document.Proposal) { p.Terms.Price.Currency = "JPY" },
		"time":     func(p *document.Proposal) { p.Terms.Delivery.By = now },
		"delivery": func(p *document.Proposal) { p.Terms.Delivery.Terms = "yesterday" },
		"details":  func(p *document.Proposal) { p.Details = json.RawMessage(`{"a":2}`) },
	} {
		theirs := *own
		theirs.Terms.Price.Amount = decimal(t, "100")
		change(&theirs)
		s := strategy.Situation{Own: own, Table: &theirs, Offers: 1, Legal: []market.Kind{market.Counter, market.Accept}}
		d := strategy.Sell(r, request(t, "", ""), s, now)
		want := `{"details":{"a":1},"details_schema":null,"note":null,` +
			`"terms":{"delivery":{"by":null,"terms":"by post"},"price":{"amount":"11.50","currency":"EUR"},"quantity":10},"valid_until":"2026-11-22T12:10:00Z"}`
		if d.Kind != market.Counter || string(d.Document) != want {
			t.Errorf("%s: %s %s", name, d.Kind, d.Document)
		}
		s.Offers, s.Own = 9, offer(t, "9.00")
		if d := strategy.Sell(r, request(t, "", ""), s, now); d.Kind != market.Reject {
			t.Errorf("%s, at last: %s", name, said(d))
		}
	}
	if d := strategy.Sell(r, request(t, "", ""), strategy.Situation{Own: own, Offers: 1}, now); d.Kind != 0 {
		t.Errorf("without a counteroffer: %s", said(d))
	}
}

func TestParseRule(t *testing.T) {
	t.Parallel()
	r := rule(t, "finance/fx-pricing price=12.00 floor=9.00 step=0.50 currency=EUR rounds=5 region=eu-central valid=10m")
	if again := rule(t, r.String()); again != r || r.Rounds != 5 || r.Valid != 10*time.Minute || r.Region != "eu-central" {
		t.Errorf("%+v is written and read as %+v", r, again)
	}
	if r := rule(t, "a price=1.50 currency=EUR"); r.Floor != r.Price || r.Rounds != 5 || r.Valid != 10*time.Minute || rule(t, r.String()) != r {
		t.Errorf("defaults: %+v", r)
	}
	for text, want := range map[string]string{
		"":                                      "is empty",
		"Finance price=1 currency=EUR":          "no name of a capability",
		"a price=1":                             "has no currency",
		"a currency=EUR":                        "has no price",
		"a price=1,50 currency=EUR":             `price "1,50", which is not an amount`,
		"a price=-1 currency=EUR":               "which is not an amount",
		"a price=1 currency=euro":               "ISO 4217",
		"a price=1 currency=XXQ":                "ISO 4217",
		"a price=1 currency=EUR floor=2":        "floor 2 above price 1",
		"a price=2 currency=EUR floor=1":        "no step",
		"a price=1 currency=EUR rounds=0":       "a number from 1 to 32",
		"a price=1 currency=EUR rounds=x":       "a number from 1 to 32",
		"a price=1 currency=EUR valid=1h10":     "a duration",
		"a price=1 currency=EUR valid=1ms":      "a duration",
		"a price=1 currency=EUR region=EU":      "a region",
		"a price=1 price=2 currency=EUR":        "price twice",
		"a price=1 currency=EUR discount=1":     `has "discount"; its terms are price`,
		"a price=1 currency=EUR cheap":          `"cheap", which is not NAME=VALUE`,
		"a price=1234567890123456 currency=EUR": "which is not an amount",
	} {
		if r, err := strategy.ParseRule(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v; want %q", text, r, err, want)
		}
	}
}

func TestMatch(t *testing.T) {
	t.Parallel()
	rules := []strategy.Rule{
		rule(t, "finance/fx-pricing price=1 currency=USD"), rule(t, "finance/fx-pricing price=2 currency=EUR region=eu-central"),
		rule(t, "finance price=3 currency=EUR"),
	}
	for _, tc := range []struct {
		capability, currency string
		regions              []string
		want                 string
	}{
		{"finance/fx-pricing", "USD", nil, "1"},
		{"finance/fx-pricing", "EUR", nil, "2"},
		{"finance/fx-pricing", "EUR", []string{"us-east", "eu-central"}, "2"},
		{"finance/fx-pricing", "EUR", []string{"us-east"}, ""},
		{"finance/loans", "EUR", nil, "3"},
		{"finance", "EUR", nil, "2"},
		{"finance/fx-pricings", "USD", nil, ""},
		{"weather", "EUR", nil, ""},
	} {
		rfp := &document.RFP{Capability: tc.capability, Price: document.PriceRange{Currency: tc.currency}, Constraints: document.Constraints{Regions: tc.regions}}
		if r, ok := strategy.Match(rules, rfp); r.Price.String() != tc.want || ok != (tc.want != "") {
			t.Errorf("%+v: %v", tc, r)
		}
	}
}

// What is read as a rule is written and read as the same one, and makes offers that
// are amounts.
func FuzzParseRule(f *testing.F) {
	f.Add(fx)
	f.Add("a price=0.00000001 floor=0 step=999 currency=JPY valid=720h")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := strategy.ParseRule(text)
		if err != nil {
			return
		}
		if again, err := strategy.ParseRule(r.String()); err != nil || again != r {
			t.Fatalf("%q is written and read as %q, %v", r, again, err)
		}
		own := &document.Proposal{Terms: document.Terms{Price: document.Money{Amount: r.Price, Currency: r.Currency}}}
		zero, _ := document.ParseDecimal("0")
		low := &document.Proposal{Terms: document.Terms{Price: document.Money{Amount: zero, Currency: r.Currency}}}
		d := strategy.Sell(r, &document.RFP{}, strategy.Situation{Own: own, Table: low, Offers: 1}, now)
		if fmt.Sprint(d.Kind) == "" || d.Kind != market.Accept && d.Kind != market.Reject && d.Document == nil {
			t.Errorf("%q: %+v", text, d)
		}
	})
}
