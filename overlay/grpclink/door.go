package grpclink

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"
)

// door is the listener that gRPC accepts from: what comes through it is within
// the limits, has done its TLS handshake and speaks HTTP/2. Others are told so,
// in the protocol that they speak.
type door struct {
	tls    *tls.Config
	crowd  *crowd
	log    *zap.Logger
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once

	mu       sync.Mutex
	arriving map[net.Conn]struct{} // not yet handed to gRPC
}

func newDoor(cert tls.Certificate, crowd *crowd, log *zap.Logger) *door {
	return &door{
		tls: &tls.Config{
			Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13,
			NextProtos: []string{"h2", "http/1.1"},
		},
		crowd: crowd, log: log,
		conns: make(chan net.Conn), closed: make(chan struct{}), arriving: make(map[net.Conn]struct{}),
	}
}

// run accepts until l is closed, and waits for those who are still coming in,
// whom closing the door ends.
func (d *door) run(l net.Listener) {
	var all sync.WaitGroup
	defer all.Wait()
	pause := time.Duration(0)
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			all.Go(func() { d.welcome(conn) })
			continue
		case errors.Is(err, net.ErrClosed):
			return
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		d.log.Warn("grpc: accept failed", zap.Error(err), zap.Duration("pause", pause)) // no file descriptors left, as a rule
		select {
		case <-time.After(pause):
		case <-d.closed:
			return
		}
	}
}

// welcome hands a connection to gRPC, or ends it.
func (d *door) welcome(raw net.Conn) {
	ip := addrPort(raw.RemoteAddr()).Addr()
	if !d.crowd.enter(ip, time.Now()) {
		raw.Close()
		return
	}
	conn := &guest{Conn: raw, leave: func() { d.crowd.leave(ip) }}
	if !d.expect(conn) {
		conn.Close()
		return
	}
	secured, err := d.greet(conn)
	d.expected(conn)
	if err != nil {
		d.log.Debug("grpc: connection refused", zap.Stringer("ip", ip), zap.Error(err))
		conn.Close()
		return
	}
	select {
	case d.conns <- secured:
	case <-d.closed:
		conn.Close()
	}
}

// expect notes conn, so that closing the door ends it, and reports whether the
// door is open.
func (d *door) expect(conn net.Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-d.closed:
		return false
	default:
		d.arriving[conn] = struct{}{}
		return true
	}
}

func (d *door) expected(conn net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.arriving, conn)
}

// greet does the TLS handshake, within handshakeTimeout.
func (d *door) greet(conn net.Conn) (net.Conn, error) {
	conn.SetDeadline(time.Now().Add(handshakeTimeout))
	secured := tls.Server(conn, d.tls)
	err := secured.Handshake()
	var foreign tls.RecordHeaderError
	switch {
	case errors.As(err, &foreign) && foreign.Conn != nil && isHTTP(foreign.RecordHeader):
		io.WriteString(conn, "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nThis port speaks HTTPS.\n")
		return nil, errors.New("HTTP without TLS")
	case err != nil:
		return nil, err
	case secured.ConnectionState().NegotiatedProtocol != "h2":
		refuse(secured)
		return nil, errors.New("no HTTP/2")
	}
	return secured, conn.SetDeadline(time.Time{})
}

// isHTTP reports whether the first five bytes are those of a request.
func isHTTP(b [5]byte) bool {
	switch string(b[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO", "DELET", "CONNE", "PATCH":
		return true
	}
	return false
}

// refuse answers one request of a client of HTTP/1.1.
func refuse(conn *tls.Conn) {
	defer conn.Close()
	if _, err := http.ReadRequest(bufio.NewReader(io.LimitReader(conn, maxHeader))); err != nil {
		return
	}
	const why = "This port speaks gRPC, over HTTP/2.\n"
	fmt.Fprintf(conn, "HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(why), why)
}

// Accept, Close and Addr make it a net.Listener.

func (d *door) Accept() (net.Conn, error) {
	select {
	case conn := <-d.conns:
		return conn, nil
	case <-d.closed:
		return nil, net.ErrClosed
	}
}

func (d *door) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.once.Do(func() { close(d.closed) })
	for conn := range d.arriving {
		conn.Close()
	}
	return nil
}

func (d *door) Addr() net.Addr { return &net.TCPAddr{} }

// guest is a connection that is counted until it is closed.
type guest struct {
	net.Conn
	once  sync.Once
	leave func()
}

func (g *guest) Close() error {
	defer g.once.Do(g.leave)
	return g.Conn.Close()
}

// addrPort returns what a is, if it is an IP address and a port.
func addrPort(a net.Addr) netip.AddrPort {
	p, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// ephemeral makes a certificate that says nothing about its owner, of the kind
// that web servers have.
func ephemeral() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
