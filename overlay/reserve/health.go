package reserve

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"go.uber.org/zap"

	"openmesh/overlay/circuit"
)

// health pings the relays in use over each connection to them and closes a
// connection that does not answer twice: libp2p would notice after half a minute.
type health struct {
	cfg Config
	now chan struct{}

	mu     sync.Mutex
	relays map[peer.ID]*pulse
	others map[peer.ID]bool // peers to ping once
}

// pulse is what is known of a relay in use.
type pulse struct {
	rtt     time.Duration // smoothed; 0 before the first answer
	doubted time.Time     // when it was suspected, if it has not answered since
}

const (
	minPatience = time.Second // with an answer to a ping
	maxPatience = 5 * time.Second
	newPatience = 2 * time.Second  // while the round trip is not known
	doubtful    = 30 * time.Second // how long a relay that is not in use stays suspect
	maxPulses   = 256
)

func newHealth(cfg Config) *health {
	return &health{cfg: cfg, now: make(chan struct{}, 1), relays: make(map[peer.ID]*pulse), others: make(map[peer.ID]bool)}
}

func (h *health) nudge() {
	select {
	case h.now <- struct{}{}:
	default:
	}
}

// run checks until ctx ends: the relays of held, and those that carry a circuit.
func (h *health) run(ctx context.Context, held func() []peer.ID) {
	tick := time.NewTicker(h.cfg.Every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-h.now:
		case <-ctx.Done():
			return
		}
		used := h.inUse(held())
		h.forget(used)
		h.round(ctx, used)
		h.round(ctx, h.doubted())
	}
}

// inUse adds to relays those of the circuits that there are.
func (h *health) inUse(relays []peer.ID) map[peer.ID]bool {
	used := make(map[peer.ID]bool)
	for _, r := range relays {
		used[r] = true
	}
	for _, c := range h.cfg.Host.Network().Conns() {
		if relay := circuit.Relay(c.RemoteMultiaddr()); relay != "" {
			used[relay] = true
		}
	}
	return used
}

// doubted returns the peers to ping once.
func (h *health) doubted() map[peer.ID]bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	peers := h.others
	h.others = make(map[peer.ID]bool)
	return peers
}

func (h *health) doubt(p peer.ID) {
	h.mu.Lock()
	if len(h.others) < maxPulses {
		h.others[p] = true
	}
	h.mu.Unlock()
	h.nudge()
}

func (h *health) round(ctx context.Context, relays map[peer.ID]bool) {
	var all sync.WaitGroup
	defer all.Wait()
	for r := range relays {
		for _, c := range direct(h.cfg.Host.Network(), r) {
			all.Go(func() { h.check(ctx, c) })
		}
	}
}

// check pings over one connection, twice if it must, and closes one that is dead.
func (h *health) check(ctx context.Context, c network.Conn) {
	var err error
	for range 2 {
		var rtt time.Duration
		if rtt, err = h.ping(ctx, c); err == nil {
			h.answered(c.RemotePeer(), rtt)
			return
		}
		if ctx.Err() != nil || c.IsClosed() || refused(err) {
			return
		}
	}
	h.cfg.Log.Info("connection does not answer", zap.Stringer("peer", c.RemotePeer()), zap.Stringer("addr", c.RemoteMultiaddr()), zap.Error(err))
	c.Close()
}

// refused reports whether a ping failed because one side has too many of them: the
// peer lives, or was not asked.
func refused(err error) bool {
	var reset *network.StreamError
	return errors.As(err, &reset) && reset.Remote || errors.Is(err, network.ErrResourceLimitExceeded)
}

// pingSize is libp2p's.
const pingSize = 32

// ping measures a round trip on exactly connection c.
func (h *health) ping(ctx context.Context, c network.Conn) (time.Duration, error) {
	patience := h.patience(c.RemotePeer())
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	s, err := h.cfg.Open(ctx, c, ping.ID)
	if err != nil {
		return 0, fmt.Errorf("ping %s: %w", c.RemotePeer(), err)
	}
	defer s.Reset()
	began := time.Now()
	s.SetDeadline(began.Add(patience))
	stop := context.AfterFunc(ctx, func() { s.Reset() })
	defer stop()
	sent, back := make([]byte, pingSize), make([]byte, pingSize)
	rand.Read(sent)
	if _, err := s.Write(sent); err != nil {
		return 0, fmt.Errorf("ping %s: %w", c.RemotePeer(), err)
	}
	if _, err := io.ReadFull(s, back); err != nil {
		return 0, fmt.Errorf("ping %s: %w", c.RemotePeer(), err)
	}
	if !bytes.Equal(sent, back) {
		return 0, errors.New("ping: other bytes came back")
	}
	return time.Since(began), nil
}

// patience is eight round trips: those of a busy connection vary.
func (h *health) patience(relay peer.ID) time.Duration {
	rtt := h.roundTrip(relay)
	if rtt == 0 {
		return newPatience
	}
	return min(max(8*rtt, minPatience), maxPatience)
}

func (h *health) roundTrip(relay peer.ID) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.relays[relay]; p != nil {
		return p.rtt
	}
	return 0
}

func (h *health) answered(relay peer.ID, rtt time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.pulse(relay)
	if p.rtt == 0 {
		p.rtt = rtt
	}
	p.rtt += (rtt - p.rtt) / 4
	p.doubted = time.Time{}
}

func (h *health) suspect(relay peer.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pulse(relay).doubted = time.Now()
}

// pulse returns the entry of a relay; h.mu is held.
func (h *health) pulse(relay peer.ID) *pulse {
	p := h.relays[relay]
	if p == nil {
		if len(h.relays) >= maxPulses {
			clear(h.relays)
		}
		p = new(pulse)
		h.relays[relay] = p
	}
	return p
}

// forget drops what is known of relays that are neither in use nor suspect.
func (h *health) forget(used map[peer.ID]bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, p := range h.relays {
		if !used[id] && time.Since(p.doubted) > doubtful {
			delete(h.relays, id)
		}
	}
}

func (h *health) grade(relay peer.ID) int {
	h.mu.Lock()
	p := h.relays[relay]
	bad := p != nil && time.Since(p.doubted) < doubtful
	h.mu.Unlock()
	switch {
	case bad:
		return 2
	case len(direct(h.cfg.Host.Network(), relay)) > 0:
		return 0
	}
	return 1
}

// direct returns the connections to p that are not circuits themselves.
func direct(n network.Network, p peer.ID) []network.Conn {
	var cs []network.Conn
	for _, c := range n.ConnsToPeer(p) {
		if !c.IsClosed() && !circuit.Is(c.RemoteMultiaddr()) {
			cs = append(cs, c)
		}
	}
	return cs
}
