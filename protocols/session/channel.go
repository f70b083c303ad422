package session

import (
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"

	"openmesh/protocols/wire"
)

// Conduit is one underlying byte path to the peer: reliable and in order. It
// need not be secret; who the peer is must have been checked.
type Conduit interface {
	io.ReadWriteCloser
	Reset(wire.Code)     // unblocks Read and Write on both ends
	Reserve(n int) error // accounts for n bytes of memory
	Release(n int)
	Path() Path
}

// Path says how a conduit reaches the peer.
type Path struct {
	Kind      string // direct, holepunched or relayed
	Transport string // quic-v1, tcp, ws, wss, webtransport or webrtc-direct
	Addr      string // remote multiaddr
}

// channel writes frames to a conduit. A frame is written by its caller if nobody
// else is writing, which saves a goroutine switch; frames that come meanwhile
// gather and go out together.
type channel struct {
	conduit Conduit
	path    Path
	opened  time.Time
	health  health

	writing atomic.Int64 // since when a Write is under way, ns since the epoch; 0 if none

	mu    sync.Mutex
	room  *sync.Cond
	busy  bool
	queue []byte
	spare []byte
	err   error
}

// maxQueue bounds the bytes that gather while a write is under way.
const maxQueue = 1 << 20

func newChannel(c Conduit, now time.Time) *channel {
	ch := &channel{conduit: c, path: c.Path(), opened: now}
	ch.room = sync.NewCond(&ch.mu)
	return ch
}

// write sends b and returns when the conduit or the queue has taken it; b is the
// caller's again then. With company, other frames are about to come: it lets them
// gather first, for one write of several costs little more than one of one.
func (c *channel) write(b []byte, company bool) error {
	c.mu.Lock()
	for c.err == nil && c.busy && len(c.queue) > 0 && len(c.queue)+len(b) > maxQueue {
		c.room.Wait()
	}
	if c.err != nil || c.busy {
		defer c.mu.Unlock()
		if c.err == nil {
			c.queue = append(c.queue, b...)
		}
		return c.err
	}
	c.busy = true
	if company && len(b) < maxSpare {
		c.queue = append(c.queue, b...)
		c.mu.Unlock()
		runtime.Gosched()
		return c.flush(nil)
	}
	c.mu.Unlock()
	return c.flush(b)
}

// post is write for callers that must not wait: it only queues, and reports
// false if the queue has no room.
func (c *channel) post(b []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || len(c.queue)+len(b) > maxQueue {
		return false
	}
	c.queue = append(c.queue, b...)
	if !c.busy {
		c.busy = true
		go c.flush(nil)
	}
	return true
}

// flush writes b or, if it is nil, what has gathered. What gathers meanwhile is
// written by a goroutine of its own, so that no caller pays for the others.
func (c *channel) flush(b []byte) error {
	if b == nil {
		c.mu.Lock()
		b = c.queue
		c.queue, c.spare = c.spare[:0], nil
		c.room.Broadcast()
		c.mu.Unlock()
		defer c.recycle(b)
	}
	err := c.push(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err != nil:
		c.fail(err)
	case len(c.queue) == 0:
		c.rest()
	default:
		go c.drain()
	}
	return err
}

func (c *channel) drain() {
	for {
		c.mu.Lock()
		if len(c.queue) == 0 || c.err != nil {
			c.rest()
			c.mu.Unlock()
			return
		}
		b := c.queue
		c.queue, c.spare = c.spare[:0], nil
		c.room.Broadcast()
		c.mu.Unlock()
		err := c.push(b)
		c.recycle(b)
		if err != nil {
			c.mu.Lock()
			c.fail(err)
			c.mu.Unlock()
		}
	}
}

// recycle keeps a buffer that was written for what gathers next.
func (c *channel) recycle(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil && c.spare == nil && cap(b) <= maxSpare {
		c.spare = b[:0]
	}
}

// maxSpare bounds the buffer that an idle channel keeps.
const maxSpare = 64 << 10

func (c *channel) push(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	c.writing.Store(time.Now().UnixNano())
	_, err := c.conduit.Write(b)
	c.writing.Store(0)
	return err
}

// rest marks that nobody writes; c.mu is held.
func (c *channel) rest() {
	c.busy = false
	c.room.Broadcast()
}

// fail ends all writing; c.mu is held.
func (c *channel) fail(err error) {
	if c.err == nil {
		c.err = err
	}
	c.queue, c.spare = nil, nil
	c.rest()
}

// finish waits until all that was queued is written, then closes the conduit.
func (c *channel) finish() {
	c.mu.Lock()
	for c.busy && c.err == nil {
		c.room.Wait()
	}
	c.mu.Unlock()
	c.conduit.Close()
}

// stalled reports whether one write has been under way for longer than limit.
func (c *channel) stalled(now time.Time, limit time.Duration) bool {
	since := c.writing.Load()
	return since != 0 && now.UnixNano()-since > int64(limit)
}

// streamConduit makes a libp2p stream a conduit.
type streamConduit struct {
	network.Stream
	path Path
}

func (s streamConduit) Reset(c wire.Code) { s.Stream.ResetWithError(network.StreamErrorCode(c)) }

func (s streamConduit) Reserve(n int) error {
	return s.Scope().ReserveMemory(n, network.ReservationPriorityMedium)
}

func (s streamConduit) Release(n int) { s.Scope().ReleaseMemory(n) }

func (s streamConduit) Path() Path { return s.path }

// PathOf tells how a libp2p connection reaches its peer.
func PathOf(c network.Conn) Path {
	addr := c.RemoteMultiaddr()
	p := Path{Kind: "direct", Addr: addr.String(), Transport: transportOf(addr)}
	if _, err := addr.ValueForProtocol(ma.P_CIRCUIT); err == nil {
		p.Kind = "relayed"
	}
	return p
}

func transportOf(addr ma.Multiaddr) string {
	name := "unknown"
	for _, part := range addr {
		switch part.Protocol().Code {
		case ma.P_CIRCUIT:
			return name // of the relay's own address
		case ma.P_TCP:
			name = "tcp"
		case ma.P_WS, ma.P_WSS, ma.P_QUIC_V1, ma.P_WEBTRANSPORT, ma.P_WEBRTC_DIRECT:
			name = part.Protocol().Name
		}
	}
	return name
}
