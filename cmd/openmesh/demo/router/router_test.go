package router_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"openmesh/cmd/openmesh/demo/router"
)

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

// start runs a router in front of a TCP and a UDP echo.
func start(t *testing.T) *router.Router {
	t.Helper()
	r, err := router.New(router.Config{TCP: echoTCP(t), UDP: echoUDP(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return r
}

func echoTCP(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func echoUDP(t *testing.T) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func dial(t *testing.T, network string, to netip.AddrPort) net.Conn {
	t.Helper()
	c, err := net.Dial(network, to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

// exchange says something and wants to hear it.
func exchange(t *testing.T, c net.Conn, said string) {
	t.Helper()
	if _, err := io.WriteString(c, said); err != nil {
		t.Fatal(err)
	}
	heard := make([]byte, len(said))
	if _, err := io.ReadFull(c, heard); err != nil || string(heard) != said {
		t.Fatalf("said %q, heard %q, %v", said, heard, err)
	}
}

func TestTCP(t *testing.T) {
	t.Parallel()
	r := start(t)
	a, b := dial(t, "tcp", r.TCP()), dial(t, "tcp", r.TCP())
	exchange(t, a, "one")
	exchange(t, b, "two")
	exchange(t, a, "three")
	if err := a.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(a); err != nil || len(rest) > 0 {
		t.Errorf("after the end: %q, %v", rest, err)
	}
	exchange(t, b, "four")
}

func TestUDPIsDropped(t *testing.T) {
	t.Parallel()
	r := start(t)
	a, b, c := dial(t, "udp", r.UDP()), dial(t, "udp", r.UDP()), dial(t, "tcp", r.TCP())
	exchange(t, a, "one")
	exchange(t, b, "two")
	r.Drop(true)
	if _, err := io.WriteString(a, "lost"); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(patience); r.Dropped() == 0; {
		if time.Now().After(until) {
			t.Fatal("nothing was dropped")
		}
		exchange(t, c, "TCP goes on")
	}
	r.Drop(false)
	exchange(t, a, "three") // and not what was lost before
	exchange(t, b, "four")
	if r.Dropped() != 1 {
		t.Errorf("dropped %d datagrams, want 1", r.Dropped())
	}
}

// When the router ends, so do the connections through it.
func TestEnd(t *testing.T) {
	t.Parallel()
	r, err := router.New(router.Config{TCP: echoTCP(t), UDP: echoUDP(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- r.Run(ctx) }()
	c, d := dial(t, "tcp", r.TCP()), dial(t, "udp", r.UDP())
	exchange(t, c, "one")
	exchange(t, d, "two")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection goes on")
	}
	if again, err := net.Dial("tcp", r.TCP().String()); err == nil {
		again.Close()
		t.Error("the port takes connections still")
	}
}
