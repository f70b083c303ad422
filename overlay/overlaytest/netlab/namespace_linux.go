package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Namespace is a network stack of its own: a host, a switch or a router.
type Namespace struct {
	Name    string // for people
	t       testing.TB
	file    *os.File // keeps the namespace
	info    os.FileInfo
	devices []string // besides lo
}

// Namespace adds a network stack that has nothing but loopback.
func (l *Lab) Namespace(name string) *Namespace {
	l.t.Helper()
	file, err := unshare()
	if err != nil {
		l.t.Fatalf("make namespace %s: %v", name, err)
	}
	ns := &Namespace{Name: name, t: l.t, file: file}
	l.namespaces = append(l.namespaces, ns)
	if ns.info, err = file.Stat(); err != nil {
		l.t.Fatalf("make namespace %s: %v", name, err)
	}
	ns.IP("link set lo up")
	return ns
}

// unshare returns a new namespace.
func unshare() (file *os.File, err error) {
	err = elsewhere(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		file, err = os.Open(threadNamespace)
		return err
	})
	return file, err
}

// threadNamespace is the file of the calling thread's namespace.
const threadNamespace = "/proc/thread-self/ns/net"

// elsewhere calls f on a thread that may change its namespace; it is back in the
// old one afterwards.
func elsewhere(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open(threadNamespace)
		if err != nil {
			done <- err
			return
		}
		defer home.Close()
		err = f()
		back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET)
		if back == nil {
			runtime.UnlockOSThread() // else the thread ends with this goroutine
		}
		done <- errors.Join(err, back)
	}()
	return <-done
}

// Do calls f inside the namespace: sockets that f opens and processes that it
// starts stay there. It may be called from any goroutine; f does not start
// others, nor end the test.
func (n *Namespace) Do(f func() error) error {
	return elsewhere(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace %s: %w", n.Name, err)
		}
		return f()
	})
}

// Listen listens on a TCP address in the namespace until the test ends.
func (n *Namespace) Listen(addr string) net.Listener {
	n.t.Helper()
	var l net.Listener
	err := n.Do(func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	if err != nil {
		n.t.Fatalf("listen in %s: %v", n.Name, err)
	}
	n.t.Cleanup(func() { l.Close() })
	return l
}

// Dial connects from the namespace to an address of digits. It may be called
// from any goroutine.
func (n *Namespace) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = n.Do(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Command prepares a process in the namespace. It dies with the test's.
func (n *Namespace) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + n.path(), "--", name}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// Exec runs a process in the namespace and returns what it prints.
func (n *Namespace) Exec(name string, args ...string) string {
	n.t.Helper()
	return n.run("", name, args...)
}

// IP configures the stack: each line is a command of ip(8), without the word ip.
func (n *Namespace) IP(lines ...string) {
	n.t.Helper()
	n.run(strings.Join(lines, "\n")+"\n", "ip", "-batch", "-")
}

func (n *Namespace) run(input, name string, args ...string) string {
	n.t.Helper()
	cmd := exec.CommandContext(n.t.Context(), name, args...)
	var out, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &said
	if err := n.Do(cmd.Run); err != nil {
		n.t.Fatalf("%s in %s: %v: %s%s", cmd, n.Name, err, said.Bytes(), input)
	}
	return out.String()
}

// up starts a new interface. It gets no IPv6 address by itself, which would take
// a second to become usable.
func (n *Namespace) up(device string) {
	n.t.Helper()
	n.devices = append(n.devices, device)
	n.IP("link set "+device+" addrgenmode none", "link set "+device+" up")
}

// path names the namespace to other processes.
func (n *Namespace) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }
