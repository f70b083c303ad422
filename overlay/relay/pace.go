package relay

import (
	"cmp"
	"container/heap"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// pacer lets bytes pass at a rate and shares it fairly among flows: it is a
// token bucket whose waiters are served in the order of start-time fair queueing
// [SFQ]. Each chunk gets a start tag: where its flow's last chunk ended, or what
// is being served now, whichever is later; the smallest tag goes first. So flows
// that want more than their share get equal bytes, however many circuits and
// whatever chunks they bring, and one that wants less does not wait for them: of
// equal tags, which flows that are held back have all the time, the smallest chunk
// goes first.
//
// A nil pacer is unlimited and costs nothing.
//
// [SFQ]: Goyal, Vin, Cheng: Start-time Fair Queueing, SIGCOMM 1996
type pacer struct {
	rate, burst float64 // bytes per second, bytes

	mu      sync.Mutex
	level   float64   // bytes that may pass now
	at      time.Time // when level was right
	virtual int64     // start tag being served
	arrived uint64    // breaks ties of tags and sizes
	queue   waiters
	timer   *time.Timer // for the head of the queue
	flows   map[peer.ID]*flow
}

// flow is what is shared among: the traffic that one peer answers for. A nil
// flow belongs to the nil pacer.
type flow struct {
	*pacer
	peer   peer.ID
	finish int64 // tag at which its last chunk ends
	refs   int   // circuits
}

// waiter is one direction of a circuit. It has one chunk in one queue at most.
type waiter struct {
	granted chan struct{} // capacity 1
	start   int64
	arrived uint64
	size    float64
	index   int // in the queue; -1 outside
}

func newPacer(r Rate) *pacer {
	if r.BytesPerSecond == 0 {
		return nil
	}
	p := &pacer{rate: float64(r.BytesPerSecond), burst: float64(r.Burst), at: time.Now(), flows: make(map[peer.ID]*flow)}
	if r.Burst == 0 {
		p.burst = p.rate
	}
	p.level = p.burst
	return p
}

func newWaiter() *waiter { return &waiter{granted: make(chan struct{}, 1), index: -1} }

// join returns the flow of a peer for one more circuit; leave ends that.
func (p *pacer) join(id peer.ID) *flow {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.flows[id]
	if f == nil {
		f = &flow{pacer: p, peer: id}
		p.flows[id] = f
	}
	f.refs++
	return f
}

func (f *flow) leave() {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refs--; f.refs == 0 {
		delete(f.flows, f.peer)
	}
}

// take waits until n bytes may pass, and reports whether they may: not if gone
// is closed before.
func (f *flow) take(n int, w *waiter, gone <-chan struct{}) bool {
	if f == nil || f.enter(n, w) {
		return true
	}
	select {
	case <-w.granted:
		return true
	case <-gone:
		f.abandon(w)
		return false
	}
}

// enter takes n bytes at once if it can, or queues w.
func (f *flow) enter(n int, w *waiter) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.arrived++
	w.start, w.arrived, w.size = max(f.virtual, f.finish), f.arrived, float64(n)
	f.finish = w.start + int64(n)
	f.refill()
	if len(f.queue) == 0 && f.wait(w) == 0 {
		f.pass(w)
		return true
	}
	heap.Push(&f.queue, w)
	f.arm()
	return false
}

func (p *pacer) abandon(w *waiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.index >= 0 {
		heap.Remove(&p.queue, w.index)
		p.arm()
	}
}

// serve is the timer's: it grants what has become possible.
func (p *pacer) serve() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refill()
	for len(p.queue) > 0 && p.wait(p.queue[0]) == 0 {
		w := heap.Pop(&p.queue).(*waiter)
		p.pass(w)
		w.granted <- struct{}{}
	}
	p.arm()
}

func (p *pacer) pass(w *waiter) {
	p.level -= w.size
	p.virtual = w.start
}

func (p *pacer) refill() {
	now := time.Now()
	p.level = min(p.burst, p.level+now.Sub(p.at).Seconds()*p.rate)
	p.at = now
}

// wait returns how long until w's bytes may pass. What is larger than the burst
// passes at a full bucket, and leaves a debt.
func (p *pacer) wait(w *waiter) time.Duration {
	missing := min(w.size, p.burst) - p.level
	if missing <= 0 {
		return 0
	}
	return time.Duration(missing/p.rate*float64(time.Second)) + 1
}

func (p *pacer) arm() {
	switch {
	case len(p.queue) == 0:
	case p.timer == nil:
		p.timer = time.AfterFunc(p.wait(p.queue[0]), p.serve)
	default:
		p.timer.Reset(p.wait(p.queue[0]))
	}
}

// waiters is a heap by start tag, size and arrival.
type waiters []*waiter

func (q waiters) Len() int { return len(q) }

func (q waiters) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(q[i].start, q[j].start), cmp.Compare(q[i].size, q[j].size), cmp.Compare(q[i].arrived, q[j].arrived)) < 0
}

func (q waiters) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *waiters) Push(x any) {
	w := x.(*waiter)
	w.index = len(*q)
	*q = append(*q, w)
}

func (q *waiters) Pop() any {
	last := len(*q) - 1
	w := (*q)[last]
	(*q)[last] = nil
	*q, w.index = (*q)[:last], -1
	return w
}
