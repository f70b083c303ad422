// Package rule is what translations are made of: rewritings of JSON documents,
// each with an inverse. A [Rule] is an injective function on the documents that
// it accepts, and refuses the others, so that what it did can be turned back.
//
//	text ──decode──► document ──step──► document ──step──► document ──encode──► text
//
// Documents are I-JSON (RFC 7493) of any number range: UTF-8, no name twice in
// an object, no lone surrogates. The result has its names sorted. Objects that a
// rule needs on the way to a place are made, and removed again when they become
// empty. Equal means equal as JSON values: 1.0 and 1 are.
//
// Documents come from peers. Work and memory are bounded by the limits below.
// What the rules do is in the table of the package translate.
package rule

import (
	"errors"
	"fmt"
	"slices"

	"openmesh/protocols/wire"
)

// Limits on documents.
const (
	MaxDocument = 4 << 20  // bytes of a document
	MaxDepth    = 64       // arrays and objects within each other
	MaxApplied  = 1 << 21  // rules applied to one document: each counts once for every element
	MaxLosses   = 16       // losses reported for one document
	MaxGrowth   = 64 << 10 // bytes by which a result may exceed twice the document
)

// Loss is what a translation loses, or keeps though the other version does not
// know it.
type Loss struct {
	Pointer string `json:"pointer"` // in the document that came in; * stands for every element
	What    string `json:"what"`
}

// Step is a rule with its place in a file.
type Step struct {
	Rule
	Name  string // such as move
	Place string // file:line:column
}

// Rule is one rewriting in one direction. The functions of this package make the
// rules that there are.
type Rule interface {
	// apply rewrites root in place. Errors are a [*Misfit]; the document is then
	// worth nothing any more.
	apply(r *run, root *any) error
	inverse() Rule
	// marks tells which places the rule empties, fills and only looks at.
	marks() marks
	// origin is where the value at p stood before the rule was applied.
	origin(p Pointer) Pointer
	// loses tells what the rule may lose in this direction.
	loses() []Loss
}

// Invert is the way back: the inverse of each step, in reverse order.
func Invert(steps []Step) []Step {
	var out []Step
	for _, s := range slices.Backward(steps) {
		out = append(out, Step{s.inverse(), s.Name, s.Place})
	}
	return out
}

// Losses tells what steps may lose.
func Losses(steps []Step) []Loss {
	var out []Loss
	for _, s := range steps {
		out = append(out, s.loses()...)
	}
	return out
}

// run is the translation of one document.
type run struct {
	applied int
	grown   int // bytes added so far, about
	most    int // of grown
	losses  []loss
}

type loss struct {
	at   Pointer
	what string
}

// lose notes a loss.
func (r *run) lose(at Pointer, what string) {
	if len(r.losses) < MaxLosses {
		r.losses = append(r.losses, loss{at, what})
	}
}

// grow counts bytes that a rule adds, so that memory is bounded before the
// result is written.
func (r *run) grow(bytes int) error {
	if r.grown += bytes; r.grown > r.most {
		return tooLarge("the result is more than twice as large")
	}
	return nil
}

// steps applies steps in order. Errors and losses point into the document as it
// was before the first.
func (r *run) steps(steps []Step, root *any) error {
	for i, s := range steps {
		if r.applied++; r.applied > MaxApplied {
			return tooLarge("more than %d rules to apply", MaxApplied)
		}
		known := len(r.losses)
		err := s.apply(r, root)
		for j := range r.losses[known:] {
			at := &r.losses[known+j].at
			*at = origin(steps[:i], *at)
		}
		if err != nil {
			return blame(err, s, func(p Pointer) Pointer { return origin(steps[:i], p) })
		}
	}
	return nil
}

func origin(steps []Step, p Pointer) Pointer {
	for _, s := range slices.Backward(steps) {
		p = s.origin(p)
	}
	return p
}

// Misfit is a document that a rule does not accept. Its text quotes no values.
type Misfit struct {
	Code wire.Code // InvalidRequest or TooLarge
	At   Pointer   // in the document as it came in
	Why  string
	By   string // the rule, with its place in a file; "" for what none is to blame for
}

func (e *Misfit) Error() string {
	if e.By == "" {
		return e.At.shown() + " " + e.Why
	}
	return fmt.Sprintf("%s %s (%s)", e.At.shown(), e.Why, e.By)
}

func misfitf(at Pointer, format string, args ...any) error {
	return &Misfit{Code: wire.InvalidRequest, At: at, Why: fmt.Sprintf(format, args...)}
}

func tooLarge(format string, args ...any) error {
	return &Misfit{Code: wire.TooLarge, Why: "cannot be translated: " + fmt.Sprintf(format, args...)}
}

// blame says which rule refused a document, and moves the place.
func blame(err error, s Step, move func(Pointer) Pointer) error {
	e, ok := errors.AsType[*Misfit](err)
	if !ok {
		return err
	}
	if e.Code == wire.TooLarge {
		return e // the fault of no one place
	}
	e.At = move(e.At)
	if e.By == "" && s.Rule != nil {
		e.By = s.Place + ": " + s.Name
	}
	return e
}

// Apply does steps on the text of a document, in order. The error is a [*Misfit]
// whose place is in doc.
func Apply(doc []byte, steps []Step) ([]byte, []Loss, error) {
	root, err := Decode(doc)
	if err != nil {
		return nil, nil, err
	}
	r := &run{most: len(doc) + MaxGrowth}
	if err := r.steps(steps, &root); err != nil {
		return nil, nil, err
	}
	out, err := Encode(root)
	if err != nil {
		return nil, nil, err
	}
	if len(out) > 2*len(doc)+MaxGrowth {
		return nil, nil, tooLarge("the result of %d bytes is more than twice as large", len(out))
	}
	var losses []Loss
	for _, l := range r.losses {
		losses = append(losses, Loss{l.at.String(), l.what})
	}
	return out, losses, nil
}
