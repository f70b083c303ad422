package rule

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// MaxScale bounds the decimals of minor units.
const MaxScale = 18

const maxPower = 64 // exponent of a number that is written out

// NoScale stands for the scale of formats other than minor-units.
const NoScale = -1

// The formats that values are converted between:
//
//	number        a JSON number
//	decimal       text such as "-12.50"
//	minor-units   an integer JSON number, the last scale digits of which are decimals
//	rfc3339       text such as "2026-01-02T03:04:05Z"
//	unix-seconds  an integer JSON number, as is unix-millis
//	lower, upper  text without letters of the other case
type format struct {
	from, to    string
	there, back change
}

func formats(scale int) []format {
	const offset = "how a time is written: it comes back in UTC"
	const zeros = "how a decimal is written: it comes back with all its decimals"
	major := func(s string) (any, error) { return majorUnits(s, scale) }
	minor := func(s string) (any, error) { return minorUnits(s, scale) }
	unixIn := func(unit time.Duration) func(string) (any, error) {
		return func(s string) (any, error) { return unix(s, unit) }
	}
	stampOf := func(unit time.Duration) func(string) (any, error) {
		return func(s string) (any, error) { return stamp(s, unit) }
	}
	upper := func(s string) (any, error) { return recase(s, strings.ToUpper, strings.ToLower) }
	lower := func(s string) (any, error) { return recase(s, strings.ToLower, strings.ToUpper) }
	return []format{
		{"number", "decimal", change{ofNumber(writeOut), ""}, change{ofText(readDecimal), ""}},
		{"minor-units", "decimal", change{ofNumber(major), ""}, change{ofText(minor), zeros}},
		{"rfc3339", "unix-seconds", change{ofText(unixIn(time.Second)), offset}, change{ofNumber(stampOf(time.Second)), ""}},
		{"rfc3339", "unix-millis", change{ofText(unixIn(time.Millisecond)), offset}, change{ofNumber(stampOf(time.Millisecond)), ""}},
		{"lower", "upper", change{ofText(upper), ""}, change{ofText(lower), ""}},
	}
}

// Convert writes the value at a place in another format. Scale is 0 to
// [MaxScale] with minor-units, else [NoScale]. The error says what is wrong
// with the arguments.
func Convert(at Pointer, from, to string, scale int) (Rule, error) {
	var known []string
	if minor := from == "minor-units" || to == "minor-units"; minor != (scale != NoScale) || scale > MaxScale || scale < NoScale {
		return nil, fmt.Errorf("minor-units, and nothing else, has a scale, of 0 to %d", MaxScale)
	}
	for _, f := range formats(scale) {
		switch {
		case f.from == from && f.to == to:
			return rewrite{at, f.there, f.back}, nil
		case f.from == to && f.to == from:
			return rewrite{at, f.back, f.there}, nil
		}
		known = append(known, f.from+" and "+f.to)
	}
	return nil, fmt.Errorf("no conversion from %q to %q: there are %s, either way", from, to, strings.Join(known, ", "))
}

// ofText and ofNumber make changes of functions of one kind of value, and count
// the bytes that the result has more.
func ofText(f func(string) (any, error)) func(*run, any) (any, error) {
	return func(r *run, v any) (any, error) {
		s, ok := v.(string)
		if !ok {
			return nil, misfitf(nil, "is not text")
		}
		return sized(r, len(s), f, s)
	}
}

func ofNumber(f func(string) (any, error)) func(*run, any) (any, error) {
	return func(r *run, v any) (any, error) {
		n, ok := v.(json.Number)
		if !ok {
			return nil, misfitf(nil, "is not a number")
		}
		return sized(r, len(n), f, string(n))
	}
}

func sized(r *run, before int, f func(string) (any, error), s string) (any, error) {
	v, err := f(s)
	if err != nil {
		return nil, err
	}
	after := 0
	switch v := v.(type) {
	case string:
		after = len(v) + 2
	case json.Number:
		after = len(v)
	}
	return v, r.grow(max(0, after-before))
}

