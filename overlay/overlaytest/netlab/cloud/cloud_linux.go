package cloud

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Link is what lies between any two interfaces, in each direction.
type Link struct {
	Delay  time.Duration // of every packet, one way
	Jitter time.Duration // up to so much more, evenly spread; order is kept
	Loss   float64       // probability, 0 to 1, by itself for each packet
	Seed   uint64        // the same seed loses the same packets of a lane, counted from its first
}

// Cloud carries packets between interfaces by their IPv4 addresses; what is for
// nobody is lost. Its methods may be called from any goroutine.
type Cloud struct {
	link Link
	done chan struct{}
	all  sync.WaitGroup

	smalls, larges sync.Pool // of *buffer

	mu    sync.Mutex                           // of those who change ports
	ports atomic.Pointer[map[netip.Addr]*port] // never changed, but replaced
	count uint64
}

// port is an interface (tun) in a namespace, from outside.
type port struct {
	number uint64 // in the order of [Cloud.Plug]
	file   *os.File
}

// lane is the way from one port to another. Only the goroutine that collects
// from the first puts packets on it, so they are in order.
type lane struct {
	to    *port
	rand  *rand.Rand
	queue chan packet
}

type packet struct {
	due  time.Time
	data *buffer
	n    int
}

// buffer holds one packet. Few packets are large, but those carry most of the
// data, so they are not copied.
type buffer []byte

const (
	small = 2 << 10
	large = vnetHeader + 64<<10
	queue = 4096 // packets on their way in a lane; more are lost
)

// New returns a cloud without interfaces.
func New(link Link) *Cloud {
	c := &Cloud{
		link: link, done: make(chan struct{}),
		smalls: sync.Pool{New: func() any { return new(make(buffer, small)) }},
		larges: sync.Pool{New: func() any { return new(make(buffer, large)) }},
	}
	c.ports.Store(&map[netip.Addr]*port{})
	return c
}

// Plug makes an interface of the cloud that is reached at addr. It is made where
// enter calls its argument: in a namespace. It gets neither address nor route,
// and is down.
func (c *Cloud) Plug(enter func(func() error) error, device string, addr netip.Addr) error {
	// A packet that stands for many segments can only be lost as a whole, so a
	// cloud with losses has the kernel send each by itself.
	file, err := tun(enter, device, c.link.Loss == 0)
	if err != nil {
		return fmt.Errorf("plug %s: %w", device, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count++
	p := &port{number: c.count, file: file}
	ports := maps.Clone(*c.ports.Load())
	ports[addr] = p
	c.ports.Store(&ports)
	c.all.Go(func() { c.collect(p) })
	return nil
}

// Move has the interface that was reached at one address be reached at another.
func (c *Cloud) Move(from, to netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ports := maps.Clone(*c.ports.Load())
	ports[to] = ports[from]
	delete(ports, from)
	c.ports.Store(&ports)
}

// Close takes all interfaces away and returns when nothing moves any more.
func (c *Cloud) Close() {
	close(c.done)
	for _, p := range *c.ports.Load() {
		p.file.Close()
	}
	c.all.Wait()
}

// free lets a buffer be used again.
func (c *Cloud) free(b *buffer) {
	if len(*b) == small {
		c.smalls.Put(b)
	} else {
		c.larges.Put(b)
	}
}

// collect takes packets from p and puts them on their way, until p is closed.
func (c *Cloud) collect(p *port) {
	lanes := make(map[*port]*lane)
	data := c.larges.Get().(*buffer)
	defer func() { c.free(data) }()
	for {
		n, err := p.file.Read(*data)
		if err != nil {
			return
		}
		to := c.destination((*data)[:n])
		if to == nil {
			continue
		}
		l := lanes[to]
		if l == nil {
			l = c.lane(p, to)
			lanes[to] = l
		}
		if c.link.Loss > 0 && l.rand.Float64() < c.link.Loss {
			continue
		}
		next := packet{c.due(l), data, n}
		if n <= small {
			next.data = c.smalls.Get().(*buffer)
			copy(*next.data, (*data)[:n])
		} else {
			data = c.larges.Get().(*buffer)
		}
		select {
		case l.queue <- next:
		default:
			c.free(next.data)
		}
	}
}

// destination is the interface that a packet is for, or nil.
func (c *Cloud) destination(data []byte) *port {
	if len(data) < vnetHeader+20 || data[vnetHeader]>>4 != 4 {
		return nil // not IPv4
	}
	return (*c.ports.Load())[netip.AddrFrom4([4]byte(data[vnetHeader+16:]))]
}

// due is when a packet put on the lane now is there, if none before it is later.
func (c *Cloud) due(l *lane) time.Time {
	wait := c.link.Delay
	if c.link.Jitter > 0 {
		wait += time.Duration(l.rand.Int64N(int64(c.link.Jitter)))
	}
	return time.Now().Add(wait)
}

// lane makes the way between two interfaces.
func (c *Cloud) lane(from, to *port) *lane {
	l := &lane{to: to, rand: rand.New(rand.NewPCG(c.link.Seed, from.number<<32|to.number)), queue: make(chan packet, queue)}
	c.all.Go(func() { c.deliver(l) })
	return l
}

// deliver hands a lane's packets over when they are due, until the cloud is closed.
func (c *Cloud) deliver(l *lane) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case next := <-l.queue:
			if wait := time.Until(next.due); wait > 0 {
				timer.Reset(wait)
				select {
				case <-timer.C:
				case <-c.done:
					return
				}
			}
			_, _ = l.to.file.Write((*next.data)[:next.n]) // an interface that is down loses it
			c.free(next.data)
		case <-c.done:
			return
		}
	}
}
