package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"

	"openmesh/node/store"
	"openmesh/protocols/wire"
)

// boxes are the mailboxes that relays have given this agent, until they lapse. They
// outlive the process, and that a relay is not known for a while: letters may wait at
// any of them. Safe for concurrent use.
type boxes struct {
	mu  sync.Mutex
	all map[peer.ID]box
}

// box is a mailbox at one relay.
type box struct {
	Addrs   []string  `json:"addrs"` // of the relay
	Since   time.Time `json:"since"`
	Expires time.Time `json:"expires"`
}

func newBoxes() *boxes { return &boxes{all: make(map[peer.ID]box)} }

const (
	boxBucket = "mailboxes"     // documents: box by peer id of the relay
	boxTime   = 5 * time.Second // to store one
)

// load takes up what was stored. With an error it is not all.
func (b *boxes) load(ctx context.Context, db *store.Store) error {
	stored, failed := db.List(ctx, boxBucket)
	all := make(map[peer.ID]box)
	for name, document := range stored {
		var one box
		relay, err := peer.Decode(name)
		if err == nil {
			err = json.Unmarshal(document, &one)
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("mailbox at %s: %w", name, err))
			continue
		}
		all[relay] = one
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all = all
	return failed
}

// put adds the mailbox at relay, or renews it.
func (b *boxes) put(ctx context.Context, db *store.Store, relay peer.ID, addrs []ma.Multiaddr, expires time.Time) error {
	document, err := json.Marshal(b.set(relay, addrs, expires))
	if err != nil {
		return err
	}
	return db.Put(ctx, boxBucket, relay.String(), document)
}

func (b *boxes) set(relay peer.ID, addrs []ma.Multiaddr, expires time.Time) box {
	b.mu.Lock()
	defer b.mu.Unlock()
	one, ok := b.all[relay]
	if !ok {
		one.Since = time.Now()
	}
	if one.Expires = expires; len(addrs) > 0 {
		one.Addrs = nil
		for _, a := range addrs[:min(len(addrs), maxBoxAddrs)] {
			one.Addrs = append(one.Addrs, a.String())
		}
	}
	b.all[relay] = one
	return one
}

// drop forgets the mailboxes at relays.
func (b *boxes) drop(ctx context.Context, db *store.Store, relays ...peer.ID) (err error) {
	b.mu.Lock()
	for _, relay := range relays {
		delete(b.all, relay)
	}
	b.mu.Unlock()
	for _, relay := range relays {
		err = errors.Join(err, db.Delete(ctx, boxBucket, relay.String()))
	}
	return err
}

// list returns the relays with a mailbox that has not lapsed, the oldest first.
func (b *boxes) list(now time.Time) []peer.ID {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := slices.Collect(maps.Keys(b.all))
	old = slices.DeleteFunc(old, func(id peer.ID) bool { return !now.Before(b.all[id].Expires) })
	slices.SortFunc(old, func(x, y peer.ID) int {
		return cmp.Or(b.all[x].Since.Compare(b.all[y].Since), cmp.Compare(x, y))
	})
	return old
}

// lapsed returns the relays whose mailbox has lapsed.
func (b *boxes) lapsed(now time.Time) (gone []peer.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, one := range b.all {
		if !now.Before(one.Expires) {
			gone = append(gone, id)
		}
	}
	return gone
}

// addrs are those that relay had when it gave the mailbox.
func (b *boxes) addrs(relay peer.ID) (addrs []ma.Multiaddr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.all[relay].Addrs {
		if a, err := ma.NewMultiaddr(s); err == nil {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// boxNames is what the directory says of this agent's mailboxes.
func (p *post) boxNames() []string {
	var names []string
	for _, id := range p.names() {
		info, ok := p.n.relays.of(id)
		if !ok {
			continue
		}
		for _, a := range info.addrs[:min(len(info.addrs), maxBoxAddrs)] {
			names = append(names, a.String()+"/p2p/"+id.String())
		}
	}
	return names
}

// names are the relays where this agent wants a mailbox and has one. One that fails
// stays among them while it is known: it may hold letters.
func (p *post) names() (names []peer.ID) {
	have := p.boxes.list(time.Now())
	for _, r := range p.wanted() {
		if slices.Contains(have, r.ID) {
			names = append(names, r.ID)
		}
	}
	return names
}

// has reports whether this agent has a mailbox at a relay.
func (p *post) has(relay peer.ID) bool {
	return slices.Contains(p.boxes.list(time.Now()), relay)
}

// wanted are the relays to have mailboxes at: those of the configuration, then those
// that have one already, the oldest first, then the best.
func (p *post) wanted() []peer.AddrInfo {
	all := p.n.relays.with(serviceMailbox)
	have := p.boxes.list(time.Now())
	held := p.n.host.Relays()
	rank := func(i relayInfo) (n int) {
		id := i.certificate.Peer
		if n = slices.Index(have, id); n < 0 {
			n = len(have)
			if !slices.Contains(held, id) {
				n++
			}
		}
		if !i.configured {
			n += len(have) + 2
		}
		return n
	}
	slices.SortStableFunc(all, func(a, b relayInfo) int { return rank(a) - rank(b) })
	var list []peer.AddrInfo
	for _, i := range all[:min(len(all), p.n.settings.Mailbox.Replicas)] {
		list = append(list, peer.AddrInfo{ID: i.certificate.Peer, Addrs: i.addrs})
	}
	return list
}

// former are the relays where this agent has a mailbox, known at present or not: the
// newest first, for those have the most time left.
func (p *post) former() (list []peer.AddrInfo) {
	have := p.boxes.list(time.Now())
	slices.Reverse(have)
	for _, id := range have {
		info := peer.AddrInfo{ID: id, Addrs: p.boxes.addrs(id)}
		if known, ok := p.n.relays.of(id); ok {
			info.Addrs = known.addrs
		}
		list = append(list, info)
	}
	return list
}

// registered hears until when a relay has given this agent a mailbox, or that it has
// not.
func (p *post) registered(relay peer.ID, expires time.Time, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), boxTime)
	defer cancel()
	var stored error
	if err == nil {
		info, _ := p.n.relays.of(relay)
		stored = p.boxes.put(ctx, p.n.database, relay, info.addrs, expires)
		p.n.announceAgain()
	}
	gone := p.boxes.lapsed(time.Now())
	if errors.Is(err, wire.NotFound) {
		gone = append(gone, relay)
	}
	if stored = errors.Join(stored, p.boxes.drop(ctx, p.n.database, gone...)); stored != nil {
		p.n.log.Warn("where this agent has mailboxes is not stored: after a restart letters may stay there", zap.Error(stored))
	}
}
