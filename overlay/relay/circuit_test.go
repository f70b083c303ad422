package relay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	pbv2 "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	ma "github.com/multiformats/go-multiaddr"

	"openmesh/overlay/overlaytest"
	"openmesh/protocols/stream"
	"openmesh/protocols/wire"
)

// libp2p's own client: a connection over the relay is not limited, lasts for
// hours with nothing but keepalives, and carries more than the 128 KiB that
// libp2p's relay allows.
func TestCircuitOfHours(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		l := newLab(t, Config{})
		a, b := l.peer(libp2p.EnableRelay()), l.peer(libp2p.EnableRelay())
		b.SetStreamHandler("/echo", echo)
		if _, err := client.Reserve(t.Context(), b, overlaytest.Info(l.host)); err != nil {
			t.Fatal(err)
		}
		if err := a.Connect(t.Context(), through(l.host, b.ID())); err != nil {
			t.Fatal(err)
		}
		conns := a.Network().ConnsToPeer(b.ID())
		if len(conns) != 1 || conns[0].Stat().Limited || a.Network().Connectedness(b.ID()) != network.Connected {
			t.Fatalf("want one unlimited connection, got %v", conns)
		}
		s, err := a.NewStream(t.Context(), b.ID(), "/echo")
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			exchange(t, s, 300_000)
			time.Sleep(55 * time.Minute)
			if got := l.reserve(b); got != pbv2.Status_OK {
				t.Fatal(got)
			}
		}
		if conns[0].IsClosed() {
			t.Error("the connection did not last")
		}
	})
}

func through(relay host.Host, dst peer.ID) peer.AddrInfo {
	circuit := ma.StringCast("/p2p/" + relay.ID().String() + "/p2p-circuit")
	return peer.AddrInfo{ID: dst, Addrs: []ma.Multiaddr{relay.Addrs()[0].Encapsulate(circuit)}}
}

// Nobody uses a relay over another one.
func TestNoCircuitOverCircuit(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		l := newLab(t, Config{})
		far := l.peer(libp2p.EnableRelay())
		second, err := New(far, Config{})
		if err != nil {
			t.Fatal(err)
		}
		defer second.Close()
		if got := l.reserve(far); got != pbv2.Status_OK {
			t.Fatal(got)
		}
		a := l.peer(libp2p.EnableRelay())
		if err := a.Connect(t.Context(), through(l.host, far.ID())); err != nil {
			t.Fatal(err)
		}
		_, err = client.Reserve(t.Context(), a, peer.AddrInfo{ID: far.ID()})
		var refused client.ReservationError
		if !errors.As(err, &refused) || refused.Status != pbv2.Status_PERMISSION_DENIED {
			t.Errorf("reservation over a circuit: %v", err)
		}
	})
}

// What a reservation tells: when it ends, and the relay's addresses though they
// are private, but no circuits.
func TestReservation(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		l := newLab(t, Config{ReservationTTL: 30 * time.Minute})
		r, err := client.Reserve(t.Context(), l.peer(), overlaytest.Info(l.host))
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Until(r.Expiration); d < 29*time.Minute || d > 30*time.Minute {
			t.Errorf("expires in %v", d)
		}
		if r.Voucher == nil || r.LimitData != 0 || r.LimitDuration != 0 {
			t.Errorf("reservation %+v", r)
		}
	})
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	id, err := peer.Decode("12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo")
	if err != nil {
		t.Fatal(err)
	}
	addrs := []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/1"), ma.StringCast("/ip4/10.0.0.1/tcp/1"),
		ma.StringCast("/ip4/8.8.8.8/tcp/1/p2p/" + id.String() + "/p2p-circuit"), ma.StringCast("/ip4/8.8.8.8/tcp/1")}
	var got []string
	for _, b := range addresses(addrs, id) {
		got = append(got, ma.Cast(b).String())
	}
	want := []string{"/ip4/8.8.8.8/tcp/1/p2p/" + id.String(), "/ip4/10.0.0.1/tcp/1/p2p/" + id.String(), "/ip4/127.0.0.1/tcp/1/p2p/" + id.String()}
	if len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("addresses %v, want %v", got, want)
	}
	many := make([]ma.Multiaddr, 1000)
	for i := range many {
		many[i] = addrs[3]
	}
	if n := len(bytes.Join(addresses(many, id), nil)); n > maxAddrs || n < maxAddrs-100 {
		t.Errorf("1000 addresses take %d bytes", n)
	}
}

// All bytes arrive in order, and the end of one direction leaves the other open.
func TestBytesAndEnd(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		l := newLab(t, Config{Rate: Rate{BytesPerSecond: 1 << 20, Burst: 1}}) // slower than the network, and debt all along
		sent := make([]byte, 700_001)
		rand.NewChaCha8([32]byte{}).Read(sent)
		got := make(chan []byte, 1)
		b := l.listener(func(s network.Stream) {
			defer s.Close()
			all, _ := io.ReadAll(s)
			got <- all
			s.Write([]byte("thanks"))
		})
		s := l.mustConnect(l.peer(), b.ID())
		if _, err := s.Write(sent); err != nil {
			t.Fatal(err)
		}
		s.CloseWrite()
		if !bytes.Equal(<-got, sent) {
			t.Error("other bytes arrived than were sent")
		}
		if answer, err := io.ReadAll(s); string(answer) != "thanks" || err != nil {
			t.Errorf("after the end of one direction the other brings %q, %v", answer, err)
		}
		settle()
		if u := l.relay.Usage(); u.Circuits != 0 || u.Bytes != 700_007 {
			t.Errorf("usage %+v", u)
		}
		if l.host.ConnManager().IsProtected(b.ID(), circuitTag) {
			t.Error("the destination is still protected by its circuit")
		}
	})
}

