package rule

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// marks are the places that a rule empties, fills and looks at. A constant
// fills a place with a value that has no room for others.
type marks struct {
	takes, puts, looks []Pointer
	constant           bool
}

type move struct{ from, to Pointer }

// Move takes the value at one place to another.
func Move(from, to Pointer) Rule { return move{from, to} }

func (m move) apply(r *run, root *any) error {
	v, there, err := r.take(root, m.from)
	switch {
	case err != nil:
		return err
	case there:
		return r.put(root, m.to, v)
	case len(m.to) == 0:
		return misfitf(m.from, "is missing")
	}
	return vacant(*root, m.to) // else the way back would move what is there
}

func (m move) inverse() Rule { return move{m.to, m.from} }
func (m move) marks() marks  { return marks{takes: []Pointer{m.from}, puts: []Pointer{m.to}} }
func (m move) loses() []Loss { return nil }

func (m move) origin(p Pointer) Pointer {
	if rest, ok := p.within(m.to); ok {
		return m.from.join(rest...)
	}
	return p
}

// field is a value that only one of the versions has: the rules set, default and
// drop. In the direction of adding it is put where nothing is; in that of
// removing, a value equal to it is taken away.
type field struct {
	at    Pointer
	value any
	none  bool // no value: nothing to add, nothing equal
	size  int  // bytes of the value
	adds  bool
	terms
}

// terms say what a field does in the cases that do not turn back by themselves.
type terms struct {
	there  outcome // adding, and there is a value
	absent outcome // removing, and there is none
	other  outcome // removing, and it is another value
}

var (
	byDefault = terms{leave, leave, leave}
	dropping  = terms{refuse, leave, remove}
)

type outcome int

const (
	refuse outcome = iota // the document does not fit
	leave                 // nothing happens, nothing is lost
	keep                  // nothing happens, which is reported
	remove                // the value goes, which is reported
)

// Lossy says what becomes, on the way back, of a value that is not the constant
// of [Set].
type Lossy int

// What may become of it.
const (
	Strict  Lossy = iota // the document is refused
	Warn                 // it is kept, though the version does not know it; that is a loss
	Discard              // it is dropped; that is a loss
)

// Set adds a constant.
func Set(at Pointer, value any, lossy Lossy) Rule {
	return newField(at, value, [...]terms{
		Strict: {refuse, refuse, refuse}, Warn: {leave, leave, keep}, Discard: {leave, leave, remove},
	}[lossy])
}

// Default adds a value where there is none; on the way back it is left out.
func Default(at Pointer, value any) Rule { return newField(at, value, byDefault) }

// Drop removes a value. On the way back there is none.
func Drop(at Pointer) Rule { return field{at: at, none: true, terms: dropping} }

// DropDefault removes a value. On the way back there is the given one.
func DropDefault(at Pointer, value any) Rule { return newField(at, value, dropping).inverse() }

func newField(at Pointer, value any, t terms) field {
	return field{at: at, value: value, size: sizeOf(value), adds: true, terms: t}
}

func (f field) apply(r *run, root *any) error {
	v, there, err := get(*root, f.at)
	switch {
	case err != nil:
		return err
	case f.adds && there && f.there == refuse:
		return inTheWay(f.at)
	case f.adds && (there || f.none):
		return nil
	case f.adds:
		if err := r.grow(f.size); err != nil {
			return err
		}
		return r.put(root, f.at, clone(f.value))
	case !there && f.absent == refuse:
		return misfitf(f.at, "is missing")
	case !there:
		return nil
	case !f.none && equal(v, f.value):
		_, _, err = r.take(root, f.at)
		return err
	}
	return f.unlike(r, root)
}

// unlike removes a value that is not the one that the rule adds.
func (f field) unlike(r *run, root *any) error {
	switch f.other {
	case refuse:
		return misfitf(f.at, "is not the constant that it has to be")
	case keep:
		r.lose(f.at, "is kept, though the version does not know it")
	case remove:
		r.lose(f.at, "is dropped")
		_, _, err := r.take(root, f.at)
		return err
	}
	return nil
}

func (f field) inverse() Rule {
	f.adds = !f.adds
	return f
}

func (f field) marks() marks {
	switch at := []Pointer{f.at}; {
	case f.terms == byDefault: // other rules may come before it
		return marks{looks: at}
	case f.adds:
		return marks{puts: at, constant: !f.none}
	default:
		return marks{takes: at}
	}
}

func (f field) origin(p Pointer) Pointer { return p }

