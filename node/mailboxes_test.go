package node

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/test"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"

	"openmesh/node/config"
	"openmesh/node/store"
	"openmesh/overlay"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// boxed is the mail of an agent that has mailboxes at two of three relays.
type boxed struct {
	*post
	t      *testing.T
	relays [3]relayInfo
}

func newBoxed(t *testing.T) *boxed {
	t.Helper()
	db, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "openmesh.db"), Owner: "b"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	b := &boxed{t: t}
	for i := range b.relays {
		id, err := test.RandPeerID()
		if err != nil {
			t.Fatal(err)
		}
		b.relays[i] = relayInfo{
			certificate: &identity.Certificate{Peer: id}, services: []string{serviceMailbox}, load: 0.5 + 0.1*float64(i),
			addrs: []ma.Multiaddr{ma.StringCast(fmt.Sprintf("/ip4/192.0.2.%d/tcp/4001", i+1))},
		}
	}
	b.start(&Node{database: db, settings: &config.Config{Mailbox: config.Mailbox{Replicas: 2}}, host: new(overlay.Host), log: zap.NewNop()})
	return b
}

// start begins a life of the node, which knows no relays.
func (b *boxed) start(n *Node) {
	n.relays, n.renew = newRelays(), make(chan struct{}, 1)
	b.post = newPost(n)
	if err := b.boxes.load(b.t.Context(), n.database); err != nil {
		b.t.Fatal(err)
	}
}

func (b *boxed) id(i int) peer.ID { return b.relays[i].certificate.Peer }

// know has the node know just these relays.
func (b *boxed) know(relays ...int) {
	b.n.relays.forget(time.Now().Add(time.Hour))
	for _, i := range relays {
		b.n.relays.put(b.relays[i])
	}
}

// register has all wanted relays give mailboxes.
func (b *boxed) register(lifetime time.Duration) {
	for _, r := range b.wanted() {
		b.registered(r.ID, time.Now().Add(lifetime), nil)
	}
}

func (b *boxed) want(what string, got []peer.ID, want ...int) {
	b.t.Helper()
	var ids []peer.ID
	for _, i := range want {
		ids = append(ids, b.id(i))
	}
	slices.Sort(ids)
	if slices.Sort(got); !slices.Equal(got, ids) {
		b.t.Errorf("%s %v, want those of %v", what, got, want)
	}
}

func ids(infos []peer.AddrInfo) (list []peer.ID) {
	for _, i := range infos {
		list = append(list, i.ID)
	}
	return list
}

// Letters at the relays of before are collected after a restart, though others are
// better by then: also at one that is not known any more, where it was.
func TestMailboxesAfterRestart(t *testing.T) {
	b := newBoxed(t)
	b.know(0, 1)
	b.register(time.Hour)
	b.want("mailboxes at", b.names(), 0, 1)

	b.start(b.n)
	b.want("mailboxes of before at", ids(b.former()), 0, 1)
	b.relays[2].load = 0
	b.know(1, 2)
	b.want("wanted are", ids(b.wanted()), 1, 2)
	b.register(time.Hour)
	b.want("told are", b.names(), 1, 2)
	b.want("collected from are", ids(b.former()), 0, 1, 2)
	for _, r := range b.former() {
		if r.ID == b.id(0) && !slices.ContainsFunc(r.Addrs, b.relays[0].addrs[0].Equal) {
			t.Errorf("the relay that is not known any more is at %v", r.Addrs)
		}
	}

	b.know(0, 1, 2)
	b.want("wanted are the oldest,", ids(b.wanted()), 0, 1)
	b.relays[2].configured = true
	b.know(0, 1, 2)
	b.want("wanted are one of the configuration and the oldest,", ids(b.wanted()), 0, 2)
	if len(b.n.renew) != 1 {
		t.Error("the directory does not learn of the mailboxes")
	}
}

// A relay that is gone for a while is collected from until its registration lapses, or
// it says that it has none.
func TestMailboxesLapse(t *testing.T) {
	b := newBoxed(t)
	b.know(0, 1)
	b.register(time.Hour)
	b.know(1, 2)
	b.register(time.Hour)
	b.registered(b.id(0), time.Time{}, wire.Unreachable)
	b.want("collected from are", ids(b.former()), 0, 1, 2)
	b.registered(b.id(1), time.Time{}, wire.NotFound)
	b.want("without the one that has lost it", ids(b.former()), 0, 2)
	b.registered(b.id(2), time.Now(), nil)
	b.want("without the one that has lapsed", ids(b.former()), 0)
	b.start(b.n)
	b.want("after a restart", ids(b.former()), 0)
	if b.has(b.id(1)) || !b.has(b.id(0)) {
		t.Error("has() does not agree")
	}
}
