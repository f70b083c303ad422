package node

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"openmesh/protocols/session"
)

// A chain that failed comes last until it works again, or for a minute.
func TestSetbacks(t *testing.T) {
	t.Parallel()
	a, b, c := session.Chain{"r1", "r2"}, session.Chain{"r1", "r3"}, session.Chain{"r4"}
	now, failed := time.Now(), errors.New("relay 2 is dead")
	var s setbacks
	expect := func(at time.Time, want ...session.Chain) {
		t.Helper()
		if got := s.order([]session.Chain{a, b, c}, at); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("tried in the order %v, want %v", got, want)
		}
	}
	expect(now, a, b, c)
	s.note(a, failed, now)
	expect(now, b, c, a)
	s.note(b, failed, now.Add(time.Second))
	expect(now.Add(time.Second), c, a, b)
	expect(now.Add(setbackLasts), a, c, b)
	s.note(b, nil, now.Add(setbackLasts))
	expect(now.Add(setbackLasts), a, b, c)
}
