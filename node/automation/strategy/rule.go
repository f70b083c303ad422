package strategy

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"openmesh/protocols/descriptor"
	"openmesh/protocols/market/document"
)

// Rule is how to sell a capability. Prices are for one unit.
type Rule struct {
	Capability string           // name or prefix
	Price      document.Decimal // of the first offer
	Floor      document.Decimal // the lowest; default the price
	Step       document.Decimal // of each concession; default 0: the price is firm
	Currency   string           // ISO 4217
	Rounds     int              // offers before the last word; default 5
	Region     string           // where the work is done; may be empty
	Valid      time.Duration    // of each offer; default 10m
}

// Syntax is what a rule looks like.
const Syntax = "CAPABILITY price=12.00 currency=EUR [floor=9.00 step=0.50 rounds=5 region=eu-central valid=10m]"

// Limits on a rule.
const (
	maxRounds = 32
	maxDigits = 15 // before the point, as in the schemas
	maxValid  = 30 * 24 * time.Hour
)

var regionPattern = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)

// ParseRule reads a rule as [Syntax] says. The error is the end of a sentence that
// begins with the text, such as "has no currency".
func ParseRule(text string) (Rule, error) {
	words := strings.Fields(text)
	if len(words) == 0 {
		return Rule{}, errors.New("is empty")
	}
	r := Rule{Capability: words[0], Rounds: 5, Valid: 10 * time.Minute}
	if err := descriptor.CheckName(r.Capability); err != nil {
		return Rule{}, fmt.Errorf("begins with %q, which is no name of a capability", r.Capability)
	}
	seen := map[string]bool{}
	for _, w := range words[1:] {
		name, value, ok := strings.Cut(w, "=")
		switch {
		case !ok:
			return Rule{}, fmt.Errorf("has %q, which is not NAME=VALUE", w)
		case seen[name]:
			return Rule{}, fmt.Errorf("has %s twice", name)
		}
		seen[name] = true
		if err := r.set(name, value); err != nil {
			return Rule{}, err
		}
	}
	return r.complete()
}

// set reads one term.
func (r *Rule) set(name, value string) error {
	var err error
	ok := true
	switch name {
	case "price":
		r.Price, err = amountOf(value)
	case "floor":
		r.Floor, err = amountOf(value)
	case "step":
		r.Step, err = amountOf(value)
	case "currency":
		r.Currency, ok = value, document.IsCurrency(value)
	case "rounds":
		r.Rounds, err = strconv.Atoi(value)
		ok = r.Rounds >= 1 && r.Rounds <= maxRounds
	case "region":
		r.Region, ok = value, regionPattern.MatchString(value)
	case "valid":
		r.Valid, err = time.ParseDuration(value)
		ok = r.Valid >= time.Second && r.Valid <= maxValid
	default:
		return fmt.Errorf("has %q; its terms are price, currency, floor, step, rounds, region and valid", name)
	}
	if err != nil || !ok {
		return fmt.Errorf("has %s %q, which is not %s", name, value, wanted[name])
	}
	return nil
}

// amountOf reads an amount that an offer can have.
func amountOf(s string) (document.Decimal, error) {
	if whole, _, _ := strings.Cut(s, "."); len(whole) > maxDigits {
		return document.Decimal{}, errors.New("too large")
	}
	return document.ParseDecimal(s)
}

// wanted says what terms are, for errors.
var wanted = map[string]string{
	"price": amount, "floor": amount, "step": amount,
	"currency": "a currency code of ISO 4217, such as EUR",
	"rounds":   fmt.Sprintf("a number from 1 to %d", maxRounds),
	"region":   "a region, such as eu-central",
	"valid":    "a duration from 1s to 720h, such as 10m",
}

const amount = "an amount, such as 12.50"

// complete checks terms against each other and sets what was left out.
func (r Rule) complete() (Rule, error) {
	switch {
	case r.Price.IsZero():
		return Rule{}, errors.New("has no price")
	case r.Currency == "":
		return Rule{}, errors.New("has no currency")
	case r.Floor.IsZero():
		r.Floor = r.Price
	}
	if r.Step.IsZero() {
		r.Step = zero()
	}
	switch {
	case r.Floor.Cmp(r.Price) > 0:
		return Rule{}, fmt.Errorf("has floor %s above price %s", r.Floor, r.Price)
	case r.Step.Cmp(zero()) == 0 && r.Floor.Cmp(r.Price) < 0:
		return Rule{}, errors.New("has a floor below its price and no step to get there")
	}
	return r, nil
}

// String writes the rule as [ParseRule] reads it.
func (r Rule) String() string {
	text := fmt.Sprintf("%s price=%s currency=%s floor=%s step=%s rounds=%d", r.Capability, r.Price, r.Currency, r.Floor, r.Step, r.Rounds)
	if r.Region != "" {
		text += " region=" + r.Region
	}
	return text + " valid=" + r.Valid.String()
}

// Match returns the first of rules by which a request can be answered: for that
// capability, in its currency and region.
func Match(rules []Rule, rfp *document.RFP) (Rule, bool) {
	i := slices.IndexFunc(rules, func(r Rule) bool {
		return r.Currency == rfp.Price.Currency &&
			(descriptor.Covers(r.Capability, rfp.Capability) || descriptor.Covers(rfp.Capability, r.Capability)) &&
			(len(rfp.Constraints.Regions) == 0 || slices.Contains(rfp.Constraints.Regions, r.Region))
	})
	if i < 0 {
		return Rule{}, false
	}
	return rules[i], true
}
