package inbox_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/session/delivery/deliverytest"
	"openmesh/protocols/session/delivery/inbox"
	"openmesh/protocols/wire"
)

var start = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// receiving is an inbox whose peer and handler are the test.
type receiving struct {
	*testing.T
	*inbox.Inbox
	store   *deliverytest.Store
	terms   delivery.Terms
	now     time.Time
	away    bool
	acks    []string
	handled []string
	done    map[uint64]func(delivery.Outcome)
}

func terms(q delivery.QoS, ordered bool) delivery.Terms {
	return delivery.Terms{QoS: q, Ordered: ordered, TTL: time.Hour, AckTimeout: 10 * time.Second}
}

func newReceiving(t *testing.T, terms delivery.Terms) *receiving {
	t.Helper()
	r := &receiving{T: t, store: deliverytest.NewStore(), terms: terms, now: start, done: map[uint64]func(delivery.Outcome){}}
	r.open()
	return r
}

func (r *receiving) open() {
	r.Inbox = inbox.New(inbox.Config{
		Terms: r.terms, Store: r.store,
		Handle: func(m *delivery.Message, done func(delivery.Outcome)) {
			r.handled = append(r.handled, fmt.Sprint(m.Sequence))
			r.done[m.Sequence] = done
		},
		SendAck: func(a delivery.Ack) bool {
			if !r.away {
				r.acks = append(r.acks, text(a))
			}
			return !r.away
		},
	})
}

// text is an ack as "+delivered ~working -failed=answered", where a range is
// "from:to".
func text(a delivery.Ack) string {
	var s []string
	for _, x := range a.Delivered {
		s = append(s, fmt.Sprintf("+%d:%d", x.From, x.To))
	}
	for _, x := range a.Working {
		s = append(s, fmt.Sprintf("~%d:%d", x.From, x.To))
	}
	for _, x := range a.Failed {
		s = append(s, fmt.Sprintf("-%d.%d %s%s", x.Sequence, x.Attempt, x.Code, strings.Join(x.Pointers, "")))
	}
	for _, x := range a.Responses {
		s = append(s, fmt.Sprintf("=%d %s", x.Sequence, x.Body[:min(len(x.Body), 8)]))
	}
	return "[" + strings.Join(s, " ") + "]"
}

// get receives a message for the handler, put one for readers.
func (r *receiving) get(sequence, floor uint64, attempt uint32) {
	r.Receive(&delivery.Message{Sequence: sequence, Capability: "test/handler", Attempt: attempt}, floor, r.now)
}

func (r *receiving) put(sequence, floor uint64) {
	r.Receive(&delivery.Message{Sequence: sequence, Body: fmt.Append(nil, sequence), Attempt: 1}, floor, r.now)
}

func (r *receiving) floor(n uint64) { r.Receive(&delivery.Message{}, n, r.now) }

func (r *receiving) finish(sequence uint64, response string) {
	r.done[sequence](delivery.Outcome{Status: delivery.Delivered, Response: []byte(response)})
}

func (r *receiving) fail(sequence uint64, code wire.Code) {
	r.done[sequence](delivery.Outcome{Status: delivery.Failed, Code: code})
}

func (r *receiving) later(d time.Duration) time.Time {
	r.now = r.now.Add(d)
	return r.Due(r.now)
}

// wants checks what was acknowledged, and handled, since it was called last.
func (r *receiving) wants(acks, handled string) {
	r.Helper()
	if got := strings.Join(r.acks, ""); got != acks {
		r.Errorf("acknowledged %q, want %q", got, acks)
	}
	if got := strings.Join(r.handled, " "); got != handled {
		r.Errorf("handled %q, want %q", got, handled)
	}
	r.acks, r.handled = nil, nil
}

// reads checks what a reader gets: messages, gaps in brackets, the cursor.
func (r *receiving) reads(cursor uint64, limit int, want string) {
	r.Helper()
	b, err := r.Read(r.Context(), cursor, limit, false)
	if err != nil {
		r.Fatal(err)
	}
	var s []string
	for _, m := range b.Messages {
		s = append(s, string(m.Body))
	}
	for _, g := range b.Gaps {
		s = append(s, fmt.Sprintf("[%d:%d]", g.From, g.To))
	}
	if got := strings.Join(append(s, fmt.Sprintf(">%d", b.Cursor)), " "); got != want {
		r.Errorf("read %q, want %q", got, want)
	}
}

