package session

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"openmesh/protocols/session/seal"
	"openmesh/protocols/wire"
)

// result is what ends a call.
type result struct {
	response *Response
	err      error
	unsent   bool // the other side cannot have seen the request
}

// waiting is a call without an answer.
type waiting struct {
	result   chan result
	deadline time.Time // zero: the caller minds it
	held     bool      // the request was not sent: there is no room for it
}

// calls are the requests that this side made and that have no answer yet.
type calls struct {
	mu      sync.Mutex
	last    uint64
	waiting map[uint64]waiting
	free    []chan result // empty ones, for reuse
	limit   int
	ended   error // set: no more calls
	count   atomic.Int32
}

// bound limits the calls under way.
func (c *calls) bound(limit int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit = limit
}

// begin registers a new call and returns its id and where its result comes.
func (c *calls) begin(deadline time.Time) (uint64, chan result, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != nil {
		return 0, nil, c.ended
	}
	if len(c.waiting) >= c.limit {
		return 0, nil, wire.Errorf(wire.ResourceExhausted, "%d requests are pending in this session, its limit", c.limit)
	}
	if c.waiting == nil {
		c.waiting = make(map[uint64]waiting)
	}
	c.last++
	ch := c.channel()
	c.waiting[c.last] = waiting{result: ch, deadline: deadline}
	c.count.Store(int32(len(c.waiting)))
	return c.last, ch, nil
}

// finish gives call id its result; it reports false if the call was abandoned.
func (c *calls) finish(id uint64, r result) bool {
	c.mu.Lock()
	w, ok := c.waiting[id]
	delete(c.waiting, id)
	c.count.Store(int32(len(c.waiting)))
	c.mu.Unlock()
	if ok {
		w.result <- r
	}
	return ok
}

// hold notes whether the request of call id waits for room.
func (c *calls) hold(id uint64, held bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w, ok := c.waiting[id]; ok {
		w.held = held
		c.waiting[id] = w
	}
}

// abandon forgets call id, and reports whether the other side may be working on it.
// Its result may be on its way already, so its channel is not reused.
func (c *calls) abandon(id uint64) (sent bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w, ok := c.waiting[id]
	delete(c.waiting, id)
	c.count.Store(int32(len(c.waiting)))
	return ok && !w.held
}

// refuse lets no call begin from now on; with all, it fails those under way too.
func (c *calls) refuse(err error, all bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended == nil {
		c.ended = err
	}
	if !all {
		return
	}
	c.failAll(err)
}

// fail fails the calls under way; others may begin.
func (c *calls) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failAll(err)
}

func (c *calls) failAll(err error) {
	for id, w := range c.waiting {
		delete(c.waiting, id)
		w.result <- result{err: err, unsent: w.held} // has room for one
	}
	c.count.Store(0)
}

// overdue returns the calls whose deadline is past, and of each whether its request
// was sent.
func (c *calls) overdue(now time.Time) (late map[uint64]bool) {
	if c.len() == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, w := range c.waiting {
		if !w.deadline.IsZero() && !now.Before(w.deadline) {
			if late == nil {
				late = make(map[uint64]bool)
			}
			late[id] = !w.held
		}
	}
	return late
}

func (c *calls) len() int { return int(c.count.Load()) }

// maxFree bounds the channels kept for reuse.
const maxFree = 64

func (c *calls) channel() chan result {
	if n := len(c.free); n > 0 {
		ch := c.free[n-1]
		c.free = c.free[:n-1]
		return ch
	}
	return make(chan result, 1)
}

// reuse takes back the channel of a call whose result was received.
func (c *calls) reuse(ch chan result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.free) < maxFree {
		c.free = append(c.free, ch)
	}
}

// working is a request that is being worked on.
type working struct {
	cancel   context.CancelFunc
	deadline time.Time
	request  *Inbound
	keys     *seal.Keys // under which it came
}

func (w working) size() int { return len(w.request.Body) }

// maxInHand bounds the bytes of a session's requests being worked on, and of the
// answers that wait to be written; one may exceed it.
const maxInHand = 64 << 20

// arrivals are the requests of the other side that are being worked on.
type arrivals struct {
	mu      sync.Mutex
	keys    *seal.Keys // under which requests are taken
	working map[uint64]working
	bytes   int // of their bodies
	limit   int
	ended   bool // no more requests are taken
	count   atomic.Int32
}

// bound limits the requests being worked on.
func (b *arrivals) bound(limit int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limit = limit
}

// add registers request id, or says with which code it is refused.
func (b *arrivals) add(id uint64, w working) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.keys != w.keys {
		return wire.SessionClosed
	}
	if b.ended {
		return wire.ResourceExhausted // nothing was done: the caller may go elsewhere
	}
	if len(b.working) >= b.limit || b.bytes > 0 && b.bytes+w.size() > maxInHand {
		return wire.ResourceExhausted
	}
	if _, ok := b.working[id]; ok {
		return wire.Malformed
	}
	if b.working == nil {
		b.working = make(map[uint64]working)
	}
	b.working[id] = w
	b.bytes += w.size()
	b.count.Store(int32(len(b.working)))
	return nil
}

// remove ends the work on a request. It reports whether its answer is waited for:
// a peer that has restarted counts its requests anew, and must not take it for that
// of another one.
func (b *arrivals) remove(in *Inbound) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	w, ok := b.working[in.ID]
	if !ok || w.request != in {
		return false
	}
	b.bytes -= w.size()
	delete(b.working, in.ID)
	b.count.Store(int32(len(b.working)))
	return true
}

func (b *arrivals) cancel(keys *seal.Keys, id uint64) {
	b.mu.Lock()
	w, ok := b.working[id]
	b.mu.Unlock()
	if ok && w.keys == keys {
		w.cancel()
	}
}

// refuse lets no request in from now on; with all, it cancels those under way.
func (b *arrivals) refuse(all bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	if !all {
		return
	}
	for _, w := range b.working {
		w.cancel()
	}
}

// cancelAll cancels the requests being worked on; others may come, under keys.
func (b *arrivals) cancelAll(keys *seal.Keys) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keys = keys
	for id, w := range b.working {
		w.cancel()
		delete(b.working, id)
	}
	b.bytes = 0
	b.count.Store(0)
}

// expire cancels the requests whose deadline is past.
func (b *arrivals) expire(now time.Time) {
	if b.len() == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, w := range b.working {
		if !now.Before(w.deadline) {
			w.cancel()
		}
	}
}

func (b *arrivals) len() int { return int(b.count.Load()) }
