package kad

import (
	"bytes"
	"context"
	"sync"
	"time"

	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"
	"golang.org/x/time/rate"
)

// What one peer may put: enough for its own records, and for the corrections
// that a lookup sends to servers which are behind.
const (
	putRate  = 2 // per second
	putBurst = 64
	maxPeers = 4096 // whose rates are known at a time
)

// sink is the key under which the DHT's provider manager files every provider
// record, out of the way. It matches no query.
const sink = "."

// inspect sees each message before the DHT's handler does, and may change it. A
// message that it spoils makes the handler fail, which costs the sender its
// stream.
func (t *Table) inspect(ctx context.Context, s network.Stream, req *pb.Message) {
	from := s.Conn().RemotePeer()
	switch req.GetType() {
	case pb.Message_ADD_PROVIDER:
		ok := isKey(req.Key) && hasAddrs(req, from) && t.providers.add(from, string(req.Key), time.Now())
		req.Key = []byte(sink) // the manager still learns the addresses
		if !ok {
			req.ProviderPeers = nil
		}
	case pb.Message_GET_PROVIDERS:
		if !isKey(req.Key) {
			req.Key = nil
		}
	case pb.Message_PUT_VALUE:
		if !t.budget.allow(from) {
			req.Record = nil
		} else if rec := req.GetRecord(); rec != nil && bytes.Equal(rec.Key, req.Key) {
			rec.Value = t.merged(ctx, string(rec.Key), rec.Value)
		}
	}
}

// isKey reports whether k is what capability keys are: a SHA-256 multihash.
func isKey(k []byte) bool {
	d, err := multihash.Decode(k)
	return err == nil && d.Code == multihash.SHA2_256 && d.Length == 32
}

func hasAddrs(req *pb.Message, p peer.ID) bool {
	for _, pi := range req.ProviderPeers {
		if peer.ID(pi.GetId()) == p && len(pi.Addrs) > 0 {
			return true
		}
	}
	return false
}

// merged returns value joined with what is stored under key, so that a record
// that proves an address does not replace another agent's proof of the same.
func (t *Table) merged(ctx context.Context, key string, value []byte) []byte {
	select {
	case <-t.started:
	default:
		return value
	}
	old, err := t.store.Get(ctx, key)
	if err != nil || old == nil || bytes.Equal(old.Value, value) {
		return value
	}
	return t.validator().merge(key, old.Value, value)
}

// budget limits how fast each peer puts values. Safe for concurrent use.
type budget struct {
	mu    sync.Mutex
	peers map[peer.ID]*rate.Limiter
}

func newBudget() *budget { return &budget{peers: make(map[peer.ID]*rate.Limiter)} }

func (b *budget) allow(p peer.ID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	l, ok := b.peers[p]
	if !ok {
		if len(b.peers) >= maxPeers {
			b.forget()
		}
		l = rate.NewLimiter(putRate, putBurst)
		b.peers[p] = l
	}
	return l.Allow()
}

// forget makes room: limiters that are full again say nothing; if all are in
// use, any one goes.
func (b *budget) forget() {
	for p, l := range b.peers {
		if l.Tokens() >= putBurst {
			delete(b.peers, p)
		}
	}
	for p := range b.peers {
		if len(b.peers) < maxPeers {
			return
		}
		delete(b.peers, p)
	}
}
