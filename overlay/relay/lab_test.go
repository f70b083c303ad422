package relay

import (
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	pbv2 "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/util"

	"openmesh/overlay/overlaytest"
)

// lab is a relay on a simulated network. Its peers speak the protocol by hand,
// so that nothing passes over their circuits but what a test sends.
type lab struct {
	*testing.T
	net   *overlaytest.Net
	host  host.Host
	relay *Relay
}

func newLab(t *testing.T, cfg Config) *lab {
	t.Helper()
	l := &lab{T: t, net: overlaytest.NewNet(t, time.Millisecond)}
	l.host = l.net.Host()
	var err error
	if l.relay, err = New(l.host, cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.relay.Close() })
	return l
}

// peer adds a host that is connected to the relay.
func (l *lab) peer(opts ...libp2p.Option) host.Host {
	l.Helper()
	h := l.net.Host(opts...)
	if err := h.Connect(l.Context(), overlaytest.Info(l.host)); err != nil {
		l.Fatal(err)
	}
	return h
}

// listener adds a peer with a reservation that hands accepted circuits to f.
func (l *lab) listener(f func(network.Stream)) host.Host {
	l.Helper()
	h := l.peer()
	accept(h, f)
	if got := l.reserve(h); got != pbv2.Status_OK {
		l.Fatalf("reservation refused: %s", got)
	}
	return h
}

func accept(h host.Host, f func(network.Stream)) {
	h.SetStreamHandler(proto.ProtoIDv2Stop, func(s network.Stream) {
		rd := util.NewDelimitedReader(s, maxMessage)
		defer rd.Close()
		var msg pbv2.StopMessage
		if rd.ReadMsg(&msg) != nil || msg.GetType() != pbv2.StopMessage_CONNECT {
			s.Reset()
			return
		}
		ok := &pbv2.StopMessage{Type: pbv2.StopMessage_STATUS.Enum(), Status: pbv2.Status_OK.Enum()}
		if util.NewDelimitedWriter(s).WriteMsg(ok) == nil {
			f(s)
		}
	})
}

func (l *lab) reserve(h host.Host) pbv2.Status {
	l.Helper()
	_, err := client.Reserve(l.Context(), h, overlaytest.Info(l.host))
	var refused client.ReservationError
	switch {
	case err == nil:
		return pbv2.Status_OK
	case errors.As(err, &refused):
		return refused.Status
	}
	l.Fatal(err)
	return 0
}

// connect asks for a circuit. The stream is nil if it was refused.
func (l *lab) connect(src host.Host, dst peer.ID) (network.Stream, pbv2.Status) {
	l.Helper()
	return l.request(src, &pbv2.HopMessage{Type: pbv2.HopMessage_CONNECT.Enum(), Peer: &pbv2.Peer{Id: []byte(dst)}})
}

func (l *lab) mustConnect(src host.Host, dst peer.ID) network.Stream {
	l.Helper()
	s, status := l.connect(src, dst)
	if s == nil {
		l.Fatalf("circuit refused: %s", status)
	}
	return s
}

func (l *lab) request(h host.Host, msg *pbv2.HopMessage) (network.Stream, pbv2.Status) {
	l.Helper()
	s := l.hop(h)
	if err := util.NewDelimitedWriter(s).WriteMsg(msg); err != nil {
		l.Fatal(err)
	}
	rd := util.NewDelimitedReader(s, maxMessage)
	defer rd.Close()
	var answer pbv2.HopMessage
	if err := rd.ReadMsg(&answer); err != nil {
		l.Fatal(err)
	}
	if answer.GetStatus() != pbv2.Status_OK {
		s.Reset()
		return nil, answer.GetStatus()
	}
	if answer.Limit != nil {
		l.Errorf("circuit is limited: %v", answer.Limit)
	}
	return s, pbv2.Status_OK
}

func (l *lab) hop(h host.Host) network.Stream {
	l.Helper()
	s, err := h.NewStream(l.Context(), l.host.ID(), proto.ProtoIDv2Hop)
	if err != nil {
		l.Fatal(err)
	}
	return s
}

// settle waits until packets on their way have arrived.
func settle() {
	time.Sleep(time.Second) // virtual
	synctest.Wait()
}

func echo(s network.Stream) {
	defer s.Close()
	io.Copy(s, s)
}

func discard(s network.Stream) {
	defer s.Close()
	io.Copy(io.Discard, s)
}

// exchange sends size bytes through an echoing circuit and counts what returns.
func exchange(t *testing.T, s network.Stream, size int) {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := s.Write(make([]byte, size))
		sent <- err
	}()
	if _, err := io.ReadFull(s, make([]byte, size)); err != nil {
		t.Fatalf("read echo: %v", err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}
