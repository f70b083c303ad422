package limit

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// step is a number of messages, spaced evenly, and what the last one leads to.
type step struct {
	wait   time.Duration // before the first
	count  int
	every  time.Duration
	bytes  int
	want   Effect
	notify int // how many notices there are among them
}

func TestMeterEscalates(t *testing.T) {
	t.Parallel()
	ten := Terms{MessagesPerSecond: 10}
	kilo := Terms{BytesPerSecond: 1000, MaxMessageBytes: 500}
	ms := time.Millisecond
	for _, tc := range []struct {
		name  string
		terms Terms
		steps []step
	}{
		{"no terms", Terms{}, []step{{count: 100_000, bytes: 1 << 20, want: Pass}}},
		{"at the limit", ten, []step{{count: 1000, every: 100 * ms, want: Pass}}},
		{"a burst and one", ten, []step{{count: 11, want: Pass}, {count: 1, want: Warn, notify: 1}}},
		{"bytes: a burst and the largest", kilo, []step{{count: 15, bytes: 100, want: Pass}, {count: 1, bytes: 1, want: Warn, notify: 1}}},
		{"largest message at a slow limit", Terms{BytesPerSecond: 1, MaxMessageBytes: 60}, []step{
			{count: 10, every: time.Minute, bytes: 60, want: Pass}, {count: 2, bytes: 60, want: Warn, notify: 1}}},
		{"one that is larger than any may be", kilo, []step{{count: 1, bytes: 1501, want: Warn, notify: 1}}},
		{"one message in ten seconds", Terms{MessagesPerSecond: 0.1}, []step{
			{count: 10, every: 10 * time.Second, want: Pass}, {count: 1, want: Pass}, {count: 1, want: Warn, notify: 1}}},
		{"one warning for a little much", ten, []step{{count: 11, want: Pass}, {count: 20, every: 95 * ms, want: Warn, notify: 1}}},
		{"throttled after two seconds", ten, []step{
			{count: 11, want: Pass}, {count: 20, every: 95 * ms, want: Warn, notify: 1}, {wait: 200 * ms, count: 3, want: Throttle, notify: 1}}},
		{"a flood is throttled at once", ten, []step{{count: 11, want: Pass}, {count: 25, every: ms, want: Throttle, notify: 1}}},
		{"well again", ten, []step{
			{count: 12, want: Warn, notify: 1}, {wait: 9 * time.Second, count: 1, want: Warn},
			{wait: 1100 * ms, count: 1, want: Pass, notify: 1}, {count: 9, want: Pass}}},
		{"again over, again warned", ten, []step{
			{count: 12, want: Warn, notify: 1}, {wait: 11 * time.Second, count: 1, want: Pass, notify: 1},
			{wait: time.Second, count: 12, want: Warn, notify: 1}}},
		{"notices are a second apart", ten, []step{
			{count: 12, want: Warn, notify: 1}, {wait: 11 * time.Second, count: 1, want: Pass, notify: 1},
			{count: 12, want: Warn}, {wait: 990 * ms, count: 1, want: Warn}, {wait: 10 * ms, count: 1, want: Warn, notify: 1}}},
		{"does not let itself be held back", ten, []step{
			{count: 12, want: Warn, notify: 1}, {wait: 2 * time.Second, count: 12, want: Throttle, notify: 1},
			{count: 100, every: ms, want: Throttle}, {count: 20, every: ms, want: Terminate}, {wait: time.Hour, count: 1, want: Terminate, notify: 1}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			m, now := NewMeter(tc.terms), time.Now()
			for i, s := range tc.steps {
				now = now.Add(s.wait)
				var v Verdict
				notices := 0
				for range s.count {
					if v = m.Take(now, 1, s.bytes); v.Notify {
						notices++
					}
					now = now.Add(s.every)
				}
				if v.Effect != s.want || notices != s.notify {
					t.Errorf("step %d: %v with %d notices, want %v with %d", i, v.Effect, notices, s.want, s.notify)
				}
				if (v.Reason == "") != (v.Effect == Pass) {
					t.Errorf("step %d: %v because %q", i, v.Effect, v.Reason)
				}
			}
		})
	}
}

