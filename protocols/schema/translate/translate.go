// Package translate rewrites JSON documents from one version of a schema to
// another and back, by declarative rules that an operator puts in a file, so
// that agents with different versions of market/proposal can still talk.
//
//	proposal.yaml ──Parse──► Translation ──► Registry ──Translate(doc, from, to)──► doc
//	                                            └─────Offer──► Align ◄── the other side's offer
//
// A file names two versions of one schema and the steps between them ([ExampleFile]
// is one). There are eleven rules and no expressions: all that a file can do is
// in this table. Places are JSON pointers (RFC 6901) through objects; each is
// the one rule that reaches into arrays.
//
//	rule     fields                   forward                      backward
//	move     from, to                 moves a value                moves it back
//	set      at, value, lossy         adds a constant              removes it
//	default  at, value                adds what is not there       removes it where equal
//	drop     at, default              removes a value              adds the default
//	map      at, values               looks up in a table          looks up the other way
//	convert  at, from, to, scale      writes in another format     writes in the first
//	split    at, by, into             text to array or fields      joins
//	join     at, by, from             array or fields to text      splits
//	wrap     at                       value to [value]             unwraps
//	unwrap   at                       [value] to value             wraps
//	each     at, steps                steps on every element       their inverses
//
// Every rule is an injective function on the documents that it accepts, and
// refuses the others: what cannot be turned back is never guessed. So is the
// translation, whose way back is the inverse of each rule in reverse order. Only
// set with lossy, default, drop and some conversions lose something, and say so
// ([Translation.Losses]); a value that a document loses is reported as a [Loss].
//
// A value that is not there is left alone, and so is null by the rules that work
// in place. Objects that a rule needs on the way to a place are made, and removed
// again when they become empty. Nothing else of a document is touched: unknown
// fields come out as they went in, and numbers keep all their digits.
//
// Documents come from peers. Work is bounded; see [Registry.Translate] and the
// package rule.
package translate

import (
	_ "embed"
	"errors"
	"fmt"

	"openmesh/protocols/schema/translate/rule"
	"openmesh/protocols/wire"
)

// Limits on files.
const (
	MaxFile     = 128 << 10 // bytes of a translation file
	MaxSteps    = 256       // rules of a file, those within each included
	MaxExamples = 32        // examples of a file
)

// Loss is what a translation loses, or keeps though the other version does not
// know it.
type Loss = rule.Loss

// Translation is a file that was read. It is not changed once made, and may be
// used by any number of goroutines.
type Translation struct {
	From, To Ref
	File     string    // name of the file, for errors
	Examples []Example // what the file itself says that it does
	Steps    int       // rules, those within each included

	there, back []rule.Step
}

//go:embed example.yaml
var exampleFile string

// ExampleFile returns a valid translation file, with comments, to start from.
func ExampleFile() []byte { return []byte(exampleFile) }

// Forward rewrites a document of t.From to t.To; see [Registry.Translate].
func (t *Translation) Forward(doc []byte) ([]byte, []Loss, error) {
	return translate(doc, t.there, t.From, t.To)
}

// Backward rewrites a document of t.To to t.From; see [Registry.Translate].
func (t *Translation) Backward(doc []byte) ([]byte, []Loss, error) {
	return translate(doc, t.back, t.To, t.From)
}

// Losses tells what the rules may lose each way. A translation that has none is
// the identity when made forward and backward.
func (t *Translation) Losses() (forward, backward []Loss) {
	return rule.Losses(t.there), rule.Losses(t.back)
}

// translate does the steps on the text of a document.
func translate(doc []byte, steps []rule.Step, from, to Ref) ([]byte, []Loss, error) {
	out, losses, err := rule.Apply(doc, steps)
	if err == nil {
		return out, losses, nil
	}
	e, ok := errors.AsType[*rule.Misfit](err)
	if !ok {
		return nil, nil, fmt.Errorf("translate %s to %s: %w", from, to, err)
	}
	refused := wire.Errorf(e.Code, "translate %s to %s: %w", from, to, e).
		WithHint("Correct the document, or the translation; see: openmesh schema check FILE")
	refused.Pointers = []string{e.At.String()}
	return nil, nil, refused
}
