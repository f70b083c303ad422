package bench

import (
	"slices"
	"time"
)

// Sample is what one way of doing a thing achieved in one round.
type Sample struct {
	P50       float64 `json:"p50_us"`
	P99       float64 `json:"p99_us"`
	PerSecond float64 `json:"per_second"`
}

// summarize turns the latencies of operations that took total together into a
// sample. It sorts them.
func summarize(latencies []time.Duration, total time.Duration) Sample {
	slices.Sort(latencies)
	return Sample{
		P50: micros(percentile(latencies, 50)), P99: micros(percentile(latencies, 99)),
		PerSecond: float64(len(latencies)) / total.Seconds(),
	}
}

// percentile returns the nearest-rank percentile p of sorted values, or 0 of
// none.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

// median returns the median of values, or 0 of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}
