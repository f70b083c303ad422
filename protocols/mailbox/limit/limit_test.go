package limit

import (
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// However many peers come, their number stays bounded and those with streams are
// not forgotten.
func TestLimiter(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	l := New(1, 1<<30)
	leave, err := l.Enter("stays", now)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 3 * maxPeers {
		leave, err := l.Enter(peer.ID(fmt.Sprint(n)), now)
		if err != nil || len(l.peers) > maxPeers {
			t.Fatalf("peer %d: %v; %d peers are remembered", n, err, len(l.peers))
		}
		leave()
	}
	if c := l.peers["stays"]; c == nil || c.open != 1 {
		t.Error("a peer with a stream was forgotten")
	}
	leave()
	if _, err := l.Enter("stays", now); err != nil {
		t.Error(err)
	}
	if _, err := l.Enter("stays", now); err == nil {
		t.Error("a third request within a burst of two passes")
	}
	if _, err := l.Enter("stays", now.Add(time.Second)); err != nil {
		t.Errorf("a second later: %v", err)
	}
}

func TestStreamsPerPeer(t *testing.T) {
	t.Parallel()
	l := New(1000, 1000)
	now := time.Unix(1e9, 0)
	for n := range maxStreams + 1 {
		if _, err := l.Enter("p", now); (err == nil) != (n < maxStreams) {
			t.Errorf("stream %d: %v", n, err)
		}
	}
	if _, err := l.Enter("q", now); err != nil {
		t.Errorf("another peer: %v", err)
	}
}
