package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/descriptor"
	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/session"
	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/signal"
	"openmesh/protocols/signal/signalpb"
	"openmesh/protocols/stream"
	"openmesh/protocols/wire"
)

// Attackers come from an address of their own, as on a real network: limits per IP
// must not hit those who are elsewhere.
const (
	here      = "/ip4/127.0.0.1/tcp/0"
	elsewhere = "/ip4/127.0.0.2/tcp/0"
)

// siege is a node under attack and an honest one that works with it all the while.
type siege struct {
	target, honest *running
	goroutines     int
	heap           uint64
	logged         int

	stop    context.CancelFunc
	calling sync.WaitGroup
	calls   atomic.Int64
	failed  atomic.Pointer[error]
}

// newSiege starts both nodes. Flags are further ones of the target.
func newSiege(t *testing.T, flags map[string]string) *siege {
	t.Helper()
	all := map[string]string{"node.roles": "backbone"}
	maps.Copy(all, flags)
	s := &siege{target: startAs(t, all)}
	s.honest = start(t, s.target)
	s.target.offerEcho(t)
	check(t, s.honest.call(t.Context(), s.target))
	s.goroutines, s.heap = settled()
	s.logged = s.target.logs.Len()
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.calling.Go(func() {
		for ctx.Err() == nil {
			if err := s.honest.call(context.WithoutCancel(ctx), s.target); err != nil {
				s.failed.CompareAndSwap(nil, &err)
			}
			s.calls.Add(1)
			<-time.After(5 * time.Millisecond)
		}
	})
	return s
}

// settled is usage once nothing starts any more: a node is ready before all of it runs.
func settled() (goroutines int, heap uint64) {
	for same := 0; same < 5; <-time.After(200 * time.Millisecond) {
		now, h := usage()
		if now > goroutines {
			same = 0
		} else {
			same++
		}
		goroutines, heap = now, h
	}
	return goroutines, heap
}

func usage() (goroutines int, heap uint64) {
	runtime.GC()
	runtime.GC() // sync.Pools take two
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return runtime.NumGoroutine(), m.HeapAlloc
}

// The bounds of what may be left of an attack, and of what is logged about it.
const (
	leftGoroutines = 60
	leftHeap       = 48 << 20
	leftLines      = 20
)

// lift ends the siege: the attackers are gone, and nothing of it must remain.
func (s *siege) lift(t *testing.T) {
	t.Helper()
	s.stop()
	s.calling.Wait()
	if err := s.failed.Load(); err != nil {
		t.Errorf("an honest call failed meanwhile: %v", *err)
	}
	if s.calls.Load() == 0 {
		t.Error("no honest call got through meanwhile")
	}
	check(t, s.honest.call(t.Context(), s.target))
	if lines := s.target.logs.All()[s.logged:]; len(lines) > leftLines {
		t.Errorf("%d lines in the log, such as %v", len(lines), lines[:5])
	}
	deadline := time.Now().Add(patience)
	for {
		goroutines, heap := usage()
		if goroutines <= s.goroutines+leftGoroutines && heap <= s.heap+leftHeap {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before; %d bytes of heap, %d before\n%s", goroutines, s.goroutines, heap, s.heap, stacks())
		}
		<-time.After(100 * time.Millisecond)
	}
}

// stacks are those of all goroutines, and how many have each.
func stacks() string {
	var b strings.Builder
	pprof.Lookup("goroutine").WriteTo(&b, 1)
	return b.String()
}

// scaled is n, or a tenth of it where time is short.
func scaled(n int) int {
	if testing.Short() {
		return n / 10
	}
	return n
}

