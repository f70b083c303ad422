package kad

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A value is the last that comes in time: once one is there, who is slow or dead keeps
// nobody waiting for long.
func TestLast(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		after  []time.Duration // when values 1, 2 … come
		closed bool            // then there are no more
		want   byte            // 0: none
		took   time.Duration
	}{
		{"soon one after the other", []time.Duration{0, grace / 4, grace / 2}, true, 3, grace / 2},
		{"the first is slow", []time.Duration{9 * time.Second}, true, 1, 9 * time.Second},
		{"others are dead", []time.Duration{time.Second}, false, 1, time.Second + grace},
		{"a better one in time", []time.Duration{0, grace / 2}, false, 2, grace},
		{"a better one too late", []time.Duration{0, 2 * grace}, true, 1, grace},
		{"none", nil, true, 0, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				values := make(chan []byte, len(test.after))
				var sender sync.WaitGroup
				defer sender.Wait()
				sender.Go(func() {
					begin := time.Now()
					for i, d := range test.after {
						<-time.After(time.Until(begin.Add(d)))
						values <- []byte{byte(i + 1)}
					}
					if test.closed {
						close(values)
					}
				})
				start := time.Now()
				v := last(values, grace)
				if got := append(v, 0)[0]; got != test.want || time.Since(start) != test.took {
					t.Errorf("got value %d after %v, want %d after %v", got, time.Since(start), test.want, test.took)
				}
			})
		})
	}
}
