package overlay

import (
	"context"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"
)

// OpenStream opens a stream for a protocol on exactly connection c, where
// host.NewStream would choose among all connections to the peer. It does not
// wait for the peer: if the peer does not speak the protocol, the first Read
// says so. An error wraps c's.
func (h *Host) OpenStream(ctx context.Context, c network.Conn, id protocol.ID) (network.Stream, error) {
	s, err := c.NewStream(network.WithAllowLimitedConn(ctx, "asked for"))
	if err != nil {
		return nil, fmt.Errorf("open stream to %s: %w", c.RemotePeer(), err)
	}
	if err := s.SetProtocol(id); err != nil {
		s.ResetWithError(network.StreamResourceLimitExceeded)
		return nil, fmt.Errorf("open stream to %s: %w", c.RemotePeer(), err)
	}
	return &lazyStream{Stream: s, lazy: multistream.NewMSSelect(s, id)}, nil
}

// negotiation is how long Close waits for the peer to agree to the protocol.
const negotiation = 10 * time.Second

// lazyStream negotiates its protocol with the first bytes.
type lazyStream struct {
	network.Stream
	lazy multistream.LazyConn
}

func (s *lazyStream) Read(b []byte) (int, error)  { return s.lazy.Read(b) }
func (s *lazyStream) Write(b []byte) (int, error) { return s.lazy.Write(b) }

func (s *lazyStream) Close() error {
	s.SetReadDeadline(time.Now().Add(negotiation))
	return s.lazy.Close()
}

// CloseWrite sends the name of the protocol first, if nothing was written yet.
func (s *lazyStream) CloseWrite() error {
	if f, ok := s.lazy.(interface{ Flush() error }); ok {
		f.Flush() // a failure shows in Read, with the peer's reason
	}
	return s.Stream.CloseWrite()
}