// Whatever a peer sends on whichever of our protocols, or does not, costs it its
// stream and nobody else anything.
func TestHostileStreams(t *testing.T) {
	s := newSiege(t, nil)
	mallory := newStranger(t, elsewhere, s.target)
	_, offer, err := signal.NewOffer(mallory.signaling().Local(), s.target.keys.Agent, terms(), time.Now())
	check(t, err)
	attacks := []protocoltest.Attack{
		protocoltest.Silent,
		protocoltest.Slowloris(50 * time.Millisecond),
		protocoltest.Oversize(1 << 62), protocoltest.Oversize(5 << 20), protocoltest.Oversize(signal.MaxMessage + 1),
		protocoltest.Garbage(10), protocoltest.Garbage(1 << 20),
		protocoltest.Replayer(wire.AppendFrame(nil, offer)), protocoltest.Replayer(nil), protocoltest.Replayer([]byte{0x80}),
		protocoltest.Replayer(bytes.Repeat([]byte{0}, 4096)), // empty frames
	}
	ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second) // longer than our protocols wait
	defer cancel()
	protocols := ours(s.target)
	protocoltest.Storm(scaled(20)*len(attacks)*len(protocols), 256, func(i int) error {
		attack := attacks[i%len(attacks)]
		return attack.On(ctx, mallory.host, s.target.Host().ID(), protocols[i/len(attacks)%len(protocols)])
	})
	if err := mallory.host.Close(); err != nil {
		t.Error(err)
	}
	s.lift(t)
}

