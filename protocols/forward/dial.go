package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multistream"

	"openmesh/protocols/stream"
	"openmesh/protocols/wire"
)

// What a hop says before records: it has an envelope of use and waits, again and
// again, and then that its status follows.
const (
	waiting byte = 1
	settled byte = 2
)

// Dial opens a circuit along p to speak inner with the target. It takes as long
// as ctx lets it, at most a minute. Errors: wire.InvalidArgument and
// wire.Unsupported for a path that cannot be, wire.Cancelled and
// wire.DeadlineExceeded when ctx ends, and else those of a [Fault] that tells which
// hop failed.
func Dial(ctx context.Context, d Dialer, p Path, inner protocol.ID) (*Conn, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	if inner == "" || len(inner) > maxProtocol {
		return nil, wire.Errorf(wire.InvalidArgument, "forward: protocol %.140q", inner)
	}
	return dial(ctx, d, p, inner)
}

// dial is Dial for a path that was checked, which may have no relays.
func dial(ctx context.Context, d Dialer, p Path, inner protocol.ID) (*Conn, error) {
	envelope, shared, err := newEnvelope(p, inner, time.Now())
	if err != nil {
		return nil, err
	}
	var peers []peer.ID
	for _, h := range p.all() {
		peers = append(peers, h.Peer)
	}
	st, cell, err := setUp(ctx, d, p.all()[0], envelope, shared)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, ended(ctx)
	case errors.Is(err, errPatience):
		return nil, wire.Errorf(wire.DeadlineExceeded, "open a circuit: some hop of the path keeps the others waiting: %w", err).
			WithHint("Choose other relays.")
	case err != nil:
		return nil, newFault(peers, 0, status{code: reachCode(err), next: true}, false).failure()
	}
	conn, err := answered(st, cell, inner, peers, shared)
	if err != nil {
		st.ResetWithError(network.StreamErrorCode(sourceReset(shared, wire.Cancelled)))
	}
	return conn, err
}

func ended(ctx context.Context) error {
	code := wire.Cancelled
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		code = wire.DeadlineExceeded
	}
	return wire.Errorf(code, "open a circuit: %w", ctx.Err()).WithHint("A probe of the path tells which relay does not answer.")
}

// setUp hands the envelope to the first relay and returns the status that came back.
func setUp(ctx context.Context, d Dialer, first Hop, envelope []byte, shared []*keys) (network.Stream, []byte, error) {
	st, err := handOn(ctx, d, first.Peer, first.Addrs, envelope)
	if err != nil {
		return nil, nil, err
	}
	giveUp := func() { st.ResetWithError(network.StreamErrorCode(sourceReset(shared, wire.Cancelled))) }
	release := context.AfterFunc(ctx, giveUp)
	cell, err := await(st)
	if !release() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		giveUp()
	}
	return st, cell, err
}

// answered makes a Conn of the stream if the target answered.
func answered(st network.Stream, cell []byte, inner protocol.ID, peers []peer.ID, shared []*keys) (*Conn, error) {
	s, place, ok := peelStatus(shared, cell)
	if !ok {
		return nil, wire.Errorf(wire.Unauthenticated, "an answer that no hop of the path made").
			WithHint("A relay changed it: choose others.")
	}
	if s.code != 0 {
		return nil, newFault(peers, place+1, s, false).failure()
	}
	c, err := newConn(st, inner, shared[place], s.salt, "source", "target")
	if err != nil {
		return nil, err
	}
	c.peers, c.shared = peers, shared
	return c, nil
}

// handOn opens a stream to a hop and sends it its envelope.
func handOn(ctx context.Context, d Dialer, p peer.ID, addrs []ma.Multiaddr, envelope []byte) (network.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	st, err := d.NewStream(ctx, p, addrs, Protocol)
	if err != nil {
		return nil, err
	}
	if err := st.Scope().SetService(service); err != nil {
		st.ResetWithError(network.StreamErrorCode(wire.ResourceExhausted))
		return nil, fmt.Errorf("account for a stream: %w", err)
	}
	st.SetWriteDeadline(time.Now().Add(sendTime))
	_, err = st.Write(envelope)
	if err == nil {
		return st, st.SetWriteDeadline(time.Time{})
	}
	// Who refuses at once may stop reading before all is sent; it says why.
	st.SetReadDeadline(time.Now())
	if _, why := st.Read(make([]byte, 1)); errors.As(stream.RemoteError(why), new(wire.Code)) {
		err = why
	}
	st.Reset()
	return nil, err
}

// errPatience is that a hop is alive, and has been waiting for too long.
var errPatience = wire.Errorf(wire.DeadlineExceeded, "no status within %v", answerTime)

// await reads the answer of a hop that was sent an envelope.
func await(st network.Stream) (cell []byte, err error) {
	patience := time.Now().Add(answerTime)
	for word := [1]byte{}; word[0] != settled; {
		st.SetReadDeadline(time.Now().Add(aliveTime))
		if _, err := io.ReadFull(st, word[:]); err != nil {
			return nil, err
		}
		if word[0] != waiting && word[0] != settled {
			return nil, wire.Errorf(wire.Malformed, "an answer that begins with %d", word[0])
		}
		if time.Now().After(patience) {
			return nil, errPatience
		}
	}
	cell = make([]byte, StatusSize)
	st.SetReadDeadline(time.Now().Add(aliveTime))
	if _, err := io.ReadFull(st, cell); err != nil {
		return nil, err
	}
	return cell, st.SetReadDeadline(time.Time{})
}

// reachCode is what the source is told about a hop that could not be reached, or
// refused before it could tell the source itself.
func reachCode(err error) wire.Code {
	var code wire.Code
	switch {
	case errors.As(stream.RemoteError(err), &code):
		return code
	case errors.As(err, new(multistream.ErrNotSupported[protocol.ID])):
		return wire.Unsupported
	}
	return wire.Unreachable
}
