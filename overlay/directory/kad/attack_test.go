package kad

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	ds "github.com/ipfs/go-datastore"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	record "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"openmesh/overlay/overlaytest"
	"openmesh/protocols/descriptor"
	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
)

// put sends value to s as it is.
func (n *node) put(ctx context.Context, s *node, key string, value []byte) {
	msg := pb.NewMessage(pb.Message_PUT_VALUE, []byte(key), 0)
	msg.Record = record.MakePutRecord(key, value)
	_, _ = n.dht.MessageSender().SendRequest(ctx, s.host.ID(), msg)
}

// A server stores no value that does not hold, and gives up none for an older
// one.
func TestServerRefusesValues(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		n := newLab(t)
		s := n.server()
		victim, mallory := n.node(Client), n.node(Client)
		byAgent, byAddress := descriptor.AgentKey(victim.agent.Agent), descriptor.AddressKey(victim.agent.Certificate.Address)
		good := victim.record(t, 5, ttl)
		for _, key := range []string{byAgent, byAddress} {
			if err := victim.Put(t.Context(), key, good); err != nil {
				t.Fatal(err)
			}
		}
		older, short := victim.record(t, 4, ttl), victim.record(t, 6, time.Second)
		forged := bytes.Clone(good)
		forged[len(forged)-1] ^= 1
		wait(2 * time.Second)
		for name, value := range map[string][]byte{
			"older sequence":       older,
			"expired":              short,
			"forged":               forged,
			"own record":           mallory.record(t, 9, ttl),
			"own and the victim's": descriptor.Value{mallory.sealed(t, 9, ttl), victim.sealed(t, 5, ttl)}.Marshal(),
			"copied address":       mallory.copied(t, victim.agent),
			"oversize":             make([]byte, descriptor.MaxValue+1),
			"nothing":              nil,
			"a megabyte":           make([]byte, 1<<20),
		} {
			for _, key := range []string{byAgent, byAddress} {
				mallory.put(t.Context(), s, key, value)
				rec, err := s.store.Get(t.Context(), key)
				if err != nil || rec == nil || !bytes.Equal(rec.Value, good) {
					t.Errorf("%s under %s replaced the victim's record", name, key)
				}
			}
		}
		mallory.put(t.Context(), s, "/pk/"+string(mallory.host.ID()), []byte("x"))
		mallory.put(t.Context(), s, "/openmesh/000000000000", mallory.record(t, 1, ttl))
		if _, values := s.stored(); values != 2 {
			t.Errorf("%d values stored, want the victim's two", values)
		}
	})
}

