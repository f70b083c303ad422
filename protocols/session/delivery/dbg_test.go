package delivery_test

import "fmt"

func (w *world) dump() string {
	s := w.out.Dump() + "\n" + w.in.Dump()
	for _, x := range w.sent {
		s += fmt.Sprintf("%+v\n", *x)
	}
	return s
}
