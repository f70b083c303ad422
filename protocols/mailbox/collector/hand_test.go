package collector_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"openmesh/overlay/overlaytest"
	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox"
	"openmesh/protocols/mailbox/collector"
	"openmesh/protocols/wire"
)

// hands is who has the letters in hand, and says of none what became of it unless told
// to.
type hands struct {
	mu   sync.Mutex
	came []string
	done map[string]func(error)
	soon func(payload string) bool // done with at once
}

func newHands(m *mesh) (*hands, func(*collector.Config)) {
	h := &hands{done: make(map[string]func(error)), soon: func(string) bool { return false }}
	return h, func(c *collector.Config) {
		c.Deliver = func(_ context.Context, _ *identity.Certificate, payload []byte, _ mailbox.ID, done func(error)) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.came = append(h.came, string(payload))
			if h.done[string(payload)] = done; h.soon(string(payload)) {
				done(nil)
			}
		}
	}
}

func (h *hands) finish(payload string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done[payload](err)
}

// count is how often a letter came.
func (h *hands) count(payload string) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.came {
		if p == payload {
			n++
		}
	}
	return n
}

// The relays keep a letter until it is done with; the next ones come meanwhile, and
// are done with before it. A copy from another relay waits for the same end.
func TestInHand(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 2)
		h, change := newHands(m)
		m.collect(change)
		m.send(m.agent(), m.relays, "1", "2", "3")
		time.Sleep(2 * time.Second)
		m.held(3, 3)
		h.finish("2", nil)
		time.Sleep(time.Second)
		m.held(2, 2)
		h.finish("1", nil)
		h.finish("3", &collector.Permanent{Err: wire.InvalidRequest})
		time.Sleep(time.Second)
		m.held(0, 0)
		for _, p := range []string{"1", "2", "3"} {
			if n := h.count(p); n != 1 {
				t.Errorf("letter %s came %d times", p, n)
			}
		}
	})
}

// What was in hand when the process ended comes again with the next one.
func TestInHandAtTheEnd(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 2)
		h, change := newHands(m)
		remember := func(c *collector.Config) { change(c); c.Memory = m }
		stop := m.collect(remember)
		m.send(m.agent(), m.relays, "1", "2")
		time.Sleep(2 * time.Second)
		h.finish("1", nil)
		time.Sleep(time.Second)
		stop()
		m.held(1, 1)
		m.collect(remember)
		h.finish("2", nil)
		time.Sleep(time.Second)
		m.held(0, 0)
		if h.count("1") != 1 || h.count("2") != 2 {
			t.Errorf("came: %q", h.came)
		}
	})
}

// More letters in hand than a relay has under way, all of one sender, do not stop
// others; those that end late are done with then, and those that fail together are put
// on hold once.
func TestManyInHand(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 1)
		h, change := newHands(m)
		h.soon = func(p string) bool { return p[0] == 'b' }
		m.collect(change)
		var many []string
		for n := range 70 {
			many = append(many, fmt.Sprint("a", n))
		}
		m.send(m.agent(), m.relays, many...)
		m.send(m.agent(), m.relays, "b")
		time.Sleep(15 * time.Second)
		if h.count("b") != 1 {
			t.Error("the letter of another did not come")
		}
		m.held(70)
		for range 6 {
			time.Sleep(15 * time.Second)
			h.mu.Lock()
			for _, done := range h.done {
				done(nil) // those that were put back hear it again
			}
			h.mu.Unlock()
		}
		m.held(0)
	})
}

// Letters that are refused together do not wait longer than one would.
func TestRefusedTogether(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 1)
		h, change := newHands(m)
		m.collect(change)
		var many []string
		for n := range 20 {
			many = append(many, fmt.Sprint("a", n))
		}
		m.send(m.agent(), m.relays, many...)
		time.Sleep(2 * time.Second)
		for _, p := range many {
			h.finish(p, wire.HandlerUnavailable)
		}
		time.Sleep(3 * time.Second)
		m.held(20)
		for _, p := range many {
			if n := h.count(p); n != 2 {
				t.Errorf("letter %s came %d times, want again after a second", p, n)
			}
			h.finish(p, nil)
		}
		time.Sleep(time.Second)
		m.held(0)
	})
}
