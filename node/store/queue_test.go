package store

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func sized(n int) item { return item{bytes: n - overhead} }

func TestQueueWaits(t *testing.T) {
	t.Parallel()
	const gather = 4 * time.Millisecond
	for name, test := range map[string]struct {
		items []item // given one millisecond after another
		want  int    // of the time before
		after time.Duration
	}{
		"durable":         {[]item{{durable: true}}, 0, time.Millisecond},
		"not durable":     {[]item{{}}, 0, time.Millisecond + linger},
		"durable joins":   {[]item{{}, {}, {durable: true}}, 1, 3 * time.Millisecond},
		"as many as last": {[]item{{durable: true}, {durable: true}}, 2, 2 * time.Millisecond},
		"fewer than last": {[]item{{durable: true}, {durable: true}}, 9, time.Millisecond + gather},
		"enough bytes":    {[]item{{}, {bytes: maxBatch}}, 0, 2 * time.Millisecond},
		"two not durable": {slices.Repeat([]item{{}}, 2), 0, time.Millisecond + linger},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				q := newQueue(maxQueue)
				start := time.Now()
				taken := make(chan time.Duration)
				go func() {
					if got := q.take(test.want, gather); len(got) != len(test.items) {
						t.Errorf("took %d, want %d", len(got), len(test.items))
					}
					taken <- time.Since(start)
				}()
				for _, it := range test.items {
					<-time.After(time.Millisecond)
					q.put(it)
				}
				if got := <-taken; got != test.after {
					t.Errorf("taken after %v, want %v", got, test.after)
				}
			})
		})
	}
}

// A full queue holds up who commits until something is committed, and a done
// func that waits for room holds up nobody else.
func TestQueueBound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(1000)
		go q.notify()
		var order []int
		note := func(n int) func(error) { return func(error) { order = append(order, n) } }
		finish := func() {
			q.finish(q.take(0, 0))
			synctest.Wait()
		}
		second := sized(5000)
		second.done = note(2)
		third := sized(900)
		third.done = note(3)
		first := sized(1000)
		first.done = func(error) {
			if q.put(second); !q.put(third) { // a full queue now
				t.Error("put refused")
			}
			order = append(order, 1)
		}
		q.put(first)
		put := make(chan bool, 1)
		go func() { put <- q.put(item{done: note(4)}) }()
		synctest.Wait()
		if len(put) != 0 {
			t.Fatal("put did not wait for room")
		}
		finish() // the first is done, and waits for room in turn
		for len(order) < 4 {
			finish()
		}
		if slices.Index(order, 1) > slices.Index(order, 3) || slices.Sorted(slices.Values(order))[3] != 4 {
			t.Errorf("done in the order %v", order)
		}
		q.close()
		if q.put(item{}) || q.take(0, 0) != nil {
			t.Error("a closed queue takes or gives")
		}
		q.end()
	})
}

// Who waits for room when the queue is closed is refused, and what was given
// before is still taken.
func TestQueueClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(1000)
		q.put(sized(1000))
		put := make(chan bool, 1)
		go func() { put <- q.put(sized(1000)) }()
		synctest.Wait()
		q.close()
		if <-put {
			t.Error("put into a closed queue")
		}
		if got := q.take(0, 0); len(got) != 1 {
			t.Errorf("took %d", len(got))
		}
	})
}

func TestBatches(t *testing.T) {
	t.Parallel()
	items := slices.Concat([]item{{bytes: maxBatch - 1, durable: true}, {bytes: 2}, {bytes: 2 * maxBatch}}, make([]item, maxItems+1))
	var sizes []int
	var durable []bool
	batches(items, func(batch []item, d bool) {
		sizes, durable = append(sizes, len(batch)), append(durable, d)
	})
	if want := []int{1, 1, 1, maxItems, 1}; !slices.Equal(sizes, want) {
		t.Errorf("batches of %d, want %d", sizes, want)
	}
	if want := []bool{true, false, false, false, false}; !slices.Equal(durable, want) {
		t.Errorf("durable: %v, want %v", durable, want)
	}
}

// What cannot be stored keeps its own error when the rest of its batch fails,
// and its place.
func TestJudge(t *testing.T) {
	t.Parallel()
	it := item{unique: true, err: errors.New("before"), statements: []statement{{affected: 1}}}
	if it.judge(); it.err != nil {
		t.Errorf("an error of an earlier attempt stays: %v", it.err)
	}
	it = item{unique: true, err: errors.New("before")}
	if it.judge(); it.err == nil {
		t.Error("the error of a refused change is gone")
	}
}
