package forward

import (
	"errors"
	"io"
	"os"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"openmesh/protocols/wire"
)

// Conn is one end of a circuit: reliable, in order, and sealed from the relays. One
// goroutine may read while others write.
type Conn struct {
	stream   network.Stream
	protocol protocol.ID
	in       *recordReader
	out      *recordWriter

	peers  []peer.ID // relays and target; nil at the target
	shared []*keys   // with each of them; at the target, its own only
}

// newConn makes an end of a circuit with the keys of its target.
func newConn(st network.Stream, inner protocol.ID, k *keys, salt []byte, write, read string) (*Conn, error) {
	out, err := writerSealer(k, salt, write)
	if err != nil {
		return nil, err
	}
	in, err := writerSealer(k, salt, read)
	if err != nil {
		return nil, err
	}
	return &Conn{
		stream: st, protocol: inner, shared: []*keys{k},
		in: newRecordReader(st, in), out: &recordWriter{w: st, sealer: out},
	}, nil
}

func writerSealer(k *keys, salt []byte, writer string) (*sealer, error) {
	secret, err := recordSecret(k, salt, writer)
	if err != nil {
		return nil, err
	}
	return newSealer(secret)
}

// Read returns io.EOF only after the other side has closed its writing side. Other
// errors wrap a [wire.Code], unless a deadline passed: wire.Unreachable if the path
// was lost, wire.Unauthenticated if a record was changed, else what the other side,
// or a relay, reset with. At the source they have a [Fault] if a hop told.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.in.Read(b)
	if err != nil {
		err = c.explain(err, false)
	}
	return n, err
}

// Write returns when the stream to the neighbour has taken b. After an error, that
// of a deadline included, nothing more can be written. Errors are those of Read.
func (c *Conn) Write(b []byte) (int, error) {
	n, err := c.out.Write(b)
	if err != nil {
		err = c.explain(err, true)
	}
	return n, err
}

// CloseWrite tells the other side that nothing follows; reading goes on.
func (c *Conn) CloseWrite() error {
	if err := c.out.end(); err != nil {
		return c.explain(err, true)
	}
	return c.stream.CloseWrite()
}

// Close ends writing in order, once a Write under way has returned, and reading.
func (c *Conn) Close() error {
	err := c.out.end()
	closed := c.stream.Close()
	if err == nil {
		return closed
	}
	if stoppedReading(err) {
		return nil // the other side closed before
	}
	return c.explain(err, true)
}

// Reset ends both directions at once, unblocks Read and Write, and tells the other
// side the code; the relays do not learn it. What was written before may be lost.
func (c *Conn) Reset(code wire.Code) {
	word := resetWord(c.shared[0], back, code, false)
	if c.peers != nil {
		word = sourceReset(c.shared, code)
	}
	c.stream.ResetWithError(network.StreamErrorCode(word))
}

// Abandon resets a circuit that is taken for dead. [Probe] finds which hop is.
func (c *Conn) Abandon() { c.Reset(wire.Unreachable) }

// SetDeadline bounds Read and Write, as [network.Stream] does.
func (c *Conn) SetDeadline(t time.Time) error { return c.stream.SetDeadline(t) }

// SetReadDeadline bounds Read. Nothing that was under way is lost.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.stream.SetReadDeadline(t) }

// SetWriteDeadline bounds Write.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.stream.SetWriteDeadline(t) }

// Reserve accounts for n bytes of memory with the stream to the neighbour.
func (c *Conn) Reserve(n int) error {
	return c.stream.Scope().ReserveMemory(n, network.ReservationPriorityMedium)
}

// Release undoes Reserve.
func (c *Conn) Release(n int) { c.stream.Scope().ReleaseMemory(n) }

// Protocol is what the source asked for.
func (c *Conn) Protocol() protocol.ID { return c.protocol }

// Peer is the target, at the source: it alone could have answered. At the target it
// is empty, for nothing tells who the source is.
func (c *Conn) Peer() peer.ID {
	if c.peers == nil {
		return ""
	}
	return c.peers[len(c.peers)-1]
}

// Hops lists the relays from the source on; at the target only the last one is
// known.
func (c *Conn) Hops() []peer.ID {
	if c.peers == nil {
		return []peer.ID{c.stream.Conn().RemotePeer()}
	}
	return c.peers[:len(c.peers)-1]
}

// Neighbour is the connection to the first relay or, at the target, to the last.
func (c *Conn) Neighbour() network.Conn { return c.stream.Conn() }

// explain says what an error of the stream means, and who failed.
func (c *Conn) explain(err error, writing bool) error {
	var se *network.StreamError
	switch reset := errors.As(err, &se); {
	case reset && !se.Remote:
		return wire.Errorf(wire.SessionClosed, "the circuit was reset here")
	case reset && writing && se.ErrorCode == 0:
		return wire.Errorf(wire.SessionClosed, "the other side reads no more")
	case reset:
		return c.explainReset(uint32(se.ErrorCode))
	case err == io.EOF || errors.As(err, new(wire.Code)) || isDeadline(err):
		return err
	}
	return c.lost()
}

func (c *Conn) explainReset(word uint32) error {
	if c.peers == nil {
		if s, ok := openReset(c.shared[0], ahead, word); ok {
			return wire.Errorf(s.code, "the source ended the circuit: %s", s.code)
		}
		return c.lost()
	}
	if s, place, ok := peelReset(c.shared, word); ok {
		return newFault(c.peers, place+1, s, true).failure()
	}
	return c.lost()
}

// lost is the error of an end whose neighbour went without a word.
func (c *Conn) lost() error {
	if c.peers == nil {
		return wire.Errorf(wire.Unreachable, "the path was lost")
	}
	return newFault(c.peers, 0, status{code: wire.Unreachable, next: true}, true).failure()
}

// isDeadline tells a deadline that passed from a connection that timed out.
func isDeadline(err error) bool {
	var t interface{ Timeout() bool }
	var p interface{ Temporary() bool }
	return errors.Is(err, os.ErrDeadlineExceeded) ||
		errors.As(err, &t) && t.Timeout() && errors.As(err, &p) && p.Temporary()
}
