package delivery_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/session/delivery/deliverytest"
	"openmesh/protocols/session/delivery/inbox"
	"openmesh/protocols/session/delivery/outbox"
	"openmesh/protocols/wire"
)

// What handlers do with a message is in its body.
const (
	succeed     = "succeed"
	answer      = "answer"
	fail        = "fail"
	unavailable = "unavailable" // always
	starting    = "starting"    // unavailable twice
)

const lasting = time.Hour // TTL

// world is an outbox and an inbox joined by a network, with the times of both
// processes in the hands of rapid. Frames are lost only at a resume.
type world struct {
	*rapid.T
	terms delivery.Terms
	now   time.Time
	mu    sync.Mutex // what goroutines that send have learnt

	out       *outbox.Outbox
	outStore  *deliverytest.Store
	in        *inbox.Inbox
	inStore   *deliverytest.Store
	connected bool
	toIn      [][]byte
	toOut     [][]byte

	life   context.Context // of the sender's process
	end    context.CancelFunc
	lives  int // of the receiver's
	sent   map[string]*sent
	told   map[uint64]delivery.Outcome
	open   []*call
	calls  map[string][]*call
	newest uint64 // that the handler saw in this life

	cursor uint64
	read   map[uint64]bool
	gaps   []delivery.Range

	short, broken bool // messages that live shortly; stores that fail
}

// sent is a message as the test knows it.
type sent struct {
	key, capability, body string
	short                 bool
	sequence              uint64
	accepted              bool
}

// call is a handler's.
type call struct {
	message *delivery.Message
	done    func(delivery.Outcome)
	life    int
	over    bool
	refused bool
}

func newWorld(t *rapid.T) *world {
	w := &world{
		T: t, now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), connected: true,
		outStore: deliverytest.NewStore(), inStore: deliverytest.NewStore(),
		sent: map[string]*sent{}, told: map[uint64]delivery.Outcome{}, calls: map[string][]*call{}, read: map[uint64]bool{},
		terms: delivery.Terms{
			QoS: delivery.QoS(rapid.IntRange(1, 3).Draw(t, "qos")), Ordered: rapid.Bool().Draw(t, "ordered"),
			TTL: lasting, AckTimeout: 10 * time.Second, MaxPending: rapid.SampledFrom([]int{1, 2, 8, 64}).Draw(t, "pending"),
			Retry: delivery.Retry{Max: 5, Initial: time.Second, Multiplier: 2, MaxInterval: 10 * time.Second},
		},
	}
	w.outStore.Hold()
	w.inStore.Hold()
	w.startOut()
	w.startIn()
	return w
}

func (w *world) startOut() {
	w.life, w.end = context.WithCancel(context.Background())
	w.out = outbox.New(outbox.Config{
		Terms: w.terms, Store: w.outStore,
		Transmit: func(m *delivery.Message, floor uint64) bool {
			if w.connected {
				w.toIn = append(w.toIn, delivery.AppendMessage(nil, m, floor, w.now))
			}
			return w.connected
		},
		Observe: w.observe,
	})
}

// observe checks that an outcome once told stays: but that a message was
// delivered may be lost with the process, and time may run out before it is told
// again.
func (w *world) observe(m *delivery.Message, out delivery.Outcome) {
	if was, ok := w.told[m.Sequence]; ok && was.Status != out.Status && !(was.Status == delivery.Delivered && out.Status == delivery.Expired) {
		w.Errorf("message %d was %v, now it is %v", m.Sequence, was, out)
	}
	w.told[m.Sequence] = out
}

func (w *world) startIn() {
	w.lives++
	w.newest = 0
	life := w.lives
	w.in = inbox.New(inbox.Config{
		Terms: w.terms, Store: w.inStore,
		Handle: func(m *delivery.Message, done func(delivery.Outcome)) {
			w.handle(&call{message: m, done: done, life: life})
		},
		SendAck: func(a delivery.Ack) bool {
			if w.connected {
				w.toOut = append(w.toOut, delivery.AppendAck(nil, a))
			}
			return w.connected
		},
	})
}

