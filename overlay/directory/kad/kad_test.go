package kad

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"openmesh/overlay/overlaytest"
	"openmesh/protocols/descriptor"
	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/wire"
)

const (
	realm = identity.FirstPrivateRealm
	ttl   = time.Hour
)

// node is an agent and its table.
type node struct {
	*Table
	agent *protocoltest.Agent
	host  host.Host
	stop  func()
}

// lab is where nodes are; those in servers are the bootstrap list.
type lab struct {
	t   *testing.T
	net *overlaytest.Net

	mu      sync.Mutex
	servers []peer.AddrInfo
}

func (n *lab) bootstrap() []peer.AddrInfo {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.servers)
}

func newLab(t *testing.T) *lab {
	return &lab{t: t, net: overlaytest.NewNet(t, overlaytest.Latency)}
}

func (n *lab) node(mode Mode) *node {
	a := protocoltest.NewAgent(n.t, realm, time.Now())
	h := n.net.Host(libp2p.Identity(a.Host))
	return n.run(a, h, mode)
}

func (n *lab) server() *node {
	s := n.node(Server)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.servers = append(n.servers, overlaytest.Info(s.host))
	return s
}

func (n *lab) run(a *protocoltest.Agent, h host.Host, mode Mode) *node {
	t := New(Config{
		Host: h, Realm: realm, Verifier: identity.NewVerifier(realm, time.Now), Mode: mode, TTL: ttl,
		Bootstrap: n.bootstrap, Log: zap.NewNop(),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := t.Run(ctx); err != nil {
			n.t.Errorf("Run: %v", err)
		}
	}()
	x := &node{Table: t, agent: a, host: h, stop: func() { cancel(); <-done }}
	n.t.Cleanup(x.stop)
	return x
}

func (n *node) finds(t *testing.T, key cid.Cid) []peer.ID {
	t.Helper()
	ch, err := n.Providers(t.Context(), key, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out []peer.ID
	for pi := range ch {
		out = append(out, pi.ID)
	}
	return out
}

// record returns a value for the agent's keys.
func (n *node) record(t *testing.T, sequence uint64, life time.Duration) []byte {
	return descriptor.Value{n.sealed(t, sequence, life)}.Marshal()
}

func (n *node) sealed(t *testing.T, sequence uint64, life time.Duration) *descriptor.Record {
	t.Helper()
	r, err := descriptor.SealRecord(n.agent.Host, n.agent.Certificate, &descriptorpb.AgentRecord{
		Sequence: sequence, Issued: time.Now().Unix(), Expires: time.Now().Add(life).Unix(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// stored returns how much n stores.
func (n *node) stored() (records, values int) {
	n.providers.mu.Lock()
	defer n.providers.mu.Unlock()
	n.values.mu.Lock()
	defer n.values.mu.Unlock()
	return n.providers.total, len(n.values.index)
}

func wait(d time.Duration) { <-time.After(d) }

var fx = descriptor.Key("finance/fx-pricing")

func TestProvideAndWithdraw(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		n := newLab(t)
		s1, s2 := n.server(), n.server()
		seller, buyer := n.node(Client), n.node(Client)
		if err := seller.Provide(t.Context(), fx); err != nil {
			t.Fatal(err)
		}
		for _, x := range []*node{s1, s2, buyer} {
			if got := x.finds(t, fx); !slices.Equal(got, []peer.ID{seller.host.ID()}) {
				t.Errorf("found %v, want %s", got, seller.host.ID())
			}
		}
		if err := seller.Withdraw(t.Context(), []cid.Cid{fx}); err != nil {
			t.Fatal(err)
		}
		for _, x := range []*node{s1, s2, buyer, seller} {
			if got := x.finds(t, fx); len(got) != 0 {
				t.Errorf("found %v after the withdrawal", got)
			}
		}
	})
}

// Nobody withdraws for another.
func TestWithdrawOfAnother(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		n := newLab(t)
		s := n.server()
		seller, mallory := n.node(Client), n.node(Client)
		if err := seller.Provide(t.Context(), fx); err != nil {
			t.Fatal(err)
		}
		wait(time.Second)
		count, err := descriptor.Withdraw(t.Context(), mallory.host, s.host.ID(), realm, []cid.Cid{fx})
		if count != 0 || err != nil || len(mallory.finds(t, fx)) != 1 {
			t.Errorf("mallory's withdrawal: %d, %v", count, err)
		}
	})
}

func TestRegistrationExpires(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		n := newLab(t)
		s := n.server()
		seller := n.node(Client)
		if err := seller.Provide(t.Context(), fx); err != nil {
			t.Fatal(err)
		}
		seller.stop()
		wait(ttl - time.Minute)
		if len(s.finds(t, fx)) != 1 {
			t.Error("gone before its time")
		}
		wait(2 * time.Minute)
		if len(s.finds(t, fx)) != 0 {
			t.Error("there after its time")
		}
		wait(ttl / 8)
		if records, _ := s.stored(); records != 0 {
			t.Errorf("%d records are still in memory", records)
		}
	})
}

