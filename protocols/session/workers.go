package session

import (
	"sync"
	"sync/atomic"
)

// workers run requests without a goroutine for each: an idle worker takes the
// next one, and a new one is started only if none is idle.
type workers struct {
	jobs chan job
	idle atomic.Int64
	all  sync.WaitGroup
}

// maxIdle bounds the workers that wait for a request.
const maxIdle = 64

func (w *workers) do(j job) {
	select {
	case w.jobs <- j:
	default:
		w.all.Go(func() { w.loop(j) })
	}
}

func (w *workers) loop(j job) {
	for {
		j.run()
		if w.idle.Add(1) > maxIdle {
			w.idle.Add(-1)
			return
		}
		next, ok := <-w.jobs
		w.idle.Add(-1)
		if !ok {
			return
		}
		j = next
	}
}

// close ends the idle workers and waits for the busy ones; nothing may be done
// any more.
func (w *workers) close() {
	close(w.jobs)
	w.all.Wait()
}
