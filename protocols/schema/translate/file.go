package translate

import (
	"encoding/json"
	"slices"
	"strconv"

	"github.com/goccy/go-yaml/ast"

	"openmesh/protocols/schema/translate/rule"
	"openmesh/protocols/wire"
)

const (
	maxParts     = 16 // fields that text is split into
	maxSeparator = 16 // bytes
	seeExample   = "See: openmesh schema example"
)

// Parse reads a translation file, YAML or JSON. The file's name is for errors.
// They are [*wire.Error] with code [wire.InvalidArgument] and begin with
// file:line:column. Examples are read but not run; see [Check].
func Parse(file []byte, name string) (*Translation, error) {
	t, problems := parse(file, name)
	if problems != nil {
		first := problems[0]
		return nil, wire.Errorf(wire.InvalidArgument, "%s: %s", first.Place, first.Message).WithHint("%s", first.Hint)
	}
	return t, nil
}

// parse finds the first thing that cannot be read or else all that clash.
func parse(file []byte, name string) (*Translation, []Problem) {
	r := reader{source: source{file: name}, left: MaxSteps}
	t := &Translation{File: name}
	if root := r.parse(file); r.bad == nil {
		r.translation(t, root)
	}
	if r.bad != nil {
		return nil, []Problem{*r.bad}
	}
	var problems []Problem
	for _, c := range rule.Clashes(t.there) {
		problems = append(problems, Problem{c.Step.Place, c.Step.Name + ": " + c.Why, "Rules are done in order, and the way back in reverse."})
	}
	return t, problems
}

// reader makes rules of a file.
type reader struct {
	source
	left int // rules that may still come
}

func (r *reader) translation(t *Translation, root ast.Node) {
	f := r.fields(root, []string{"translate", "steps"}, "examples")
	if r.bad != nil {
		return
	}
	versions := r.fields(f["translate"], []string{"from", "to"})
	if r.bad != nil {
		return
	}
	t.From, t.To = r.ref(versions["from"]), r.ref(versions["to"])
	if r.bad == nil && (t.From == t.To || t.From.Name != t.To.Name) {
		r.fail(versions["to"], "", "a translation is between two versions of one schema")
	}
	t.there = r.steps(f["steps"])
	if examples, there := f["examples"]; there {
		t.Examples = r.examples(examples)
	}
	if r.bad == nil {
		t.back, t.Steps = rule.Invert(t.there), MaxSteps-r.left
	}
}

func (r *reader) ref(n ast.Node) Ref {
	ref, err := ParseRef(r.text(n))
	if err != nil {
		r.fail(n, "Such as market/proposal@v1.0.0.", "not NAME@VERSION")
	}
	return ref
}

// steps reads a list of rules, each a mapping with the rule's name as its key.
func (r *reader) steps(n ast.Node) []rule.Step {
	var out []rule.Step
	for _, item := range r.list(n) {
		if r.bad != nil {
			return nil
		}
		if r.left--; r.left < 0 {
			r.fail(item, "", "more than %d rules", MaxSteps)
			return nil
		}
		f := r.fields(item, nil, "move", "set", "default", "drop", "map", "convert", "split", "join", "wrap", "unwrap", "each")
		if len(f) != 1 {
			r.fail(item, seeExample, "%d rules in one step", len(f))
		}
		for name, body := range f {
			if r.bad == nil {
				out = append(out, rule.Step{Rule: r.rule(name, body), Name: name, Place: r.place(item)})
			}
		}
	}
	return out
}

func (r *reader) rule(name string, n ast.Node) rule.Rule {
	switch name {
	case "move":
		return r.move(n)
	case "set", "default", "drop":
		return r.field(name, n)
	case "map":
		return r.table(n)
	case "convert":
		return r.convert(n)
	case "split":
		return r.split(n)
	case "join":
		return r.join(n)
	case "each":
		f := r.fields(n, []string{"at", "steps"})
		if r.bad != nil {
			return nil
		}
		return rule.Each(r.pointer(f["at"]), r.steps(f["steps"]))
	}
	f := r.fields(n, []string{"at"}) // wrap, unwrap
	if r.bad != nil {
		return nil
	}
	if name == "unwrap" {
		return rule.Unwrap(r.pointer(f["at"]))
	}
	return rule.Wrap(r.pointer(f["at"]))
}

func (r *reader) pointer(n ast.Node) rule.Pointer {
	p, err := rule.ParsePointer(r.text(n))
	if err != nil {
		r.fail(n, "A JSON pointer, such as /price/amount.", "%v", err)
	}
	return p
}

// inner is a pointer to something in the document, not all of it.
func (r *reader) inner(n ast.Node) rule.Pointer {
	p := r.pointer(n)
	if len(p) == 0 {
		r.fail(n, "A JSON pointer, such as /price/amount.", "not for the document as a whole")
	}
	return p
}