var (
	decimalPattern = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?$`)
	integerPattern = regexp.MustCompile(`^-?(0|[1-9][0-9]*)$`)
)

// writeOut makes a decimal of a JSON number, without its exponent.
func writeOut(s string) (any, error) {
	mantissa, power, ok := strings.Cut(strings.ToLower(s), "e")
	if !ok {
		return s, nil
	}
	exponent, err := strconv.Atoi(power)
	if err != nil || exponent < -maxPower || exponent > maxPower {
		return nil, misfitf(nil, "has an exponent beyond ±%d", maxPower)
	}
	mantissa, negative := strings.CutPrefix(mantissa, "-")
	whole, fraction, _ := strings.Cut(mantissa, ".")
	digits := strings.Repeat("0", maxPower) + whole + fraction + strings.Repeat("0", max(0, exponent-len(fraction)))
	point := maxPower + len(whole) + exponent
	out := strings.TrimLeft(digits[:point], "0")
	if out == "" {
		out = "0"
	}
	if point < len(digits) {
		out += "." + digits[point:]
	}
	if negative {
		out = "-" + out
	}
	return out, nil
}

func readDecimal(s string) (any, error) {
	if !decimalPattern.MatchString(s) {
		return nil, misfitf(nil, "is not a decimal number such as 12.50")
	}
	return json.Number(s), nil
}

// majorUnits moves the decimal point of an integer to the left.
func majorUnits(s string, scale int) (any, error) {
	if !integerPattern.MatchString(s) {
		return nil, misfitf(nil, "is not an integer")
	}
	if scale == 0 {
		return s, nil
	}
	digits, negative := strings.CutPrefix(s, "-")
	digits = strings.Repeat("0", max(0, scale+1-len(digits))) + digits
	out := digits[:len(digits)-scale] + "." + digits[len(digits)-scale:]
	if negative {
		out = "-" + out
	}
	return out, nil
}

// minorUnits moves the decimal point of a decimal to the right, to its end.
func minorUnits(s string, scale int) (any, error) {
	if !decimalPattern.MatchString(s) {
		return nil, misfitf(nil, "is not a decimal number such as 12.50")
	}
	s, negative := strings.CutPrefix(s, "-")
	whole, fraction, _ := strings.Cut(s, ".")
	if len(fraction) > scale {
		return nil, misfitf(nil, "has more than %d decimals", scale)
	}
	digits := strings.TrimLeft(whole+fraction+strings.Repeat("0", scale-len(fraction)), "0")
	switch {
	case digits == "":
		digits = "0"
	case negative:
		digits = "-" + digits
	}
	return json.Number(digits), nil
}

// unix makes the number of units since 1970 of a time of RFC 3339.
func unix(s string, unit time.Duration) (any, error) {
	var t time.Time
	if err := t.UnmarshalText([]byte(s)); err != nil { // stricter than time.Parse
		return nil, misfitf(nil, "is not a time such as 2026-01-02T03:04:05Z")
	}
	if t.Nanosecond()%int(unit) != 0 {
		return nil, misfitf(nil, "has a fraction of %s", unit)
	}
	if _, err := t.UTC().MarshalText(); err != nil {
		return nil, misfitf(nil, "is not in the years 0 to 9999 of UTC")
	}
	if unit == time.Second {
		return json.Number(strconv.FormatInt(t.Unix(), 10)), nil
	}
	return json.Number(strconv.FormatInt(t.UnixMilli(), 10)), nil
}

// stamp is the inverse of unix, in UTC.
func stamp(s string, unit time.Duration) (any, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return nil, misfitf(nil, "is not an integer")
	}
	t := time.UnixMilli(n)
	if unit == time.Second {
		t = time.Unix(n, 0)
	}
	text, err := t.UTC().MarshalText()
	if err != nil {
		return nil, misfitf(nil, "is not a time of the years 0 to 9999")
	}
	return string(text), nil
}

// recase changes the case of text, if that can be undone.
func recase(s string, to, back func(string) string) (any, error) {
	out := to(s)
	if back(out) != s {
		return nil, misfitf(nil, "has letters of the other case")
	}
	return out, nil
}
