// Package router stands between a process and those who connect to it, as a
// router with two forwarded ports does: one of TCP, one of UDP. What is behind it
// knows nothing of it. It can be told to drop datagrams, which nobody is told of:
// the one who sends them has to find out.
//
//	client ──► TCP port ══ copied both ways ══► target
//	client ──► UDP port ── one socket for each client ──► target
//	                     ╳ while datagrams are dropped, both ways
package router

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

const (
	maxClients  = 256     // of UDP; the datagrams of others are dropped
	maxDatagram = 1 << 16 // bytes
)

// Config is where a router leads to.
type Config struct {
	TCP, UDP netip.AddrPort
}

// Router forwards two ports of loopback. Its methods are safe for concurrent use.
type Router struct {
	cfg Config
	tcp *net.TCPListener
	udp *net.UDPConn

	dropping atomic.Bool
	dropped  atomic.Uint64

	group sync.WaitGroup // of all that Run started

	mu      sync.Mutex
	clients map[netip.AddrPort]*net.UDPConn
	open    map[io.Closer]struct{} // nil once it ends
}

// New takes the two ports, which are free ones of 127.0.0.1. Until Run is called
// nothing is forwarded.
func New(cfg Config) (*Router, error) {
	loopback := net.IPv4(127, 0, 0, 1)
	tcp, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: loopback})
	if err != nil {
		return nil, fmt.Errorf("open a TCP port to forward: %w", err)
	}
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: loopback})
	if err != nil {
		tcp.Close()
		return nil, fmt.Errorf("open a UDP port to forward: %w", err)
	}
	return &Router{
		cfg: cfg, tcp: tcp, udp: udp, clients: map[netip.AddrPort]*net.UDPConn{},
		open: map[io.Closer]struct{}{tcp: {}, udp: {}},
	}, nil
}

// TCP is where clients connect to.
func (r *Router) TCP() netip.AddrPort { return r.tcp.Addr().(*net.TCPAddr).AddrPort() }

// UDP is where clients send datagrams to.
func (r *Router) UDP() netip.AddrPort { return r.udp.LocalAddr().(*net.UDPAddr).AddrPort() }

// Drop has all datagrams dropped, in both directions, or no longer.
func (r *Router) Drop(on bool) { r.dropping.Store(on) }

// Dropped is how many datagrams have been dropped so far.
func (r *Router) Dropped() uint64 { return r.dropped.Load() }

// Run forwards until ctx ends. Then it closes its ports and all connections, and
// returns nil. An error says that a port failed before.
func (r *Router) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, r.close)
	defer stop()
	failed := make(chan error, 2)
	r.group.Go(func() { failed <- r.serveTCP() })
	r.group.Go(func() { failed <- r.serveUDP() })
	err := <-failed
	r.close()
	r.group.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// keep has c closed when the router ends; false if it has ended, with c closed.
func (r *Router) keep(c io.Closer) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open == nil {
		c.Close()
		return false
	}
	r.open[c] = struct{}{}
	return true
}

func (r *Router) drop(c io.Closer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, c)
	c.Close()
}

func (r *Router) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.open {
		c.Close()
	}
	r.open = nil
}

func (r *Router) serveTCP() error {
	for {
		conn, err := r.tcp.AcceptTCP()
		if err != nil {
			return fmt.Errorf("forward TCP: %w", err)
		}
		r.group.Go(func() { r.forward(conn) })
	}
}

// forward copies a connection both ways until both ends have ended it.
func (r *Router) forward(client *net.TCPConn) {
	defer client.Close()
	target, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(r.cfg.TCP))
	if err != nil {
		return // to the client it looks as if the target had hung up
	}
	defer target.Close()
	if !r.keep(client) || !r.keep(target) {
		return
	}
	defer r.drop(client)
	defer r.drop(target)
	var both sync.WaitGroup
	for _, pair := range [][2]*net.TCPConn{{client, target}, {target, client}} {
		both.Go(func() {
			_, _ = io.Copy(pair[1], pair[0]) // however it ended, the other end learns of it
			_ = pair[1].CloseWrite()
		})
	}
	both.Wait()
}

func (r *Router) serveUDP() error {
	buf := make([]byte, maxDatagram)
	for {
		n, client, err := r.udp.ReadFromUDPAddrPort(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("forward UDP: %w", err)
		case err != nil:
			continue // about a datagram that was sent
		case r.dropping.Load():
			r.dropped.Add(1)
			continue
		}
		if target := r.towards(client); target != nil {
			_, _ = target.Write(buf[:n]) // UDP promises nothing
		}
	}
}

// towards is the socket by which a client reaches the target.
func (r *Router) towards(client netip.AddrPort) *net.UDPConn {
	if c := r.clients[client]; c != nil { // serveUDP's alone
		return c
	}
	if len(r.clients) == maxClients {
		return nil
	}
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(r.cfg.UDP))
	if err != nil || !r.keep(c) {
		return nil
	}
	r.clients[client] = c
	r.group.Go(func() { r.answer(c, client) })
	return c
}

// answer forwards what the target says to a client.
func (r *Router) answer(target *net.UDPConn, client netip.AddrPort) {
	buf := make([]byte, maxDatagram)
	for {
		n, err := target.Read(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // the target does not listen, just now
		case r.dropping.Load():
			r.dropped.Add(1)
		default:
			_, _ = r.udp.WriteToUDPAddrPort(buf[:n], client)
		}
	}
}
