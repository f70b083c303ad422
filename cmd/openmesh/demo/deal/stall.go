package deal

import (
	"encoding/json"
	"fmt"
	"math/big"
)

// Stall is a seller: where it works, and at which price for one number.
type Stall struct {
	Name, Region       string
	Price, Floor, Step string // Floor as Price, and no Step: it does not haggle
}

// Rule is the stall's line of market.sell in the configuration.
func (s Stall) Rule() string {
	rule := fmt.Sprintf("%s price=%s floor=%s currency=%s region=%s", Capability, s.Price, s.Floor, currency, s.Region)
	if s.Step != "" {
		rule += " step=" + s.Step
	}
	return rule
}

// Terms says the same to people.
func (s Stall) Terms() string {
	if s.Step == "" {
		return fmt.Sprintf("%s (%s) asks %s %s, and not less", s.Name, s.Region, s.Price, currency)
	}
	return fmt.Sprintf("%s (%s) asks %s %s, and would go down to %s", s.Name, s.Region, s.Price, currency, s.Floor)
}

// Stalls are the sellers.
func Stalls() []Stall {
	return []Stall{
		{Name: "trent", Region: "eu-central", Price: "9.50", Floor: "8.75", Step: "0.50"},
		{Name: "ursula", Region: "us-east", Price: "8.90", Floor: "8.90"},
		{Name: "victor", Region: "eu-west", Price: "11.00", Floor: "9.00", Step: "1.00"},
	}
}

// Capability is what is bought: see [Factor].
const Capability = "demo/math/factor"

// Chosen is the index in [Stalls] of the seller that the buyer comes to terms with: the
// cheapest where the buyer wants the work to be done.
const Chosen = 0

// How the buyer haggles: it bids so little that the chosen one comes down by one step.
const (
	currency = "EUR"
	limit    = "12.00" // that the buyer would pay at most, for one number as all prices
	wanted   = "eu-"   // prefix of regions
	bid      = "8.50"
	agreed   = "9.00"
	total    = "27.00" // for all numbers
)

// numbers are the work: one unit each.
func numbers() []string { return []string{"8051", "600851475143", "1000036000099"} }

// Factor does the work: of {"number": "8051"} it makes {"factors": ["83", "97"]}.
func Factor(request []byte) (map[string]any, error) {
	const most = 1 << 42 // which trial division does in a moment
	var req struct{ Number string }
	if err := json.Unmarshal(request, &req); err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	n, ok := new(big.Int).SetString(req.Number, 10)
	if !ok || !n.IsInt64() || n.Int64() < 2 || n.Int64() > most {
		return nil, fmt.Errorf("factor %.40q: want a number from 2 to %d", req.Number, most)
	}
	factors, left := []string{}, n.Int64()
	for f := int64(2); f*f <= left; f++ {
		for ; left%f == 0; left /= f {
			factors = append(factors, fmt.Sprint(f))
		}
	}
	if left > 1 {
		factors = append(factors, fmt.Sprint(left))
	}
	return map[string]any{"factors": factors}, nil
}

// check says what is wrong with the factors of a number, without doing the work again.
func check(number string, factors []string) error {
	product := big.NewInt(1)
	for _, f := range factors {
		n, ok := new(big.Int).SetString(f, 10)
		if !ok || !n.ProbablyPrime(20) {
			return fmt.Errorf("%s is no prime", f)
		}
		product.Mul(product, n)
	}
	if product.String() != number {
		return fmt.Errorf("the factors %v give %s, not %s", factors, product, number)
	}
	return nil
}
