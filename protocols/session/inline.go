package session

import (
	"sync/atomic"
	"time"
)

// quickLimit is how soon a request must be answered for the next one to be run
// on the goroutine that reads it: that saves waking another one, which on an idle
// machine takes longer than the request itself.
const quickLimit = 200 * time.Microsecond

// inline runs a request on the goroutine that read it, and reports whether that
// still owns the reader: if the request takes longer than a moment, the watch
// lets another goroutine read on.
func (s *Session) inline(j job, r *reader) bool {
	r.since.Store(j.taken.UnixNano())
	r.state.Store(readerRunning)
	s.owner.watch.begin(r)
	j.run()
	return r.state.CompareAndSwap(readerRunning, readerFree)
}

// watch looks after the readers that run requests themselves. It runs only while
// there are such requests, at intervals: a timer for each would cost more than is
// saved.
type watch struct {
	running atomic.Bool
	last    atomic.Int64 // when a request began last, ns since the epoch
	owner   *Endpoint
	slow    []held // of one round; kept for reuse
}

const (
	watchInterval = 5 * time.Millisecond // how long a request may hold up its channel
	watchLinger   = time.Second          // how long the watch goes on without a request
)

func (w *watch) begin(r *reader) {
	w.last.Store(r.since.Load())
	if !w.running.Load() && w.running.CompareAndSwap(false, true) {
		w.owner.start(w.run)
	}
}

func (w *watch) run() {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		var now time.Time
		select {
		case now = <-tick.C:
		case <-w.owner.work.Done():
			return
		}
		w.relieve(now)
		if w.idle(now) && w.rest(now) {
			return
		}
	}
}

// relieve lets other goroutines read on where a request takes long.
func (w *watch) relieve(now time.Time) {
	w.slow = w.slow[:0]
	w.owner.each(func(s *Session) {
		for _, ch := range s.link.all() {
			r := ch.reading.Load()
			if r != nil && now.UnixNano()-r.since.Load() > int64(watchInterval) && r.state.CompareAndSwap(readerRunning, readerTaken) {
				w.slow = append(w.slow, held{s, r})
			}
		}
	})
	for _, h := range w.slow {
		w.owner.follow(h.session, &reader{Reader: h.reader.Reader, channel: h.reader.channel, rejected: h.reader.rejected})
	}
}

// held is a reader whose goroutine is busy with a request.
type held struct {
	session *Session
	reader  *reader
}

// idle reports whether no request has begun for a while.
func (w *watch) idle(now time.Time) bool { return now.UnixNano()-w.last.Load() > int64(watchLinger) }

// rest ends the watch, unless a request has begun just now: that one saw the watch
// running and did not start it.
func (w *watch) rest(now time.Time) bool {
	w.running.Store(false)
	return w.idle(now) || !w.running.CompareAndSwap(false, true)
}
