package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"openmesh/protocols/wire"
)

const (
	addrFileName = "api.addr"
	sockFileName = "api.sock"
	unixPrefix   = "unix:"

	// maxSockPath is what fits the address of a unix socket everywhere (Linux
	// takes 107 bytes, the BSDs and macOS 103).
	maxSockPath = 103

	maxAddrFile = 4 << 10 // bytes
)

// listener is an open socket and how it is addressed.
type listener struct {
	net.Listener
	dialable string     // unix:PATH or host:port
	ip       netip.Addr // zero for unix
	port     uint16     // zero for unix
	remove   func()     // removes the socket file, once; nil for TCP
}

// Close removes the socket's file and closes it, in this order: while it
// answers, no other daemon can have taken its place.
func (l listener) Close() error {
	if l.remove != nil {
		l.remove()
	}
	return l.Listener.Close()
}

func listen(addr string) (listener, error) {
	if path, ok := strings.CutPrefix(addr, unixPrefix); ok {
		return listenUnix(path)
	}
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return listener{}, wire.Errorf(wire.AlreadyExists, "the port is in use: %w", err).
			WithHint("stop the program that uses it, or choose another address with --api-listen or api.listen")
	}
	if err != nil {
		return listener{}, wire.Errorf(wire.InvalidArgument, "%w", err).
			WithHint("api.listen takes host:port or unix:PATH")
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	out := listener{Listener: l, ip: at.Addr().Unmap(), port: at.Port()}
	out.dialable = netip.AddrPortFrom(reachable(out.ip), out.port).String()
	return out, nil
}

// reachable is the address at which a client on this machine reaches ip.
func reachable(ip netip.Addr) netip.Addr {
	if ip.IsUnspecified() { // a dual-stack socket takes IPv4 too
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return ip
}

// took reports whether a connection to the address at came in by this listener.
func (l listener) took(at netip.AddrPort) bool {
	return l.port == at.Port() && (l.ip.IsUnspecified() || l.ip == at.Addr().Unmap())
}

// listenUnix makes the socket in a private folder and moves it into place: at
// no moment can anyone else open it, and a stale one is replaced at once.
func listenUnix(path string) (listener, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return listener{}, err
	}
	if err := checkStale(path); err != nil {
		return listener{}, err
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".sock-") // mode 0700
	if err != nil {
		return listener{}, err
	}
	defer os.RemoveAll(dir)
	made := filepath.Join(dir, "s")
	var l *net.UnixListener
	err = withShort(made, func(short string) error {
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
		return err
	})
	if err != nil {
		return listener{}, err
	}
	l.SetUnlinkOnClose(false)
	info, err := place(made, path)
	if err != nil {
		return listener{}, errors.Join(err, l.Close())
	}
	remove := sync.OnceFunc(func() { removeSame(path, info) })
	return listener{Listener: l, dialable: unixPrefix + path, remove: remove}, nil
}

func place(made, path string) (fs.FileInfo, error) {
	if err := os.Chmod(made, 0o600); err != nil {
		return nil, err
	}
	info, err := os.Lstat(made)
	if err != nil {
		return nil, err
	}
	return info, os.Rename(made, path)
}

// removeSame removes the file at path unless another has taken its place.
func removeSame(path string, info fs.FileInfo) {
	if now, err := os.Lstat(path); err == nil && os.SameFile(now, info) {
		_ = os.Remove(path) // a file that stays is found stale next time
	}
}

// checkStale returns nil if there is nothing at path, or a socket on which
// nothing answers.
func checkStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return wire.Errorf(wire.AlreadyExists, "%s is there and is not a socket", path).
			WithHint("move it away, or choose another path in api.listen")
	}
	conn, err := dialAddr(context.Background(), unixPrefix+path)
	if err == nil {
		conn.Close()
		return wire.Errorf(wire.AlreadyExists, "another daemon answers on %s", path).
			WithHint("stop it first, or use another home with --home")
	}
	if !gone(err) {
		return fmt.Errorf("look for another daemon: %w", err)
	}
	return nil
}

// gone reports whether a dial failed because nothing listens there.
func gone(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
}

// withShort calls do with a name of path that is short enough for the address
// of a socket: path itself, or one through a symbolic link to its folder.
func withShort(path string, do func(short string) error) error {
	if len(path) <= maxSockPath {
		return do(path)
	}
	dir, err := os.MkdirTemp("", "om-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	link := filepath.Join(dir, "d")
	if err := os.Symlink(filepath.Dir(path), link); err != nil {
		return err
	}
	return do(filepath.Join(link, filepath.Base(path)))
}

// writeAddrs tells clients where the server is, sockets first. The function it
// returns takes that back.
func writeAddrs(path string, addrs []string) (remove func(), err error) {
	addrs = slices.Clone(addrs)
	slices.SortStableFunc(addrs, func(a, b string) int { return rank(a) - rank(b) })
	if err := writeFile(path, strings.Join(addrs, "\n")+"\n"); err != nil {
		return nil, err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	return func() { removeSame(path, info) }, nil
}

func rank(addr string) int {
	if strings.HasPrefix(addr, unixPrefix) {
		return 0
	}
	return 1
}

// readAddrs is the other end of writeAddrs. Without the file it is the place
// where the socket is by default.
func readAddrs(home string) ([]string, error) {
	f, err := os.Open(filepath.Join(home, addrFileName))
	if errors.Is(err, fs.ErrNotExist) {
		return []string{unixPrefix + filepath.Join(home, sockFileName)}, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxAddrFile))
	return strings.Split(strings.TrimSpace(string(text)), "\n"), err
}

// writeFile replaces a file of mode 0600 in one step.
func writeFile(path, text string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already if all went well
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
