package forward

import (
	"context"
	"errors"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"time"

	pool "github.com/libp2p/go-buffer-pool"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"openmesh/protocols/wire"
)

// bufferSize is that of the buffer for each direction of a circuit.
const bufferSize = 32 << 10

// circuit is one path at one of its relays: the stream from the neighbour before
// and the one to the neighbour after.
type circuit struct {
	cfg     *Config
	from    network.Stream
	next    network.Stream
	keys    *keys
	carried []*atomic.Uint64 // counters of bytes
	cancel  func()           // ends waiting for the pacer

	settled  chan struct{}  // closed when the neighbour before need not wait any more
	telling  sync.WaitGroup // it that it must
	active   atomic.Int64   // when bytes last passed, ns since the epoch
	idle     *time.Timer
	over     sync.Once
	settling sync.Once
}

// run passes the envelope on, the status back, and then bytes both ways, until
// both directions or ctx end.
func (c *circuit) run(ctx context.Context, hop *opened) (err error) {
	const size = 2 * bufferSize
	if c.from.Scope().ReserveMemory(size, network.ReservationPriorityMedium) != nil {
		return refuse(c.from, c.keys, status{code: wire.ResourceExhausted})
	}
	defer c.from.Scope().ReleaseMemory(size)
	c.wait()
	defer c.settle()
	c.next, err = handOn(ctx, c.cfg.Dialer, hop.next, hop.addrs, hop.envelope)
	if err != nil {
		return c.unreached(hop.next, err)
	}
	defer context.AfterFunc(ctx, func() { c.fail(status{code: wire.Unreachable}) })()
	var forth sync.WaitGroup
	forth.Go(func() { c.splice(ctx, c.next, c.from, c.lostNext, c.lostSource) })
	if c.answer(hop.next) {
		defer c.watch()()
		c.splice(ctx, c.from, c.next, c.lostSource, c.lostNext)
	}
	forth.Wait()
	c.over.Do(func() {
		c.next.Close()
		c.from.Close()
	})
	return nil
}

// wait tells the neighbour before that this hop is alive, until settle.
func (c *circuit) wait() {
	c.settled = make(chan struct{})
	c.telling.Go(func() {
		tick := time.NewTicker(waitEvery)
		defer tick.Stop()
		for {
			select {
			case <-c.settled:
				return
			case <-tick.C:
				if send(c.from, []byte{waiting}) != nil {
					return
				}
			}
		}
	})
}

// settle returns when nothing but the status will be written to the neighbour.
func (c *circuit) settle() {
	c.settling.Do(func() { close(c.settled) })
	c.telling.Wait()
}

// unreached tells the source that the setup ends before the next hop, and closes
// the stream to it; a reset after that could overtake what was told.
func (c *circuit) unreached(next peer.ID, why error) error {
	c.cfg.Log.Debug("next hop failed", zap.Stringer("peer", c.from.Conn().RemotePeer()), zap.Stringer("next", next), zap.Error(why))
	c.settle()
	return refuse(c.from, c.keys, status{code: reachCode(why), next: true})
}

// answer passes the status back, and reports whether there was one. Whether it is a
// good one is the source's to know: if not, the next hop closes its stream.
func (c *circuit) answer(next peer.ID) (passed bool) {
	cell, err := await(c.next)
	if err != nil {
		c.over.Do(func() {
			c.unreached(next, err)
			c.next.Reset()
		})
		return false
	}
	keystream(&c.keys.wrap, cell, 0)
	c.settle()
	if err := sendStatus(c.from, cell); err != nil {
		c.lostSource(err)
		return false
	}
	return true
}

// splice copies from src to dst until src ends. One side that reads no more, or
// sends no more, does not end the other direction; a reset or a loss ends both.
func (c *circuit) splice(ctx context.Context, dst, src network.Stream, lostDst, lostSrc func(error)) {
	buf := pool.Get(bufferSize)
	defer pool.Put(buf)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if err := c.pass(ctx, dst, buf[:n]); stoppedReading(err) {
				src.CloseRead()
				return
			} else if err != nil {
				lostDst(err)
				return
			}
		}
		if err == io.EOF {
			dst.CloseWrite()
			return
		}
		if err != nil {
			lostSrc(err)
			return
		}
	}
}

func (c *circuit) pass(ctx context.Context, dst network.Stream, b []byte) error {
	if c.cfg.Pacer != nil {
		if err := c.cfg.Pacer.Pace(ctx, c.from.Conn().RemotePeer(), len(b)); err != nil {
			c.fail(status{code: wire.CodeOf(err)})
			return err
		}
	}
	n, err := dst.Write(b)
	c.active.Store(time.Now().UnixNano())
	for _, counter := range c.carried {
		counter.Add(uint64(n))
	}
	return err
}

func stoppedReading(err error) bool {
	var se *network.StreamError
	return errors.As(err, &se) && se.Remote && se.ErrorCode == 0
}

// watch ends the circuit when nothing has passed for a time. Stop undoes it.
func (c *circuit) watch() (stop func() bool) {
	c.active.Store(time.Now().UnixNano())
	c.idle = time.AfterFunc(math.MaxInt64, func() {
		quiet := time.Since(time.Unix(0, c.active.Load()))
		if quiet >= c.cfg.Idle {
			c.fail(status{code: wire.DeadlineExceeded})
			return
		}
		c.idle.Reset(c.cfg.Idle - quiet)
	})
	c.idle.Reset(c.cfg.Idle)
	return c.idle.Stop
}

// lostNext ends the circuit because of an error of the stream to the next hop: it
// passes on what that said, or tells that it went without a word.
func (c *circuit) lostNext(err error) {
	if word := resetOf(err); !foreign(word) {
		c.end(word^c.keys.back, 0)
		return
	}
	c.fail(status{code: wire.Unreachable, next: true})
}

// lostSource ends the circuit because of an error of the stream from the neighbour
// before. That one shares no key with the target, which learns only that the path
// is lost, unless it was the source that ended it.
func (c *circuit) lostSource(err error) {
	word := resetOf(err)
	if !foreign(word) {
		word ^= c.keys.ahead
	}
	c.end(0, word)
}

// fail ends the circuit and tells the source why.
func (c *circuit) fail(why status) { c.end(resetWord(c.keys, back, why.code, why.next), 0) }

func (c *circuit) end(toSource, toNext uint32) {
	c.over.Do(func() {
		c.from.ResetWithError(network.StreamErrorCode(toSource))
		c.next.ResetWithError(network.StreamErrorCode(toNext))
		c.cancel()
	})
}

// resetOf is the code of a reset by the other side, or 0.
func resetOf(err error) uint32 {
	var se *network.StreamError
	if errors.As(err, &se) && se.Remote {
		return uint32(se.ErrorCode)
	}
	return 0
}
