package mux

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"openmesh/protocols/wire"
)

// link opens a stream from a to b and returns its two ends.
func link(t *testing.T, window int) (b *bed, mine, theirs *Stream) {
	t.Helper()
	got := make(chan *Stream, 1)
	b = newBed(Config{Window: window, MaxStreams: 2}, 7, 100, func(s *Stream) { got <- s })
	mine, err := b.Open(t.Context(), []byte("what for"))
	if err != nil {
		t.Fatal(err)
	}
	theirs = <-got
	return b, mine, theirs
}

func TestHalfClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, mine, theirs := link(t, 0)
		if mine.ID() != theirs.ID() || string(theirs.Meta()) != "what for" || string(mine.Meta()) != "what for" {
			t.Errorf("streams %d and %d, for %q and %q", mine.ID(), theirs.ID(), mine.Meta(), theirs.Meta())
		}
		mine.Write([]byte("question"))
		mine.CloseWrite()
		if _, err := mine.Write([]byte("more")); err != net.ErrClosed {
			t.Errorf("write after CloseWrite: %v", err)
		}
		if q, err := io.ReadAll(theirs); err != nil || string(q) != "question" {
			t.Errorf("read %q: %v", q, err)
		}
		if b.Len() != 1 || b.peer.Len() != 1 {
			t.Error("half a stream is no stream")
		}
		theirs.Write([]byte("answer"))
		theirs.CloseWrite()
		theirs.CloseWrite()
		if a, err := io.ReadAll(mine); err != nil || string(a) != "answer" {
			t.Errorf("read %q: %v", a, err)
		}
		if n, err := mine.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("read after the end: %d, %v", n, err)
		}
		mine.Close()
		if _, err := mine.Read(make([]byte, 1)); err != net.ErrClosed {
			t.Errorf("read after Close: %v", err)
		}
		if err := b.settled(); err != nil {
			t.Error(err)
		}
	})
}

// What was written before Close arrives; what the other side goes on to write
// fails there.
func TestClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, mine, theirs := link(t, 8<<10)
		failed := make(chan error, 1)
		go func() {
			_, err := theirs.Write(make([]byte, 1<<20))
			failed <- err
		}()
		mine.Write([]byte("last words"))
		mine.Close()
		mine.Close()
		if _, err := mine.Write(nil); err != net.ErrClosed {
			t.Errorf("write after Close: %v", err)
		}
		if err := <-failed; !errors.Is(err, wire.Cancelled) {
			t.Errorf("write to a closed stream: %v", err)
		}
		if got, err := io.ReadAll(theirs); err != nil || string(got) != "last words" {
			t.Errorf("read %q: %v", got, err)
		}
		if err := b.settled(); err != nil {
			t.Error(err)
		}
	})
}

// ends runs Read and Write on a stream until both fail, and returns how.
func ends(s *Stream) <-chan [2]error {
	done := make(chan [2]error, 1)
	go func() {
		var errs [2]error
		var both sync.WaitGroup
		both.Go(func() { _, errs[0] = s.Read(make([]byte, 1)) })
		both.Go(func() { _, errs[1] = s.Write(make([]byte, 1<<20)) })
		both.Wait()
		done <- errs
	}()
	return done
}