func TestReasonNamesTheLimit(t *testing.T) {
	t.Parallel()
	now := time.Now()
	m := NewMeter(Terms{MessagesPerSecond: 10, BytesPerSecond: 1000})
	if v := m.Take(now, 1, 1001); v.Reason != ReasonBytes {
		t.Errorf("many bytes: %q", v.Reason)
	}
	m = NewMeter(Terms{MessagesPerSecond: 10, BytesPerSecond: 1000})
	if v := m.Take(now, 100, 0); v.Reason != ReasonMessages {
		t.Errorf("many messages: %q", v.Reason)
	}
}

// A peer that is held back, and has always more to send, gets the limit exactly,
// and is not let off; when it stops, it is.
func TestThrottledRateIsTheLimit(t *testing.T) {
	t.Parallel()
	m, now := NewMeter(Terms{MessagesPerSecond: 10}), time.Now()
	for m.Take(now, 1, 0).Effect != Throttle {
		now = now.Add(10 * time.Millisecond)
	}
	now = now.Add(m.Take(now, 1, 0).Delay)
	begin := now
	for range 600 {
		v := m.Take(now, 1, 0)
		if v.Effect != Throttle {
			t.Fatalf("%v after %v", v.Effect, now.Sub(begin))
		}
		now = now.Add(v.Delay)
	}
	if took := now.Sub(begin); took != time.Minute {
		t.Errorf("600 messages at 10 a second took %v", took)
	}
	if v := m.Take(now.Add(10*time.Second), 1, 0); v.Effect != Pass || v.Delay != 0 || !v.Notify {
		t.Errorf("after ten quiet seconds: %+v", v)
	}
}

// Ten seconds of being held back are not ten seconds within the limit.
func TestLongDelayIsNoProbation(t *testing.T) {
	t.Parallel()
	m, now := NewMeter(Terms{BytesPerSecond: 100, MaxMessageBytes: 5000}), time.Now()
	m.effect = Throttle
	for i := range 4 {
		v := m.Take(now, 1, 5000)
		if i > 1 && v.Delay != 50*time.Second || v.Effect != Throttle {
			t.Errorf("message %d: %+v", i, v)
		}
		now = now.Add(v.Delay)
	}
}

func TestClockThatGoesBack(t *testing.T) {
	t.Parallel()
	now := time.Now()
	m, p := NewMeter(Terms{MessagesPerSecond: 10}), NewPacer(Terms{MessagesPerSecond: 10})
	p.Reserve(now, 1, 0)
	m.Take(now, 1, 0)
	if v := m.Take(now.Add(-time.Hour), 1, 0); v.Effect != Pass {
		t.Errorf("meter: %+v", v)
	}
	if d := p.Reserve(now.Add(-time.Hour), 1, 0); d != 0 {
		t.Errorf("pacer: wait %v", d)
	}
}

func TestExtremesDoNotOverflow(t *testing.T) {
	t.Parallel()
	for _, rate := range []float64{math.NaN(), math.Inf(1), math.MaxFloat64, math.SmallestNonzeroFloat64, 1e-9, -1} {
		m, p := NewMeter(Terms{rate, rate, math.MaxInt, math.MaxInt64}), NewPacer(Terms{rate, rate, math.MaxInt, math.MaxInt64})
		now := time.Now()
		for range 100 {
			v := m.Take(now, math.MaxInt, math.MaxInt)
			if d := p.Reserve(now, math.MaxInt, math.MaxInt); d < 0 || v.Delay < 0 || d > time.Duration(maxCost) || v.Delay > time.Duration(maxCost) {
				t.Fatalf("rate %g: delays %v, %v", rate, d, v.Delay)
			}
			now = now.Add(time.Hour)
		}
	}
}

// event is a message as a sender would send it.
type event struct {
	gap   time.Duration
	bytes int
}

func drawTerms(t *rapid.T) Terms {
	return Terms{
		MessagesPerSecond: rapid.SampledFrom([]float64{0, 0.5, 3, 1000}).Draw(t, "messages per second"),
		BytesPerSecond:    rapid.SampledFrom([]float64{0, 700, 1e6, 3e9}).Draw(t, "bytes per second"),
		MaxMessageBytes:   4096,
		Burst:             rapid.SampledFrom([]time.Duration{0, 100 * time.Millisecond, 5 * time.Second}).Draw(t, "burst"),
	}
}

func drawEvents(t *rapid.T) []event {
	gaps := []time.Duration{0, time.Microsecond, 10 * time.Millisecond, 400 * time.Millisecond, 3 * time.Second, 12 * time.Second}
	one := rapid.Custom(func(t *rapid.T) event {
		return event{rapid.SampledFrom(gaps).Draw(t, "gap"), rapid.IntRange(0, 4096).Draw(t, "bytes")}
	})
	return rapid.SliceOfN(one, 1, 200).Draw(t, "events")
}