func (r *reader) move(n ast.Node) rule.Rule {
	f := r.fields(n, []string{"from", "to"})
	if r.bad != nil {
		return nil
	}
	from, to := r.pointer(f["from"]), r.pointer(f["to"])
	if slices.Equal(from, to) {
		r.fail(f["to"], "", "moves a value to where it is")
	}
	return rule.Move(from, to)
}

// field reads set, default and drop.
func (r *reader) field(name string, n ast.Node) rule.Rule {
	var f map[string]ast.Node
	switch name {
	case "set":
		f = r.fields(n, []string{"at", "value"}, "lossy")
	case "default":
		f = r.fields(n, []string{"at", "value"})
	case "drop":
		f = r.fields(n, []string{"at"}, "default")
	}
	if r.bad != nil {
		return nil
	}
	at := r.inner(f["at"])
	instead, there := f["default"]
	switch {
	case name == "set":
		return rule.Set(at, r.value(f["value"], len(at)), r.lossy(f["lossy"]))
	case name == "default":
		return rule.Default(at, r.value(f["value"], len(at)))
	case there:
		return rule.DropDefault(at, r.value(instead, len(at)))
	}
	return rule.Drop(at)
}

func (r *reader) lossy(n ast.Node) rule.Lossy {
	if n == nil {
		return rule.Strict
	}
	switch r.text(n) {
	case "warn":
		return rule.Warn
	case "drop":
		return rule.Discard
	}
	r.fail(n, "Allowed: warn (another value is kept), drop (it is dropped).", "not what lossy may be")
	return rule.Strict
}

func (r *reader) table(n ast.Node) rule.Rule {
	f := r.fields(n, []string{"at", "values"})
	if r.bad != nil {
		return nil
	}
	values, ok := f["values"].(ast.MapNode)
	if !ok {
		r.fail(f["values"], "Such as {sell: ask, buy: bid}.", "a mapping is wanted here")
		return nil
	}
	var t rule.Table
	entries := 0
	for it := values.MapRange(); it.Next(); entries++ {
		if err := t.Add(r.value(it.Key(), 0), r.value(it.Value(), 0)); err != nil {
			r.fail(it.Key(), "", "%v", err)
		}
	}
	if entries == 0 {
		r.fail(f["values"], "", "the table is empty")
	}
	return rule.Map(r.pointer(f["at"]), t)
}

func (r *reader) convert(n ast.Node) rule.Rule {
	f := r.fields(n, []string{"at", "from", "to"}, "scale")
	if r.bad != nil {
		return nil
	}
	scale := rule.NoScale
	if at, there := f["scale"]; there {
		digits, _ := r.value(at, 0).(json.Number)
		var err error
		if scale, err = strconv.Atoi(string(digits)); err != nil || scale < 0 {
			r.fail(at, "", "scale is a number of decimals")
		}
	}
	out, err := rule.Convert(r.pointer(f["at"]), r.text(f["from"]), r.text(f["to"]), scale)
	if err != nil {
		r.fail(n, "", "%v", err)
	}
	return out
}

func (r *reader) split(n ast.Node) rule.Rule {
	f := r.fields(n, []string{"at", "by"}, "into")
	if r.bad != nil {
		return nil
	}
	at, by := r.pointer(f["at"]), r.separator(f["by"])
	if f["into"] == nil {
		return rule.Split(at, by)
	}
	return rule.SplitInto(at, by, r.parts(f["into"]))
}

func (r *reader) join(n ast.Node) rule.Rule {
	f := r.fields(n, []string{"at", "by"}, "from")
	if r.bad != nil {
		return nil
	}
	at, by := r.pointer(f["at"]), r.separator(f["by"])
	if f["from"] == nil {
		return rule.Join(at, by)
	}
	return rule.JoinFrom(at, by, r.parts(f["from"]))
}

func (r *reader) separator(n ast.Node) string {
	by := r.text(n)
	if by == "" || len(by) > maxSeparator {
		r.fail(n, "", "a separator has 1 to %d bytes", maxSeparator)
	}
	return by
}

// parts reads the fields that text is split into.
func (r *reader) parts(n ast.Node) []rule.Pointer {
	var out []rule.Pointer
	for _, part := range r.list(n) {
		out = append(out, r.inner(part))
	}
	if len(out) < 2 || len(out) > maxParts {
		r.fail(n, "", "2 to %d fields are wanted", maxParts)
	}
	return out
}

func (r *reader) examples(n ast.Node) []Example {
	var out []Example
	for _, item := range r.list(n) {
		f := r.fields(item, []string{"from", "to"}, "back")
		if len(out) == MaxExamples {
			r.fail(item, "", "more than %d examples", MaxExamples)
		}
		if r.bad != nil {
			return nil
		}
		e := Example{Place: r.place(item), From: r.value(f["from"], 0), To: r.value(f["to"], 0)}
		e.Back = e.From
		if back, there := f["back"]; there {
			e.Back = r.value(back, 0)
		}
		out = append(out, e)
	}
	return out
}
