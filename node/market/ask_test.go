package market

import (
	"strings"
	"testing"
	"time"

	"openmesh/protocols/identity"
)

// Who posts a request is told that the search for providers is not over, until all whom
// it finds are asked. A broadcast to which nobody listens does not delay it.
func TestSearching(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer := w.agent("buyer")
		buyer.looks, buyer.shouts = time.Second, 2*time.Minute
		w.agent("a")
		w.agent("b")
		began := time.Now()
		state, err := buyer.engine.PostRFP(t.Context(), rfp(1, time.Hour))
		check(t, err)
		if !state.Searching || state.Asked != 0 {
			t.Errorf("posted: searching %v, %d asked", state.Searching, state.Asked)
		}
		until(t, "the search is over", func() (string, bool) {
			state, err = buyer.engine.Request(t.Context(), state.Move.Hash.ID())
			check(t, err)
			if !state.Searching && state.Asked != 2 {
				t.Fatalf("the search is over, and %d are asked", state.Asked)
			}
			return "", !state.Searching
		})
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

// A search that never ends is given up, and the next one finds who is there.
func TestSearchHangs(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller := w.agent("buyer"), w.agent("seller")
		buyer.looks = 24 * time.Hour
		rfp := buyer.post(1)
		<-time.After(time.Second)
		buyer.w.mu.Lock()
		buyer.looks = 0
		buyer.w.mu.Unlock()
		seller.has(rfp)
	})
}

// Who was asked and did not hear of it is asked by a buyer that was restarted, too.
func TestAskedAgain(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, a, b := w.agent("buyer"), w.agent("a"), w.agent("b")
		w.fault = func(_, to identity.AgentID, _ int) fault {
			if to == a.Agent.Agent {
				return lost
			}
			return none
		}
		rfp := buyer.post(1)
		b.has(rfp)
		<-time.After(time.Second)
		buyer.restart()
		w.cut(false)
		a.has(rfp)
	})
}

// A message that has expired is followed by another one.
func TestAskedInAnotherMessage(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, seller := w.agent("buyer"), w.agent("seller")
		w.lapse = func(_ identity.AgentID, key string) bool { return strings.HasSuffix(key, "/0") }
		seller.has(buyer.post(1))
	})
}

// Of those who were asked, who proposes, declines or will not have the request is not
// awaited, after a restart either.
func TestAwaited(t *testing.T) {
	within(t, func(t *testing.T, w *world) {
		buyer, a, b, c := w.agent("buyer"), w.agent("a"), w.agent("b"), w.agent("c")
		w.fault = func(_, to identity.AgentID, _ int) fault {
			if to == c.Agent.Agent {
				return denied
			}
			return none
		}
		rfp := buyer.post(1)
		awaits := func(want int) {
			t.Helper()
			s, err := buyer.engine.Request(t.Context(), rfp)
			if check(t, err); s.Asked != 3 || s.Awaited != want {
				t.Errorf("%d of %d are awaited, want %d", s.Awaited, s.Asked, want)
			}
		}
		a.has(rfp)
		b.has(rfp)
		<-time.After(time.Second)
		awaits(2)
		a.proposes(rfp, "9")
		awaits(1)
		_, err := b.engine.Decline(t.Context(), rfp, "")
		check(t, err)
		awaits(0)
		buyer.restart()
		<-time.After(time.Second)
		awaits(0)
	})
}
