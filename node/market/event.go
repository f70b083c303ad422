package market

import (
	"sync"
	"time"

	"openmesh/protocols/identity"
	deal "openmesh/protocols/market"
)

// Event is something that happened in a negotiation.
type Event struct {
	// A move; or posted: a request was posted or received; reached: a provider has the
	// request; used: a call was made under a contract; expired; superseded: a move of
	// this agent's lost against one that it crossed; refused: the other side would not
	// have one, which stands here nevertheless.
	Event       string
	RFP         string
	Negotiation *deal.Negotiation // after it; nil: the event is about the request
	Contract    string
	From        identity.AgentID
	At          time.Time
}

// events passes events on to those who watch.
type events struct {
	mu       sync.Mutex
	watchers map[chan Event]struct{}
}

func newEvents() *events { return &events{watchers: make(map[chan Event]struct{})} }

// Watch returns events from now on. A watcher that falls 1,024 behind misses some.
func (e *Engine) Watch() (all <-chan Event, stop func()) {
	ch := make(chan Event, 1024)
	e.events.mu.Lock()
	defer e.events.mu.Unlock()
	e.events.watchers[ch] = struct{}{}
	return ch, func() {
		e.events.mu.Lock()
		defer e.events.mu.Unlock()
		delete(e.events.watchers, ch)
	}
}

func (e *events) publish(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for ch := range e.watchers {
		select {
		case ch <- ev:
		default:
		}
	}
}

// tell publishes a move of a negotiation and has whoever decides here hear of it.
func (e *Engine) tell(t *talk, m *deal.Signed) {
	n := t.now()
	ev := Event{Event: m.Kind.String(), RFP: t.request.id, Negotiation: &n, From: m.Author, At: time.Now()}
	ev.Contract = contractOf(n)
	e.events.publish(ev)
	e.decide(t)
}
