package node

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"openmesh/protocols/session"
)

// setbacks remembers which chains of relays failed a moment ago: these are tried last.
// A dead relay costs seconds, a session is set up by two circuits, and who has agreed
// to it waits only so long for the second. Safe for concurrent use.
type setbacks struct {
	mu    sync.Mutex
	until map[string]time.Time
}

const (
	setbackLasts = time.Minute
	maxSetbacks  = 256
)

// order puts the chains without a setback first.
func (s *setbacks) order(chains []session.Chain, now time.Time) []session.Chain {
	s.mu.Lock()
	defer s.mu.Unlock()
	rank := func(c session.Chain) int {
		if now.Before(s.until[fmt.Sprint(c)]) {
			return 1
		}
		return 0
	}
	return slices.SortedStableFunc(slices.Values(chains), func(a, b session.Chain) int { return rank(a) - rank(b) })
}

// note says how an attempt went.
func (s *setbacks) note(c session.Chain, err error, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		delete(s.until, fmt.Sprint(c))
		return
	}
	if s.until == nil || len(s.until) >= maxSetbacks {
		s.until = make(map[string]time.Time)
	}
	s.until[fmt.Sprint(c)] = now.Add(setbackLasts)
}
