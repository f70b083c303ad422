package form

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Fail takes a value that is not allowed, and why: the end of a sentence that
// begins with the value, such as "is out of range".
type Fail func(v Value, why string)

// Codec turns a setting as written into a T, and back.
type Codec[T any] struct {
	Type    string   // for people, such as "duration" or "list of strings"
	Allowed string   // for people: values, range or syntax
	Values  []string // all that are allowed, where they are few
	Plain   bool     // written without quotes in YAML
	Shape   Shape    // that Read needs

	Read  func(Value, Fail) T // what it returns after a call of Fail is of no use
	Write func(T) Value       // the inverse of Read
}

// atom is a codec of one value: parse's error says why a text is not allowed,
// and format is its inverse.
func atom[T any](typ, allowed string, parse func(string) (T, error), format func(T) string) Codec[T] {
	return Codec[T]{
		Type: typ, Allowed: allowed,
		Read: func(v Value, fail Fail) (t T) {
			if v.Shape != Scalar {
				fail(v, "is "+v.Shape.String()+" where one value is expected")
				return t
			}
			t, err := parse(v.Text)
			if err != nil {
				fail(v, err.Error())
			}
			return t
		},
		Write: func(t T) Value { return Value{Text: format(t)} },
	}
}

// unquoted makes a codec write YAML numbers and booleans.
func (c Codec[T]) unquoted() Codec[T] {
	c.Plain = true
	return c
}

func same(s string) string { return s }

// OneOf allows the given words.
func OneOf(words ...string) Codec[string] {
	c := atom("string", "one of "+strings.Join(words, ", "), func(s string) (string, error) {
		if !slices.Contains(words, s) {
			return "", errors.New("is not known")
		}
		return s, nil
	}, same)
	if len(words) == 1 {
		c.Allowed = "only " + words[0]
	}
	c.Values = words
	return c
}

// Bool allows true and false.
func Bool() Codec[bool] {
	c := atom("bool", "true or false", func(s string) (bool, error) {
		if s != "true" && s != "false" {
			return false, errors.New("is neither true nor false")
		}
		return s == "true", nil
	}, strconv.FormatBool).unquoted()
	c.Values = []string{"true", "false"}
	return c
}

// within says whether v lies in lo..hi, ends included.
func within[T int | uint16 | float64 | time.Duration](v, lo, hi T) error {
	if v >= lo && v <= hi { // false for NaN
		return nil
	}
	return errors.New("is out of range")
}

// Integer allows whole decimal numbers in lo..hi.
func Integer[T int | uint16](lo, hi T) Codec[T] {
	return atom("integer", fmt.Sprintf("%d..%d", lo, hi), func(s string) (T, error) {
		n, err := strconv.Atoi(s)
		if errors.Is(err, strconv.ErrRange) {
			return 0, errors.New("is out of range")
		}
		if err != nil {
			return 0, errors.New("is not a whole number")
		}
		return T(n), within(n, int(lo), int(hi))
	}, func(n T) string { return strconv.Itoa(int(n)) }).unquoted()
}

// Number allows decimal numbers in lo..hi.
func Number(lo, hi float64) Codec[float64] {
	format := func(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }
	return atom("number", format(lo)+".."+format(hi), func(s string) (float64, error) {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil || math.IsNaN(f) {
			return 0, errors.New("is not a number")
		}
		return f, within(f, lo, hi)
	}, format).unquoted()
}

// Duration allows Go durations and days (14d) in lo..hi.
func Duration(lo, hi time.Duration) Codec[time.Duration] {
	return atom("duration", formatDuration(lo)+".."+formatDuration(hi), func(s string) (time.Duration, error) {
		d, err := parseDuration(s)
		if err != nil {
			return 0, err
		}
		return d, within(d, lo, hi)
	}, formatDuration)
}

// Size allows numbers of bytes in lo..hi, with or without a binary unit (4MiB).
func Size(lo, hi int) Codec[int] {
	return atom("size", FormatSize(lo)+".."+FormatSize(hi), func(s string) (int, error) {
		n, err := parseSize(s)
		if err != nil {
			return 0, err
		}
		return n, within(n, lo, hi)
	}, FormatSize)
}
