package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	pool "github.com/libp2p/go-buffer-pool"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	pbv2 "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/util"
	"go.uber.org/zap"

	"openmesh/protocols/wire"
)

// connect opens a circuit from the peer at the other end of s to dst and stays
// until it ends. It calls answered when the circuit stands.
func (r *Relay) connect(ctx context.Context, s network.Stream, src *account, dst peer.ID, answered func()) Reason {
	from := site(s.Conn().RemoteMultiaddr())
	to, why := r.open(src, from, dst)
	if why != accepted {
		return r.refuse(s, why)
	}
	defer r.ended(src, from, to)
	if r.memory.ReserveMemory(perCircuit, network.ReservationPriorityAlways) != nil {
		return r.refuse(s, NoMemory)
	}
	defer r.memory.ReleaseMemory(perCircuit)
	onward, err := r.reach(ctx, src.peer, dst)
	if err != nil {
		r.cfg.Log.Debug("circuit failed", zap.Stringer("src", src.peer), zap.Stringer("dst", dst), zap.Error(err))
		return r.refuse(s, Unanswered)
	}
	if r.answer(s, pbv2.Status_OK, nil) != nil {
		onward.Reset()
		return accepted
	}
	answered()
	r.carry(ctx, s, onward, src, to)
	return accepted
}

func (r *Relay) open(src *account, from netip.Prefix, dst peer.ID) (*account, Reason) {
	r.mu.Lock()
	defer r.mu.Unlock()
	to, why := r.book.open(src, from, dst, time.Now())
	if why == accepted {
		r.host.ConnManager().Protect(src.peer, circuitTag)
		r.host.ConnManager().Protect(dst, circuitTag)
	}
	return to, why
}

func (r *Relay) ended(src *account, from netip.Prefix, dst *account) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.book.close(src, from, dst)
	for _, a := range []*account{src, dst} {
		if a.circuits+a.led.all == 0 {
			r.host.ConnManager().Unprotect(a.peer, circuitTag)
		}
	}
}

// reach opens the stream to the destination and has it accept the circuit.
func (r *Relay) reach(ctx context.Context, src, dst peer.ID) (network.Stream, error) {
	ctx, cancel := context.WithTimeout(network.WithNoDial(ctx, "relay"), connectTime)
	defer cancel()
	s, err := r.host.NewStream(ctx, dst, proto.ProtoIDv2Stop)
	if err != nil {
		return nil, fmt.Errorf("open stream to destination: %w", err)
	}
	release := context.AfterFunc(ctx, func() { s.Reset() })
	if err := r.ask(s, src); err != nil {
		s.Reset()
		return nil, err
	}
	if !release() {
		return nil, fmt.Errorf("ask destination: %w", ctx.Err())
	}
	return s, nil
}

// ask is the stop protocol.
func (r *Relay) ask(s network.Stream, src peer.ID) error {
	if isCircuit(s.Conn().RemoteMultiaddr()) {
		return errors.New("destination is connected through another relay only")
	}
	if err := s.Scope().SetService(ServiceName); err != nil {
		return fmt.Errorf("resources for destination: %w", err)
	}
	msg := pbv2.StopMessage{Type: pbv2.StopMessage_CONNECT.Enum(), Peer: &pbv2.Peer{Id: []byte(src)}}
	if err := util.NewDelimitedWriter(s).WriteMsg(&msg); err != nil {
		return fmt.Errorf("ask destination: %w", err)
	}
	rd := util.NewDelimitedReader(s, maxMessage)
	defer rd.Close()
	msg.Reset()
	if err := rd.ReadMsg(&msg); err != nil {
		return fmt.Errorf("ask destination: %w", err)
	}
	if msg.GetType() != pbv2.StopMessage_STATUS || msg.GetStatus() != pbv2.Status_OK {
		return fmt.Errorf("destination answers %s %s", msg.GetType(), msg.GetStatus())
	}
	return nil
}

// circuit is one that stands.
type circuit struct {
	relay *Relay
	ends  [2]*account
	ways  [2]*way // src to dst, dst to src

	over    sync.Once
	gone    chan struct{} // closed when the circuit is cut
	running atomic.Int32  // ways
	ended   chan struct{} // closed when none runs
}

// way is one direction of a circuit.
type way struct {
	*circuit
	from, to         network.Stream
	sender, receiver *account
	flows            [3]*flow // of src's rate, of dst's, of all
	waiter           *waiter

	taken, given atomic.Uint64 // bytes for and accepted by the receiver
}

