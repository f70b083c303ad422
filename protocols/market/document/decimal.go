package document

import (
	"math/big"
	"strings"

	"openmesh/protocols/wire"
)

// Limits on decimals. In documents an amount has at most 15 digits before the
// point; a total has more.
const (
	maxIntegerDigits = 24
	maxDecimals      = 8
)

// Decimal is an exact, non-negative decimal number, which keeps the decimals that
// it was written with: 1.50 is not 1.5, though they compare as equal. The zero
// value is no number at all.
type Decimal struct{ text string }

// ParseDecimal reads digits with at most 8 decimals, without superfluous zeros in
// front: 0, 12, 12.50. The error is wire.InvalidArgument.
func ParseDecimal(s string) (Decimal, error) {
	whole, part, point := strings.Cut(s, ".")
	ok := digits(whole, maxIntegerDigits) && (whole == "0" || whole[0] != '0') && (!point || digits(part, maxDecimals))
	if !ok {
		return Decimal{}, wire.Errorf(wire.InvalidArgument, "amount %.50q: want digits with at most %d decimals", s, maxDecimals).
			WithHint("Such as 12.50, without sign, spaces or separators.")
	}
	return Decimal{s}, nil
}

func digits(s string, most int) bool {
	return s != "" && len(s) <= most && strings.Trim(s, "0123456789") == ""
}

// String returns the number as it was written; the zero value is empty.
func (d Decimal) String() string { return d.text }

// IsZero reports whether d is no number; the number 0 is one.
func (d Decimal) IsZero() bool { return d.text == "" }

// Cmp compares by value: -1, 0 or 1. No number counts as 0.
func (d Decimal) Cmp(e Decimal) int { return d.scaled().Cmp(e.scaled()) }

// Mul returns d × n, for n ≥ 0, with the decimals of d.
func (d Decimal) Mul(n int64) Decimal {
	whole, part, point := strings.Cut(d.text, ".")
	product, _ := new(big.Int).SetString("0"+whole+part, 10)
	text := product.Mul(product, big.NewInt(n)).String()
	if !point {
		return Decimal{text}
	}
	if missing := len(part) + 1 - len(text); missing > 0 {
		text = strings.Repeat("0", missing) + text
	}
	at := len(text) - len(part)
	return Decimal{text[:at] + "." + text[at:]}
}

// Float64 returns the nearest float, for measurements such as a minimum of trust;
// never for money.
func (d Decimal) Float64() float64 {
	f, _ := new(big.Rat).SetFrac(d.scaled(), big.NewInt(1e8)).Float64()
	return f
}

// scaled returns d × 10^8.
func (d Decimal) scaled() *big.Int {
	whole, part, _ := strings.Cut(d.text, ".")
	n, _ := new(big.Int).SetString("0"+whole+part+strings.Repeat("0", maxDecimals-len(part)), 10)
	return n
}

// MarshalText writes d as String does.
func (d Decimal) MarshalText() ([]byte, error) { return []byte(d.text), nil }

// UnmarshalText reads what [ParseDecimal] reads.
func (d *Decimal) UnmarshalText(text []byte) error {
	p, err := ParseDecimal(string(text))
	*d = p
	return err
}
