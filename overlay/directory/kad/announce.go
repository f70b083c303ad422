package kad

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	kb "github.com/libp2p/go-libp2p-kbucket"
	record "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/descriptor"
	"openmesh/protocols/stream"
	"openmesh/protocols/wire"
)

const (
	sendTimeout = 5 * time.Second             // for what one server is sent at a time
	maxAnswer   = descriptor.MaxValue + 1<<10 // bytes of a server's answer
)

// Provide announces that this node provides key, to the servers closest to it.
// Error: wire.Unreachable if not one took it.
func (t *Table) Provide(ctx context.Context, key cid.Cid) error {
	return t.announce(ctx, announcement{key: string(key.Hash())})
}

// Put stores value under key, /openmesh/…, at the servers closest to it. Errors:
// wire.Unreachable if not one took it; that the value is invalid.
func (t *Table) Put(ctx context.Context, key string, value []byte) error {
	return t.announce(ctx, announcement{key: key, value: value})
}

// announcement is a provider record (no value) or a value.
type announcement struct {
	key   string // multihash, or /openmesh/…
	value []byte
}

func (t *Table) announce(ctx context.Context, a announcement) error {
	if err := t.joining(ctx); err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	if err := t.keep(ctx, a); err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	servers, err := t.dht.GetClosestPeers(ctx, a.key)
	if errors.Is(err, kb.ErrLookupFailure) {
		servers, err = nil, nil // the routing table is empty
	}
	if err != nil && len(servers) == 0 {
		return fmt.Errorf("announce: find directory servers: %w", err)
	}
	took := t.sendAll(ctx, a, servers)
	t.own.set(a, took)
	if len(took) == 0 && !t.alone() {
		return fmt.Errorf("announce to %d directory servers: %w", len(servers), noServer())
	}
	return nil
}

// keep stores a at this node, which may be a server itself.
func (t *Table) keep(ctx context.Context, a announcement) error {
	if a.value == nil {
		t.providers.add(t.cfg.Host.ID(), a.key, time.Now())
		return nil
	}
	if err := t.validator().Validate(a.key, a.value); err != nil {
		return err
	}
	rec := record.MakePutRecord(a.key, t.merged(ctx, a.key, a.value))
	return t.store.Put(ctx, a.key, rec)
}

// sendAll sends a to servers and returns those that took it.
func (t *Table) sendAll(ctx context.Context, a announcement, servers []peer.ID) []peer.ID {
	var mu sync.Mutex
	var took []peer.ID
	var wg sync.WaitGroup
	for _, p := range servers {
		wg.Go(func() {
			if t.sendTo(ctx, p, a) == nil {
				mu.Lock()
				defer mu.Unlock()
				took = append(took, p)
			}
		})
	}
	wg.Wait()
	return took
}

// sendTo gives server p announcements, and returns nil once p has taken them all.
// Kademlia acknowledges no provider record. But a server works through a stream
// in order and resets it at what it refuses; so they go over a stream of their
// own with a ping behind them, which is answered only if they were taken.
func (t *Table) sendTo(ctx context.Context, p peer.ID, as ...announcement) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	var out []byte
	for _, a := range as {
		msg, err := t.message(a)
		if err != nil {
			return err
		}
		if out, err = appendMessage(out, msg); err != nil {
			return err
		}
	}
	out, err := appendMessage(out, pb.NewMessage(pb.Message_PING, nil, 0))
	if err != nil {
		return err
	}
	st, err := t.cfg.Host.NewStream(ctx, p, Protocol(t.cfg.Realm))
	if err != nil {
		return fmt.Errorf("send to directory server %s: %w", p, err)
	}
	defer context.AfterFunc(ctx, func() { _ = st.Reset() })()
	if err = exchange(st, out, len(as)); err != nil {
		_ = st.Reset()
		return fmt.Errorf("send to directory server %s: %w", p, stream.RemoteError(err))
	}
	return st.Close()
}

// exchange writes out, then reads at most others answers up to that to the ping.
func exchange(st io.ReadWriter, out []byte, others int) error {
	if _, err := st.Write(out); err != nil {
		return err
	}
	r := bufio.NewReader(st)
	for range others + 1 {
		raw, err := wire.ReadFrame(r, maxAnswer)
		if err != nil {
			return err
		}
		var answer pb.Message
		if err := proto.Unmarshal(raw, &answer); err != nil {
			return fmt.Errorf("%w: %w", wire.Malformed, err)
		}
		if answer.Type == pb.Message_PING {
			return nil
		}
	}
	return wire.Errorf(wire.Malformed, "the ping is not answered")
}

