package store

import (
	"sync"
	"time"
)

const (
	maxItems = 1024    // changes of a transaction
	maxBatch = 8 << 20 // bytes of a transaction, or one change that is larger
	overhead = 256     // bytes that a change takes besides its own
	linger   = 50 * time.Millisecond
)

// item is a change on its way.
type item struct {
	statements []statement // none: err was known before
	unique     bool        // the first statement has to change a row: there is one already
	bytes      int
	durable    bool
	done       func(error) // may be nil
	chain      *Chain      // nil: it stands alone
	err        error
}

// queue is what lies between those who commit, the writer and the notifier:
// changes that wait, and changes that are over and whose done funcs wait.
//
// Only waiting ones are bounded. A done func may wait for room here, and the
// writer must go on meanwhile, or there would never be any; what a finished one
// holds is little.
type queue struct {
	limit int

	mu       sync.Mutex
	waiting  []item
	bytes    int  // of waiting ones and those that the writer has in hand
	urgent   bool // a waiting one is durable
	want     int  // so many are worth a look
	closed   bool
	finished []item
	ended    bool // the writer has finished all

	more chan struct{} // holds one if the writer should look again
	room sync.Cond     // bytes fell, or closed
	over sync.Cond     // finished has some, or ended
}

func newQueue(limit int) *queue {
	q := &queue{limit: limit, more: make(chan struct{}, 1)}
	q.room.L, q.over.L = &q.mu, &q.mu
	return q
}

// put adds an item, waiting while the queue is full; false if it is closed. A
// large item may take it over the limit: it would wait for ever if smaller ones
// could always slip in before it.
func (q *queue) put(it item) bool {
	it.bytes += overhead
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.bytes >= q.limit && !q.closed {
		q.room.Wait()
	}
	if q.closed {
		return false
	}
	q.waiting = append(q.waiting, it)
	q.bytes += it.bytes
	if n := len(q.waiting); n == 1 || n == q.want || n == maxItems || q.bytes > maxBatch || it.durable && !q.urgent {
		q.wake()
	}
	q.urgent = q.urgent || it.durable
	return true
}

func (q *queue) wake() {
	select {
	case q.more <- struct{}{}:
	default:
	}
}

// take returns all that wait, or nil when the queue is closed and empty.
//
// If one is durable, there are soon as many as there were last time (want), when
// those who committed then do so again: it waits for them, but no longer than
// gather. If none is, it waits for linger.
func (q *queue) take(want int, gather time.Duration) []item {
	var gathered, lingered <-chan time.Time
	for enough, late := gather <= 0, false; ; {
		q.mu.Lock()
		q.want = want
		n := len(q.waiting)
		full := n >= maxItems || q.bytes > maxBatch
		if n > 0 && (full || late || q.urgent && (enough || n >= want)) || q.closed {
			all := q.waiting
			q.waiting, q.urgent = nil, false
			q.mu.Unlock()
			return all
		}
		if q.urgent && gathered == nil {
			gathered = time.After(gather)
		}
		if n > 0 && lingered == nil {
			lingered = time.After(linger)
		}
		q.mu.Unlock()
		select {
		case <-q.more:
		case <-gathered:
			enough = true
		case <-lingered:
			late = true
		}
	}
}

// finish hands over items that are committed or failed. The queue keeps them.
func (q *queue) finish(items []item) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range items {
		q.bytes -= items[i].bytes
		items[i].statements = nil // what they hold may be large
	}
	q.finished = append(q.finished, items...)
	q.room.Broadcast()
	q.over.Signal()
}

// close makes put fail; what waits is still taken.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.wake()
	q.room.Broadcast()
}

// end says that nothing will be finished any more.
func (q *queue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.over.Signal()
}

// notify calls the done funcs of finished items, in order, until the end.
func (q *queue) notify() {
	for {
		q.mu.Lock()
		for len(q.finished) == 0 && !q.ended {
			q.over.Wait()
		}
		items := q.finished
		q.finished = nil
		q.mu.Unlock()
		if len(items) == 0 {
			return
		}
		for _, it := range items {
			if it.done != nil {
				it.done(it.err)
			}
		}
	}
}

// batches cuts items into transactions. A durable item has an fsync in its
// batch or a later one, so durable tells of each whether any of its own is.
func batches(items []item, commit func(batch []item, durable bool)) {
	for len(items) > 0 {
		n, bytes, durable := 0, 0, false
		for n < len(items) && n < maxItems && (n == 0 || bytes+items[n].bytes <= maxBatch) {
			bytes += items[n].bytes
			durable = durable || items[n].durable
			n++
		}
		commit(items[:n:n], durable)
		items = items[n:]
	}
}
