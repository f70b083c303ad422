package forward

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"openmesh/protocols/wire"
)

// Echo is how one hop of a path answered a [Probe].
type Echo struct {
	Peer peer.ID
	RTT  time.Duration // of a setup from the source to this hop
	Err  error         // why there is none
}

// Probe asks every hop of p, the target included, whether it answers, each over the
// relays before it, all at once. It is for a circuit that has fallen silent, and
// for an estimate of what each hop adds. The error is about p itself.
func Probe(ctx context.Context, d Dialer, p Path) ([]Echo, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	hops := p.all()
	echoes := make([]Echo, len(hops))
	var all sync.WaitGroup
	for i, h := range hops {
		all.Go(func() {
			start := time.Now()
			err := probe(ctx, d, Path{Hops: hops[:i], Target: h})
			echoes[i] = Echo{Peer: h.Peer, RTT: time.Since(start), Err: err}
		})
	}
	all.Wait()
	return echoes, nil
}

// probe dials the last hop of p, which for the first relay has no others before it.
func probe(ctx context.Context, d Dialer, p Path) error {
	c, err := dial(ctx, d, p, ProbeProtocol)
	if err != nil {
		return err
	}
	return c.Close()
}

// Dead returns the place, from 1, of the first hop that does not answer, if it is
// known: wire.Unreachable behind hops that do. 0 says that all answer, or that
// something else than silence is wrong.
func Dead(echoes []Echo) (place int) {
	for i, e := range echoes {
		if e.Err != nil {
			if errors.Is(e.Err, wire.Unreachable) || errors.Is(e.Err, wire.DeadlineExceeded) {
				return i + 1
			}
			return 0
		}
	}
	return 0
}
