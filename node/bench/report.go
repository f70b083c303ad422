package bench

import (
	"fmt"
	"slices"

	"openmesh/node/bench/load"
)

// Report is the outcome of a benchmark: every number of every round, and what
// follows.
type Report struct {
	Bench     string   `json:"bench"`
	Method    []string `json:"method"`
	Transport string   `json:"transport"`
	Rounds    int      `json:"rounds"`
	Tables    []Table  `json:"tables"`
	Spreads   []Spread `json:"spreads,omitempty"`
	Memory    []Memory `json:"memory,omitempty"`
	Ratios    []Ratio  `json:"ratios"`
	IdleRSS   float64  `json:"idle_daemon_rss_mb,omitempty"`
	ElapsedS  float64  `json:"elapsed_s"`
}

// Table is one workload: for each way of doing it, a sample per round.
type Table struct {
	Name    string                   `json:"name"`
	Unit    string                   `json:"unit"` // of what is compared
	Ways    []string                 `json:"ways"`
	Rounds  map[string][]load.Sample `json:"samples"`
	Medians map[string]load.Sample   `json:"medians"`
}

// Spread is what was measured once in each of some trials.
type Spread struct {
	Name   string    `json:"name"`
	Unit   string    `json:"unit"`
	Values []float64 `json:"values"`
}

// Memory is what one process took before and after there were sessions, in MB
// (10⁶ bytes): resident, and the heap that is in use, which has no garbage. Used
// is with garbage; before Before and After the process has collected it and given
// free memory back.
type Memory struct {
	Process    string  `json:"process"`
	Before     float64 `json:"before_rss_mb"`
	Used       float64 `json:"used_rss_mb"`
	After      float64 `json:"after_rss_mb"`
	HeapBefore float64 `json:"before_heap_mb"`
	HeapAfter  float64 `json:"after_heap_mb"`
	PerSession float64 `json:"bytes_per_session"` // growth of the resident memory
}

// Ratio is a number that matters: most compare two ways, and are the median over
// the rounds of their ratio in a round.
type Ratio struct {
	Name   string  `json:"name"`
	Value  float64 `json:"value"`
	Target string  `json:"target,omitempty"`
	Met    bool    `json:"met"`
}

// limit is what a number should be; the zero one says nothing.
type limit struct {
	value  float64
	atMost bool
}

func atLeast(v float64) limit { return limit{v, false} }
func atMost(v float64) limit  { return limit{v, true} }

// judge adds a number to the report.
func (r *Report) judge(name string, v float64, l limit) {
	x := Ratio{Name: name, Value: v, Met: true}
	if l.value > 0 {
		x.Met, x.Target = v >= l.value, fmt.Sprintf("at least %.4g", l.value)
		if l.atMost {
			x.Met, x.Target = v <= l.value, fmt.Sprintf("at most %.4g", l.value)
		}
	}
	r.Ratios = append(r.Ratios, x)
}

// comparison is the ratio of what one way achieves to what another does.
type comparison struct {
	name, table, of, to string
	what                func(load.Sample) float64
	target              limit
}

func p50(s load.Sample) float64       { return s.P50 }
func p99(s load.Sample) float64       { return s.P99 }
func perSecond(s load.Sample) float64 { return s.PerSecond }

// compare adds those of the ratios whose table has both ways.
func (r *Report) compare(cs []comparison) {
	for _, c := range cs {
		i := slices.IndexFunc(r.Tables, func(t Table) bool { return t.Name == c.table })
		if i < 0 {
			continue
		}
		of, to := r.Tables[i].Rounds[c.of], r.Tables[i].Rounds[c.to]
		var ratios []float64
		for round := range min(len(of), len(to)) {
			ratios = append(ratios, c.what(of[round])/c.what(to[round]))
		}
		if ratios != nil {
			r.judge(c.name, load.Median(ratios), c.target)
		}
	}
}

// Range returns the least value, the median and the greatest; zeros if there are
// none.
func (s Spread) Range() (least, median, most float64) {
	if len(s.Values) == 0 {
		return 0, 0, 0
	}
	return slices.Min(s.Values), load.Median(s.Values), slices.Max(s.Values)
}
