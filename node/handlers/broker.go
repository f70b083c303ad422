package handlers

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"sync"
	"time"

	"openmesh/protocols/schema"
	"openmesh/protocols/wire"
)

// MaxWaiting is how many requests of one capability may wait to be pulled.
const MaxWaiting = 1024

// Broker is the handler of capabilities whose requests an application pulls:
//
//	Handle ──► waiting ──Pull──► pulled ──Reply──► answered
//	              │                 │ ▲ Reply with More: a part
//	          ctx ends:         ctx ends:
//	    handler_unavailable   deadline_exceeded
//
// The two ends differ because what was never pulled had no effect, so the
// caller may go elsewhere. An application that dies with a request pulled is
// the second case. All methods may be called at any time by anyone.
type Broker struct {
	mu      sync.Mutex
	count   uint64 // of requests so far, for their order
	waiting map[string][]*item
	pulled  map[string]*item // by id
	pullers []*puller
}

type item struct {
	id     string
	number uint64
	req    *Request
	done   chan outcome // takes one: the response, or that it comes in parts
	feed   *feed        // of the parts; nil before the first
}

type outcome struct {
	resp *Response
	err  error
}

// feed hands the replies of a response in parts from the application to the
// caller, one at a time.
type feed struct {
	replies chan Reply
	gone    chan struct{} // closed when no more are taken
}

// Reply is an application's answer to a request that it pulled, or a part of it.
type Reply struct {
	Response *Response // nil, if without error, ends a response in parts
	Err      error     // the work failed
	More     bool      // Response is a part, and there will be another Reply
}

// puller is a Pull that waits.
type puller struct {
	capabilities []string
	got          chan *item // takes one
}

// Pulled is a request that waits for [Broker.Reply].
type Pulled struct {
	ID      string // unguessable: whoever knows it may answer
	Request *Request
}

// NewBroker returns a broker.
func NewBroker() *Broker {
	return &Broker{waiting: map[string][]*item{}, pulled: map[string]*item{}}
}

// Handle hands req to the application and waits for its reply.
func (b *Broker) Handle(ctx context.Context, req *Request) (*Response, error) {
	told := *req
	if d, ok := ctx.Deadline(); ok {
		told.Deadline = d
	}
	it := &item{id: rand.Text(), req: &told, done: make(chan outcome, 1)}
	if err := b.offer(it); err != nil {
		return nil, err
	}
	select {
	case o := <-it.done:
		return o.resp, o.err
	case <-ctx.Done():
		return b.withdraw(ctx, it)
	}
}

// offer gives it to a Pull that waits for such, or lets it wait.
func (b *Broker) offer(it *item) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	name := it.req.Capability
	if b.give(it) {
		return nil
	}
	if len(b.waiting[name]) >= MaxWaiting {
		return wire.Errorf(wire.ResourceExhausted, "%d requests wait for the application", MaxWaiting)
	}
	b.count++
	it.number = b.count
	b.waiting[name] = append(b.waiting[name], it)
	return nil
}

// give hands it to the Pull that has waited longest, if there is one. It is
// called with mu held.
func (b *Broker) give(it *item) bool {
	for i, p := range b.pullers {
		if slices.Contains(p.capabilities, it.req.Capability) {
			b.pullers = slices.Delete(b.pullers, i, i+1)
			b.pulled[it.id] = it
			p.got <- it
			return true
		}
	}
	return false
}

// withdraw ends it because ctx has ended, unless a reply came first.
func (b *Broker) withdraw(ctx context.Context, it *item) (*Response, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case o := <-it.done:
		return o.resp, o.err
	default:
	}
	_, pulled := b.pulled[it.id]
	delete(b.pulled, it.id)
	b.unqueue(it)
	if !pulled && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, wire.Errorf(wire.HandlerUnavailable, "no application pulled the request").
			WithHint("Is the application that serves it running?")
	}
	return nil, ended(ctx, "wait for the application")
}

func (b *Broker) unqueue(it *item) {
	name := it.req.Capability
	if i := slices.Index(b.waiting[name], it); i >= 0 {
		b.waiting[name] = slices.Delete(b.waiting[name], i, i+1)
	}
	if len(b.waiting[name]) == 0 {
		delete(b.waiting, name)
	}
}

// Pull takes the oldest request for any of the capabilities, waiting for one
// at most so long. It reports false if there was none in that time. The error
// is that of ctx.
func (b *Broker) Pull(ctx context.Context, capabilities []string, wait time.Duration) (*Pulled, bool, error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	it, p := b.next(capabilities, wait)
	if it == nil && p != nil {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case it = <-p.got:
		case <-timer.C:
			it = b.leave(p, true)
		case <-ctx.Done():
			b.leave(p, false)
			return nil, false, ctx.Err()
		}
	}
	if it == nil {
		return nil, false, nil
	}
	return &Pulled{ID: it.id, Request: it.req}, true, nil
}

