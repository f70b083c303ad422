package demo

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// seen makes a series whose desk saw these numbers, one a second from start on. A
// number of another session is written with a minus.
func seen(start time.Time, numbers ...int) *series {
	r := &series{desk: &desk{}, session: "s", to: &node{name: "east"}}
	for i, n := range numbers {
		s := sighting{Session: "s", Key: strconv.Itoa(n), At: start.Add(time.Duration(i) * time.Second)}
		if n < 0 {
			s.Session, s.Key = "other", strconv.Itoa(-n)
		}
		r.desk.note(s)
	}
	return r
}

func TestSeries(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name             string
		seen             []int
		missing, repeats string
	}{
		{"all", []int{1, 3, 2}, "[]", "[]"},
		{"lost", []int{1, 3}, "[2]", "[]"},
		{"elsewhere", []int{1, 3, -2}, "[2]", "[]"},
		{"repeated", []int{1, 2, 2, 3, 1}, "[]", "[2 1]"},
		{"nothing", nil, "[1 2 3]", "[]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := seen(time.Now(), tc.seen...)
			var repeats []int
			for _, a := range r.repeats() {
				repeats = append(repeats, a.number)
			}
			if got := fmt.Sprint(r.missing(3)); got != tc.missing {
				t.Errorf("missing %s, want %s", got, tc.missing)
			}
			if got := fmt.Sprint(repeats); got != tc.repeats {
				t.Errorf("repeats %s, want %s", got, tc.repeats)
			}
		})
	}
}

// The gap is measured from the last arrival before the cut, and what was silent
// before that does not count.
func TestGap(t *testing.T) {
	t.Parallel()
	start := time.Now()
	r := seen(start, 1)
	for i, after := range []time.Duration{10, 11, 14, 15} {
		r.desk.note(sighting{Session: "s", Key: strconv.Itoa(i + 2), At: start.Add(after * time.Second)})
	}
	for cut, want := range map[time.Duration]time.Duration{5: 10, 10: 3, 12: 3, 14: 1, 15: 0} {
		if got := r.gap(start.Add(cut * time.Second)); got != want*time.Second {
			t.Errorf("cut after %d s: gap %s, want %d s", cut, got, want)
		}
	}
}

// arrived and saw wait for what comes.
func TestSeriesWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := seen(time.Now(), 1, 2)
		time.AfterFunc(time.Minute, func() { r.desk.note(sighting{Session: "s", Key: "4", At: time.Now()}) })
		start := time.Now()
		at, err := r.arrived(t.Context(), 2)
		if err != nil || at.Sub(start) != time.Minute {
			t.Errorf("arrived after %s, %v", at.Sub(start), err)
		}
		time.AfterFunc(time.Minute, func() { r.desk.note(sighting{Session: "s", Key: "3", At: time.Now()}) })
		if err := r.saw(t.Context(), 4); err != nil || time.Since(start) < 2*time.Minute {
			t.Errorf("saw all after %s, %v", time.Since(start), err)
		}
	})
}

// A desk that holds its answers has seen the requests.
func TestDeskHolds(t *testing.T) {
	t.Parallel()
	d, err := openDesk()
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	d.hold()
	answers := make(chan int)
	for range 3 {
		go func() {
			resp, err := http.Post(d.url, "application/json", strings.NewReader(`{"numbers":[1]}`))
			if err != nil {
				t.Error(err)
				answers <- 0
				return
			}
			resp.Body.Close()
			answers <- resp.StatusCode
		}()
	}
	err = until(t.Context(), func(context.Context) error {
		if n := len(d.sightings()); n != 3 {
			return fmt.Errorf("saw %d requests", n)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case code := <-answers:
		t.Fatalf("answered %d", code)
	default:
	}
	d.release()
	got := []int{<-answers, <-answers, <-answers}
	if !slices.Equal(got, []int{200, 200, 200}) {
		t.Errorf("answered %v", got)
	}
}
