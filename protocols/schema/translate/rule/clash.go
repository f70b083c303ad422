package rule

import (
	"fmt"
	"slices"
)

// Clash is a step that can never work.
type Clash struct {
	Step Step
	Why  string
}

// Clashes finds rules that can never work in the one direction or, if there are
// none, in the other, whatever the document: those that put a value where
// another rule has put one, and those that look where another rule has taken it
// away. What depends on the document is found when one comes.
func Clashes(steps []Step) []Clash {
	found := oneWay(steps)
	if found == nil {
		found = oneWay(Invert(steps))
	}
	for _, s := range steps {
		if e, ok := s.Rule.(each); ok {
			found = append(found, Clashes(e.steps)...)
		}
	}
	return found
}

func oneWay(steps []Step) []Clash {
	var found []Clash
	var done history
	for _, s := range steps {
		if what := done.add(s); what != "" {
			found = append(found, Clash{s, what})
		}
	}
	return found
}

// history is what rules have done so far.
type history []event

type event struct {
	at       Pointer
	fills    bool // else empties
	constant bool
	place    string
}

// add adds what a step does, and tells what is wrong with it, or "".
func (h *history) add(s Step) string {
	m := s.marks()
	for _, p := range slices.Concat(m.takes, m.looks) {
		if e := h.emptied(p); e != nil {
			return fmt.Sprintf("nothing is at %s: the rule at %s has taken it away", p.shown(), e.place)
		}
	}
	for _, p := range m.takes {
		*h = append(*h, event{at: p, place: s.Place})
	}
	for _, p := range m.puts {
		if e := h.filled(p); e != nil {
			return fmt.Sprintf("%s is not free: the rule at %s has put a value there", p.shown(), e.place)
		}
		*h = append(*h, event{at: p, fills: true, constant: m.constant, place: s.Place})
	}
	return ""
}

// emptied returns what took away the value at p, if nothing came after it.
func (h history) emptied(p Pointer) *event {
	for i, e := range slices.Backward(h) {
		_, below := p.within(e.at)
		_, above := e.at.within(p)
		if e.fills && (below || above) {
			return nil
		}
		if !e.fills && below {
			return &h[i]
		}
	}
	return nil
}

// filled returns what leaves no room at p, if it was not taken away again.
func (h history) filled(p Pointer) *event {
	for i, e := range slices.Backward(h) {
		_, below := p.within(e.at)
		_, above := e.at.within(p)
		switch {
		case !e.fills && below:
			return nil
		case e.fills && (above || below && e.constant):
			return &h[i]
		}
	}
	return nil
}