func (r *receiving) restart(store *deliverytest.Store) {
	r.Helper()
	r.store = store
	r.open()
	if err := r.Restore(r.Context()); err != nil {
		r.Fatal(err)
	}
}

// Stories of one message or a few, in each way of delivery.
func TestStories(t *testing.T) {
	t.Parallel()
	const once, least, exactly = delivery.AtMostOnce, delivery.AtLeastOnce, delivery.ExactlyOnce
	for name, c := range map[string]struct {
		qos     delivery.QoS
		ordered bool
		tell    func(*receiving)
	}{
		"handled": {least, false, func(r *receiving) {
			r.get(1, 1, 1)
			r.get(2, 1, 1)
			r.wants("", "1 2")
			r.finish(2, "")
			r.finish(1, "yes")
			r.finish(1, "no") // not heard
			r.wants("[+2:2][=1 yes]", "")
		}},
		"twice": {least, false, func(r *receiving) {
			r.get(1, 1, 1)
			r.get(1, 1, 2)
			r.wants("[~1:1]", "1")
			r.finish(1, "yes")
			r.get(1, 1, 3)
			r.get(1, 1, 2)
			r.wants("[=1 yes][=1 yes][=1 yes]", "")
			r.floor(2)
			r.get(1, 1, 4)
			r.wants("[+1:1]", "") // the answer is forgotten
		}},
		"failed": {exactly, false, func(r *receiving) {
			r.get(1, 1, 1)
			r.done[1](delivery.Outcome{Status: delivery.Failed, Code: wire.InvalidRequest, Pointers: []string{"/a", strings.Repeat("x", 300)}})
			r.get(1, 1, 2)
			r.wants("[-1.1 invalid_request/a][-1.2 invalid_request/a]", "1")
		}},
		"refused, then taken": {exactly, false, func(r *receiving) {
			r.get(1, 1, 1)
			r.get(1, 1, 2)
			r.fail(1, wire.HandlerUnavailable)
			r.wants("[~1:1][-1.2 handler_unavailable]", "1")
			r.get(1, 1, 3)
			r.finish(1, "")
			r.wants("[+1:1]", "1")
		}},
		"a strange outcome": {least, false, func(r *receiving) {
			r.get(1, 1, 1)
			r.done[1](delivery.Outcome{})
			r.get(2, 1, 1)
			r.fail(2, 7)
			r.wants("[-1.1 internal][-2.1 internal]", "1 2")
		}},
		"in order": {least, true, func(r *receiving) {
			r.get(3, 1, 1)
			r.get(1, 1, 1)
			r.get(2, 1, 1)
			r.wants("", "1")
			r.fail(1, wire.HandlerUnavailable)
			r.wants("[-1.1 handler_unavailable]", "")
			r.get(1, 1, 2)
			r.finish(1, "")
			r.wants("[+1:1]", "1 2")
			r.fail(2, wire.HandlerFailed)
			r.wants("[-2.1 handler_failed]", "3")
		}},
		"in order, given up": {least, true, func(r *receiving) {
			r.get(2, 1, 1)
			r.get(4, 1, 1)
			r.wants("", "")
			r.floor(2)
			r.wants("", "2")
			r.floor(4) // 2 has not ended, but nobody waits for it
			r.wants("", "4")
			r.finish(2, "x")
			r.wants("[=2 x]", "")
			r.reads(0, 9, "[1:1] [3:3] >3")
		}},
		"in order, given up before its turn": {least, true, func(r *receiving) {
			r.get(2, 1, 1)
			r.floor(3)
			r.get(3, 3, 1)
			r.wants("", "3")
			r.get(4, 3, 1)
			r.floor(5)
			r.get(5, 5, 1)
			r.wants("", "5")
		}},
		"for readers": {least, false, func(r *receiving) {
			r.put(1, 1)
			r.put(3, 1)
			r.wants("[+1:1][+3:3]", "")
			r.reads(0, 9, "1 >1") // 2 may come
			r.put(2, 1)
			r.reads(1, 1, "2 >2")
			r.reads(2, 1, "3 >3")
			r.put(2, 1)
			r.wants("[+2:2][+2:2]", "")
			r.reads(3, 9, ">3")
		}},
		"for readers, mixed": {least, false, func(r *receiving) {
			r.put(1, 1)
			r.get(2, 1, 1)
			r.put(3, 1)
			r.reads(0, 9, "1 3 >3") // 2 is no gap
		}},
		"for readers, in order": {least, true, func(r *receiving) {
			r.get(1, 1, 1)
			r.put(2, 1)
			r.wants("[+2:2]", "1") // on disk
			r.reads(0, 9, ">0")
			r.finish(1, "")
			r.reads(0, 9, "2 >2")
		}},
		"gaps": {least, false, func(r *receiving) {
			r.put(2, 1)
			r.put(5, 1)
			r.reads(0, 9, ">0")
			r.floor(4)
			r.reads(0, 9, "2 [1:1] [3:3] >3")
			r.floor(9)
			r.reads(0, 1, "2 [1:1] >2")
			r.reads(2, 9, "5 [3:4] [6:8] >8")
		}},
		"consumed": {exactly, false, func(r *receiving) {
			for n := range uint64(4) {
				r.put(n+1, 1)
			}
			if err := r.Consume(r.Context(), 2); err != nil {
				r.Fatal(err)
			}
			r.reads(0, 9, "3 4 >4")
			if err := r.Consume(r.Context(), 5); wire.CodeOf(err) != wire.InvalidArgument {
				r.Errorf("%v, want invalid_argument", err)
			}
			r.acks = nil
			r.restart(r.store.PowerFailure())
			r.reads(0, 9, "3 4 >4")
			r.put(1, 1)
			r.put(3, 1)
			r.wants("[+1:1][+3:3]", "")
			r.reads(0, 9, "3 4 >4")
			if ms, _, err := r.store.Inbox(r.Context(), delivery.SessionID{}, 0, 9); len(ms) != 2 || err != nil {
				r.Errorf("%d messages are stored, %v; want 2", len(ms), err)
			}
		}},
		"once": {once, false, func(r *receiving) {
			r.get(2, 2, 1)
			r.fail(2, wire.HandlerUnavailable)
			r.get(2, 2, 1)
			r.put(3, 2)
			r.get(1, 1, 1)
			r.wants("[-2.1 handler_unavailable][-2.1 handler_unavailable][+3:3][-1.1 replayed]", "2")
			r.reads(0, 9, "3 [1:1] >3")
			if err := r.Consume(r.Context(), 3); err != nil {
				r.Fatal(err)
			}
			r.reads(0, 9, ">3")
		}},
		"takes long": {least, false, func(r *receiving) {
			r.get(1, 1, 1)
			r.later(2 * time.Second)
			r.get(2, 1, 1)
			if next := r.later(2 * time.Second); next.Sub(r.now) != time.Second {
				r.Errorf("due in %s, want 1s", next.Sub(r.now))
			}
			r.wants("", "1 2")
			r.later(time.Second)
			r.wants("[~1:1]", "")
			r.later(time.Hour)
			r.wants("[~2:2]", "") // said once
			r.Resume()
			r.later(0)
			r.wants("[~1:2]", "") // the sender may have forgotten
		}},
		"no channel": {least, false, func(r *receiving) {
			r.away = true
			for n := range uint64(4) {
				r.get(n+1, 1, 1)
			}
			r.finish(1, "yes")
			r.finish(2, "")
			r.fail(3, wire.HandlerFailed)
			r.fail(4, wire.HandlerUnavailable)
			r.later(0)
			r.away = false
			r.wants("", "1 2 3 4")
			r.later(0)
			r.wants("[+2:2 -3.1 handler_failed -4.1 handler_unavailable =1 yes]", "")
		}},
		"resumed": {least, false, func(r *receiving) {
			r.away = true
			r.get(1, 1, 1)
			r.get(2, 1, 1)
			r.finish(1, "")
			r.fail(2, wire.HandlerUnavailable)
			r.away = false
			r.Resume()
			r.wants("[+1:1]", "1 2") // 2 comes again anyway
		}},
		"strange": {least, false, func(r *receiving) {
			r.get(1, 2, 1)
			r.get(1<<63, 1, 1)
			r.floor(1 << 63)
			r.get(delivery.MaxSpan+1, 1, 1)
			r.get(delivery.MaxSpan, 1, 1)
			r.wants("[-16385.1 resource_exhausted]", "16384")
			r.floor(1 << 60) // its own loss
			r.get(1<<60, 1<<60, 1)
			r.wants("", fmt.Sprint(1<<60))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.tell(newReceiving(t, terms(c.qos, c.ordered)))
		})
	}
}

