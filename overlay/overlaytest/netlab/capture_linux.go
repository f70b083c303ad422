package netlab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Flow is one direction of a conversation, as seen at an interface.
type Flow struct {
	Proto  string         // "tcp", "udp", or the number of a protocol without ports
	Local  netip.AddrPort // later fragments count as of a protocol without ports
	Remote netip.AddrPort // from the interface's point of view
	Sent   bool           // by the local side
}

// Traffic is what passed an interface: of each flow the payloads of TCP or UDP,
// or of IP, in the order in which they passed. What was sent twice is there
// twice.
type Traffic map[Flow][]byte

// Remotes returns the remote addresses, sorted, each once.
func (tr Traffic) Remotes() []netip.Addr {
	var all []netip.Addr
	for f := range tr {
		all = append(all, f.Remote.Addr())
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// Contains reports whether the bytes are somewhere in a flow.
func (tr Traffic) Contains(b []byte) bool {
	for _, payload := range tr {
		if bytes.Contains(payload, b) {
			return true
		}
	}
	return false
}

// Capture records what passes an interface.
type Capture struct {
	ns    *Namespace
	file  *os.File // packet socket
	match func(Flow) bool
	ended chan struct{} // closed when collect has returned
	err   error         // why that was; read after ended

	seen   Traffic
	size   int
	excess int // packets that there was no room for
}

const (
	maxCapture    = 256 << 20 // bytes of payload that a capture keeps
	captureBuffer = 64 << 20  // bytes that may wait for it
	maxPacket     = 64 << 10
)

// Capture records what the host sends and receives from now on, of the flows that
// match; nil matches all. What the host's firewall drops is seen as received, but
// not as sent.
func (h *Host) Capture(match func(Flow) bool) *Capture {
	h.t.Helper()
	return capture(h.Namespace, "eth0", match)
}

// Capture records what passes the router's wan side, as [Host.Capture] does.
func (r *Router) Capture(match func(Flow) bool) *Capture {
	r.t.Helper()
	return capture(r.Namespace, "wan", match)
}

func capture(ns *Namespace, device string, match func(Flow) bool) *Capture {
	ns.t.Helper()
	c := &Capture{ns: ns, match: match, ended: make(chan struct{}), seen: make(Traffic)}
	err := ns.Do(func() (err error) {
		c.file, err = packetSocket(device)
		return err
	})
	if err != nil {
		ns.t.Fatalf("capture %s of %s: %v", device, ns.Name, err)
	}
	ns.t.Cleanup(func() { c.file.Close(); <-c.ended })
	go func() { defer close(c.ended); c.err = c.collect() }()
	return c
}

// packetSocket sees the IP packets of an interface, in both directions; packet(7).
func packetSocket(device string) (*os.File, error) {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	const all = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00 // big-endian
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index})
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "packet"), nil
}

// Stop ends the recording and returns all that passed until then. It fails the
// test if something passed that it has not, for then nothing can be said about
// what did not pass.
func (c *Capture) Stop() Traffic {
	t := c.ns.t
	t.Helper()
	_ = c.file.SetReadDeadline(time.Unix(1, 0)) // a packet socket has deadlines
	<-c.ended
	if !errors.Is(c.err, os.ErrDeadlineExceeded) {
		t.Fatalf("capture in %s: %v", c.ns.Name, c.err)
	}
	lost, err := c.drain()
	if err != nil {
		t.Fatalf("capture in %s: %v", c.ns.Name, err)
	}
	if lost > 0 || c.excess > 0 {
		t.Fatalf("capture in %s: %d packets came too fast and %d are beyond %d MiB; match fewer flows",
			c.ns.Name, lost, c.excess, maxCapture>>20)
	}
	return c.seen
}

// collect takes packets until the deadline.
func (c *Capture) collect() error {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, maxPacket)
	for {
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			failed = c.take(int(fd), buf)
			return failed != unix.EAGAIN
		})
		if err := errors.Join(err, failed); err != nil {
			return err
		}
	}
}

// drain takes what waits still, and returns how many packets the kernel has lost.
func (c *Capture) drain() (lost int, err error) {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	buf := make([]byte, maxPacket)
	var failed error
	err = raw.Control(func(fd uintptr) {
		for failed == nil {
			failed = c.take(int(fd), buf)
		}
		if failed != unix.EAGAIN {
			return
		}
		var stats *unix.TpacketStats
		if stats, failed = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); failed == nil {
			lost = int(stats.Drops)
		}
	})
	return lost, errors.Join(err, failed)
}

// take records one packet.
func (c *Capture) take(fd int, buf []byte) error {
	n, from, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
	switch {
	case err == unix.EINTR:
		return nil
	case err != nil:
		return err
	}
	link, ok := from.(*unix.SockaddrLinklayer)
	if !ok {
		return nil
	}
	f, payload, ok := parse(buf[:n], link.Pkttype == unix.PACKET_OUTGOING)
	if !ok || c.match != nil && !c.match(f) {
		return nil
	}
	if c.size += len(payload); c.size > maxCapture {
		c.excess++
		return nil
	}
	c.seen[f] = append(c.seen[f], payload...)
	return nil
}

// parse takes an IPv4 packet apart (RFC 791). It reports false for anything else.
func parse(p []byte, sent bool) (f Flow, payload []byte, ok bool) {
	if len(p) < 20 || p[0]>>4 != 4 {
		return f, nil, false
	}
	header := int(p[0]&0xf) * 4
	if header < 20 || len(p) < header {
		return f, nil, false
	}
	src, dst := netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:]))
	first := binary.BigEndian.Uint16(p[6:])&0x1fff == 0 // of the fragments
	f = Flow{Proto: strconv.Itoa(int(p[9])), Local: netip.AddrPortFrom(dst, 0), Remote: netip.AddrPortFrom(src, 0), Sent: sent}
	payload = p[header:]
	switch {
	case !first:
	case p[9] == unix.IPPROTO_TCP && len(payload) >= 20:
		f.setPorts("tcp", payload)
		payload = payload[min(int(payload[12]>>4)*4, len(payload)):]
	case p[9] == unix.IPPROTO_UDP && len(payload) >= 8:
		f.setPorts("udp", payload)
		payload = payload[8:]
	}
	if sent {
		f.Local, f.Remote = f.Remote, f.Local
	}
	return f, payload, true
}

// setPorts reads what TCP and UDP begin with.
func (f *Flow) setPorts(proto string, header []byte) {
	f.Proto = proto
	f.Remote = netip.AddrPortFrom(f.Remote.Addr(), binary.BigEndian.Uint16(header))
	f.Local = netip.AddrPortFrom(f.Local.Addr(), binary.BigEndian.Uint16(header[2:]))
}