// A server that has been told of no other is a directory by itself.
func TestAlone(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		n := newLab(t)
		s := n.node(Server)
		key := descriptor.AgentKey(s.agent.Agent)
		if _, err := s.Search(t.Context(), key); !errors.Is(err, wire.NotFound) {
			t.Errorf("Search = %v; want not_found", err)
		}
		value := s.record(t, 1, ttl)
		if err := errors.Join(s.Provide(t.Context(), fx), s.Put(t.Context(), key, value)); err != nil {
			t.Fatal(err)
		}
		got, err := s.Search(t.Context(), key)
		if err != nil || !slices.Equal(got, value) || len(s.finds(t, fx)) != 1 {
			t.Errorf("Search = %x, %v", got, err)
		}
		if _, lost, _ := s.Reach(); !lost.IsZero() {
			t.Errorf("lost since %v", lost)
		}
	})
}

func TestNoServer(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		n := newLab(t)
		c := n.node(Client)
		_, perr := c.Providers(t.Context(), fx, 0)
		_, serr := c.Search(t.Context(), descriptor.AgentKey(c.agent.Agent))
		for _, err := range []error{perr, serr, c.Provide(t.Context(), fx)} {
			if !errors.Is(err, wire.Unreachable) {
				t.Errorf("error %v; want unreachable", err)
			}
		}
		if _, lost, why := c.Reach(); lost.IsZero() || why == nil {
			t.Errorf("Reach = %v, %v; want a loss and a reason", lost, why)
		}
	})
}

// A server that restarts has forgotten everything. Those who announced to it
// tell it again as soon as it is back.
func TestServerRestarts(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		n := newLab(t)
		s := n.server()
		seller, buyer := n.node(Client), n.node(Client)
		key, value := descriptor.AgentKey(seller.agent.Agent), seller.record(t, 1, ttl)
		if err := errors.Join(seller.Provide(t.Context(), fx), seller.Put(t.Context(), key, value)); err != nil {
			t.Fatal(err)
		}
		s.stop()
		for _, p := range s.host.Network().Peers() {
			s.host.Network().ClosePeer(p)
		}
		n.run(s.agent, s.host, Server)
		wait(40 * time.Second)
		if got := buyer.finds(t, fx); len(got) != 1 {
			t.Errorf("found %v, want the seller", got)
		}
		if got, err := buyer.Search(t.Context(), key); err != nil || !slices.Equal(got, value) {
			t.Errorf("Search = %x, %v", got, err)
		}
	})
}

// A second server that joins later is told what the first was.
func TestServerJoinsLater(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		n := newLab(t)
		n.server()
		seller := n.node(Client)
		if err := seller.Provide(t.Context(), fx); err != nil {
			t.Fatal(err)
		}
		late := n.server()
		if err := seller.host.Connect(t.Context(), overlaytest.Info(late.host)); err != nil {
			t.Fatal(err)
		}
		wait(5 * time.Second)
		if records, _ := late.stored(); records != 1 {
			t.Errorf("the late server has %d records, want the seller's", records)
		}
	})
}

// While no server answers, the node knows since when, and finds back by itself;
// also to a server that is listed only later.
func TestPartition(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		n := newLab(t)
		s := n.server()
		c := n.node(Client)
		wait(10 * time.Second)
		if _, lost, _ := c.Reach(); !lost.IsZero() {
			t.Fatalf("lost since %v", lost)
		}
		n.net.Cut(s.host, true)
		cut := time.Now()
		wait(20 * time.Second)
		if _, lost, _ := c.Reach(); lost.IsZero() || lost.Sub(cut) > 3*checkEvery {
			t.Errorf("cut at %v, lost since %v", cut, lost)
		}
		n.server() // a new one
		wait(maxRetry*3/2 + dialTimeout + pingTimeout*pingTries)
		if servers, lost, why := c.Reach(); !lost.IsZero() {
			t.Errorf("%d servers, still lost since %v: %v", servers, lost, why)
		}
	})
}