// handle checks that the handler may see this message now.
func (w *world) handle(c *call) {
	m := c.message
	before := w.calls[m.Key]
	for _, b := range before {
		switch {
		case w.terms.QoS == delivery.AtMostOnce:
			w.Errorf("message %d is handled twice", m.Sequence)
		case b.refused:
		case b.life == c.life:
			w.Errorf("message %d is handled again by the same process", m.Sequence)
		case !m.Redelivered:
			w.Errorf("message %d is handled again, and not marked", m.Sequence)
		}
	}
	_, finished, err := w.inStore.Window(context.Background(), delivery.SessionID{})
	if _, ok := finished[m.Sequence]; err != nil || ok {
		w.Errorf("message %d is handled again after its outcome was stored: %v", m.Sequence, err)
	}
	if w.terms.Ordered && !m.Redelivered {
		retried := len(before) > 0 && before[len(before)-1].refused
		if m.Sequence <= w.newest && !retried {
			w.Errorf("message %d is handled after %d", m.Sequence, w.newest)
		}
		for _, other := range w.open {
			if n := other.message.Sequence; !other.message.Redelivered && w.terms.Durable() && w.told[n].Status < delivery.Failed {
				w.Errorf("message %d is handled while %d is", m.Sequence, n)
			}
		}
	}
	w.newest = max(w.newest, m.Sequence)
	w.calls[m.Key] = append(before, c)
	w.open = append(w.open, c)
}

func (w *world) finish(i int) {
	c := w.open[i]
	w.open = slices.Delete(w.open, i, i+1)
	c.over = true
	out := delivery.Outcome{Status: delivery.Delivered}
	switch s := string(c.message.Body); {
	case s == answer:
		out.Response, out.Encoding = []byte("yes"), 1
	case s == fail:
		out = delivery.Outcome{Status: delivery.Failed, Code: wire.HandlerFailed, Pointers: []string{"/a"}}
	case s == unavailable, s == starting && len(w.calls[c.message.Key]) <= 2:
		c.refused = true
		out = delivery.Outcome{Status: delivery.Failed, Code: wire.HandlerUnavailable}
	}
	c.done(out)
	c.done(delivery.Outcome{Status: delivery.Delivered}) // not heard
}

func (w *world) send() {
	s := &sent{key: fmt.Sprint("key", len(w.sent)), body: "for readers", short: rapid.IntRange(0, 9).Draw(w.T, "short") == 0}
	if rapid.Bool().Draw(w.T, "capability") {
		s.capability = "test/handler"
		s.body = rapid.SampledFrom([]string{succeed, succeed, answer, fail, unavailable, starting}).Draw(w.T, "script")
	}
	if len(w.sent) > 0 && rapid.IntRange(0, 9).Draw(w.T, "again") == 0 && w.terms.Durable() {
		s = w.sent[rapid.SampledFrom(slices.Sorted(maps.Keys(w.sent))).Draw(w.T, "key")]
	} else {
		w.sent[s.key] = s
	}
	m := &delivery.Message{Key: s.key, Capability: s.capability, Body: []byte(s.body), Encoding: 1}
	if s.short {
		w.short = true
		m.Expires = w.now.Add(20 * time.Second)
	}
	ctx, o, now := w.life, w.out, w.now
	go func() {
		sequence, err := o.Send(ctx, m, now)
		w.mu.Lock()
		defer w.mu.Unlock()
		if err != nil {
			return
		}
		if s.accepted && s.sequence != sequence {
			w.Errorf("%s is message %d and %d", s.key, s.sequence, sequence)
		}
		s.accepted, s.sequence = true, sequence
	}()
	synctest.Wait()
}

// receive delivers a frame to the inbox, and maybe keeps it for another time.
func (w *world) receive() {
	if len(w.toIn) == 0 {
		return
	}
	m, floor, err := delivery.ParseMessage(w.take(&w.toIn), w.now)
	if err != nil {
		w.Fatal(err)
	}
	w.in.Receive(m, floor, w.now)
}

func (w *world) ack() {
	if len(w.toOut) == 0 {
		return
	}
	a, err := delivery.ParseAck(w.take(&w.toOut))
	if err != nil {
		w.Fatal(err)
	}
	w.out.Ack(a, w.now)
}

func (w *world) take(frames *[][]byte) []byte {
	i := rapid.IntRange(0, len(*frames)-1).Draw(w.T, "frame")
	f := (*frames)[i]
	if rapid.IntRange(0, 7).Draw(w.T, "duplicate") > 0 {
		*frames = slices.Delete(*frames, i, i+1)
	}
	return f
}