// A circuit with a byte now and then stays, one without is cut.
func TestIdle(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		l := newLab(t, Config{Idle: time.Minute})
		a, b := l.peer(), l.listener(echo)
		s := l.mustConnect(a, b.ID())
		for range 20 {
			exchange(t, s, 1)
			time.Sleep(50 * time.Second)
		}
		exchange(t, s, 1)
		start := time.Now()
		_, err := s.Read(make([]byte, 1))
		if !errors.Is(stream.RemoteError(err), wire.DeadlineExceeded) {
			t.Errorf("idle circuit ended with %v", err)
		}
		if d := time.Since(start); d < time.Minute || d > 76*time.Second {
			t.Errorf("idle circuit was cut after %v", d)
		}
	})
}

// A peer that asks for much and reads nothing: the relay holds one chunk for it,
// the sender stands still, others go on; after half of Idle the circuit is cut,
// though bytes pass the other way.
func TestReceiverThatNeverReads(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		l := newLab(t, Config{Idle: time.Minute})
		written := make(chan int64, 1)
		b := l.listener(func(s network.Stream) {
			go io.Copy(io.Discard, s)
			n, _ := io.Copy(s, zeros{})
			written <- n
		})
		s := l.mustConnect(l.peer(), b.ID())
		stop := make(chan struct{})
		go func() {
			for range time.Tick(5 * time.Second) {
				if _, err := s.Write([]byte{1}); err != nil {
					close(stop)
					return
				}
			}
		}()
		time.Sleep(10 * time.Second)
		stuck := l.relay.Usage().Bytes
		time.Sleep(10 * time.Second)
		if moved := l.relay.Usage().Bytes - stuck; moved > 10 || stuck > 2<<20 {
			t.Errorf("%d bytes passed to a peer that reads none, then %d", stuck, moved)
		}
		other := l.listener(echo)
		exchange(t, l.mustConnect(l.peer(), other.ID()), 100_000)
		start := time.Now()
		<-stop
		if d := time.Since(start); d > time.Minute {
			t.Errorf("the circuit was cut after another %v", d)
		}
		if n := <-written; n > 4<<20 {
			t.Errorf("the sender could write %d bytes", n)
		}
	})
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// When the relay closes, its circuits say that they can be made elsewhere, and
// it has let go of everything when Close returns.
func TestClose(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		l := newLab(t, Config{})
		a, b := l.peer(), l.listener(echo)
		s := l.mustConnect(a, b.ID())
		silent := l.hop(a) // a request in progress
		silent.Write([]byte{10})
		settle()
		l.relay.Close()
		if u := l.relay.Usage(); u.Circuits != 0 || u.Reservations != 0 {
			t.Errorf("after Close: %+v", u)
		}
		for _, s := range []network.Stream{s, silent} {
			if _, err := s.Read(make([]byte, 1)); !errors.Is(stream.RemoteError(err), wire.Unreachable) {
				t.Errorf("stream ended with %v", err)
			}
		}
		if l.host.ConnManager().IsProtected(b.ID(), "") {
			t.Error("a connection is still protected")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := client.Reserve(ctx, a, overlaytest.Info(l.host)); err == nil {
			t.Error("a closed relay gave a reservation")
		}
		if err := l.relay.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
}

func TestIdleness(t *testing.T) {
	t.Parallel()
	type look = [2][2]uint64
	quiet, waits := look{{5, 5}, {7, 7}}, look{{9, 5}, {7, 7}}
	for _, tc := range []struct {
		name  string
		looks []look
		cut   int // look at which it is cut; -1: never
	}{
		{"nothing ever", []look{{}, {}, {}, {}}, 3},
		{"quiet after bytes", []look{quiet, quiet, quiet, quiet, quiet}, 4},
		{"bytes between", []look{quiet, quiet, quiet, waits, {{9, 9}, {7, 7}}}, -1},
		{"receiver takes nothing", []look{quiet, waits, waits, waits}, 3},
		{"receiver takes some", []look{quiet, waits, {{13, 9}, {7, 7}}, {{17, 13}, {7, 7}}, {{17, 17}, {7, 7}}}, -1},
		{"receiver takes nothing, other way busy", []look{waits, {{9, 5}, {8, 8}}, {{9, 5}, {9, 9}}}, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var i idleness
			cut := -1
			for n, l := range tc.looks {
				if i.look(l) && cut < 0 {
					cut = n
				}
			}
			if cut != tc.cut {
				t.Errorf("cut at look %d, want %d", cut, tc.cut)
			}
		})
	}
}
