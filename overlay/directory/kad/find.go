package kad

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/ipfs/go-cid"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Providers sends the peers that provide key, this one among them, as they are
// found. The channel is closed when the lookup has ended or ctx has; until then
// it must be read. Error: wire.Unreachable if there is no directory server to
// ask.
//
// If the lookup yields limit providers, there are more of them or one server has
// made them up, to hide others. Then each of the servers closest to key is asked
// again and gets an equal share of another limit.
func (t *Table) Providers(ctx context.Context, key cid.Cid, limit int) (<-chan peer.AddrInfo, error) {
	if err := t.askable(ctx); err != nil {
		return nil, fmt.Errorf("find providers of %s: %w", key, err)
	}
	out := make(chan peer.AddrInfo)
	go func() {
		defer close(out)
		seen := make(map[peer.ID]bool)
		t.forward(ctx, out, seen, t.dht.FindProvidersAsync(ctx, key, limit))
		if len(seen) >= limit && ctx.Err() == nil {
			t.forward(ctx, out, seen, t.fairShare(ctx, key, limit))
		}
	}()
	return out, nil
}

// forward sends on to out what comes from in and has not been seen.
func (t *Table) forward(ctx context.Context, out chan<- peer.AddrInfo, seen map[peer.ID]bool, in <-chan peer.AddrInfo) {
	for pi := range in {
		if seen[pi.ID] {
			continue
		}
		seen[pi.ID] = true
		select {
		case out <- pi:
		case <-ctx.Done(): // in ends by itself
		}
	}
}

// fairShare asks each server closest to key and sends as many providers of each
// as make up limit in all, drawn at random.
func (t *Table) fairShare(ctx context.Context, key cid.Cid, limit int) <-chan peer.AddrInfo {
	out := make(chan peer.AddrInfo, limit)
	defer close(out)
	servers, err := t.dht.GetClosestPeers(ctx, string(key.Hash()))
	if err != nil || len(servers) == 0 {
		return out
	}
	messenger, err := pb.NewProtocolMessenger(t.dht.MessageSender())
	if err != nil {
		return out
	}
	share := limit / len(servers)
	var wg sync.WaitGroup
	for _, s := range servers {
		wg.Go(func() {
			found, _, err := messenger.GetProviders(ctx, s, key.Hash())
			if err != nil {
				return
			}
			rand.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
			for _, pi := range found[:min(len(found), share)] {
				out <- *pi // there is room for all shares
			}
		})
	}
	wg.Wait()
	return out
}
