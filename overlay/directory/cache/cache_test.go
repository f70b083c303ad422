package cache

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"openmesh/protocols/wire"
)

func TestCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New[string, int](2)
		start := time.Now()
		c.Put("a", 1, time.Minute)
		<-time.After(time.Minute - 1)
		if v, stored, ok := c.Get("a"); !ok || v != 1 || !stored.Equal(start) {
			t.Errorf("before its time is over: %d, %v, %v", v, stored, ok)
		}
		<-time.After(1)
		if _, _, ok := c.Get("a"); ok {
			t.Error("served past its time")
		}
		c.Put("a", 1, time.Minute)
		c.Put("b", 2, time.Minute)
		c.Get("a")
		c.Put("c", 3, time.Minute) // b was used longest ago
		if got := c.Values(); !slices.Equal(got, []int{1, 3}) {
			t.Errorf("Values = %v, want 1 3", got)
		}
		c.Put("a", 4, time.Second)
		c.Remove("c")
		<-time.After(time.Second)
		if got := c.Values(); got != nil {
			t.Errorf("Values = %v, want none", got)
		}
	})
}

func TestFlightIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := NewFlights()
		calls := 0
		ask := func(ctx context.Context) (int, error) {
			return Do(ctx, fs, "x", time.Minute, func(ctx context.Context) (int, error) {
				calls++
				<-time.After(10 * time.Second)
				return 7, nil
			})
		}
		hasty, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go func() {
			if _, err := ask(hasty); !errors.Is(err, wire.DeadlineExceeded) {
				t.Errorf("the hasty one: %v; want deadline_exceeded", err)
			}
		}()
		synctest.Wait()
		if v, err := ask(t.Context()); v != 7 || err != nil || calls != 1 {
			t.Errorf("the patient one: %d, %v after %d calls", v, err, calls)
		}
	})
}

func TestFlightEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := NewFlights()
		hang := func(ctx context.Context) (int, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		}
		start := time.Now()
		if _, err := Do(t.Context(), fs, "limit", time.Second, hang); err == nil || time.Since(start) != time.Second {
			t.Errorf("limit of 1 s: %v after %v", err, time.Since(start))
		}
		go Do(t.Context(), fs, "close", time.Hour, hang)
		synctest.Wait()
		fs.Close()
		if time.Since(start) != time.Second {
			t.Errorf("Close took %v", time.Since(start))
		}
		if _, err := Do(t.Context(), fs, "after", time.Second, hang); !errors.Is(err, wire.Unreachable) {
			t.Errorf("after Close: %v; want unreachable", err)
		}
	})
}