// carry passes bytes both ways until both ends closed or the circuit is cut.
func (r *Relay) carry(ctx context.Context, s, onward network.Stream, src, dst *account) {
	// A peer's rate is shared among its counterparts, that of all among those who
	// opened the circuits: many circuits give nobody more.
	flows := [3]*flow{src.pacer.join(dst.peer), dst.pacer.join(src.peer), r.total.join(src.peer)}
	c := &circuit{relay: r, ends: [2]*account{src, dst}, gone: make(chan struct{}), ended: make(chan struct{})}
	c.ways = [2]*way{
		{circuit: c, from: s, to: onward, sender: src, receiver: dst, flows: flows, waiter: newWaiter()},
		{circuit: c, from: onward, to: s, sender: dst, receiver: src, flows: flows, waiter: newWaiter()},
	}
	c.running.Store(2)
	for _, w := range c.ways {
		go w.run()
	}
	c.watch(ctx)
	s.Close()
	onward.Close()
	for _, f := range flows {
		f.leave()
	}
}

// cut resets both ends; the first code counts.
func (c *circuit) cut(code wire.Code) {
	c.over.Do(func() {
		close(c.gone)
		for _, w := range c.ways {
			reset(w.from, code)
		}
	})
}

func (w *way) run() {
	if code, err := w.copy(); err == io.EOF {
		w.to.CloseWrite()
	} else {
		w.cut(code)
	}
	if w.running.Add(-1) == 0 {
		close(w.ended)
	}
}

// copy returns io.EOF when the sender has closed, else what to cut the circuit
// with: no code if an end has broken off.
func (w *way) copy() (wire.Code, error) {
	buf := pool.Get(min(smallBuffer, w.relay.chunk))
	defer func() { pool.Put(buf) }()
	for {
		n, err := w.from.Read(buf)
		if n > 0 {
			if code, err := w.pass(buf[:n]); err != nil {
				return code, err
			}
			buf = w.resize(buf, n)
		}
		if err != nil {
			return wire.Code(network.StreamNoError), err
		}
	}
}

// resize gives a way that filled its buffer a large one, and one with little to
// pass a small one: most circuits are quiet most of the time.
func (w *way) resize(buf []byte, filled int) []byte {
	want := len(buf)
	switch {
	case filled == len(buf):
		want = w.relay.chunk
	case filled <= smallBuffer/2:
		want = smallBuffer
	}
	if want == len(buf) {
		return buf
	}
	pool.Put(buf)
	return pool.Get(want)
}

// pass writes b to the receiver when the rates allow, and counts it. Nothing
// more is read meanwhile: so the sender is slowed down.
func (w *way) pass(b []byte) (wire.Code, error) {
	for _, f := range w.flows {
		if !f.take(len(b), w.waiter, w.gone) {
			return wire.Cancelled, wire.Cancelled // cut already
		}
	}
	n := uint64(len(b))
	w.taken.Add(n)
	if _, err := w.to.Write(b); err != nil {
		return wire.Code(network.StreamNoError), err
	}
	w.given.Add(n)
	w.sender.sent.Add(n)
	w.receiver.received.Add(n)
	w.relay.bytes.Add(n)
	if (w.sender.over() || w.receiver.over()) && w.spent() {
		return wire.ResourceExhausted, wire.ResourceExhausted
	}
	return 0, nil
}

// spent reports whether one end's volume of the day is used up.
func (c *circuit) spent() bool {
	c.relay.mu.Lock()
	defer c.relay.mu.Unlock()
	now := time.Now()
	src, dst := c.relay.book.spent(c.ends[0], now), c.relay.book.spent(c.ends[1], now)
	return src || dst
}

// looks is how often a circuit is looked at in the time it may be idle.
const looks = 4

// watch returns when the circuit has ended. It cuts it when it is idle or stuck,
// and when ctx ends.
func (c *circuit) watch(ctx context.Context) {
	ticker := time.NewTicker(max(c.relay.cfg.Idle/looks, 1))
	defer ticker.Stop()
	closing := ctx.Done()
	var seen idleness
	for {
		select {
		case <-ticker.C:
			c.spent() // begins the peers' next day when it is due
			if seen.look(c.progress()) {
				c.cut(wire.DeadlineExceeded)
			}
		case <-closing:
			c.cut(wire.Unreachable)
			closing = nil
		case <-c.ended:
			return
		}
	}
}

// progress returns taken and given of both ways.
func (c *circuit) progress() (p [2][2]uint64) {
	for i, w := range c.ways {
		given := w.given.Load() // first: it never exceeds taken
		p[i] = [2]uint64{w.taken.Load(), given}
	}
	return p
}

// idleness is what successive looks at a circuit have seen.
type idleness struct {
	last  [2][2]uint64
	quiet int    // looks without change
	stuck [2]int // looks at which a way's receiver had taken nothing of what waits
}

// look returns whether to cut: looks times nothing has passed, or half as often
// one way's receiver took nothing of what waits for it.
func (i *idleness) look(now [2][2]uint64) (cut bool) {
	i.quiet++
	if now != i.last {
		i.quiet = 0
	}
	for w, p := range now {
		if p[0] == p[1] || p != i.last[w] {
			i.stuck[w] = 0
			continue
		}
		i.stuck[w]++
		cut = cut || i.stuck[w] >= looks/2
	}
	i.last = now
	return cut || i.quiet >= looks
}