// copied returns a record under the victim's address, with a certificate that
// claims the victim's nonce for mallory's own root key.
func (n *node) copied(t *testing.T, victim *protocoltest.Agent) []byte {
	c := *n.agent.Certificate
	c.Nonce, c.Address = victim.Certificate.Nonce, victim.Certificate.Address
	c.Raw = n.agent.UncheckedCertificate(t, c)
	c.Agent = victim.Agent
	r := n.sealed(t, 9, ttl)
	r.Body.Address, r.Body.Certificate = c.Address.String(), c.Raw
	sealed, err := descriptor.SealRecord(n.agent.Host, &c, r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return descriptor.Value{sealed}.Marshal()
}

// Two agents that prove one address are both kept, whoever comes first, on every
// server alike. A real collision costs 2^68 hashes, so here a value's text is
// the agents it has.
func TestMergeKeepsBothProofs(t *testing.T) {
	t.Parallel()
	v := validator{func(_ string, text []byte) (out descriptor.Value, err error) {
		for _, b := range text {
			out = append(out, &descriptor.Record{Certificate: &identity.Certificate{Agent: identity.AgentID(b)}, Body: new(descriptorpb.AgentRecord), Raw: []byte{b}})
		}
		if len(out) == 0 {
			err = fmt.Errorf("empty")
		}
		return out, err
	}}
	both := descriptor.Value{{Raw: []byte("a")}, {Raw: []byte("b")}}.Marshal()
	for _, tc := range []struct{ old, new string }{{"a", "b"}, {"b", "a"}, {"ab", "a"}, {"ab", "b"}, {"ab", "c"}} {
		if got := v.merge("", []byte(tc.old), []byte(tc.new)); !bytes.Equal(got, both) {
			t.Errorf("merge(%q, %q) = %q; want both", tc.old, tc.new, got)
		}
	}
	if got := v.merge("", nil, []byte("a")); string(got) != "a" {
		t.Errorf("merge(nothing, a) = %q", got)
	}
	if i, err := v.Select("", [][]byte{[]byte("a"), []byte("ab"), nil, []byte("b")}); i != 1 || err != nil {
		t.Errorf("Select = %d, %v; want the value with both", i, err)
	}
}

// 10,000 junk announcements from one peer take as much room as one agent may.
func TestJunkIsBounded(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		n := newLab(t)
		s := n.server()
		mallory, honest := n.node(Client), n.node(Client)
		wait(5 * time.Second)
		before := heap()
		junk := 10_000
		if testing.Short() || overlaytest.RaceEnabled {
			junk = 1000
		}
		for i := range junk {
			key := make([]byte, 32)
			rand.Read(key)
			err := mallory.sendTo(t.Context(), s.host.ID(), announcement{key: "\x12\x20" + string(key)})
			if (err == nil) != (i < maxPerProvider) {
				t.Fatalf("announcement %d: %v", i, err)
			}
			if i%100 == 0 {
				mallory.put(t.Context(), s, "/openmesh/"+string(key), make([]byte, 8<<10))
			}
		}
		if records, values := s.stored(); records != maxPerProvider || values != 0 {
			t.Errorf("%d records and %d values stored", records, values)
		}
		if grown := heap() - before; grown > 16<<20 {
			t.Errorf("memory grew by %d bytes", grown)
		}
		err := honest.Provide(t.Context(), fx)
		if got := s.finds(t, fx); err != nil || len(got) != 1 {
			t.Errorf("an honest announcement: %v, found %v", err, got)
		}
	})
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Keys that are no capability keys, and providers without an address, are not
// stored.
func TestOddAnnouncements(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		n := newLab(t)
		s := n.server()
		mallory, victim := n.node(Client), n.node(Client)
		wait(5 * time.Second)
		for _, key := range []string{"x", sink, string(bytes.Repeat([]byte{7}, 80)), "\x12\x20short"} {
			if err := mallory.sendTo(t.Context(), s.host.ID(), announcement{key: key}); err == nil {
				t.Errorf("key %x is taken", key)
			}
		}
		for _, pi := range []peer.AddrInfo{{ID: mallory.host.ID()}, overlaytest.Info(victim.host)} {
			msg := pb.NewMessage(pb.Message_ADD_PROVIDER, fx.Hash(), 0)
			msg.ProviderPeers = pb.RawPeerInfosToPBPeers([]peer.AddrInfo{pi})
			_ = mallory.dht.MessageSender().SendMessage(t.Context(), s.host.ID(), msg)
		}
		wait(time.Second)
		if records, _ := s.stored(); records != 0 {
			t.Errorf("%d records stored", records)
		}
	})
}

// A server that makes up providers does not hide those that others know.
func TestMadeUpProviders(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		n := newLab(t)
		liar, honest := n.server(), n.server()
		seller, buyer := n.node(Client), n.node(Client)
		if err := seller.Provide(t.Context(), fx); err != nil {
			t.Fatal(err)
		}
		if err := seller.Withdraw(t.Context(), []cid.Cid{fx}); err != nil { // at both; only honest gets it back
			t.Fatal(err)
		}
		honest.providers.add(seller.host.ID(), string(fx.Hash()), time.Now())
		for i := range 2000 {
			liar.providers.add(peer.ID(fmt.Sprintf("\x12\x20%032d", i)), string(fx.Hash()), time.Now())
		}
		const limit = 64
		found := 0
		ch, err := buyer.Providers(t.Context(), fx, limit)
		if err != nil {
			t.Fatal(err)
		}
		for range ch {
			found++
		}
		if found <= limit || found > 2*limit {
			t.Errorf("%d providers found; want the limit and the servers' shares", found)
		}
		shares := make(map[peer.ID]bool)
		for pi := range buyer.fairShare(t.Context(), fx, limit) {
			shares[pi.ID] = true
		}
		if !shares[seller.host.ID()] || len(shares) > limit/2+1 {
			t.Errorf("seller found: %v, among %d", shares[seller.host.ID()], len(shares))
		}
	})
}

