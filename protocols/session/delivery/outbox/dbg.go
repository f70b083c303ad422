package outbox

import "fmt"

func (o *Outbox) Dump() string {
	s := fmt.Sprintf("%+v\n", *o.work)
	for _, p := range o.work.line {
		s += fmt.Sprintf("%d state %d past %v told %v attempt %d ref %d wake %v cold %v\n", p.sequence, p.state, p.past, p.told, p.attempt, p.refusals, p.wake, p.cold)
	}
	return s
}