func appendMessage(b []byte, msg *pb.Message) ([]byte, error) {
	raw, err := proto.Marshal(msg)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", msg.Type, err)
	}
	return wire.AppendFrame(b, raw), nil
}

// message returns what a is in Kademlia.
func (t *Table) message(a announcement) (*pb.Message, error) {
	if a.value != nil {
		msg := pb.NewMessage(pb.Message_PUT_VALUE, []byte(a.key), 0)
		msg.Record = record.MakePutRecord(a.key, a.value)
		return msg, nil
	}
	self := peer.AddrInfo{ID: t.cfg.Host.ID(), Addrs: t.cfg.Host.Addrs()}
	if len(self.Addrs) == 0 {
		return nil, wire.Errorf(wire.Unreachable, "this node has no address to announce").
			WithHint("set networking.listen or networking.announce")
	}
	msg := pb.NewMessage(pb.Message_ADD_PROVIDER, []byte(a.key), 0)
	msg.ProviderPeers = pb.RawPeerInfosToPBPeers([]peer.AddrInfo{self})
	return msg, nil
}

// Withdraw makes every server that took one of keys forget it. The error joins
// those of servers that could not be asked; their records last until ttl.
func (t *Table) Withdraw(ctx context.Context, keys []cid.Cid) error {
	if err := t.joining(ctx); err != nil {
		return fmt.Errorf("withdraw: %w", err)
	}
	hashes := make([]multihash.Multihash, len(keys))
	for i, k := range keys {
		hashes[i] = k.Hash()
	}
	t.providers.remove(t.cfg.Host.ID(), hashes)
	asked := t.own.remove(keys)
	errs := make(chan error, len(asked))
	for p, keys := range asked {
		go func() {
			_, err := descriptor.Withdraw(ctx, t.cfg.Host, p, t.cfg.Realm, keys)
			errs <- err
		}()
	}
	var all error
	for range asked {
		all = errors.Join(all, <-errs)
	}
	return all
}

// announcements are this node's, and who took them. Safe for concurrent use.
type announcements struct {
	mu   sync.Mutex
	all  map[string]announcement
	took map[string]map[peer.ID]bool // by key
}

func newAnnouncements() *announcements {
	return &announcements{all: make(map[string]announcement), took: make(map[string]map[peer.ID]bool)}
}

func (s *announcements) set(a announcement, took []peer.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[a.key] = a
	for _, p := range took {
		insert(s.took, a.key, p, true)
	}
}

// mark records that p took a, unless a has been withdrawn meanwhile.
func (s *announcements) mark(a announcement, p peer.ID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.all[a.key]; !ok {
		return false
	}
	insert(s.took, a.key, p, true)
	return true
}

// remove forgets keys and returns which server holds which of them.
func (s *announcements) remove(keys []cid.Cid) map[peer.ID][]cid.Cid {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := make(map[peer.ID][]cid.Cid)
	for _, k := range keys {
		h := string(k.Hash())
		for p := range s.took[h] {
			held[p] = append(held[p], k)
		}
		delete(s.all, h)
		delete(s.took, h)
	}
	return held
}

// due returns what server p should be sent now that it is connected: what it
// took before, or everything.
func (s *announcements) due(p peer.ID, everything bool) []announcement {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []announcement
	for _, k := range slices.Sorted(maps.Keys(s.all)) {
		if everything || s.took[k][p] {
			out = append(out, s.all[k])
		}
	}
	return out
}

// resend sends server p, which has just connected, what it should have.
func (t *Table) resend(ctx context.Context, p peer.ID) {
	due := t.own.due(p, t.dht.RoutingTable().Size() < bucket)
	if len(due) == 0 || t.sendTo(ctx, p, due...) != nil {
		return // if it failed, p is gone again
	}
	for _, a := range due {
		if !t.own.mark(a, p) { // withdrawn meanwhile
			_, _ = descriptor.Withdraw(ctx, t.cfg.Host, p, t.cfg.Realm, []cid.Cid{cid.NewCidV1(cid.Raw, multihash.Multihash(a.key))})
		}
	}
}