func (f field) loses() []Loss {
	var out []Loss
	tell := func(what string) { out = append(out, Loss{f.at.String(), what}) }
	if f.adds {
		if f.there == leave {
			tell("what the rule would add is left out on the way back")
		}
		return out
	}
	if f.absent == leave && !f.none {
		tell("comes back where it was not there")
	}
	switch f.other {
	case keep:
		tell("any other value is kept, though the version does not know it")
	case remove:
		tell("any other value is dropped")
	}
	return out
}

type spread struct {
	at    Pointer
	parts []Pointer
	by    string
}

// SplitInto makes several fields of the text at a place, with the separator by.
// There must be as many parts as fields.
func SplitInto(at Pointer, by string, fields []Pointer) Rule { return spread{at, fields, by} }

// JoinFrom is the inverse of [SplitInto].
func JoinFrom(at Pointer, by string, fields []Pointer) Rule { return gather{at, fields, by} }

func (s spread) apply(r *run, root *any) error {
	v, there, err := r.take(root, s.at)
	if err != nil {
		return err
	}
	text, ok := v.(string)
	if there && (!ok || strings.Count(text, s.by) != len(s.parts)-1) {
		return misfitf(s.at, "is not text in %d parts with %q between them", len(s.parts), s.by)
	}
	texts := strings.Split(text, s.by)
	for i, part := range s.parts {
		if there {
			err = r.put(root, part, texts[i])
		} else {
			err = vacant(*root, part)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s spread) inverse() Rule { return gather(s) }
func (s spread) marks() marks  { return marks{takes: []Pointer{s.at}, puts: s.parts} }
func (s spread) loses() []Loss { return nil }

func (s spread) origin(p Pointer) Pointer {
	for _, part := range s.parts {
		if _, ok := p.within(part); ok {
			return s.at
		}
	}
	return p
}

type gather spread

func (g gather) apply(r *run, root *any) error {
	var parts []string
	var missing []Pointer
	for _, at := range g.parts {
		v, there, err := r.take(root, at)
		text, ok := v.(string)
		switch {
		case err != nil:
			return err
		case !there:
			missing = append(missing, at)
		case !ok || strings.Contains(text, g.by):
			return misfitf(at, "is not text without %q", g.by)
		}
		parts = append(parts, text)
	}
	switch {
	case len(missing) == len(parts) && len(g.at) > 0:
		return vacant(*root, g.at)
	case missing != nil:
		return misfitf(missing[0], "is missing")
	}
	text, err := rejoin(parts, g.by)
	if err != nil {
		return err
	}
	return r.put(root, g.at, text)
}

func (g gather) inverse() Rule { return spread(g) }
func (g gather) marks() marks  { return marks{takes: g.parts, puts: []Pointer{g.at}} }
func (g gather) loses() []Loss { return nil }

func (g gather) origin(p Pointer) Pointer {
	if _, ok := p.within(g.at); ok {
		return g.parts[0]
	}
	return p
}

type each struct {
	at    Pointer
	steps []Step
}

// Each does steps on every element of the array or object at a place.
func Each(at Pointer, steps []Step) Rule { return each{at, steps} }

func (e each) apply(r *run, root *any) error {
	v, _, err := get(*root, e.at)
	if err != nil {
		return err
	}
	switch v := v.(type) {
	case nil: // null, or not there
	case []any:
		for i := range v {
			if err := e.element(r, strconv.Itoa(i), &v[i]); err != nil {
				return err
			}
		}
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			element := v[name]
			if err := e.element(r, name, &element); err != nil {
				return err
			}
			v[name] = element
		}
	default:
		return misfitf(e.at, "is neither array nor object")
	}
	return nil
}

func (e each) element(r *run, name string, element *any) error {
	known := len(r.losses)
	err := r.steps(e.steps, element)
	for i := range r.losses[known:] {
		l := &r.losses[known+i]
		l.at = e.at.join(name).join(l.at...)
	}
	if err != nil {
		return blame(err, Step{}, func(p Pointer) Pointer { return e.at.join(name).join(p...) })
	}
	return nil
}

func (e each) inverse() Rule { return each{e.at, Invert(e.steps)} }
func (e each) marks() marks  { return marks{looks: []Pointer{e.at}} }

func (e each) origin(p Pointer) Pointer {
	rest, ok := p.within(e.at)
	if !ok || len(rest) == 0 {
		return p
	}
	return e.at.join(rest[0]).join(origin(e.steps, rest[1:])...)
}

func (e each) loses() []Loss {
	out := Losses(e.steps)
	for i := range out {
		out[i].Pointer = fmt.Sprintf("%s/*%s", e.at, out[i].Pointer)
	}
	return out
}