func TestWhatEndsAStream(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		end          func(b *bed, mine, theirs *Stream)
		mine, theirs wire.Code // 0: net.ErrClosed
	}{
		"reset by the opener":           {func(_ *bed, mine, _ *Stream) { mine.Reset(wire.TooLarge) }, wire.TooLarge, wire.TooLarge},
		"reset by the acceptor":         {func(_ *bed, _, theirs *Stream) { theirs.Reset(0) }, wire.Cancelled, wire.Cancelled},
		"reset with a code of tomorrow": {func(_ *bed, mine, _ *Stream) { mine.Reset(0xabcdef) }, 0xabcdef, 0xabcdef},
		"reset by both":                 {func(_ *bed, mine, theirs *Stream) { mine.Reset(wire.TooLarge); theirs.Reset(wire.Denied) }, wire.TooLarge, wire.Denied},
		"end of the session":            {func(b *bed, _, _ *Stream) { b.Close(wire.TrustRevoked); b.peer.Close(0) }, wire.TrustRevoked, wire.SessionClosed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, mine, theirs := link(t, 0)
				atMine, atTheirs := ends(mine), ends(theirs)
				// Both readers have a byte, both writers no more credit.
				<-time.After(time.Second)
				<-time.After(time.Second)
				tc.end(b, mine, theirs)
				for _, side := range []struct {
					errs [2]error
					want wire.Code
				}{{<-atMine, tc.mine}, {<-atTheirs, tc.theirs}} {
					if side.errs[0] != nil || !errors.Is(side.errs[1], side.want) {
						t.Errorf("read: %v; write: %v, want %v", side.errs[0], side.errs[1], side.want)
					}
				}
				if _, err := theirs.Read(make([]byte, 1)); !errors.Is(err, tc.theirs) {
					t.Errorf("read of what came before: %v", err)
				}
				if err := b.settled(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestDeadlines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, mine, theirs := link(t, 8<<10)
		begin := time.Now()
		after := func(d time.Duration) {
			t.Helper()
			if since := time.Since(begin); since != d {
				t.Errorf("after %v, want %v", since, d)
			}
			begin = time.Now()
		}
		mine.SetReadDeadline(begin.Add(time.Second))
		_, err := mine.Read(make([]byte, 1))
		if after(time.Second); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
		mine.SetWriteDeadline(begin.Add(2 * time.Second))
		n, err := mine.Write(make([]byte, 1<<20))
		if after(2 * time.Second); !errors.Is(err, os.ErrDeadlineExceeded) || n != 8<<10 {
			t.Errorf("write: %d bytes, %v", n, err)
		}
		// A deadline that passed holds until it is set anew; one that is moved does
		// not hold at its old time.
		theirs.Write([]byte("x"))
		<-time.After(time.Second)
		after(time.Second)
		if _, err := mine.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read again: %v", err)
		}
		mine.SetDeadline(time.Time{})
		if _, err := mine.Read(make([]byte, 1)); err != nil {
			t.Errorf("read without a deadline: %v", err)
		}
		mine.SetReadDeadline(begin.Add(time.Second))
		time.AfterFunc(500*time.Millisecond, func() { mine.SetReadDeadline(begin.Add(3 * time.Second)) })
		_, err = mine.Read(make([]byte, 1))
		if after(3 * time.Second); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read with a later deadline: %v", err)
		}
		if mine.SetReadDeadline(begin.Add(-1)); !mine.in.passed {
			t.Error("a deadline in the past has not passed")
		}
		mine.Close()
		theirs.Close()
		if err := mine.SetDeadline(begin); err != net.ErrClosed {
			t.Errorf("deadline after Close: %v", err)
		}
		if err := b.settled(); err != nil {
			t.Error(err)
		}
	})
}

// Calls of Write by several goroutines do not mix.
func TestWritesDoNotMix(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, mine, theirs := link(t, 0)
		const each = 100_000
		var all sync.WaitGroup
		for i := range 4 {
			all.Go(func() { mine.Write(bytes.Repeat([]byte{byte(i)}, each)) })
		}
		go func() { all.Wait(); mine.CloseWrite() }()
		got, err := io.ReadAll(theirs)
		if err != nil || len(got) != 4*each {
			t.Fatalf("%d bytes: %v", len(got), err)
		}
		for i := range 4 {
			part := got[i*each : (i+1)*each]
			if n := bytes.Count(part, part[:1]); n != each {
				t.Errorf("part %d has only %d bytes of one writer", i, n)
			}
		}
	})
}

// A session that takes no more frames fails what wrote, not what waits elsewhere.
func TestSendFails(t *testing.T) {
	t.Parallel()
	lost := errors.New("no channel")
	r := newRig(Config{})
	r.fails = lost
	if _, err := r.Open(t.Context(), nil); !errors.Is(err, lost) || r.Len() != 0 {
		t.Errorf("open: %v, %d streams", err, r.Len())
	}
	r.must(t, TypeOpen, "", 2, 1000)
	s := r.accepted[0]
	if n, err := s.Write([]byte("x")); n != 0 || !errors.Is(err, lost) {
		t.Errorf("write: %d, %v", n, err)
	}
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, lost) {
		t.Errorf("read: %v", err)
	}
}

func TestOpenFails(t *testing.T) {
	t.Parallel()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for name, tc := range map[string]struct {
		do   func(ctx context.Context, r *rig) (*Stream, error)
		want wire.Code
	}{
		"metadata too large": {func(ctx context.Context, r *rig) (*Stream, error) {
			return r.Open(ctx, make([]byte, MaxMeta+1))
		}, wire.TooLarge},
		"context ended": {func(_ context.Context, r *rig) (*Stream, error) { return r.Open(ended, nil) }, wire.Cancelled},
		"no answer in time": {func(ctx context.Context, r *rig) (*Stream, error) {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			return r.Open(ctx, nil)
		}, wire.DeadlineExceeded},
		"session ended before": {func(ctx context.Context, r *rig) (*Stream, error) {
			r.Close(wire.KeyExpired)
			return r.Open(ctx, nil)
		}, wire.KeyExpired},
		"session ended meanwhile": {func(ctx context.Context, r *rig) (*Stream, error) {
			time.AfterFunc(time.Second, func() { r.Close(wire.KeyExpired) })
			return r.Open(ctx, nil)
		}, wire.KeyExpired},
		"refused": {func(ctx context.Context, r *rig) (*Stream, error) {
			time.AfterFunc(time.Second, func() { r.receive(TypeEnd, "", 1, 0, uint64(wire.Denied)) })
			return r.Open(ctx, nil)
		}, wire.Denied},
		"too many": {func(ctx context.Context, r *rig) (*Stream, error) {
			for range 2 {
				go r.Open(ctx, nil)
			}
			synctest.Wait()
			return r.Open(ctx, nil)
		}, wire.ResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(Config{MaxStreams: 2})
				if s, err := tc.do(t.Context(), r); !errors.Is(err, tc.want) || s != nil {
					t.Errorf("%v, %v; want %v", s, err, tc.want)
				}
				r.Close(0)
			})
		})
	}
}