// A sender that waits as its pacer says is never warned, even if the network holds
// some of its messages back for less than half the burst.
func TestPacedSenderIsNeverWarned(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		terms := drawTerms(t)
		pacer, meter := NewPacer(terms), NewMeter(terms)
		now, arrival := time.Now(), time.Time{}
		for i, e := range drawEvents(t) {
			now = now.Add(e.gap)
			sent := now.Add(pacer.Reserve(now, 1, e.bytes))
			jitter := time.Duration(rapid.Int64Range(0, int64(terms.burst()/2)).Draw(t, "jitter"))
			if a := sent.Add(jitter); a.After(arrival) {
				arrival = a
			}
			if v := meter.Take(arrival, 1, e.bytes); v.Effect != Pass {
				t.Fatalf("message %d at %v: %+v", i, arrival.Sub(now), v)
			}
		}
	})
}

// admitted is what passed at a time.
type admitted struct {
	at    time.Duration
	bytes int
}

// checkWindows fails if more than rate × time + burst passed in any window.
func checkWindows(t *rapid.T, terms Terms, burst time.Duration, passed []admitted) {
	for i := range passed {
		messages, bytes := 0, 0
		for _, p := range passed[i:] {
			messages, bytes = messages+1, bytes+p.bytes
			span := (p.at - passed[i].at + burst).Seconds() + 1e-6
			if most := terms.MessagesPerSecond*span + 1; terms.MessagesPerSecond > 0 && float64(messages) > most {
				t.Fatalf("%d messages in %v, at most %g", messages, p.at-passed[i].at, most)
			}
			if most := terms.BytesPerSecond*span + 4096; terms.BytesPerSecond > 0 && float64(bytes) > most {
				t.Fatalf("%d bytes in %v, at most %g", bytes, p.at-passed[i].at, most)
			}
		}
	}
}

func TestPacerKeepsEveryWindow(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		terms := drawTerms(t)
		pacer, start := NewPacer(terms), time.Now()
		now := start
		var passed []admitted
		for _, e := range drawEvents(t) {
			now = now.Add(e.gap)
			passed = append(passed, admitted{now.Add(pacer.Reserve(now, 1, e.bytes)).Sub(start), e.bytes})
		}
		checkWindows(t, terms, terms.burst()/2, passed)
	})
}

// While a peer is throttled, what passes is within the limits in every window,
// whether or not it lets itself be held back.
func TestThrottleKeepsEveryWindow(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		terms := drawTerms(t)
		yields := rapid.Bool().Draw(t, "yields")
		meter, start := NewMeter(terms), time.Now()
		meter.effect = Throttle
		now := start
		var passed []admitted
		for _, e := range drawEvents(t) {
			now = now.Add(e.gap)
			v := meter.Take(now, 1, e.bytes)
			if v.Effect != Throttle {
				checkWindows(t, terms, terms.burst(), passed)
				passed = nil
				continue
			}
			passed = append(passed, admitted{now.Add(v.Delay).Sub(start), e.bytes})
			if yields {
				now = now.Add(v.Delay)
			}
		}
		checkWindows(t, terms, terms.burst(), passed)
	})
}

func TestNothingIsAllocated(t *testing.T) {
	m, p, now := NewMeter(Terms{MessagesPerSecond: 1}), NewPacer(Terms{MessagesPerSecond: 1}), time.Now()
	if n := testing.AllocsPerRun(100, func() { m.Take(now, 1, 1); p.Reserve(now, 1, 1) }); n != 0 {
		t.Errorf("%g allocations", n)
	}
}

func BenchmarkTake(b *testing.B) {
	m, now := NewMeter(Terms{MessagesPerSecond: 1000, BytesPerSecond: 1 << 20, MaxMessageBytes: 1 << 10}), time.Now()
	for b.Loop() {
		now = now.Add(time.Millisecond)
		m.Take(now, 1, 1000)
	}
}

func BenchmarkReserve(b *testing.B) {
	p, now := NewPacer(Terms{MessagesPerSecond: 1000, BytesPerSecond: 1 << 20, MaxMessageBytes: 1 << 10}), time.Now()
	for b.Loop() {
		now = now.Add(time.Millisecond)
		p.Reserve(now, 1, 1000)
	}
}
