package relay

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	pbv2 "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/util"

	"openmesh/overlay/overlaytest"
)

// What is not a request gets MALFORMED_MESSAGE and costs the peer its stream,
// nothing else.
func TestMalformed(t *testing.T) {
	for _, tc := range []struct {
		name string
		sent []byte
	}{
		{"length too large", []byte{0xff, 0xff, 0x7f}},
		{"length without end", bytes.Repeat([]byte{0xff}, 12)},
		{"not a message", []byte{3, 0xff, 0xff, 0xff}},
		{"no type", []byte{0}},
		{"unknown type", []byte{2, 0x08, 77}},
		{"status instead of request", []byte{2, 0x08, 2}},
		{"no destination", []byte{2, 0x08, 1}},
		{"destination that is no peer id", []byte{7, 0x08, 1, 0x12, 3, 0x0a, 1, 'x'}},
		{"half a message", []byte{100, 0x08}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			overlaytest.Run(t, func(t *testing.T) {
				l := newLab(t, Config{})
				h := l.peer()
				s := l.hop(h)
				s.Write(tc.sent)
				s.CloseWrite()
				rd := util.NewDelimitedReader(s, maxMessage)
				defer rd.Close()
				var answer pbv2.HopMessage
				if err := rd.ReadMsg(&answer); err != nil || answer.GetStatus() != pbv2.Status_MALFORMED_MESSAGE {
					t.Errorf("answer %v, %v", &answer, err)
				}
				settle()
				if n := l.relay.Usage().Refusals[Malformed]; n != 1 {
					t.Errorf("%d refusals counted", n)
				}
				if got := l.reserve(h); got != pbv2.Status_OK {
					t.Errorf("a sound request after that: %s", got)
				}
			})
		})
	}
}

// Streams that send nothing, or half a request, are few per peer and end soon;
// others do not notice.
func TestSlowloris(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		l := newLab(t, Config{})
		h := l.peer()
		start := time.Now()
		var held []network.Stream
		for i := range pendingPerPeer {
			s := l.hop(h)
			s.Write([]byte{100, 0x08}[:1+i%2])
			held = append(held, s)
		}
		settle()
		over := l.hop(h)
		over.Write([]byte{100})
		var refused *network.StreamError
		if _, err := over.Read(make([]byte, 1)); !errors.As(err, &refused) || refused.ErrorCode != network.StreamResourceLimitExceeded {
			t.Errorf("one stream more than %d: %v", pendingPerPeer, err)
		}
		if got := l.reserve(l.peer()); got != pbv2.Status_OK {
			t.Errorf("another peer: %s", got)
		}
		for _, s := range held {
			io.Copy(io.Discard, s) // MALFORMED_MESSAGE
		}
		if d := time.Since(start); d < requestTime || d > requestTime+time.Second {
			t.Errorf("streams without a request were held for %v, want %v", d, requestTime)
		}
		if got := l.reserve(h); got != pbv2.Status_OK {
			t.Errorf("the same peer afterwards: %s", got)
		}
	})
}

// However many requests a peer sends, those served are bounded, and other peers
// are served.
func TestRequestFlood(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		l := newLab(t, Config{RequestsPerSecond: 5})
		flooder, dst := l.peer(), l.listener(echo)
		served, start := 0, time.Now()
		for i := range 300 {
			if i%2 == 0 {
				if l.reserve(flooder) == pbv2.Status_OK {
					served++
				}
			} else if s, _ := l.connect(flooder, dst.ID()); s != nil {
				served++
				s.Reset()
			}
		}
		if most := 20 + 5*time.Since(start).Seconds() + 1; float64(served) > most {
			t.Errorf("%d of 300 requests served in %v, want at most %.0f", served, time.Since(start), most)
		}
		exchange(t, l.mustConnect(l.peer(), dst.ID()), 1000)
	})
}

// A destination that takes the request and says nothing occupies a circuit for
// connectTime and no longer.
func TestDestinationThatHangs(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		l := newLab(t, Config{Circuits: 1})
		a, b := l.peer(), l.listener(echo)
		b.SetStreamHandler("/libp2p/circuit/relay/0.2.0/stop", func(network.Stream) {})
		start := time.Now()
		if _, got := l.connect(a, b.ID()); got != pbv2.Status_CONNECTION_FAILED {
			t.Errorf("status %s", got)
		}
		if d := time.Since(start); d > connectTime+time.Second {
			t.Errorf("answered after %v", d)
		}
		settle()
		if n := l.relay.Usage().Circuits; n != 0 {
			t.Errorf("%d circuits open", n)
		}
	})
}

// Whatever arrives, readRequest takes no more than a message, and what it
// accepts is complete.
func FuzzReadRequest(f *testing.F) {
	for _, seed := range [][]byte{{2, 0x08, 0}, {2, 0x08, 1}, {7, 0x08, 1, 0x12, 3, 0x0a, 1, 'x'}, {0xff, 0xff, 0x7f}, {}} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		rd := bytes.NewReader(sent)
		req, err := readRequest(rd)
		if taken := len(sent) - rd.Len(); taken > maxMessage+10 {
			t.Errorf("took %d bytes", taken)
		}
		switch {
		case err != nil:
		case req.Kind == Reserve && req.Dst == "":
		case req.Kind == Transit && req.Dst.Validate() == nil:
		default:
			t.Errorf("accepted %+v", req)
		}
	})
}