// What is acknowledged is on disk; and one commit makes one ack.
func TestAckWaitsForTheDisk(t *testing.T) {
	t.Parallel()
	for _, q := range []delivery.QoS{delivery.AtLeastOnce, delivery.ExactlyOnce} {
		r := newReceiving(t, terms(q, false))
		r.store.Hold()
		for n := range uint64(3) {
			r.put(n+1, 1)
			r.get(n+4, 1, 1)
			r.finish(n+4, "")
		}
		if q == delivery.ExactlyOnce {
			r.wants("", "4 5 6")
		} else {
			r.wants("[+4:4][+5:5][+6:6]", "4 5 6")
		}
		r.reads(0, 9, ">0")
		if crashed := r.store.PowerFailure(); q == delivery.ExactlyOnce {
			r.restart(crashed)
			r.get(4, 1, 2)
			r.wants("", "4") // as if it had never been
			continue
		}
	}
	r := newReceiving(t, terms(delivery.ExactlyOnce, false))
	r.store.Hold()
	for n := range uint64(3) {
		r.put(n+1, 1)
		r.get(n+4, 1, 1)
		r.finish(n+4, "")
	}
	r.store.Flush(4)
	r.wants("", "4 5 6")
	r.store.Flush(2)
	r.wants("[+1:6]", "")
	r.reads(0, 9, "1 2 3 >6")
	r.restart(r.store.PowerFailure())
	for n := range uint64(3) {
		r.get(n+4, 1, 2)
	}
	r.wants("[+4:4][+5:5][+6:6]", "") // not handled again
}

