package cache

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"openmesh/protocols/wire"
)

// Flights runs lookups that several callers share: the lookup goes on if one of
// them gives up, within a time of its own, and ends when the directory does.
type Flights struct {
	group singleflight.Group

	mu     sync.Mutex
	wg     sync.WaitGroup
	closed bool
	stop   chan struct{}
}

// NewFlights returns no lookups.
func NewFlights() *Flights { return &Flights{stop: make(chan struct{})} }

// Do returns what f returns, or has returned to whoever asked for the same name
// a moment before.
func Do[V any](ctx context.Context, fs *Flights, name string, limit time.Duration, f func(context.Context) (V, error)) (v V, err error) {
	select {
	case r := <-Start(ctx, fs, name, limit, f):
		v, _ = r.Val.(V)
		return v, r.Err
	case <-ctx.Done():
		return v, Ended(ctx, name)
	}
}

// Start is [Do] for those who do not wait, or wait in their own way.
func Start[V any](ctx context.Context, fs *Flights, name string, limit time.Duration, f func(context.Context) (V, error)) <-chan singleflight.Result {
	ctx = context.WithoutCancel(ctx) // the values stay: they carry the trace
	return fs.group.DoChan(name, func() (any, error) {
		if !fs.enter() {
			return nil, wire.Errorf(wire.Unreachable, "%s: the directory is shutting down", name)
		}
		defer fs.wg.Done()
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		over := make(chan struct{})
		defer close(over)
		go func() {
			select {
			case <-fs.stop:
				cancel()
			case <-over:
			}
		}()
		return f(ctx)
	})
}

func (fs *Flights) enter() bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if !fs.closed {
		fs.wg.Add(1)
	}
	return !fs.closed
}

// Close ends all lookups and waits for them.
func (fs *Flights) Close() {
	fs.mu.Lock()
	if !fs.closed {
		fs.closed = true
		close(fs.stop)
	}
	fs.mu.Unlock()
	fs.wg.Wait()
}

// Ended says that ctx ended while something was being done.
func Ended(ctx context.Context, what string) error {
	code := wire.Cancelled
	if ctx.Err() == context.DeadlineExceeded {
		code = wire.DeadlineExceeded
	}
	return fmt.Errorf("%s: %w: %w", what, code, ctx.Err())
}
