package grpclink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"openmesh/overlay/overlaytest"
	"openmesh/protocols/wire"
)

// serve runs a server on loopback until the test, or stop, ends it.
func serve(t testing.TB, cfg Config) (s *Server, stop func()) {
	t.Helper()
	cfg.Listen, cfg.Log = []string{"127.0.0.1:0"}, zap.NewNop()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return s, stop
}

// connections counts those that s has.
func connections(s *Server) int {
	s.crowd.mu.Lock()
	defer s.crowd.mu.Unlock()
	return s.crowd.conns
}

func dialer(t testing.TB) *Dialer {
	d := NewDialer()
	t.Cleanup(d.Close)
	return d
}

// open opens a stream to s and returns both its ends; serverSide is the
// server's, whose RPC ends when release is called.
func open(t testing.TB, cfg Config) (client, server *Conn, release func()) {
	t.Helper()
	accepted, done := make(chan *Conn), make(chan struct{})
	cfg.Accept = func(c *Conn) {
		accepted <- c
		<-done
	}
	s, _ := serve(t, cfg)
	release = sync.OnceFunc(func() { close(done) })
	t.Cleanup(release)
	client, err := dialer(t).Open(t.Context(), s.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Reset(wire.Cancelled) })
	return client, <-accepted, release
}

func echo(c *Conn) {
	io.Copy(c, onlyReader{c})
}

// onlyReader hides what would let io.Copy go past Read.
type onlyReader struct{ io.Reader }

func random(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// What is written comes out, whatever the sizes of writes and reads, both ways.
func TestBytesBothWays(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, 255, 1024, maxChunk, maxChunk + 1, 4<<20 + 7} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			client, server, release := open(t, Config{})
			want := random(size)
			for _, d := range []struct {
				name     string
				from, to *Conn
			}{{"up", client, server}, {"down", server, client}} {
				go func() {
					for rest := want; len(rest) > 0; {
						n := min(len(rest), 1+rand.IntN(100_000))
						if _, err := d.from.Write(rest[:n]); err != nil {
							t.Error(err)
						}
						rest = rest[n:]
					}
				}()
				got := make([]byte, size)
				if _, err := io.ReadFull(d.to, got); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %v, or other bytes", d.name, err)
				}
			}
			release()
			if n, err := client.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("after the end: %d, %v", n, err)
			}
		})
	}
}

// A write is the caller's again when it returns, and comes out at once.
func TestWriteKeepsNothing(t *testing.T) {
	t.Parallel()
	client, server, _ := open(t, Config{})
	b := []byte("first message, as long as it may be")
	sent := string(b)
	if _, err := client.Write(b); err != nil {
		t.Fatal(err)
	}
	clear(b)
	got := make([]byte, 100)
	n, err := server.Read(got)
	if err != nil || string(got[:n]) != sent {
		t.Errorf("%q, %v", got[:n], err)
	}
	if client.RemoteAddr() == nil || server.Remote().Addr() != client.Remote().Addr() {
		t.Errorf("addresses %v, %v, %v", client.RemoteAddr(), client.Remote(), server.Remote())
	}
}

// Who resets a stream says why, whichever side it is, also to a peer that is
// waiting; and its own Read and Write return.
func TestReset(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"client", "server"} {
		for _, code := range []wire.Code{wire.PolicyViolation, wire.KeyExpired, wire.Cancelled, 0xffff} {
			t.Run(name+"/"+code.String(), func(t *testing.T) {
				t.Parallel()
				client, server, release := open(t, Config{})
				by, other := client, server
				if name == "server" {
					by, other = server, client
					if !code.Known() {
						t.Skip("a server's code travels by name")
					}
				}
				mine, theirs := readError(by), readError(other)
				by.Reset(code)
				by.Reset(wire.Internal) // too late
				if name == "server" {
					if err := <-mine; !errors.Is(err, code) {
						t.Errorf("own Read: %v", err)
					}
					release()
				}
				if err := <-theirs; !errors.Is(err, code) {
					t.Errorf("peer's Read: %v, want %v", err, code)
				}
				if name == "client" {
					if err := <-mine; !errors.Is(err, code) {
						t.Errorf("own Read: %v", err)
					}
				}
				if _, err := by.Write([]byte{1}); !errors.Is(err, code) {
					t.Errorf("own Write: %v", err)
				}
				if err := <-readError(other); !errors.Is(err, code) {
					t.Errorf("peer's next Read: %v", err)
				}
			})
		}
	}
}

// readError reads until there is an error.
func readError(c *Conn) <-chan error {
	failed := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, onlyReader{c})
		if err == nil {
			err = io.EOF
		}
		failed <- err
	}()
	return failed
}

// A writer whose peer does not read is let go by a reset from either side.
func TestResetOfStalledWriter(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ writer, by string }{{"client", "client"}, {"client", "server"}, {"server", "server"}, {"server", "client"}} {
		t.Run(tc.writer+" by "+tc.by, func(t *testing.T) {
			t.Parallel()
			client, server, release := open(t, Config{})
			ends := map[string]*Conn{"client": client, "server": server}
			failed := make(chan error, 1)
			stalled := make(chan struct{})
			go func() {
				close(stalled)
				for {
					if _, err := ends[tc.writer].Write(make([]byte, 1<<20)); err != nil {
						failed <- err
						return
					}
				}
			}()
			<-stalled
			ends[tc.by].Reset(wire.ResourceExhausted)
			if tc.by == "server" {
				release()
			}
			if err := <-failed; tc.by == tc.writer && !errors.Is(err, wire.ResourceExhausted) {
				t.Errorf("Write: %v", err)
			}
		})
	}
}

