package handlers

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"openmesh/protocols/wire"
)

// ask calls the broker in the background.
func ask(ctx context.Context, b *Broker, capability string) <-chan outcome {
	done := make(chan outcome, 1)
	go func() {
		resp, err := b.Handle(ctx, &Request{Capability: capability, RequestID: capability})
		done <- outcome{resp, err}
	}()
	return done
}

// one is a reply that is the whole answer.
var one = Reply{Response: &Response{Body: []byte("1")}}

func empty(t *testing.T, b *Broker) {
	t.Helper()
	if len(b.waiting)+len(b.pulled)+len(b.pullers) > 0 {
		t.Errorf("left over: %v %v %v", b.waiting, b.pulled, b.pullers)
	}
}

func TestBrokerReply(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := NewBroker()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		deadline, _ := ctx.Deadline()
		first := ask(ctx, b, "a")
		synctest.Wait()
		second := ask(ctx, b, "b")
		synctest.Wait()
		for _, want := range []string{"a", "b"} { // oldest first, whatever the order asked in
			p, ok, err := b.Pull(t.Context(), []string{"b", "a"}, 0)
			if err != nil || !ok || p.Request.Capability != want || !p.Request.Deadline.Equal(deadline) {
				t.Fatalf("%+v %v %v", p, ok, err)
			}
			var failure error
			if want == "b" {
				failure = errors.New("boom")
			}
			if err := b.Reply(t.Context(), p.ID, Reply{Response: &Response{Body: []byte("1")}, Err: failure}); err != nil {
				t.Error(err)
			}
			wantCode(t, b.Reply(t.Context(), p.ID, one), wire.NotFound)
		}
		if o := <-first; o.err != nil || string(o.resp.Body) != "1" {
			t.Errorf("%+v", o)
		}
		if o := <-second; o.err == nil || o.err.Error() != "boom" {
			t.Errorf("%+v", o)
		}
		wantCode(t, b.Reply(t.Context(), "guess", one), wire.NotFound)
		empty(t, b)
	})
}

func TestBrokerPullWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := NewBroker()
		if p, ok, err := b.Pull(t.Context(), []string{"a"}, time.Second); p != nil || ok || err != nil {
			t.Errorf("%v %v %v", p, ok, err)
		}
		start := time.Now()
		time.AfterFunc(time.Second, func() { ask(t.Context(), b, "other"); ask(t.Context(), b, "a") })
		p, ok, err := b.Pull(t.Context(), []string{"a"}, time.Minute)
		if !ok || err != nil || time.Since(start) != time.Second {
			t.Fatalf("%v %v %v after %v", p, ok, err, time.Since(start))
		}
		if err := b.Reply(t.Context(), p.ID, one); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if p, ok, _ = b.Pull(t.Context(), []string{"other"}, 0); !ok {
			t.Fatal("the other is gone")
		}
		if err := b.Reply(t.Context(), p.ID, one); err != nil {
			t.Error(err)
		}
		empty(t, b)
	})
}

func TestBrokerPullGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := NewBroker()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, ok, err := b.Pull(ctx, []string{"a"}, time.Minute); ok || !errors.Is(err, context.Canceled) {
			t.Errorf("%v %v", ok, err)
		}
		if _, ok, err := b.Pull(ctx, []string{"a"}, time.Minute); ok || !errors.Is(err, context.Canceled) {
			t.Errorf("%v %v", ok, err)
		}
		empty(t, b)
	})
}

// TestBrokerLeave: a request that reaches a Pull just as that ends is not lost.
func TestBrokerLeave(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := NewBroker()
		ctx, cancel := context.WithCancel(t.Context())
		_, timed := b.next([]string{"a"}, time.Second)
		_, cancelled := b.next([]string{"a"}, time.Second)
		_, relieved := b.next([]string{"a"}, time.Second)
		for range 3 {
			ask(ctx, b, "a")
		}
		synctest.Wait()
		if it := b.leave(timed, true); it == nil || b.pulled[it.id] != it {
			t.Error("lost at the end of the wait")
		}
		_, heir := b.next([]string{"a"}, time.Second)
		if it := b.leave(relieved, false); it != nil || len(heir.got) != 1 {
			t.Error("not handed on to the next Pull")
		}
		if it := b.leave(cancelled, false); it != nil || len(b.waiting["a"]) != 1 || len(b.pulled) != 2 {
			t.Errorf("not put back: %v", b.waiting)
		}
		if _, ok, _ := b.Pull(t.Context(), []string{"a"}, 0); !ok {
			t.Error("not to be pulled again")
		}
		cancel()
		synctest.Wait()
		empty(t, b)
	})
}

func TestBrokerDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := NewBroker()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		pulled := ask(ctx, b, "a")
		p, ok, err := b.Pull(t.Context(), []string{"a"}, time.Minute)
		if !ok || err != nil {
			t.Fatal(ok, err)
		}
		ignored := ask(ctx, b, "a")
		wantCode(t, (<-pulled).err, wire.DeadlineExceeded)
		wantCode(t, (<-ignored).err, wire.HandlerUnavailable)
		wantCode(t, b.Reply(t.Context(), p.ID, one), wire.NotFound)

		gone, cancel := context.WithCancel(t.Context())
		given := ask(gone, b, "a")
		synctest.Wait()
		cancel()
		wantCode(t, (<-given).err, wire.Cancelled)
		empty(t, b)
	})
}

func TestBrokerFull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := NewBroker()
		ctx, cancel := context.WithCancel(t.Context())
		for range MaxWaiting {
			ask(ctx, b, "a")
		}
		synctest.Wait()
		wantCode(t, (<-ask(ctx, b, "a")).err, wire.ResourceExhausted)
		other := ask(ctx, b, "b")
		synctest.Wait()
		if len(b.waiting["b"]) != 1 {
			t.Error("a full queue is in the way of another")
		}
		b.drop("b")
		wantCode(t, (<-other).err, wire.HandlerUnavailable)
		cancel()
		synctest.Wait()
		empty(t, b)
	})
}
