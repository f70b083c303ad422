package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"openmesh/protocols/session"
	"openmesh/protocols/signal"
)

// A cut is how a transport is lost.
type cut struct {
	name      string
	transport string // as a session's path names it
	quietly   bool
	keepalive time.Duration
	target    limit // of the gap, as a multiple of keepalive
}

func cuts() (cs []cut) {
	for _, keepalive := range []time.Duration{time.Second, 2 * time.Second} {
		cs = append(cs,
			cut{"QUIC packets vanish", "quic-v1", true, keepalive, atMost(2)},
			cut{"TCP packets vanish", "tcp", true, keepalive, atMost(2)},
			cut{"TCP is reset", "tcp", false, keepalive, atMost(0.5)})
	}
	return cs
}

func (c cut) String() string { return fmt.Sprintf("%s, keepalive %s", c.name, c.keepalive) }

// warm is how long calls go on before the cut and after the gap; patience is how
// long a gap may be.
const (
	warm     = 300 * time.Millisecond
	patience = 30 * time.Second
)

// Failover measures for how long no call of a session ends when its transport is
// cut.
func Failover(ctx context.Context, cfg Config) (*Report, error) {
	start := time.Now()
	cfg.defaults()
	cfg.Rounds = cfg.Trials
	r := cfg.report("failover",
		fmt.Sprintf("in each trial a new node calls the server again and again, one call of %d bytes after the other, in one session over a forwarder of this process, by the only connection that there is, which then is cut: packets vanish in both directions, or the connection is reset", PayloadSize),
		"the gap is the longest time from the end of one call to the end of the next; no call may fail; the server's own address, over QUIC and TCP, still works",
		"targets are for the longest gap: 2 keepalive intervals where nothing tells of the cut, half a one where the transport does")
	for _, c := range cuts() {
		s := Spread{Name: c.String(), Unit: "ms"}
		for i := range cfg.Trials {
			cfg.Progress(fmt.Sprintf("%s: trial %d of %d", c, i+1, cfg.Trials))
			gap, err := c.trial(ctx, cfg, filepath.Join(cfg.Home, fmt.Sprintf("%s-%s-%t-%d", c.transport, c.keepalive, c.quietly, i)))
			if err != nil {
				return nil, fmt.Errorf("measure %s: %w", c, err)
			}
			s.Values = append(s.Values, float64(gap.Microseconds())/1000)
		}
		r.Spreads = append(r.Spreads, s)
		r.judge("longest gap / keepalive, "+c.String(), slices.Max(s.Values)/1000/c.keepalive.Seconds(), c.target)
	}
	r.ElapsedS = time.Since(start).Seconds()
	return r, nil
}

// trial is one node's one session that is cut.
func (c cut) trial(ctx context.Context, cfg Config, home string) (gap time.Duration, err error) {
	wire, id, err := c.lay(cfg.Server)
	if err != nil {
		return 0, err
	}
	defer wire.close()
	m, err := join(ctx, home, cfg.Setup, []string{wire.addr().String() + "/p2p/" + id})
	if err != nil {
		return 0, err
	}
	defer m.leave()
	s, err := m.open(ctx, cfg.Server, session.Want{Contract: signal.Contract{Keepalive: c.keepalive}}, wire.addr())
	if err != nil {
		return 0, err
	}
	if at := s.Path().Addr; !strings.HasPrefix(at, wire.addr().String()) {
		return 0, fmt.Errorf("the session goes over %s, not over the forwarder at %s", at, wire.addr())
	}
	gap, err = longestGap(ctx, s, func() { wire.cut(c.quietly) })
	if err == nil && strings.HasPrefix(s.Path().Addr, wire.addr().String()) {
		err = fmt.Errorf("the session still goes over the forwarder at %s", wire.addr())
	}
	return gap, err
}

// lay lays a cable to the server's address of the transport that is to be cut; id
// is the server's peer id.
func (c cut) lay(s Server) (cable, string, error) {
	for _, text := range s.Node {
		a, err := ma.NewMultiaddr(text)
		if err != nil {
			return nil, "", err
		}
		id, err := a.ValueForProtocol(ma.P_P2P)
		if err != nil {
			return nil, "", err
		}
		_, err = a.ValueForProtocol(ma.P_UDP)
		switch {
		case err == nil && c.transport == "quic-v1":
			l, err := newUDPCable(a)
			return l, id, err
		case err != nil && c.transport == "tcp":
			l, err := newTCPCable(a)
			return l, id, err
		}
	}
	return nil, "", fmt.Errorf("the server has no address for %s: %v", c.transport, s.Node)
}

// longestGap makes calls until a while after the cut and the gap that follows it.
func longestGap(ctx context.Context, s *session.Session, cut func()) (longest time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	begin := time.Now()
	var at time.Time // of the cut
	for last := begin; ; {
		if err := call(ctx, s); err != nil {
			return 0, fmt.Errorf("call %s after the cut: %w", time.Since(at), err)
		}
		now := time.Now()
		longest = max(longest, now.Sub(last))
		last = now
		switch {
		case at.IsZero() && now.Sub(begin) > warm:
			at, longest = now, 0
			cut()
		case !at.IsZero() && longest > 10*time.Millisecond && now.Sub(at) > longest+warm:
			return longest, nil
		}
	}
}