// lose ends an incarnation: some of what is on its way still arrives.
func (w *world) lose() {
	w.connected = false
	for len(w.toIn) > 0 && rapid.Bool().Draw(w.T, "arrives") {
		w.receive()
	}
	for len(w.toOut) > 0 && rapid.Bool().Draw(w.T, "arrives") {
		w.ack()
	}
	w.toIn, w.toOut = nil, nil
}

func (w *world) resume() {
	w.lose()
	w.connected = true
	w.in.Resume()
	w.out.Resume(w.now)
}

func (w *world) crash(s *deliverytest.Store) *deliverytest.Store {
	if rapid.Bool().Draw(w.T, "power") {
		return s.PowerFailure()
	}
	return s.Crash()
}

func (w *world) crashOut() {
	w.lose()
	w.outStore = w.crash(w.outStore)
	w.end()
	synctest.Wait()
	for _, s := range w.sent {
		if _, ok := w.told[s.sequence]; !ok && !w.terms.Durable() {
			s.accepted = false // there is nobody to be told
		}
	}
	w.now = w.now.Add(time.Second)
	w.startOut()
	if err := w.out.Restore(context.Background(), w.now); err != nil {
		w.Fatal(err)
	}
	w.resume()
}

func (w *world) crashIn() {
	w.lose()
	w.inStore = w.crash(w.inStore)
	w.open = nil
	w.startIn()
	if err := w.in.Restore(context.Background()); err != nil {
		w.Fatal(err)
	}
	w.resume()
}

func (w *world) wait(d time.Duration) {
	w.now = w.now.Add(d)
	w.out.Due(w.now)
	w.in.Due(w.now)
}

// readSome reads the session's inbox as a consumer does who remembers its cursor.
func (w *world) readSome() {
	b, err := w.in.Read(context.Background(), w.cursor, rapid.IntRange(1, 5).Draw(w.T, "limit"), false)
	if err != nil {
		w.Fatal(err)
	}
	for _, m := range b.Messages {
		if m.Sequence <= w.cursor || m.Capability != "" {
			w.Fatalf("read message %d after %d", m.Sequence, w.cursor)
		}
		w.cursor = m.Sequence
		w.read[m.Sequence] = true
	}
	w.cursor = max(w.cursor, b.Cursor)
	w.gaps = append(w.gaps, b.Gaps...)
}

func (w *world) consume() {
	in, cursor := w.in, w.cursor
	ctx, cancel := context.WithCancel(context.Background())
	go in.Consume(ctx, cursor)
	synctest.Wait()
	w.inStore.Flush(-1)
	cancel()
	synctest.Wait()
}

func (w *world) flush(s *deliverytest.Store) {
	n := rapid.IntRange(1, 5).Draw(w.T, "changes")
	if rapid.Bool().Draw(w.T, "lazy") {
		s.FlushLazy(n)
	} else {
		s.Flush(n)
	}
	synctest.Wait()
}

// step does one thing of many.
func (w *world) step() {
	switch n := rapid.IntRange(0, 99).Draw(w.T, "step"); {
	case n < 20:
		w.send()
	case n < 35:
		w.flush(w.outStore)
	case n < 45:
		w.flush(w.inStore)
	case n < 65:
		w.receive()
	case n < 75:
		w.ack()
	case n < 83:
		if len(w.open) > 0 {
			w.finish(rapid.IntRange(0, len(w.open)-1).Draw(w.T, "call"))
		}
	case n < 87:
		w.readSome()
	case n < 89:
		w.consume()
	case n < 93:
		w.wait(time.Duration(rapid.IntRange(0, 12).Draw(w.T, "seconds")) * time.Second)
	case n < 94:
		w.connected = false
	case n < 96:
		w.resume()
	case n < 97:
		w.crashOut()
	case n < 98:
		w.crashIn()
	case n < 99:
		w.broken = true
		w.outStore.FailNext(errors.New("disk on fire"))
	default:
		w.broken = true
		w.inStore.FailNext(errors.New("disk on fire"))
	}
}

// bubble hides what a test in a bubble does not have: a deadline.
type bubble struct{ rapid.TB }

// Whatever happens, every accepted message has the outcome that it should.
func TestPromise(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(bubble{t}, func(t *rapid.T) {
			w := newWorld(t)
			defer func() {
				w.end()
				synctest.Wait()
			}()
			for range rapid.IntRange(1, 150).Draw(t, "steps") {
				w.step()
			}
			w.heal()
			w.check()
			w.checkRead()
		})
	})
}
