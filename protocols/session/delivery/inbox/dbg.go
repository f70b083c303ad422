package inbox

import "fmt"

func (b *Inbox) Dump() string {
	s := fmt.Sprintf("%+v\n", *b.work)
	for _, e := range b.work.entries {
		s += fmt.Sprintf("%d stage %d listed %v readable %v unstored %v attempt %d\n", e.sequence, e.stage, e.listed, e.readable, e.unstored, e.attempt)
	}
	return s
}