// Even values that hold may be put only so fast.
func TestPutRate(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		n := newLab(t)
		s := n.server()
		mallory := n.node(Client)
		wait(time.Second)
		key, taken := descriptor.AgentKey(mallory.agent.Agent), 0
		start := time.Now()
		for i := range 3 * putBurst {
			if mallory.sendTo(t.Context(), s.host.ID(), announcement{key, mallory.record(t, uint64(i+1), ttl)}) == nil {
				taken++
			}
		}
		if most := putBurst + putRate*int(time.Since(start)/time.Second+1); taken < putBurst || taken > most {
			t.Errorf("%d puts taken within %v, want %d to %d", taken, time.Since(start), putBurst, most)
		}
	})
}

// Garbage on any protocol costs its sender the stream; the server goes on.
func TestGarbage(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		n := newLab(t)
		s := n.server()
		mallory, honest := n.node(Client), n.node(Client)
		wait(time.Second)
		for _, id := range []protocol.ID{Protocol(realm), descriptor.WithdrawProtocol(realm)} {
			for _, junk := range [][]byte{{}, {0}, {5, 0xff, 0xff, 0xff, 0xff, 0xff}, bytes.Repeat([]byte{0xff}, 1<<16)} {
				st, err := mallory.host.NewStream(t.Context(), s.host.ID(), id)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = st.Write(junk)
				_ = st.CloseWrite()
				buf := make([]byte, 64)
				for k := 0; err == nil; k, err = st.Read(buf) {
					if k > 16 {
						t.Errorf("%s answered %d bytes to %x", id, k, junk[:min(len(junk), 8)])
					}
				}
			}
		}
		if err := honest.Provide(t.Context(), fx); err != nil || len(honest.finds(t, fx)) != 1 {
			t.Errorf("after garbage: %v", err)
		}
	})
}

// The table's bounds, and who gives way.
func TestProviderBounds(t *testing.T) {
	t.Parallel()
	now := time.Now()
	s := newProviders(ttl)
	for i := range maxProviders + 10 {
		s.add(peer.ID(fmt.Sprint("rich", i/maxPerProvider)), fmt.Sprint("key", i), now)
	}
	if s.total != maxProviders {
		t.Errorf("%d records, the bound is %d", s.total, maxProviders)
	}
	if !s.add("poor", "key", now) || s.total != maxProviders || len(s.byPeer["poor"]) != 1 {
		t.Error("who has little finds no room")
	}
	crowd := newProviders(ttl)
	for i := range maxPerKey + 10 {
		crowd.add(peer.ID(fmt.Sprint(i)), "key", now.Add(time.Duration(i)))
	}
	if len(crowd.byKey["key"]) != maxPerKey || len(crowd.byPeer["0"]) != 0 {
		t.Errorf("%d providers of one key; the bound is %d, the oldest go", len(crowd.byKey["key"]), maxPerKey)
	}
}

func TestValueBounds(t *testing.T) {
	t.Parallel()
	s := newValues(ttl)
	n := maxValueBytes/(1<<20) + 5
	for i := range n {
		_ = s.Put(t.Context(), ds.NewKey(fmt.Sprint(i)), make([]byte, 1<<20))
	}
	if s.bytes > maxValueBytes {
		t.Errorf("%d bytes, the bound is %d", s.bytes, maxValueBytes)
	}
	if _, err := s.Get(t.Context(), ds.NewKey(fmt.Sprint(0))); err == nil {
		t.Error("the oldest is still there")
	}
	if _, err := s.Get(t.Context(), ds.NewKey(fmt.Sprint(n-1))); err != nil {
		t.Errorf("the newest: %v", err)
	}
	s.expire(time.Now().Add(ttl + time.Second))
	if s.bytes != 0 || len(s.index) != 0 {
		t.Errorf("%d bytes after all have expired", s.bytes)
	}
}

func TestBudget(t *testing.T) {
	t.Parallel()
	b := newBudget()
	allowed := 0
	for range 10 * putBurst {
		if b.allow("mallory") {
			allowed++
		}
	}
	if allowed < putBurst || allowed > 2*putBurst {
		t.Errorf("%d puts at once, the burst is %d", allowed, putBurst)
	}
	for i := range 2 * maxPeers {
		b.allow(peer.ID(fmt.Sprint(i)))
	}
	if len(b.peers) > maxPeers {
		t.Errorf("%d limiters, the bound is %d", len(b.peers), maxPeers)
	}
}
