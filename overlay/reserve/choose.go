package reserve

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

const (
	maxMeasured = 8                      // candidates being connected to at a time
	handicap    = 300 * time.Millisecond // head start that a relay under full load gives to idle ones
)

// measured is a candidate that was connected to and pinged, or why not.
type measured struct {
	Candidate
	rtt time.Duration
	err error
}

// measure connects to candidates and pings them, and returns those that answered.
func (k *Keeper) measure(ctx context.Context, cs []Candidate) (answered []measured) {
	var mu sync.Mutex
	var each sync.WaitGroup
	for _, c := range cs[:min(len(cs), maxMeasured)] {
		each.Go(func() {
			m := k.meet(ctx, c)
			mu.Lock()
			defer mu.Unlock()
			if m.err == nil {
				answered = append(answered, m)
			}
		})
	}
	each.Wait()
	return answered
}

// meet connects to a candidate and pings it, a little later if it is under load.
func (k *Keeper) meet(ctx context.Context, c Candidate) measured {
	sleep(ctx, time.Duration(min(max(c.Load, 0), 1)*float64(handicap)))
	rtt, err := k.probe(ctx, c.AddrInfo)
	return measured{Candidate: c, rtt: rtt, err: err}
}

// probe connects to a relay and returns its round-trip time.
func (k *Keeper) probe(ctx context.Context, r peer.AddrInfo) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	if err := k.connect(ctx, r); err != nil {
		return 0, err
	}
	var rtt time.Duration
	err := context.DeadlineExceeded
	for _, c := range direct(k.cfg.Host.Network(), r.ID) {
		if rtt, err = k.health.ping(ctx, c); err == nil {
			k.health.answered(r.ID, rtt)
			return rtt, nil
		}
	}
	return 0, err
}

// value is what relays are compared by: one that somebody configured is better than
// one that was found, then the nearer one, where load counts as distance.
type value struct {
	found bool
	cost  time.Duration
}

func (m measured) value(configured bool) value {
	return value{!configured, time.Duration(float64(m.rtt) * (1 + 2*min(max(m.Load, 0), 1)))}
}

func (v value) compare(o value) int {
	if v.found != o.found {
		return map[bool]int{false: -1, true: 1}[v.found]
	}
	return cmp.Compare(v.cost, o.cost)
}

// far is the hysteresis: v is far better than o if it costs less than two thirds, and
// 10 ms less.
func (v value) far(o value) bool {
	if v.found != o.found {
		return o.found
	}
	return v.cost < o.cost*2/3 && o.cost-v.cost > 10*time.Millisecond
}

// improve replaces the worst relay in use by a candidate that is far better, and
// only then: moving costs those who know the old address a look-up.
func (k *Keeper) improve(ctx context.Context) {
	if !k.cfg.Needed() {
		return
	}
	configured := k.configured()
	all := append(slices.Clone(configured), k.found(ctx)...)
	isConfigured := func(id peer.ID) bool {
		return slices.ContainsFunc(configured, func(c Candidate) bool { return c.ID == id })
	}
	held := k.held()
	candidates := slices.DeleteFunc(slices.Clone(all), func(c Candidate) bool { return slices.Contains(held, c.ID) })
	candidates = k.usable(candidates)
	if len(candidates) == 0 || len(held) < k.cfg.Want {
		return
	}
	var best []value
	for _, m := range k.measure(ctx, candidates) {
		best = append(best, m.value(isConfigured(m.ID)))
	}
	if len(best) == 0 {
		return
	}
	valueOf := func(id peer.ID) value {
		m := measured{rtt: k.health.roundTrip(id)}
		if i := slices.IndexFunc(all, func(c Candidate) bool { return c.ID == id }); i >= 0 {
			m.Load = all[i].Load
		}
		return m.value(isConfigured(id))
	}
	worst := slices.MaxFunc(held, func(a, b peer.ID) int { return valueOf(a).compare(valueOf(b)) })
	if slices.MinFunc(best, value.compare).far(valueOf(worst)) {
		k.leave(worst)
	}
}

// leave gives a relay up; whatever is connected through it stays so.
func (k *Keeper) leave(relay peer.ID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if s := k.slots[relay]; s != nil {
		s.cancel()
	}
}

// maxCircuits bounds the addresses advertised for one relay.
const maxCircuits = 6

// circuits are the addresses through relay r: one for each transport and port, so
// that a peer whose network lets out nothing but TCP 443 finds one too. known are
// the relay's addresses as it tells them. Private ones count only if there are no
// others.
func circuits(r peer.AddrInfo, known []ma.Multiaddr) []ma.Multiaddr {
	suffix := ma.StringCast("/p2p/" + r.ID.String() + "/p2p-circuit")
	all := slices.Clone(r.Addrs)
	for _, a := range known {
		if useful(a) {
			all = append(all, a)
		}
	}
	all = ma.Unique(all)
	if slices.ContainsFunc(all, notPrivate) {
		all = slices.DeleteFunc(all, func(a ma.Multiaddr) bool { return !notPrivate(a) })
	} else if slices.ContainsFunc(all, notLoopback) {
		all = slices.DeleteFunc(all, func(a ma.Multiaddr) bool { return !notLoopback(a) })
	}
	slices.SortStableFunc(all, func(a, b ma.Multiaddr) int { return cmp.Compare(place(a), place(b)) })
	seen := make(map[string]bool)
	var out []ma.Multiaddr
	for _, a := range all {
		bare, id := peer.SplitAddr(a)
		if bare == nil || id != "" && id != r.ID || len(out) == maxCircuits {
			continue
		}
		if port := portOf(bare); !seen[port] {
			seen[port] = true
			out = append(out, bare.Encapsulate(suffix))
		}
	}
	return out
}

// portOf is what comes after the IP or name: "/tcp/443". Whoever reaches WebSocket on
// a port reaches TCP there.
func portOf(a ma.Multiaddr) string {
	if len(a) < 2 || a[1].Protocol().Code != ma.P_TCP {
		_, rest := ma.SplitFirst(a)
		return rest.String()
	}
	return a[1].String()
}

func notPrivate(a ma.Multiaddr) bool  { return manet.IsPublicAddr(a) || !manet.IsThinWaist(a) }
func notLoopback(a ma.Multiaddr) bool { return !manet.IsIPLoopback(a) }

// useful leaves out circuits, and transports whose addresses are long and serve
// nobody whom TCP, QUIC or WebSocket do not.
func useful(a ma.Multiaddr) bool {
	for _, part := range a {
		switch part.Protocol().Code {
		case ma.P_CIRCUIT, ma.P_WEBTRANSPORT, ma.P_WEBRTC_DIRECT:
			return false
		}
	}
	return true
}

// place orders the addresses of a relay by what gets through most networks soonest.
func place(a ma.Multiaddr) int {
	_, ws := a.ValueForProtocol(ma.P_WS)
	if port, err := a.ValueForProtocol(ma.P_TCP); err == nil && port == "443" && ws != nil {
		return 0
	}
	if _, err := a.ValueForProtocol(ma.P_UDP); err == nil {
		return 1
	}
	if ws == nil {
		return 3
	}
	return 2
}

func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
