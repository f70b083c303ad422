package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"
)

// handover gives the swarm connections that were made without it. A swarm dials
// a peer only while it has no connection to it, but takes any connection that a
// listener accepts; so this is a transport that cannot dial, whose listener
// accepts what [handover.give] is given. From then on the connection is like any
// other: limits, gater, identify and streams apply. Only its direction reads
// inbound.
type handover struct {
	conns  chan *handed
	closed chan struct{}
	once   sync.Once
}

func newHandover() *handover {
	return &handover{conns: make(chan *handed), closed: make(chan struct{})}
}

// attach makes n accept from h. The address only picks the transport; nobody
// hears of it.
func (h *handover) attach(n network.Network) error {
	swarm, ok := n.(transport.TransportNetwork)
	if !ok {
		return fmt.Errorf("%T takes no transports", n)
	}
	if err := swarm.AddTransport(h); err != nil {
		return err
	}
	return n.Listen(ma.StringCast("/memory/0"))
}

// give hands c over and returns it as n has it. If n refuses, c is closed.
func (h *handover) give(ctx context.Context, n network.Network, c transport.CapableConn) (network.Conn, error) {
	given := &handed{CapableConn: c, taken: make(chan struct{}), refused: make(chan struct{})}
	select {
	case h.conns <- given:
	case <-h.closed:
		c.Close()
		return nil, transport.ErrListenerClosed
	case <-ctx.Done():
		c.Close()
		return nil, ctx.Err()
	}
	select {
	case <-given.taken:
	case <-given.refused:
		return nil, errors.New("the connection was refused, or lost at once")
	}
	for _, conn := range n.ConnsToPeer(c.RemotePeer()) {
		var same *handed
		if conn.As(&same) && same == given {
			return conn, nil
		}
	}
	return nil, errors.New("the connection was lost at once")
}

// handed is a connection that tells what the swarm does with it: it closes a
// connection that it does not want, and waits for streams on one that it has
// added.
type handed struct {
	transport.CapableConn
	taken, refused       chan struct{}
	takenOnce, closeOnce sync.Once
}

// AcceptStream is called first when the swarm has added the connection.
func (c *handed) AcceptStream() (network.MuxedStream, error) {
	c.takenOnce.Do(func() { close(c.taken) })
	return c.CapableConn.AcceptStream()
}

func (c *handed) Close() error {
	defer c.closeOnce.Do(func() { close(c.refused) })
	return c.CapableConn.Close()
}

func (c *handed) CloseWithError(code network.ConnErrorCode) error {
	defer c.closeOnce.Do(func() { close(c.refused) })
	return c.CapableConn.CloseWithError(code)
}

// As lets [handover.give] find the connection again.
func (c *handed) As(target any) bool {
	if t, ok := target.(**handed); ok {
		*t = c
		return true
	}
	return c.CapableConn.As(target)
}

// Stat passes on what a relayed connection says of its limits.
func (c *handed) Stat() network.ConnStats {
	if s, ok := c.CapableConn.(network.ConnStat); ok {
		return s.Stat()
	}
	return network.ConnStats{}
}

// The transport and its listener, as the swarm sees them.

func (h *handover) Dial(context.Context, ma.Multiaddr, peer.ID) (transport.CapableConn, error) {
	return nil, errors.New("this transport does not dial")
}

func (h *handover) CanDial(ma.Multiaddr) bool { return false }
func (h *handover) Protocols() []int          { return []int{ma.P_MEMORY} }
func (h *handover) Proxy() bool               { return false }

func (h *handover) Listen(ma.Multiaddr) (transport.Listener, error) { return handoverListener{h}, nil }

type handoverListener struct{ *handover }

func (l handoverListener) Accept() (transport.CapableConn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, transport.ErrListenerClosed
	}
}

func (l handoverListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l handoverListener) Addr() net.Addr { return &net.UnixAddr{Name: "handover", Net: "memory"} }

// Multiaddr is that of the circuit transport's listener, which hosts never
// advertise.
func (l handoverListener) Multiaddr() ma.Multiaddr { return ma.StringCast("/p2p-circuit") }
