package bench

import (
	"errors"
	"io"
	"net"
	"sync"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// cable carries what goes between a client and a server on loopback, until it is
// cut.
type cable interface {
	addr() ma.Multiaddr // where the client finds the server
	cut(quietly bool)   // nothing passes any more; if not quietly, both sides are told
	close()
}

// udpCable carries the packets of one client.
type udpCable struct {
	client, server *net.UDPConn // the sockets that they speak to
	carrying       sync.WaitGroup

	mu    sync.Mutex
	from  *net.UDPAddr // the client
	broke bool
}

func newUDPCable(server ma.Multiaddr) (*udpCable, error) {
	to, err := manet.ToNetAddr(addrOf(server, ma.P_IP4, ma.P_UDP))
	if err != nil {
		return nil, err
	}
	c := &udpCable{}
	if c.client, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
		return nil, err
	}
	if c.server, err = net.DialUDP("udp4", nil, to.(*net.UDPAddr)); err != nil {
		return nil, errors.Join(err, c.client.Close())
	}
	c.carrying.Go(c.there)
	c.carrying.Go(c.back)
	return c, nil
}

// addrOf is the part of a that has these protocols.
func addrOf(a ma.Multiaddr, protocols ...int) (part ma.Multiaddr) {
	for _, c := range a {
		for _, p := range protocols {
			if c.Protocol().Code == p {
				part = append(part, c)
			}
		}
	}
	return part
}

func (c *udpCable) addr() ma.Multiaddr {
	a, err := manet.FromNetAddr(c.client.LocalAddr())
	if err != nil {
		panic(err) // an address of a socket is one
	}
	return a.Encapsulate(ma.StringCast("/quic-v1"))
}

// there carries the client's packets, until the cable is closed.
func (c *udpCable) there() {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.client.ReadFromUDP(buf)
		if err != nil {
			return
		}
		c.mu.Lock()
		c.from = from
		broke := c.broke
		c.mu.Unlock()
		if !broke {
			c.server.Write(buf[:n]) // packets may be lost
		}
	}
}

// back carries the server's packets, until the cable is closed.
func (c *udpCable) back() {
	buf := make([]byte, 64<<10)
	for {
		n, err := c.server.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		c.mu.Lock()
		to, broke := c.from, c.broke
		c.mu.Unlock()
		if err == nil && !broke {
			c.client.WriteToUDP(buf[:n], to)
		}
	}
}

func (c *udpCable) cut(bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broke = true
}

func (c *udpCable) close() {
	c.client.Close()
	c.server.Close()
	c.carrying.Wait()
}

// tcpCable carries connections.
type tcpCable struct {
	listener *net.TCPListener
	to       string
	carrying sync.WaitGroup

	mu     sync.Mutex
	flow   sync.Cond
	conns  []*net.TCPConn
	quiet  bool // nothing passes
	closed bool
}

func newTCPCable(server ma.Multiaddr) (*tcpCable, error) {
	to, err := manet.ToNetAddr(addrOf(server, ma.P_IP4, ma.P_TCP))
	if err != nil {
		return nil, err
	}
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	c := &tcpCable{listener: l, to: to.String()}
	c.flow.L = &c.mu
	c.carrying.Go(c.accept)
	return c, nil
}

func (c *tcpCable) addr() ma.Multiaddr {
	a, err := manet.FromNetAddr(c.listener.Addr())
	if err != nil {
		panic(err) // an address of a listener is one
	}
	return a
}

func (c *tcpCable) accept() {
	for {
		client, err := c.listener.AcceptTCP()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp4", c.to)
		if err != nil {
			client.Close()
			continue
		}
		c.join(client, server.(*net.TCPConn))
	}
}

func (c *tcpCable) join(a, b *net.TCPConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		a.Close()
		b.Close()
		return
	}
	c.conns = append(c.conns, a, b)
	c.carrying.Go(func() { c.carry(a, b) })
	c.carrying.Go(func() { c.carry(b, a) })
}

// carry carries bytes one way, until the connections end; while the cable is
// quiet it holds them.
func (c *tcpCable) carry(from, to *net.TCPConn) {
	defer to.CloseWrite()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && c.passes() {
			_, werr := to.Write(buf[:n])
			err = errors.Join(err, werr)
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				to.SetLinger(0)
			}
			return
		}
	}
}

// passes waits while the cable is quiet, and reports whether it carries then.
func (c *tcpCable) passes() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.quiet && !c.closed {
		c.flow.Wait()
	}
	return !c.closed
}

// cut resets the connections or, quietly, lets them hang; new ones are refused.
func (c *tcpCable) cut(quietly bool) {
	c.listener.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if quietly {
		c.quiet = true
		return
	}
	c.reset()
}

// reset ends all connections with a TCP reset; c.mu is held.
func (c *tcpCable) reset() {
	c.closed = true
	for _, conn := range c.conns {
		conn.SetLinger(0)
		conn.Close()
	}
	c.flow.Broadcast()
}

func (c *tcpCable) close() {
	c.listener.Close()
	c.mu.Lock()
	c.reset()
	c.mu.Unlock()
	c.carrying.Wait()
}