// A sender that takes no acks leaves a bounded number of them, and gets no further.
func TestAcksNotTaken(t *testing.T) {
	t.Parallel()
	r := newReceiving(t, terms(delivery.AtLeastOnce, false))
	r.away = true
	for n := range uint64(3000) {
		r.get(n+1, n+1, 1)
		if done := r.done[n+1]; done != nil {
			done(delivery.Outcome{Status: delivery.Delivered})
		}
	}
	if n := len(r.handled); n != 1024 {
		t.Errorf("%d messages were handled, want 1024", n)
	}
}

func TestStoreFails(t *testing.T) {
	t.Parallel()
	fire := errors.New("disk on fire")
	r := newReceiving(t, terms(delivery.ExactlyOnce, false))
	r.store.FailNext(fire)
	r.put(1, 1)
	r.wants("[-1.1 resource_exhausted]", "") // it may come again
	r.put(1, 1)
	r.wants("[+1:1]", "")

	r.get(2, 1, 1)
	r.store.FailNext(fire)
	r.finish(2, "yes")
	r.get(2, 1, 2)
	r.wants("[~2:2]", "2")
	r.later(time.Second)
	r.wants("[=2 yes]", "") // and not handled again

	r.store.FailNext(fire)
	if err := r.Consume(t.Context(), 2); !errors.Is(err, fire) {
		t.Errorf("%v, want the store's error", err)
	}
	r.reads(0, 9, "1 >2")
	r.store.Crash()
	if _, err := r.Read(t.Context(), 0, 1, false); !errors.Is(err, deliverytest.ErrCrashed) {
		t.Errorf("%v, want the store's error", err)
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	few := terms(delivery.AtLeastOnce, true)
	few.MaxPending, few.MaxBacklog, few.MaxBacklogBytes = 3, 2, 10
	for name, tell := range map[string]func(r *receiving){
		"in hand": func(r *receiving) {
			for n := range uint64(4) {
				r.get(n+2, 1, 1)
			}
			r.wants("[-5.1 resource_exhausted]", "")
			r.get(1, 1, 1) // all others wait for it
			r.wants("", "1")
		},
		"in hand, in any order": func(r *receiving) {
			r.terms.Ordered = false
			r.open()
			for n := range uint64(4) {
				r.get(n+1, 1, 1)
			}
			r.wants("[-4.1 resource_exhausted]", "1 2 3")
			r.finish(2, "")
			r.get(4, 1, 2)
			r.get(5, 5, 1) // whatever was given up is in hand all the same
			r.wants("[+2:2][-5.1 resource_exhausted]", "4")
		},
		"in hand, given up": func(r *receiving) {
			for n := range uint64(4) {
				r.get(n+1, n+1, 1)
			}
			r.wants("[-4.1 resource_exhausted]", "1 2 3")
			r.finish(1, "")
			r.get(4, 4, 2)
			r.wants("[+1:1]", "4")
		},
		"in hand, behind one that was given up": func(r *receiving) {
			r.get(1, 1, 1)
			for n := range uint64(3) {
				r.get(n+3, 2, 1)
			}
			r.wants("[-5.1 resource_exhausted]", "1")
			r.get(2, 2, 1) // 1 will make room
			r.finish(1, "")
			r.get(5, 2, 2)
			r.get(2, 2, 2) // nothing else will
			r.wants("[-2.1 resource_exhausted][+1:1]", "2")
		},
		"bytes in hand, in any order": func(r *receiving) {
			r.terms.Ordered = false
			r.open()
			for n := range uint64(3) {
				r.Receive(&delivery.Message{Sequence: n + 1, Capability: "c", Body: make([]byte, 8<<20)}, 1, r.now)
			}
			r.wants("[-3.0 resource_exhausted]", "1 2")
		},
		"answers, one after the other": func(r *receiving) {
			r.terms.Ordered = false
			r.open()
			for n := range uint64(2) {
				r.get(n+1, 1, 1)
				r.done[n+1](delivery.Outcome{Status: delivery.Delivered, Response: make([]byte, 8<<20)})
			}
			r.get(3, 1, 1)
			r.acks = r.acks[2:]
			r.wants("[-3.1 resource_exhausted]", "1 2")
			r.get(3, 3, 2)
			r.wants("", "3")
		},
		"bytes in hand": func(r *receiving) {
			for n := range uint64(3) {
				r.Receive(&delivery.Message{Sequence: n + 2, Capability: "c", Body: make([]byte, 8<<20)}, 1, r.now)
			}
			r.wants("[-4.0 resource_exhausted]", "")
		},
		"answers": func(r *receiving) {
			r.terms.Ordered = false
			r.open()
			for n := range uint64(2) {
				r.get(n+2, 1, 1)
				r.done[n+2](delivery.Outcome{Status: delivery.Delivered, Response: make([]byte, 8<<20)})
			}
			r.get(4, 1, 1)
			r.acks = r.acks[2:]
			r.wants("[-4.1 resource_exhausted]", "2 3")
			r.get(4, 4, 2)
			r.wants("", "4")
		},
		"unread": func(r *receiving) {
			for n := range uint64(3) {
				r.put(n+1, 1)
			}
			r.wants("[+1:1][+2:2][-3.1 resource_exhausted]", "")
			if err := r.Consume(r.Context(), 1); err != nil {
				r.Fatal(err)
			}
			r.put(3, 1)
			r.wants("[+3:3]", "")
		},
		"unread bytes": func(r *receiving) {
			r.Receive(&delivery.Message{Sequence: 1, Body: make([]byte, 11)}, 1, r.now)
			r.wants("[-1.0 resource_exhausted]", "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tell(newReceiving(t, few))
		})
	}
}