// ours are the protocols of ours that r serves.
func ours(r *running) (ids []protocol.ID) {
	for _, id := range r.Host().Mux().Protocols() {
		if strings.HasPrefix(string(id), "/openmesh/") {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Channels that nobody has proved to be anyone on take no room of those who have.
func TestSilentChannels(t *testing.T) {
	s := newSiege(t, map[string]string{"networking.handshake_timeout": "2m"}) // they must be there until there are enough
	ctx, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	var crowd []*stranger
	for range 8 {
		crowd = append(crowd, newStranger(t, elsewhere, s.target))
	}
	slow := protocoltest.Slowloris(time.Minute)
	for i := range 50 * len(crowd) {
		waiting.Go(func() { slow.On(ctx, crowd[i%len(crowd)].host, s.target.Host().ID(), session.Protocol) })
	}
	for begin := time.Now(); channels(s.target) < 256; <-time.After(5 * time.Millisecond) {
		if time.Since(begin) > time.Minute {
			t.Fatalf("the attack failed: %d channels", channels(s.target))
		}
	}
	check(t, echo(t.Context(), newStranger(t, here, s.target).endpoint(t), s.target))
	cancel()
	waiting.Wait()
	for _, c := range crowd {
		c.host.Close()
	}
	s.lift(t)
}

// channels counts the streams of the session protocol, attached or not.
func channels(r *running) (n int) {
	for _, c := range r.Host().Network().Conns() {
		for _, st := range c.GetStreams() {
			if st.Protocol() == session.Protocol {
				n++
			}
		}
	}
	return n
}

// 1,000 connections of one peer: it gets a few, and others come in meanwhile.
func TestThousandDials(t *testing.T) {
	s := newSiege(t, nil)
	mallory := newStranger(t, elsewhere, s.target)
	to := s.target.info(t)
	dialer := mallory.host.Network().(*swarm.Swarm).TransportForDialing(to.Addrs[0])
	var held sync.Map
	protocoltest.Storm(scaled(1000), 16, func(i int) error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		c, err := dialer.Dial(ctx, to.Addrs[0], to.ID)
		if err == nil {
			held.Store(i, c)
		}
		return err
	})
	if n := len(s.target.Host().Network().ConnsToPeer(mallory.host.ID())); n > 16 {
		t.Errorf("one peer has %d connections", n)
	}
	late := start(t, s.target)
	check(t, late.call(t.Context(), s.target))
	held.Range(func(_, c any) bool { c.(network.MuxedConn).Close(); return true })
	mallory.host.Close()
	s.goroutines += nodeCost
	s.lift(t)
}

// nodeCost is more goroutines than a node has.
const nodeCost = 250

// 10,000 offers of one peer: true ones again and again, and ones with keys of the
// wrong length. It is answered as often as its share allows.
func TestTenThousandOffers(t *testing.T) {
	s := newSiege(t, nil)
	mallory := newStranger(t, elsewhere, s.target)
	offers := hostileOffers(t, mallory, s.target)
	limits := stream.Limits{Request: signal.MaxMessage, Response: signal.MaxMessage, Time: 10 * time.Second}
	var accepted atomic.Int64
	begin := time.Now()
	protocoltest.Storm(scaled(10_000), 32, func(i int) error {
		reply, err := stream.Call(t.Context(), mallory.host, s.target.Host().ID(), signal.Protocol, offers[i%len(offers)], limits)
		var r signalpb.Reply
		if err == nil && proto.Unmarshal(reply, &r) == nil && r.GetAnswer() != nil {
			accepted.Add(1)
		}
		return err
	})
	if n := accepted.Load(); n > 1 { // the one that was a true one, once
		t.Errorf("%d offers were accepted in %v", n, time.Since(begin))
	}
	mallory.host.Close()
	s.lift(t)
}

// hostileOffers returns a good offer, which serves once, and bad ones: among them
// one of an agent that claims the node's own address.
func hostileOffers(t *testing.T, from *stranger, to *running) (offers [][]byte) {
	t.Helper()
	_, good, err := signal.NewOffer(from.signaling().Local(), to.keys.Agent, terms(), time.Now())
	check(t, err)
	offers = append(offers, good)
	for _, change := range []func(*signalpb.Offer){
		func(o *signalpb.Offer) { o.Keys[0].PublicKey = o.Keys[0].PublicKey[1:] },
		func(o *signalpb.Offer) { o.Keys[0].PublicKey = append(o.Keys[0].PublicKey, 0) },
		func(o *signalpb.Offer) { o.Suites, o.Keys[1].PublicKey = o.Suites[2:], make([]byte, 31) },
		func(o *signalpb.Offer) { o.Suites, o.Keys[1].PublicKey = o.Suites[2:], make([]byte, 32) },
		func(o *signalpb.Offer) { o.Keys[0].PublicKey = nil },
		func(o *signalpb.Offer) { o.Nonce = o.Nonce[1:] },
		func(o *signalpb.Offer) { o.Certificate = o.Certificate[:len(o.Certificate)-1] },
	} {
		offers = append(offers, resigned(t, from, good, change))
	}
	liar := protocoltest.Liar(t, &protocoltest.Agent{Certificate: to.keys.Certificate}, time.Now())
	_, lie, err := signal.NewOffer(signal.Local{Certificate: liar.Certificate, Key: liar.Host}, to.keys.Agent, terms(), time.Now())
	check(t, err)
	return append(offers, lie)
}

// resigned changes an offer and signs it anew.
func resigned(t *testing.T, by *stranger, offer []byte, change func(*signalpb.Offer)) []byte {
	t.Helper()
	var s signalpb.Signed
	var o signalpb.Offer
	check(t, proto.Unmarshal(offer, &s))
	check(t, proto.Unmarshal(s.Payload, &o))
	change(&o)
	var err error
	s.Payload, err = proto.Marshal(&o)
	check(t, err)
	s.Signature, err = by.Host.Sign(slices.Concat([]byte("openmesh-signal-offer-v1:"), s.Payload))
	check(t, err)
	out, err := proto.Marshal(&s)
	check(t, err)
	return out
}

// 1,000 sessions that one peer wants and holds, doing nothing with them: it gets
// some, and there is room for others.
func TestThousandSessions(t *testing.T) {
	s := newSiege(t, map[string]string{"session.max_per_agent": strconv.Itoa(scaled(1000) / 2)}) // if it is too slow for other bounds
	mallory := newStranger(t, elsewhere, s.target)
	var refused atomic.Int64
	got := protocoltest.Storm(scaled(1000), 32, func(int) error {
		err := mallory.hold(t.Context(), s.target)
		if errors.Is(err, wire.ResourceExhausted) {
			refused.Add(1)
		}
		return err
	})
	if refused.Load() == 0 {
		t.Errorf("all %d sessions were granted", got)
	}
	check(t, echo(t.Context(), newStranger(t, here, s.target).endpoint(t), s.target))
	mallory.host.Close()
	s.lift(t)
}

// hold sets a session up and leaves it there.
func (s *stranger) hold(ctx context.Context, to *running) error {
	est, confirm, err := signal.Open(ctx, signal.Over(s.host, to.Host().ID(), 5*time.Second), to.keys.Agent, s.signaling().Terms(), s.signaling())
	if err != nil {
		return err
	}
	st, err := s.host.NewStream(ctx, to.Host().ID(), session.Protocol)
	if err != nil {
		return err
	}
	attach, err := proto.Marshal(&sessionpb.Attach{Session: est.ID[:], Confirm: confirm})
	if err != nil {
		return err
	}
	_, err = st.Write(wire.AppendFrame(nil, attach))
	return err
}

// 100 agents that nobody has met before call at once, and all are served.
func TestHundredCallers(t *testing.T) {
	target := startAs(t, map[string]string{"node.roles": "backbone", "networking.handshake_timeout": "2m"}) // a hundred at once take their time
	target.offerEcho(t)
	callers := make([]*session.Endpoint, 100)
	for i := range callers {
		callers[i] = newStranger(t, here, target).endpoint(t)
	}
	served := protocoltest.Storm(len(callers), len(callers), func(i int) error {
		err := echo(t.Context(), callers[i], target)
		if err != nil {
			t.Error(err)
		}
		return err
	})
	if served != len(callers) {
		t.Errorf("%d of %d were served", served, len(callers))
	}
}

// echo opens a session and makes one call in it.
func echo(ctx context.Context, from *session.Endpoint, to *running) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	s, err := from.Open(ctx, session.Target{Agent: to.keys.Agent, Route: session.Route{Peer: to.Host().ID()}}, session.Want{})
	if err != nil {
		return err
	}
	resp, _, err := s.Call(ctx, &session.Request{Capability: "test/echo", Encoding: session.JSON, Body: []byte(`{"n":1}`)})
	if err == nil && string(resp.Body) != `{"n":1}` {
		err = fmt.Errorf("answer %q", resp.Body)
	}
	return err
}

// A peer that serves a descriptor under an address that it copied is not believed.
func TestCopiedAddressIsRefused(t *testing.T) {
	t.Parallel()
	target := start(t)
	victim := &protocoltest.Agent{Certificate: target.keys.Certificate}
	liar := protocoltest.Liar(t, victim, time.Now())
	h := rawHost(t, here, liar.Host)
	check(t, h.Connect(t.Context(), target.info(t)))

	// It presents itself as it asks for a descriptor, and as it serves one.
	limits := stream.Limits{Request: 1 << 16, Response: 1 << 16, Time: 5 * time.Second}
	ask, err := proto.Marshal(&descriptorpb.Request{Certificate: liar.Certificate.Raw})
	check(t, err)
	if _, err := stream.Call(t.Context(), h, target.Host().ID(), descriptor.Protocol, ask, limits); !errors.Is(err, wire.Unauthenticated) {
		t.Errorf("asking: %v, want unauthenticated", err)
	}
	_, _, err = signal.Open(t.Context(), signal.Over(h, target.Host().ID(), 5*time.Second), target.keys.Agent, (&stranger{liar, h}).signaling().Terms(), (&stranger{liar, h}).signaling())
	if !errors.Is(err, wire.Unauthenticated) {
		t.Errorf("offering: %v, want unauthenticated", err)
	}
	now := time.Now()
	d, err := descriptor.Seal(liar.Host, liar.Certificate, &descriptorpb.Descriptor{
		Agent: string(liar.Agent), Address: liar.Certificate.Address.String(), Certificate: liar.Certificate.Raw,
		Sequence: 1, Issued: now.Unix(), Expires: now.Add(time.Hour).Unix(),
	})
	check(t, err)
	answer, err := proto.Marshal(&descriptorpb.Response{Descriptor_: d.Raw})
	check(t, err)
	h.SetStreamHandler(descriptor.Protocol, func(st network.Stream) {
		defer st.Close()
		st.Write(wire.AppendFrame(nil, answer)) // whoever asks sees whether it came
	})
	if _, err := descriptor.Fetch(t.Context(), target.Host(), h.ID(), nil, identity.NewVerifier(lab, time.Now)); !errors.Is(err, wire.Unauthenticated) {
		t.Errorf("serving: %v, want unauthenticated", err)
	}
}
