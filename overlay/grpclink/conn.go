package grpclink

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"openmesh/protocols/wire"
)

// Conn is a byte stream to a peer: reliable and in order, neither secret nor
// authenticated. One Read and one Write may run at the same time; more take
// turns. A client's must be closed or reset in the end, as files must.
//
// When the stream ends, Read returns io.EOF if the peer closed it, an error that
// wraps the peer's [wire.Code] if it was reset, one that wraps wire.Unreachable
// if the connection broke, and net.ErrClosed, or this side's code, if it was this
// side.
type Conn struct {
	in     reader
	out    writer
	remote netip.AddrPort
	addr   ma.Multiaddr
	ended  atomic.Pointer[ending]
	finish func(wire.Code) // called once, after ended is set

	abandon func() // lets nobody else use the connection below; nil on servers
}

// ending is how this side ended the stream.
type ending struct {
	code wire.Code // 0: closed
	err  error
}

// stream is what gRPC's two kinds of stream have in common.
type stream interface {
	SendMsg(any) error
	RecvMsg(any) error
}

// RemoteAddr returns where the peer is, as seen from here, in this package's
// form.
func (c *Conn) RemoteAddr() ma.Multiaddr { return c.addr }

// Remote returns the peer's IP address and port; it is invalid on a connection
// to a name.
func (c *Conn) Remote() netip.AddrPort { return c.remote }

// Read reads what the peer wrote.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.in.read(p, &c.ended)
	if end := c.ended.Load(); end != nil {
		return 0, end.err
	}
	return n, err
}

// Write sends p; small writes go out at once, each by itself. It blocks while
// the peer does not read.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.out.write(p, &c.ended)
	if err == nil {
		return n, nil
	}
	if end := c.ended.Load(); end != nil {
		return n, end.err
	}
	if failed := c.in.failed.Load(); failed != nil && *failed != io.EOF {
		return n, *failed
	}
	return n, err
}

// Close ends the stream; what was written still goes out, if the peer reads it
// within seconds. A client's Read that is under way returns when the peer ends
// its side; Reset is sooner.
func (c *Conn) Close() error {
	c.end(0, net.ErrClosed)
	return nil
}

// Reset gives the stream up and tells the peer why, if the path still carries it.
// Read and Write return, on a client within a tenth of a second.
func (c *Conn) Reset(code wire.Code) {
	c.end(code, wire.Errorf(code, "the link was reset"))
}

// Abandon is Reset for a peer that has fallen silent: the connection below is taken
// for dead, and nothing new goes over it. Other streams on it are not touched.
func (c *Conn) Abandon() {
	if c.abandon != nil {
		c.abandon()
	}
	c.Reset(wire.Unreachable)
}

func (c *Conn) end(code wire.Code, err error) {
	if c.ended.CompareAndSwap(nil, &ending{code, err}) {
		c.finish(code)
	}
}

// reader is the incoming half.
type reader struct {
	mu      sync.Mutex
	stream  stream
	trailer func() metadata.MD // of the peer, once RecvMsg has failed; nil on servers
	chunk   chunk              // what was received last; its data is what is unread

	failed atomic.Pointer[error] // what every Read returns from now on
}

func (r *reader) read(p []byte, ended *atomic.Pointer[ending]) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ended.Load() != nil {
		return 0, net.ErrClosed
	}
	for len(r.chunk.data) == 0 {
		if len(p) == 0 {
			return 0, nil
		}
		if err := r.receive(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.chunk.data)
	r.chunk.data = r.chunk.data[n:]
	if len(r.chunk.data) == 0 {
		r.release()
	}
	return n, nil
}

// receive waits for the next chunk.
func (r *reader) receive() error {
	if failed := r.failed.Load(); failed != nil {
		return *failed
	}
	r.release()
	err := r.stream.RecvMsg(&r.chunk)
	switch {
	case err == nil && r.chunk.reset == 0:
		return nil
	case err == nil:
		err = wire.Errorf(r.chunk.reset, "the peer reset the link")
		r.release()
	default:
		err = r.explain(err)
	}
	r.failed.Store(&err)
	return err
}

// explain says what an error of gRPC means. A server's trailer tells more than
// its status, which is OK also after a reset.
func (r *reader) explain(err error) error {
	if r.trailer != nil {
		trailer := r.trailer()
		if slices.Contains(trailer.Get(codeTrailer), closedNormally) {
			return io.EOF
		}
		return wire.Errorf(codeOf(err, trailer), "the link ended: %w", err)
	}
	if err == io.EOF {
		return err
	}
	switch status.Code(err) { // of this side's making: a client has no status
	case codes.ResourceExhausted:
		return wire.Errorf(wire.TooLarge, "receive: %w", err)
	case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable:
		return wire.Errorf(wire.Unreachable, "the link broke: %w", err)
	}
	return wire.Errorf(wire.Malformed, "receive: %w", err)
}

func (r *reader) release() {
	if r.chunk.coded != nil {
		r.chunk.coded.Free()
	}
	r.chunk = chunk{}
}

// drain receives until the stream has ended.
func (r *reader) drain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.receive() == nil {
	}
	r.release()
}

// leave waits until nobody is in read; there is an end, so nobody will be again.
func (r *reader) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.release()
}

// writer is the outgoing half.
type writer struct {
	mu     sync.Mutex
	stream stream
	pool   mem.BufferPool
}

func (w *writer) write(p []byte, ended *atomic.Pointer[ending]) (n int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for n < len(p) {
		if ended.Load() != nil {
			return n, net.ErrClosed
		}
		part := p[n:min(n+maxChunk, len(p))]
		if err := w.stream.SendMsg(newChunk(w.pool, part)); err != nil {
			return n, wire.Errorf(wire.Unreachable, "send: %w", unexpected(err))
		}
		n += len(part)
	}
	return n, nil
}

// leave is as the reader's.
func (w *writer) leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
}

// unexpected names what gRPC calls EOF when a stream to send on has ended: Read
// tells why.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrClosedPipe
	}
	return err
}

// hangUp is a client's end of a stream: it says why, if there is a reason, and
// that nothing follows; waits until the server has ended its side; and cancels
// the call after a grace period at the latest.
func (c *Conn) hangUp(code wire.Code, half interface{ CloseSend() error }, cancel context.CancelFunc) {
	grace := closeGrace
	if code != 0 {
		grace = resetGrace
	}
	defer cancel()
	defer time.AfterFunc(grace, cancel).Stop()
	c.out.mu.Lock()
	if code != 0 {
		c.out.stream.SendMsg(newReset(code)) // if it fails, the peer is told less
	}
	half.CloseSend()
	c.out.mu.Unlock()
	c.in.drain()
}