// An opener that gave up resets the stream when the answer comes, not before: a
// reset could overtake the open.
func TestAbandonedOpen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(Config{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r.Open(ctx, []byte("m"))
		r.sentOnly(t, "stream-open 1 262144 m")
		r.must(t, TypeWindow, "", 1, 1000)
		r.sentOnly(t, "stream-end 1 0 "+number(wire.Cancelled))
		if r.Len() != 0 {
			t.Error("the stream is left")
		}
	})
}

// A window that was overtaken by a later one takes nothing back.
func TestOldWindow(t *testing.T) {
	t.Parallel()
	r := newRig(Config{Window: 1000})
	r.must(t, TypeOpen, "", 2, 3)
	r.must(t, TypeWindow, "", 2, 10)
	r.must(t, TypeWindow, "", 2, 5)
	s := r.accepted[0]
	s.SetWriteDeadline(time.Now().Add(time.Minute))
	if n, err := s.Write([]byte("0123456789")); n != 10 || err != nil {
		t.Errorf("wrote %d: %v", n, err)
	}
	r.sentOnly(t, "stream-window 2 1000", "stream-data 2 0 0123456789")
}

// A stream that Accept refuses is given no credit.
func TestRefusedStreamGetsNoCredit(t *testing.T) {
	t.Parallel()
	r := newRig(Config{})
	r.cfg.Accept = func(s *Stream) { s.Reset(wire.Denied) }
	r.must(t, TypeOpen, "", 2, 3)
	r.sentOnly(t, "stream-end 2 0 "+number(wire.Denied))
}

// Accept may refuse: then the opener's Open fails.
func TestAcceptRefuses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBed(Config{}, 1, 10, nil)
		b.peer.cfg.Accept = func(s *Stream) { s.Reset(wire.Denied) }
		if _, err := b.Open(t.Context(), nil); !errors.Is(err, wire.Denied) {
			t.Errorf("open: %v", err)
		}
		b.peer.cfg.Accept = nil
		if _, err := b.Open(t.Context(), nil); !errors.Is(err, wire.Unsupported) {
			t.Errorf("open where nothing is accepted: %v", err)
		}
		if err := b.settled(); err != nil {
			t.Error(err)
		}
	})
}

// Credit comes when half of the window was read, in one window frame.
func TestCreditComesAtHalf(t *testing.T) {
	t.Parallel()
	r := newRig(Config{Window: 1000, SessionWindow: 1 << 20})
	r.must(t, TypeOpen, "", 2, 0)
	s := r.accepted[0]
	r.sentOnly(t, "stream-window 2 1000")
	r.must(t, TypeData, strings.Repeat("x", 1000), 2, 0)
	for _, step := range []struct {
		read int
		want string
	}{{499, ""}, {1, "stream-window 2 1500"}, {500, "stream-window 2 2000"}} {
		io.ReadFull(s, make([]byte, step.read))
		r.sentOnly(t, step.want)
	}
	// Once the end is known there is no need for more.
	r.must(t, TypeData, strings.Repeat("x", 900), 2, 1000)
	r.must(t, TypeEnd, "", 2, 1900, 0)
	io.ReadFull(s, make([]byte, 900))
	r.sentOnly(t, "")
}

// What cannot be posted is sent by a goroutine, and none is left in the end.
func TestWhatIsOwedIsSent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(Config{Window: 1000})
		r.full = true
		r.must(t, TypeOpen, "", 2, 0)
		r.must(t, TypeOpen, "", 4, 0)
		r.accepted[1].Close()
		synctest.Wait()
		r.sentOnly(t, "stream-window 2 1000", "stream-window 4 1000", "stream-end 4 0 0", "stream-window 4 0")
		if r.Mux.flushing || r.Mux.owed != nil {
			t.Error("the goroutine that sends is left")
		}
	})
}
