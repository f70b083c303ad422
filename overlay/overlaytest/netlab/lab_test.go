//go:build linux

package netlab_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"openmesh/overlay/overlaytest/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Main(m)) }

// soon bounds what happens at once on a network without delay, on a machine that
// is busy; lost is how long a test waits for what does not come.
const (
	soon = 10 * time.Second
	lost = 250 * time.Millisecond
)

// Two labs use the same addresses and do not see each other, nor the machine.
func TestLabsAreApart(t *testing.T) {
	t.Parallel()
	one, two := netlab.New(t), netlab.New(t)
	a, b, stranger := one.Host("a"), one.Host("b"), two.Host("a")
	if a.Addr != stranger.Addr {
		t.Fatalf("first hosts have the addresses %s and %s", a.Addr, stranger.Addr)
	}
	echo(t, a.Listen(addr(a, 80)))
	if err := try(t, b, "tcp", addr(a, 80), soon); err != nil {
		t.Errorf("a neighbour: %v", err)
	}
	if err := try(t, stranger, "tcp", addr(b, 80), lost); err == nil {
		t.Error("a host reached one of another lab")
	}
	if err := try(t, a, "tcp", "192.0.2.1:80", lost); !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("outside: %v, want no route", err)
	}
	if links := strings.Count(a.Exec("ip", "-o", "link"), "\n"); links != 2 {
		t.Errorf("a host has %d interfaces, want lo and eth0", links)
	}
}

// Processes in a lab end with it, those too that nobody waits for.
func TestLabEndsItsProcesses(t *testing.T) {
	t.Parallel()
	var cmd *exec.Cmd
	var alive io.ReadCloser
	t.Run("lab", func(t *testing.T) {
		cmd = netlab.New(t).Host("a").Command(context.Background(), "sh", "-c", "sleep 1000 & echo; wait")
		var err error
		if alive, err = cmd.StdoutPipe(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := alive.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	})
	if cmd == nil {
		t.Skip("no lab")
	}
	if _, err := io.ReadAll(alive); err != nil { // ends when both have
		t.Error(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the process ended with %v, want it killed", err)
	}
}

// Each rule, seen from the host that has it and from outside. Ports 1 and 2 are
// the host's, 81 and 82 the neighbour's.
func TestFirewall(t *testing.T) {
	t.Parallel()
	const open, dead, refused = "open", "dead", "refused"
	tests := []struct {
		name                      string
		rule                      func(*netlab.Firewall)
		udp81, udp82              string // to the neighbour
		tcp81, tcp82, tcp1        string // new connections: out, out, in
		flow81, flow82, udpFlow81 string // connections from before
	}{
		{"none", func(f *netlab.Firewall) {},
			open, open, open, open, open, open, open, open},
		{"drop UDP", func(f *netlab.Firewall) { f.Drop("udp") },
			dead, dead, open, open, open, open, open, dead},
		{"drop a UDP port", func(f *netlab.Firewall) { f.Drop("udp", 81) },
			dead, open, open, open, open, open, open, dead},
		{"drop TCP ports", func(f *netlab.Firewall) { f.Drop("tcp", 81, 1) },
			open, open, dead, open, dead, dead, open, open},
		{"reject UDP", func(f *netlab.Firewall) { f.Reject("udp") },
			refused, refused, open, open, open, open, open, refused},
		{"reject a TCP port", func(f *netlab.Firewall) { f.Reject("tcp", 81) },
			open, open, refused, open, open, refused, open, open},
		{"only TCP 82", func(f *netlab.Firewall) { f.OnlyTCP(82) },
			dead, dead, dead, open, dead, dead, open, dead},
		{"healed", func(f *netlab.Firewall) { f.Drop("udp"); f.Reject("tcp"); f.OnlyTCP(82); f.Heal() },
			open, open, open, open, open, open, open, open},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			lab := netlab.New(t)
			host, neighbour := lab.Host("host"), lab.Host("neighbour")
			echo(t, host.Listen(addr(host, 1)))
			for _, port := range []uint16{81, 82} {
				echo(t, neighbour.Listen(addr(neighbour, port)))
				echoPackets(t, neighbour, addr(neighbour, port))
			}
			flow81 := connect(t, host, "tcp", addr(neighbour, 81))
			flow82 := connect(t, host, "tcp", addr(neighbour, 82))
			udpFlow81 := connect(t, host, "udp", addr(neighbour, 81))

			test.rule(host.Firewall())

			wait := func(want string) time.Duration {
				if want == dead {
					return lost
				}
				return soon
			}
			check := func(what, want string, err error) {
				t.Helper()
				if got := outcome(err); got != want {
					t.Errorf("%s: %s, want %s (%v)", what, got, want, err)
				}
			}
			check("UDP 81", test.udp81, try(t, host, "udp", addr(neighbour, 81), wait(test.udp81)))
			check("UDP 82", test.udp82, try(t, host, "udp", addr(neighbour, 82), wait(test.udp82)))
			check("TCP 81", test.tcp81, try(t, host, "tcp", addr(neighbour, 81), wait(test.tcp81)))
			check("TCP 82", test.tcp82, try(t, host, "tcp", addr(neighbour, 82), wait(test.tcp82)))
			check("inbound TCP", test.tcp1, try(t, neighbour, "tcp", addr(host, 1), wait(test.tcp1)))
			check("flow over TCP 81", test.flow81, exchange(flow81, wait(test.flow81)))
			check("flow over TCP 82", test.flow82, exchange(flow82, wait(test.flow82)))
			check("flow over UDP 81", test.udpFlow81, exchange(udpFlow81, wait(test.udpFlow81)))
		})
	}
}

// outcome is what became of an attempt. EPERM is how a host's own firewall
// refuses a datagram.
func outcome(err error) string {
	switch {
	case err == nil:
		return "open"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "dead"
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPERM):
		return "refused"
	}
	return err.Error()
}

func addr(h *netlab.Host, port uint16) string { return fmt.Sprintf("%s:%d", h.Addr, port) }

// try connects and has one word echoed.
func try(t *testing.T, from *netlab.Host, network, addr string, patience time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := from.Dial(ctx, network, addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	return exchange(conn, patience)
}

func exchange(conn net.Conn, patience time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "word"); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, len("word")))
	return err
}

// connect returns a connection over which a word went to and fro.
func connect(t *testing.T, from *netlab.Host, network, addr string) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	conn, err := from.Dial(ctx, network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := exchange(conn, soon); err != nil {
		t.Fatal(err)
	}
	return conn
}

// echo answers until the listener is closed.
func echo(t *testing.T, l net.Listener) {
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
			go io.Copy(conn, conn)
		}
	}()
}

func echoPackets(t *testing.T, h *netlab.Host, addr string) {
	t.Helper()
	var conn net.PacketConn
	err := h.Do(func() (err error) {
		conn, err = net.ListenPacket("udp", addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		var packet [16]byte
		for {
			n, from, err := conn.ReadFrom(packet[:])
			if errors.Is(err, net.ErrClosed) {
				return
			}
			_, _ = conn.WriteTo(packet[:n], from) // may be refused
		}
	}()
}
