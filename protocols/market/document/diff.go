package document

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// Change is a difference between two documents.
type Change struct {
	Path string // JSON pointer (RFC 6901)
	From string // the values as JSON; empty: there is none
	To   string
}

// Diff returns what the second offer changes of the first, in the order of the
// pointers. Arrays and values of different types change as a whole; amounts that
// are equal in value, such as 1.5 and 1.50, are no change.
func Diff(old, new *Proposal) []Change {
	return slices.DeleteFunc(diff("", tree(old), tree(new)), func(c Change) bool {
		return c.Path == "/terms/price/amount" && old.Terms.Price.Amount.Cmp(new.Terms.Price.Amount) == 0
	})
}

// tree returns v as decode would. One that cannot be written is null.
func tree(v any) any {
	text, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	t, err := decode(text, 2*MaxDocument)
	if err != nil {
		return nil
	}
	return t
}

func diff(at string, old, new any) []Change {
	a, isObject := old.(map[string]any)
	b, areObjects := new.(map[string]any)
	from, to := appendValue(nil, old), appendValue(nil, new)
	if string(from) == string(to) {
		return nil
	}
	if !isObject || !areObjects {
		return []Change{{at, string(from), string(to)}}
	}
	all := maps.Clone(a)
	maps.Copy(all, b)
	var out []Change
	for _, name := range slices.Sorted(maps.Keys(all)) {
		inner := at + pointer([]string{name})
		x, before := a[name]
		y, after := b[name]
		switch {
		case !before:
			out = append(out, Change{inner, "", string(appendValue(nil, y))})
		case !after:
			out = append(out, Change{inner, string(appendValue(nil, x)), ""})
		default:
			out = append(out, diff(inner, x, y)...)
		}
	}
	return out
}

// Same compares two JSON texts, and says where the second is not as the first:
// wire.InvalidRequest with JSON pointers.
func Same(want, got []byte, limit int) error {
	if len(got) <= limit && bytes.Equal(want, got) {
		return nil
	}
	w, err := decode(want, limit)
	if err != nil {
		return err
	}
	g, err := decode(got, limit)
	if err != nil {
		return err
	}
	changes := diff("", w, g)
	if len(changes) == 0 {
		return nil
	}
	const most = 16
	first := changes[0]
	bad := refuse(first.Path, "is %s, should be %s", shown(first.To), shown(first.From))
	for _, c := range changes[1:min(len(changes), most)] {
		bad.Pointers = append(bad.Pointers, c.Path)
	}
	return bad
}

// shown cuts a value for a person.
func shown(v string) string {
	const most = 100
	switch {
	case v == "":
		return "not there"
	case len(v) > most:
		return strings.ToValidUTF8(v[:most], "") + "…"
	}
	return v
}

// pointer joins steps as in RFC 6901.
func pointer(steps []string) string {
	var b strings.Builder
	for _, s := range steps {
		b.WriteString("/" + strings.ReplaceAll(strings.ReplaceAll(s, "~", "~0"), "/", "~1"))
	}
	return b.String()
}
