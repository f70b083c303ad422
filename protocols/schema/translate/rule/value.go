package rule

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
)

// rewrite changes a value in place: the rules map, convert, wrap and unwrap, and
// split and join without fields.
type rewrite struct {
	at       Pointer
	to, back change
}

// change makes one value of another. Its errors are a [*Misfit] at no place.
type change struct {
	do    func(*run, any) (any, error)
	loses string
}

func (w rewrite) apply(r *run, root *any) error {
	v, _, err := get(*root, w.at)
	if err != nil || v == nil {
		return err
	}
	changed, err := w.to.do(r, v)
	if err == nil && changed == nil {
		err = misfitf(nil, "would become null, which the way back would leave alone")
	}
	if err != nil {
		return blame(err, Step{}, func(Pointer) Pointer { return w.at })
	}
	if len(w.at) == 0 {
		*root = changed
		return nil
	}
	holder, _, err := get(*root, w.at[:len(w.at)-1])
	if object, ok := holder.(map[string]any); ok {
		object[w.at[len(w.at)-1]] = changed
	}
	return err
}

func (w rewrite) inverse() Rule            { return rewrite{w.at, w.back, w.to} }
func (w rewrite) marks() marks             { return marks{looks: []Pointer{w.at}} }
func (w rewrite) origin(p Pointer) Pointer { return p }

func (w rewrite) loses() []Loss {
	if w.to.loses == "" {
		return nil
	}
	return []Loss{{w.at.String(), w.to.loses}}
}

// Wrap makes an array of one element of a value.
func Wrap(at Pointer) Rule { return rewrite{at, change{do: wrap}, change{do: unwrap}} }

// Unwrap is the inverse of [Wrap].
func Unwrap(at Pointer) Rule { return Wrap(at).inverse() }

func wrap(r *run, v any) (any, error) { return []any{v}, r.grow(2) }

func unwrap(_ *run, v any) (any, error) {
	if array, ok := v.([]any); ok && len(array) == 1 {
		return array[0], nil
	}
	return nil, misfitf(nil, "is not an array of one element")
}

// Split makes an array of the text at a place, with the separator by; an empty
// one of empty text.
func Split(at Pointer, by string) Rule {
	return rewrite{at, change{do: split(by)}, change{do: join(by)}}
}

// Join is the inverse of [Split].
func Join(at Pointer, by string) Rule { return Split(at, by).inverse() }

func split(by string) func(*run, any) (any, error) {
	return func(r *run, v any) (any, error) {
		text, ok := v.(string)
		if !ok {
			return nil, misfitf(nil, "is not text")
		}
		array := []any{}
		if text == "" {
			return array, nil
		}
		if err := r.grow(3 * strings.Count(text, by)); err != nil {
			return nil, err
		}
		for part := range strings.SplitSeq(text, by) {
			array = append(array, part)
		}
		return array, nil
	}
}

func join(by string) func(*run, any) (any, error) {
	return func(_ *run, v any) (any, error) {
		array, ok := v.([]any)
		if !ok {
			return nil, misfitf(nil, "is not an array")
		}
		parts := make([]string, len(array))
		for i, element := range array {
			if parts[i], ok = element.(string); !ok {
				return nil, misfitf(nil, "has elements that are not text")
			}
		}
		if len(parts) == 0 {
			return "", nil
		}
		return rejoin(parts, by)
	}
}

// rejoin joins parts, unless splitting would not give them back.
func rejoin(parts []string, by string) (string, error) {
	text := strings.Join(parts, by)
	i, same := 0, text != ""
	for part := range strings.SplitSeq(text, by) {
		same = same && i < len(parts) && part == parts[i]
		i++
	}
	if !same || i != len(parts) {
		return "", misfitf(nil, "cannot be joined with %q so that it can be split again", by)
	}
	return text, nil
}

// Table maps text, numbers, true and false to others, one to one.
type Table struct{ there, back table }

// Add adds a pair. The error says what is wrong with it.
func (t *Table) Add(from, to any) error {
	if t.there == nil {
		*t = Table{table{}, table{}}
	}
	a, okA := scalar(from)
	b, okB := scalar(to)
	if !okA || !okB {
		return errors.New("a table has text, numbers, true and false")
	}
	_, twiceA := t.there[a]
	_, twiceB := t.back[b]
	if twiceA || twiceB {
		return errors.New("a value is in the table already: there would be no way back")
	}
	t.there[a], t.back[b] = to, from
	return nil
}

// Map looks the value at a place up in a table.
func Map(at Pointer, t Table) Rule {
	return rewrite{at, change{do: t.there.lookUp}, change{do: t.back.lookUp}}
}

// table is one direction of a [Table]. The keys are those of scalar.
type table map[string]any

func (t table) lookUp(_ *run, v any) (any, error) {
	key, ok := scalar(v)
	if to, known := t[key]; ok && known {
		return to, nil
	}
	return nil, misfitf(nil, "is not a value of the table")
}

// scalar is text that only equal scalars, other than null, share.
func scalar(v any) (key string, ok bool) {
	switch v := v.(type) {
	case string:
		return "text " + v, true
	case json.Number:
		return "number " + worth(v), true
	case bool:
		return strconv.FormatBool(v), true
	}
	return "", false
}