// Close loses nothing of what was written before it.
func TestCloseDelivers(t *testing.T) {
	t.Parallel()
	want := random(3 << 20)
	t.Run("client", func(t *testing.T) {
		t.Parallel()
		got := make(chan []byte, 1)
		s, _ := serve(t, Config{Accept: func(c *Conn) {
			b, err := io.ReadAll(c)
			if err != nil {
				t.Error(err)
			}
			got <- b
		}})
		c, err := dialer(t).Open(t.Context(), s.Addrs()[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(want); err != nil {
			t.Fatal(err)
		}
		c.Close()
		if !bytes.Equal(<-got, want) {
			t.Error("other bytes arrive")
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Read after Close: %v", err)
		}
	})
	t.Run("server", func(t *testing.T) {
		t.Parallel()
		s, _ := serve(t, Config{Accept: func(c *Conn) {
			if _, err := c.Write(want); err != nil {
				t.Error(err)
			}
			c.Close()
			if _, err := c.Write(want); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Write after Close: %v", err)
			}
		}})
		c, err := dialer(t).Open(t.Context(), s.Addrs()[0])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
			t.Errorf("other bytes arrive, or %v", err)
		}
	})
}

// A thousand streams at once share one connection, and all work.
func TestThousandStreams(t *testing.T) {
	t.Parallel()
	const n = 1000
	s, _ := serve(t, Config{Accept: echo, MaxStreams: n, MaxStreamsPerConn: n})
	d := dialer(t)
	var group, opened sync.WaitGroup
	opened.Add(n)
	for i := range n {
		group.Go(func() {
			c, err := d.Open(t.Context(), s.Addrs()[0])
			if err != nil {
				t.Error(err)
				opened.Done()
				return
			}
			defer c.Close()
			want, got := random(100+i), make([]byte, 100+i)
			c.Write(want[:1])
			io.ReadFull(c, got[:1])
			opened.Done()
			opened.Wait() // all are open
			c.Write(want[1:])
			if _, err := io.ReadFull(c, got[1:]); err != nil || !bytes.Equal(got, want) {
				t.Errorf("stream %d: %v, or other bytes", i, err)
			}
		})
	}
	group.Wait()
	if n := connections(s); n != 1 {
		t.Errorf("%d connections", n)
	}
}

// When the server goes, its handlers end, and streams say that it did.
func TestServerEnds(t *testing.T) {
	t.Parallel()
	ended := make(chan error, 1)
	s, stop := serve(t, Config{Accept: func(c *Conn) {
		c.Write([]byte{1})
		ended <- <-readError(c)
	}})
	d := dialer(t)
	c, err := d.Open(t.Context(), s.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.ReadFull(c, make([]byte, 1))
	stop()
	if err := <-ended; !errors.Is(err, wire.Unreachable) {
		t.Errorf("server's Read: %v", err)
	}
	if err := <-readError(c); !errors.Is(err, wire.Unreachable) {
		t.Errorf("client's Read: %v", err)
	}
	if _, err := d.Open(t.Context(), s.Addrs()[0]); !errors.Is(err, wire.Unreachable) {
		t.Errorf("Open: %v", err)
	}
}

// A peer that is gone without a word is noticed, on both sides.
func TestHalfDeadPeer(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("gRPC's clients ping every 10 s at most")
	}
	ended := make(chan error, 1)
	s, _ := serve(t, Config{Keepalive: time.Second, Accept: func(c *Conn) {
		c.Write([]byte{1})
		ended <- <-readError(c)
	}})
	through, cut := proxy(t, s)
	c, err := dialer(t).Open(t.Context(), through)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.ReadFull(c, make([]byte, 1))
	cut()
	start := time.Now()
	if err := <-ended; !errors.Is(err, wire.Unreachable) || time.Since(start) > 10*time.Second {
		t.Errorf("server's Read: %v, after %v", err, time.Since(start))
	}
	if err := <-readError(c); !errors.Is(err, wire.Unreachable) {
		t.Errorf("client's Read: %v", err)
	}
}

// proxy forwards one connection to s until cut, and then keeps both sides open
// without a byte.
func proxy(t *testing.T, s *Server) (addr ma.Multiaddr, cut func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	out, err := net.Dial("tcp", s.listeners[0].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	dead := make(chan struct{})
	var all sync.WaitGroup
	pipe := func(to, from net.Conn) {
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			select {
			case <-dead:
			default:
				to.Write(buf[:n])
			}
		}
	}
	all.Go(func() {
		in, err := l.Accept()
		if err != nil {
			return
		}
		t.Cleanup(func() { in.Close() })
		all.Go(func() { pipe(in, out) })
		all.Go(func() { pipe(out, in) })
	})
	t.Cleanup(func() { l.Close(); out.Close() })
	if addr, err = Addr(l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	return addr, func() { close(dead) }
}

// Servers and dialers leave nothing behind, nor do streams that were closed,
// reset, or forgotten.
func TestNoGoroutineIsLeft(t *testing.T) {
	before := goleak.IgnoreCurrent()
	s, stop := serve(t, Config{Accept: echo})
	d := NewDialer()
	var conns []*Conn
	for range 6 {
		c, err := d.Open(t.Context(), s.Addrs()[0])
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte("x"))
		io.ReadFull(c, make([]byte, 1))
		conns = append(conns, c)
	}
	conns[0].Close()
	conns[1].Reset(wire.Denied)
	blocked := readError(conns[2])
	d.Close()
	if err := <-blocked; err == nil || err == io.EOF {
		t.Errorf("Read on a closed dialer: %v", err)
	}
	for _, c := range conns[3:] {
		c.Close()
	}
	stop()
	overlaytest.NoneLeft(t, before)
}