// next returns the oldest request, or else, if there is time, a puller.
func (b *Broker) next(capabilities []string, wait time.Duration) (*item, *puller) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var oldest *item
	for _, name := range capabilities {
		if q := b.waiting[name]; len(q) > 0 && (oldest == nil || q[0].number < oldest.number) {
			oldest = q[0]
		}
	}
	if oldest != nil {
		b.unqueue(oldest)
		b.pulled[oldest.id] = oldest
		return oldest, nil
	}
	if wait <= 0 {
		return nil, nil
	}
	p := &puller{slices.Clone(capabilities), make(chan *item, 1)}
	b.pullers = append(b.pullers, p)
	return nil, p
}

// leave takes p out of line. A request that came meanwhile is returned if it
// is wanted, and otherwise goes to another Pull or back to the head of its queue.
func (b *Broker) leave(p *puller, wanted bool) *item {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.pullers, p); i >= 0 {
		b.pullers = slices.Delete(b.pullers, i, i+1)
		return nil
	}
	it := <-p.got
	if wanted || b.pulled[it.id] == nil {
		return it
	}
	delete(b.pulled, it.id)
	if name := it.req.Capability; !b.give(it) {
		b.waiting[name] = slices.Insert(b.waiting[name], 0, it)
	}
	return nil
}

// Reply answers the pulled request with that id, or sends a part of the answer:
// then it waits until the part before was taken, or until ctx ends. Errors:
// [wire.NotFound] says that nobody waits for the answer: its deadline passed, or
// the caller gave up, or it was answered before; [wire.InvalidArgument], that
// the reply says nothing. Parts are in the order of their replies only if each
// is sent after the one before has returned.
func (b *Broker) Reply(ctx context.Context, id string, r Reply) error {
	f, err := b.answer(id, r)
	if err != nil || f == nil {
		return err
	}
	select {
	case f.replies <- r:
		return nil
	case <-f.gone:
		return unwanted()
	case <-ctx.Done():
		return ended(ctx, "wait for the caller to take a part")
	}
}

func unwanted() error {
	return wire.Errorf(wire.NotFound, "no request waits for this reply").
		WithHint("Its deadline passed, or it was answered before.")
}

// answer gives r to who waits for it, or returns the feed that it must go to.
func (b *Broker) answer(id string, r Reply) (*feed, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	it, ok := b.pulled[id]
	switch {
	case !ok:
		return nil, unwanted()
	case r.Err == nil && r.Response == nil && (r.More || it.feed == nil):
		return nil, wire.Errorf(wire.InvalidArgument, "a reply with neither a body nor an error")
	case it.feed != nil:
		return it.feed, nil
	case r.More && r.Err == nil:
		it.feed = &feed{make(chan Reply), make(chan struct{})}
		it.done <- outcome{resp: b.inParts(it, r.Response.Encoding)}
		return it.feed, nil
	}
	delete(b.pulled, id)
	it.done <- outcome{r.Response, r.Err}
	return nil, nil
}

// inParts is the response whose parts come from the item's feed.
func (b *Broker) inParts(it *item, enc schema.Encoding) *Response {
	f := it.feed
	return &Response{Encoding: enc, Produce: func(ctx context.Context, send func([]byte) error) error {
		defer b.forget(it)
		for {
			select {
			case r := <-f.replies:
				if done, err := r.deliver(enc, send); done || err != nil {
					return err
				}
			case <-ctx.Done():
				return ended(ctx, "wait for the application")
			}
		}
	}}
}

// deliver sends a part of a response, and reports whether it was the last.
func (r Reply) deliver(enc schema.Encoding, send func([]byte) error) (done bool, err error) {
	switch {
	case r.Err != nil:
		return true, r.Err
	case r.Response == nil:
		return true, nil
	case r.Response.Encoding != enc:
		return true, wire.Errorf(wire.HandlerFailed, "the application replied in another encoding than before")
	}
	return !r.More, send(r.Response.Body)
}

// forget takes no more replies for it.
func (b *Broker) forget(it *item) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.pulled, it.id)
	close(it.feed.gone)
}

// drop fails what waits for a capability that is no longer offered.
func (b *Broker) drop(capability string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, it := range b.waiting[capability] {
		it.done <- outcome{err: wire.Errorf(wire.HandlerUnavailable, "capability %s was removed", capability)}
	}
	delete(b.waiting, capability)
}
