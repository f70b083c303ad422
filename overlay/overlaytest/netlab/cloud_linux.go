package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// cloud carries packets between interfaces in user space, each after the same
// time: what netem would do in kernels that have it. It knows interfaces by
// their IPv4 address and drops what is for nobody.
type cloud struct {
	oneWay time.Duration
	done   chan struct{}
	all    sync.WaitGroup

	mu    sync.Mutex
	ports map[netip.Addr]*port
}

// port is an interface (tun) in a namespace, from outside.
type port struct {
	file  *os.File
	queue chan packet // on the way to it, in order
}

type packet struct {
	due  time.Time
	data []byte
}

const (
	maxPacket = 64 << 10
	maxQueue  = 4096 // packets on the way to one interface; more are lost
)

// Delay has a packet take oneWay between any two hosts; by itself a lab has no
// delay worth the name. Call it before the first host is made.
func (l *Lab) Delay(oneWay time.Duration) {
	l.t.Helper()
	if len(l.wire.devices) > 0 || l.cloud != nil {
		l.t.Fatal("network lab: Delay comes before the first host, once")
	}
	l.cloud = &cloud{oneWay: oneWay, done: make(chan struct{}), ports: make(map[netip.Addr]*port)}
}

// plug gives a namespace an interface of the cloud, which has addr.
func (c *cloud) plug(ns *Namespace, device string, addr netip.Addr) error {
	file, err := tun(ns, device)
	if err != nil {
		return fmt.Errorf("make %s in %s: %w", device, ns.Name, err)
	}
	p := &port{file: file, queue: make(chan packet, maxQueue)}
	c.mu.Lock()
	c.ports[addr] = p
	c.mu.Unlock()
	c.all.Go(func() { c.collect(p) })
	c.all.Go(func() { c.deliver(p) })
	return nil
}

// tun makes an interface of IP packets and returns its other side.
func tun(ns *Namespace, device string) (file *os.File, err error) {
	err = ns.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		request, err := unix.NewIfreq(device)
		if err == nil {
			request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		if err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		file = os.NewFile(uintptr(fd), "tun") // polled, so only now that there is something to poll
		return nil
	})
	return file, err
}

// collect takes packets from p and puts them on their way, until p is closed.
func (c *cloud) collect(p *port) {
	buf := make([]byte, maxPacket)
	for {
		n, err := p.file.Read(buf)
		if err != nil {
			return
		}
		if n < 20 || buf[0]>>4 != 4 {
			continue // not IPv4
		}
		c.mu.Lock()
		to := c.ports[netip.AddrFrom4([4]byte(buf[16:20]))]
		c.mu.Unlock()
		if to == nil {
			continue
		}
		select {
		case to.queue <- packet{time.Now().Add(c.oneWay), append([]byte(nil), buf[:n]...)}:
		default:
		}
	}
}

// deliver gives p its packets when they are due, until the cloud is closed.
func (c *cloud) deliver(p *port) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case next := <-p.queue:
			timer.Reset(time.Until(next.due))
			select {
			case <-timer.C:
			case <-c.done:
				return
			}
			_, _ = p.file.Write(next.data) // an interface that is down loses it
		case <-c.done:
			return
		}
	}
}

// close takes all interfaces away and returns when nothing moves any more.
func (c *cloud) close() {
	close(c.done)
	c.mu.Lock()
	for _, p := range c.ports {
		p.file.Close()
	}
	c.mu.Unlock()
	c.all.Wait()
}
