package translate

import (
	"fmt"

	"openmesh/protocols/schema/translate/rule"
)

// Problem is something wrong with a translation file.
type Problem struct {
	Place   string `json:"place"` // file:line:column
	Message string `json:"message"`
	Hint    string `json:"hint"`
}

// Example is a document in both versions, as a file gives it, decoded as
// [encoding/json.Decoder.UseNumber] has it.
type Example struct {
	Place    string // file:line:column
	From, To any
	Back     any // what To becomes on the way back; From unless the file says otherwise
}

// Check reads a translation file and runs its examples both ways. No problems
// is nil. The file's name is for the places.
func Check(file []byte, name string) []Problem {
	t, problems := parse(file, name)
	if problems != nil {
		return problems
	}
	for i, e := range t.Examples {
		problems = append(problems, t.try(e, fmt.Sprintf("example %d", i+1))...)
	}
	return problems
}

// try runs one example.
func (t *Translation) try(e Example, title string) []Problem {
	var problems []Problem
	for _, way := range []struct {
		name     string
		do       func([]byte) ([]byte, []Loss, error)
		in, want any
	}{{"forward", t.Forward, e.From, e.To}, {"backward", t.Backward, e.To, e.Back}} {
		if what := outcomeOf(way.do, way.in, way.want); what != "" {
			problems = append(problems, Problem{e.Place, title + ", " + way.name + ": " + what, ""})
		}
	}
	return problems
}

func outcomeOf(do func([]byte) ([]byte, []Loss, error), in, want any) string {
	text, err := rule.Encode(in)
	if err != nil {
		return err.Error()
	}
	out, _, err := do(text)
	if err != nil {
		return err.Error()
	}
	got, err := rule.Decode(out)
	if err != nil {
		return err.Error()
	}
	return rule.Difference(got, want, nil)
}
