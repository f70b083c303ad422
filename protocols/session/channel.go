package session

import (
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"openmesh/protocols/session/seal"
	"openmesh/protocols/wire"
)

// Conduit is one underlying byte path to the peer: reliable and in order. It
// need not be secret; who the peer is must have been checked.
type Conduit interface {
	io.ReadWriteCloser   // Close ends the writing side in order
	Reset(wire.Code)     // unblocks Read and Write on both ends
	Abandon()            // resets, and ends the connection below: it is taken for dead
	Reserve(n int) error // accounts for n bytes of memory
	Release(n int)
	Path() Path
	Peer() peer.ID // the host at the other end; empty if the conduit does not prove it
}

// Path says how a conduit reaches the peer.
type Path struct {
	Kind      string // direct, holepunched, relayed, forwarded or mailbox
	Transport string // quic-v1, tcp, ws, wss, webtransport, webrtc-direct or grpc
	Addr      string // remote multiaddr; empty if only a forwarding relay knows it
	Hops      string // the peers on the way, with spaces between them, as far as this side knows them
}

// channel writes frames to a conduit. A frame is written by its caller if nobody
// else is writing, which saves a goroutine switch; frames that come meanwhile
// gather and go out together.
type channel struct {
	id      uint32 // within the session and this side
	mine    bool   // this side opened it
	conduit Conduit
	path    Path
	opened  time.Time
	health  health
	heard   atomic.Int64 // when the last frame came, ns since the epoch
	reading atomic.Pointer[reader]
	keys    *seal.Keys    // that what began it was opened with; nil: it goes with any
	told    uint64        // sequence of the last frame about the channel; guarded by the link
	has     uint64        // highest sequence sent over it that the peer has; guarded by the link
	proven  atomic.Bool   // a frame of this session came over it
	proof   chan struct{} // closed when proven
	gone    chan struct{} // closed when it was given up
	cause   atomic.Uint32 // why it was given up: a wire.Code

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

func newChannel(c Conduit, mine bool, now time.Time) *channel {
	ch := &channel{
		conduit: c, path: c.Path(), mine: mine, opened: now, proof: make(chan struct{}), gone: make(chan struct{}),
	}
	ch.room = sync.NewCond(&ch.mu)
	ch.heard.Store(now.UnixNano())
	return ch
}

// hear takes note that a frame of the session came over the channel.
func (c *channel) hear(now time.Time) {
	c.heard.Store(now.UnixNano())
	if !c.proven.Load() && c.proven.CompareAndSwap(false, true) {
		close(c.proof)
	}
}

// fail notes why the channel is about to be given up.
func (c *channel) fail(cause wire.Code) { c.cause.CompareAndSwap(0, uint32(cause)) }

// refused reports whether the peer is known to have refused the channel, having read
// nothing but how it begins: who does not know the session says so, and nobody else.
func (c *channel) refused() bool {
	return c.mine && !c.proven.Load() && c.conduit.Peer() != "" && c.failure() == wire.NotFound
}

// failure is why the channel was given up.
func (c *channel) failure() wire.Code { return or(wire.Code(c.cause.Load()), wire.Unreachable) }

func (c *channel) silent(now time.Time) time.Duration { return now.Sub(time.Unix(0, c.heard.Load())) }

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
// false if the queue has no room: more than limit bytes.
func (c *channel) post(b []byte, limit int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || len(c.queue)+len(b) > limit {
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
		c.stop(err)
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
			c.stop(err)
			c.mu.Unlock()
		}
	}
}

// recycle keeps a buffer that was written for what gathers next: a large one as
// long as the channel is busy, for bulk would make one anew for each write.
func (c *channel) recycle(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil && c.spare == nil && (cap(b) <= maxSpare || c.busy && cap(b) <= 2*maxQueue) {
		c.spare = b[:0]
	}
}

// maxSpare bounds each of the buffers that an idle channel keeps.
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

// rest marks that nobody writes, and nothing waits to be written; c.mu is held.
func (c *channel) rest() {
	c.busy = false
	if cap(c.spare) > maxSpare {
		c.spare = nil
	}
	if cap(c.queue) > maxSpare {
		c.queue = nil
	}
	c.room.Broadcast()
}

// stop ends all writing; c.mu is held.
func (c *channel) stop(err error) {
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
