package forward

import (
	"bytes"
	"crypto/hpke"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/forward/forwardpb"
	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/wire"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// host is a hop with its secret.
type host struct {
	Hop
	private hpke.PrivateKey
}

func newHost(t testing.TB) host {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	check(t, err)
	id, err := peer.IDFromPrivateKey(key)
	check(t, err)
	addr, err := ma.NewMultiaddr("/ip4/192.0.2.7/udp/4001/quic-v1")
	check(t, err)
	return newHostAt(t, id, addr)
}

func newHostAt(t testing.TB, id peer.ID, addrs ...ma.Multiaddr) host {
	t.Helper()
	private, err := identity.MailboxKEM.GenerateKey()
	check(t, err)
	return host{Hop{Peer: id, Addrs: addrs, KEM: identity.MailboxKEM.ID(), Key: private.PublicKey().Bytes()}, private}
}

func (h host) open(envelope []byte) (*opened, error) {
	return openEnvelope([]hpke.PrivateKey{h.private}, h.Peer, envelope)
}

// chain makes relays and a target, and the path over them.
func chain(t testing.TB, relays int) ([]host, Path) {
	var hosts []host
	var p Path
	for range relays + 1 {
		hosts = append(hosts, newHost(t))
	}
	for _, h := range hosts[:relays] {
		p.Hops = append(p.Hops, h.Hop)
	}
	p.Target = hosts[relays].Hop
	return hosts, p
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Each hop of a chain of any length opens an envelope of the same size, learns the
// next hop and nothing behind it, and shares its keys with the source alone.
func TestEveryHopOpensItsLayer(t *testing.T) {
	t.Parallel()
	for relays := range MaxHops + 1 {
		t.Run(fmt.Sprint(relays), func(t *testing.T) {
			t.Parallel()
			hosts, p := chain(t, relays)
			envelope, shared, err := newEnvelope(p, "/inner/1", noon)
			check(t, err)
			for i, h := range hosts {
				if len(envelope) != EnvelopeSize {
					t.Fatalf("hop %d has an envelope of %d bytes", i+1, len(envelope))
				}
				checkNoise(t, envelope)
				o, err := h.open(envelope)
				check(t, err)
				check(t, o.err)
				check(t, o.fresh(noon))
				if *o.keys != *shared[i] {
					t.Errorf("hop %d and the source have different keys", i+1)
				}
				if i == relays {
					if o.next != "" || o.protocol != "/inner/1" || o.envelope != nil {
						t.Errorf("the target has %+v", o.layer)
					}
					return
				}
				if o.next != hosts[i+1].Peer || !slices.EqualFunc(o.addrs, hosts[i+1].Addrs, ma.Multiaddr.Equal) || o.protocol != "" {
					t.Errorf("hop %d has %+v", i+1, o.layer)
				}
				envelope = o.envelope
			}
		})
	}
}

// checkNoise fails if b is not like random bytes: padding that is not would tell a
// hop how much of its envelope is in use.
func checkNoise(t *testing.T, b []byte) {
	t.Helper()
	for i := 0; i+slotSize <= len(b); i += slotSize / 4 {
		var counts [256]int
		for _, c := range b[i : i+slotSize] {
			counts[c]++
		}
		if n := slices.Max(counts[:]); n > 60 { // 8 are expected
			t.Errorf("one byte is there %d times from %d on", n, i)
		}
	}
}

func TestEnvelopeOfAnother(t *testing.T) {
	t.Parallel()
	hosts, p := chain(t, 2)
	envelope, _, err := newEnvelope(p, "/inner/1", noon)
	check(t, err)
	other, _, err := newEnvelope(p, "/inner/1", noon)
	check(t, err)
	flip := func(at int) []byte {
		b := bytes.Clone(envelope)
		b[at] ^= 1
		return b
	}
	stranger := newHost(t)
	for name, tc := range map[string]struct {
		envelope []byte
		host     host
	}{
		"another host":                              {envelope, hosts[1]},
		"another key":                               {envelope, host{hosts[0].Hop, stranger.private}},
		"the key of another host":                   {envelope, host{stranger.Hop, hosts[0].private}},
		"encapsulation changed":                     {flip(0), hosts[0]},
		"layer changed":                             {flip(encSize), hosts[0]},
		"next slot changed":                         {flip(slotSize), hosts[0]},
		"padding changed":                           {flip(EnvelopeSize - 1), hosts[0]},
		"slot of one path with the rest of another": {append(bytes.Clone(envelope[:slotSize]), other[slotSize:]...), hosts[0]},
		"encapsulation of another":                  {append(bytes.Clone(other[:encSize]), envelope[encSize:]...), hosts[0]},
		"noise":                                     {make([]byte, EnvelopeSize), hosts[0]},
	} {
		if _, err := tc.host.open(tc.envelope); !errors.Is(err, wire.Unauthenticated) {
			t.Errorf("%s: %v, want %v", name, err, wire.Unauthenticated)
		}
	}
	if o, err := openEnvelope([]hpke.PrivateKey{stranger.private, hosts[0].private}, hosts[0].Peer, envelope); err != nil || o.err != nil {
		t.Errorf("with the second of two keys: %v", err)
	}
}

// What two hops hold of one path has nothing in common by which they could tell
// that it is one.
func TestLayersAreUnlinkable(t *testing.T) {
	t.Parallel()
	hosts, p := chain(t, MaxHops)
	envelope, shared, err := newEnvelope(p, "/inner/1", noon)
	check(t, err)
	seen := make(map[string]bool)
	for i, h := range hosts {
		for at := 0; at+16 <= len(envelope); at++ {
			part := string(envelope[at : at+16])
			if seen[part] {
				t.Fatalf("hop %d has 16 bytes that a hop before it had", i+1)
			}
			seen[part] = true
		}
		o, err := h.open(envelope)
		check(t, err)
		if seen[string(shared[i].path[:])] {
			t.Errorf("hop %d has the path id of another", i+1)
		}
		seen[string(shared[i].path[:])] = true
		envelope = o.envelope
	}
}

func TestPathsThatCannotBe(t *testing.T) {
	t.Parallel()
	_, good := chain(t, MaxHops)
	for name, tc := range map[string]struct {
		change func(*Path)
		want   wire.Code
	}{
		"no relay":              {func(p *Path) { p.Hops = nil }, wire.InvalidArgument},
		"five relays":           {func(p *Path) { p.Hops = append(p.Hops, newHost(t).Hop) }, wire.InvalidArgument},
		"a relay twice":         {func(p *Path) { p.Hops[3] = p.Hops[0] }, wire.InvalidArgument},
		"the target is a relay": {func(p *Path) { p.Target = p.Hops[1] }, wire.InvalidArgument},
		"no peer id":            {func(p *Path) { p.Hops[0].Peer = "" }, wire.InvalidArgument},
		"a KEM of tomorrow":     {func(p *Path) { p.Hops[2].KEM = 0x9999 }, wire.Unsupported},
		"half a key":            {func(p *Path) { p.Target.Key = p.Target.Key[:100] }, wire.InvalidArgument},
	} {
		p := Path{Hops: slices.Clone(good.Hops), Target: good.Target}
		tc.change(&p)
		if _, err := Dial(t.Context(), nil, p, "/inner/1"); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	if _, err := Dial(t.Context(), nil, good, ""); !errors.Is(err, wire.InvalidArgument) {
		t.Errorf("no protocol: %v", err)
	}
}

func TestHopOfCertificate(t *testing.T) {
	t.Parallel()
	c := protocoltest.NewAgent(t, identity.FirstPrivateRealm, noon).Certificate
	h := HopOf(c, nil)
	if _, err := h.key(); err != nil || h.Peer != c.Peer {
		t.Errorf("HopOf = %+v, %v", h, err)
	}
}

func TestLayersThatCannotBe(t *testing.T) {
	t.Parallel()
	id := []byte(newHost(t).Peer)
	for name, m := range map[string]*forwardpb.Layer{
		"neither":            {Expires: 1},
		"both":               {Next: id, Protocol: "/x"},
		"no peer id":         {Next: []byte("x")},
		"no address":         {Next: id, Addrs: [][]byte{{0xff}}},
		"too many addresses": {Next: id, Addrs: make([][]byte, MaxAddrs+1)},
		"long protocol":      {Protocol: string(make([]byte, maxProtocol+1))},
	} {
		body, err := proto.Marshal(m)
		check(t, err)
		b := make([]byte, layerSize)
		b[0], b[1] = byte(len(body)>>8), byte(len(body))
		copy(b[2:], body)
		if _, err := parseLayer(b); !errors.Is(err, wire.Malformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := parseLayer(bytes.Repeat([]byte{0xff}, layerSize)); !errors.Is(err, wire.Malformed) {
		t.Errorf("a length beyond the layer: %v", err)
	}
}

// A hop with more addresses than travel keeps its first ones.
func TestAddressesThatDoNotFit(t *testing.T) {
	t.Parallel()
	long, err := ma.NewMultiaddr("/dns4/" + string(bytes.Repeat([]byte("a"), 300)) + "/tcp/1")
	check(t, err)
	h := newHost(t)
	h.Addrs = append(h.Addrs, slices.Repeat([]ma.Multiaddr{long}, 9)...)
	b, err := layer{expires: noon, next: h.Peer, addrs: h.Addrs}.marshal()
	check(t, err)
	l, err := parseLayer(b)
	check(t, err)
	if len(b) != layerSize || len(l.addrs) != 4 || !l.addrs[0].Equal(h.Addrs[0]) {
		t.Errorf("%d addresses in %d bytes", len(l.addrs), len(b))
	}
}

func TestFresh(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		expires time.Duration
		ok      bool
	}{
		{-identity.ClockSkew - time.Second, false},
		{-identity.ClockSkew, true},
		{0, true},
		{MaxLife + identity.ClockSkew, true},
		{MaxLife + identity.ClockSkew + time.Second, false},
	} {
		if err := (layer{expires: noon.Add(tc.expires)}).fresh(noon); (err == nil) != tc.ok {
			t.Errorf("expires in %v: %v", tc.expires, err)
		}
	}
}

func BenchmarkEnvelope(b *testing.B) {
	hosts, p := chain(b, 3)
	b.Run("make", func(b *testing.B) {
		for b.Loop() {
			_, _, err := newEnvelope(p, "/inner/1", noon)
			check(b, err)
		}
	})
	b.Run("open", func(b *testing.B) {
		envelope, _, err := newEnvelope(p, "/inner/1", noon)
		check(b, err)
		for b.Loop() {
			_, err := hosts[0].open(envelope)
			check(b, err)
		}
	})
}
