package store

import (
	"math"
	"testing"
	"time"
)

func TestNanoseconds(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, test := range []struct {
		t    time.Time
		want int64
	}{
		{time.Time{}, math.MinInt64}, {time.Unix(0, 1), 1}, {now, now.UnixNano()}, {time.Unix(math.MaxInt64/1000000000, 0), math.MaxInt64},
		{time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), math.MaxInt64},
	} {
		if got := nanoseconds(test.t); got != test.want {
			t.Errorf("nanoseconds(%v) = %d, want %d", test.t, got, test.want)
		}
	}
}
