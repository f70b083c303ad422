package topic

import (
	"context"
	"slices"
	"testing"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pubsubpb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	"openmesh/overlay/overlaytest"
	"openmesh/overlay/topic/topicpb"
	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
)

// written signs a body, whatever is in it.
func written(t testing.TB, key crypto.PrivKey, hops byte, b *topicpb.Broadcast) []byte {
	t.Helper()
	body, err := proto.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := key.Sign(append([]byte(signedAs), body...))
	if err != nil {
		t.Fatal(err)
	}
	return append(append([]byte{hops}, sig...), body...)
}

func body(a *protocoltest.Agent, topic, payload string, now time.Time) *topicpb.Broadcast {
	return &topicpb.Broadcast{
		Version: version, Topic: topic, Certificate: a.Certificate.Raw, Payload: []byte(payload),
		Issued: now.UnixMilli(), Expires: now.Add(time.Hour).UnixMilli(), MaxHops: 8,
	}
}

// What a peer can say wrongly, and what it costs: a lie is rejected, which lowers
// its score; what an honest forwarder may not know to be wrong is only ignored.
// Nothing of it is heard, and none of it spoils the message that it imitates.
func TestForgery(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		fx, now := name(t, "finance/fx"), time.Now()
		a, other := protocoltest.NewAgent(t, realm, now), protocoltest.NewAgent(t, realm, now)
		abroad := protocoltest.NewAgent(t, realm+1, now)
		for _, tc := range []struct {
			name string
			want outcome
			send func(b *topicpb.Broadcast) []byte
		}{
			{"another's signature", rejected, func(b *topicpb.Broadcast) []byte { return written(t, other.Host, 8, b) }},
			{"another's certificate", rejected, func(b *topicpb.Broadcast) []byte {
				b.Certificate = other.Certificate.Raw
				return written(t, a.Host, 8, b)
			}},
			{"no certificate", rejected, func(b *topicpb.Broadcast) []byte { b.Certificate = nil; return written(t, a.Host, 8, b) }},
			{"a changed signature", rejected, func(b *topicpb.Broadcast) []byte {
				d := written(t, a.Host, 8, b)
				d[1] ^= 1
				return d
			}},
			{"a changed payload", rejected, func(b *topicpb.Broadcast) []byte {
				d := written(t, a.Host, 8, b)
				d[slices.Index(d, 'h')] ^= 1
				return d
			}},
			{"another topic", rejected, func(b *topicpb.Broadcast) []byte { b.Topic = name(t, "finance"); return written(t, a.Host, 8, b) }},
			{"valid too long", rejected, func(b *topicpb.Broadcast) []byte {
				b.Expires = b.Issued + MaxLifetime.Milliseconds() + 1
				return written(t, a.Host, 8, b)
			}},
			{"too many hops", rejected, func(b *topicpb.Broadcast) []byte { b.MaxHops = MaxHops + 1; return written(t, a.Host, 8, b) }},
			{"too large", rejected, func(b *topicpb.Broadcast) []byte {
				b.Payload = make([]byte, MaxMessage)
				return written(t, a.Host, 8, b)
			}},
			{"nothing", rejected, func(*topicpb.Broadcast) []byte { return nil }},
			{"garbage", rejected, func(*topicpb.Broadcast) []byte { return slices.Repeat([]byte{0xff}, 200) }},
			{"expired", ignored, func(b *topicpb.Broadcast) []byte {
				b.Issued, b.Expires = b.Issued-7200_000, b.Issued-1
				return written(t, a.Host, 8, b)
			}},
			{"from the future", ignored, func(b *topicpb.Broadcast) []byte {
				b.Issued, b.Expires = b.Issued+600_000, b.Issued+700_000
				return written(t, a.Host, 8, b)
			}},
			{"a later version", ignored, func(b *topicpb.Broadcast) []byte { b.Version = 2; return written(t, a.Host, 8, b) }},
			{"another realm", ignored, func(b *topicpb.Broadcast) []byte {
				b.Certificate = abroad.Certificate.Raw
				return written(t, abroad.Host, 8, b)
			}},
		} {
			m := newMesh(t)
			ear := m.node()
			ear.listen(fx)
			say := m.liar(fx, ear.host)
			wait(2 * time.Second)
			sent := time.Now()
			say(tc.send(body(a, fx, "hello", sent)))
			wait(time.Second)
			ear.hears(tc.name)
			if got := ear.count(tc.want); got != 1 || ear.count(rejected)+ear.count(ignored) != 1 {
				t.Errorf("%s: %s %d times, of %d", tc.name, tc.want, got, ear.count(rejected)+ear.count(ignored))
			}
			say(written(t, a.Host, 8, body(a, fx, "hello", sent)))
			wait(time.Second)
			ear.hears(tc.name+", and the real one", "hello")
		}
	})
}

// A message that was sent on another topic first is heard on its own.
func TestOtherTopicFirst(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m, fx, all := newMesh(t), name(t, "finance/fx"), name(t, "finance")
		a, ear := protocoltest.NewAgent(t, realm, time.Now()), m.node()
		ear.listen(fx)
		ear.listen(all)
		there, here := m.liar(all, ear.host), m.liar(fx, ear.host)
		wait(2 * time.Second)
		data := written(t, a.Host, 8, body(a, fx, "hello", time.Now()))
		there(data)
		wait(time.Second)
		ear.hears("on the wrong topic")
		here(data)
		wait(time.Second)
		ear.hears("on its own", "hello")
	})
}

// The same message again, when GossipSub has forgotten it.
func TestReplay(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m, fx := newMesh(t), name(t, "finance/fx")
		a, ear := protocoltest.NewAgent(t, realm, time.Now()), m.node()
		ear.listen(fx)
		data := written(t, a.Host, 8, body(a, fx, "hello", time.Now()))
		for range 3 {
			say := m.liar(fx, ear.host)
			wait(time.Second)
			say(data)
			wait(10 * time.Minute)
		}
		ear.hears("three times", "hello")
		if got := ear.count(ignored); got != 2 {
			t.Errorf("ignored %d times", got)
		}
	})
}

// Who repeats what another said does not use up what that one may say.
func TestReplayIsFree(t *testing.T) {
	t.Parallel()
	now, fx := time.Now(), scope(realm)+"finance"
	a, g := protocoltest.NewAgent(t, realm, now), listening(t, fx)
	hear := func(payload string) {
		m := &pubsub.Message{Message: &pubsubpb.Message{Topic: &fx, Data: written(t, a.Host, 8, body(a, fx, payload, now))}}
		g.validate(t.Context(), "peer", m)
	}
	for range 100 {
		hear("again")
	}
	<-g.arrivals
	hear("new")
	select {
	case got := <-g.arrivals:
		if string(got.payload) != "new" || got.from != a.Agent {
			t.Errorf("heard %q of %s", got.payload, got.from)
		}
	default:
		t.Error("the new message was not heard")
	}
}

// A peer that lies on and on is not listened to any more.
func TestScore(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m, fx := newMesh(t), name(t, "finance/fx")
		a, ear := protocoltest.NewAgent(t, realm, time.Now()), m.node()
		ear.listen(fx)
		say := m.liar(fx, ear.host)
		wait(2 * time.Second)
		for i := range 200 {
			say(append(make([]byte, 100), byte(i)))
			wait(200 * time.Millisecond)
		}
		if got := ear.count(rejected); got < 10 || got > 40 {
			t.Errorf("listened to %d lies", got)
		}
		say(written(t, a.Host, 8, body(a, fx, "hello", time.Now())))
		wait(time.Second)
		ear.hears("the liar")
	})
}

// Hops can be raised on the way, but not beyond what the origin allowed.
func TestHopsAreCapped(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		hops  byte
		limit int
		want  pubsub.ValidationResult
		left  byte
	}{
		{0, 8, pubsub.ValidationIgnore, 0},
		{1, 8, pubsub.ValidationIgnore, 1},
		{2, 8, pubsub.ValidationAccept, 1},
		{255, 8, pubsub.ValidationAccept, 7},
		{255, 1, pubsub.ValidationIgnore, 255},
	} {
		sent := []byte{tc.hops, 1, 2, 3}
		m := &pubsub.Message{Message: &pubsubpb.Message{Data: slices.Clone(sent)}}
		before := m.Message
		got := new(Gossip).forward(m, tc.limit)
		if got != tc.want || m.Data[0] != tc.left || !slices.Equal(m.Data[1:], sent[1:]) || !slices.Equal(before.Data, sent) {
			t.Errorf("%d of %d: %v with %d left", tc.hops, tc.limit, got, m.Data[0])
		}
	}
}

// A peer's subscriptions are bounded in number, and are names of topics.
func TestAudience(t *testing.T) {
	t.Parallel()
	changes := 0
	a := newAudience(realm, 2, func() { changes++ })
	sub := func(topic string, on bool) *pubsubpb.RPC_SubOpts {
		return &pubsubpb.RPC_SubOpts{Topicid: &topic, Subscribe: &on}
	}
	x, y, z := scope(realm)+"x", scope(realm)+"y", scope(realm)+"z"
	everybody := func(peer.ID) bool { return true }
	for i, step := range []struct {
		from   peer.ID
		subs   []*pubsubpb.RPC_SubOpts
		kept   int
		topics []string
	}{
		{"p", []*pubsubpb.RPC_SubOpts{sub(x, true), sub("junk", true), sub(x, true)}, 2, []string{x}},
		{"p", []*pubsubpb.RPC_SubOpts{sub(y, true), sub(z, true)}, 1, []string{x, y}},
		{"q", []*pubsubpb.RPC_SubOpts{sub(y, true), sub("/openmesh/1/cap/x", true)}, 1, []string{y, x}},
		{"p", []*pubsubpb.RPC_SubOpts{sub(z, false)}, 0, []string{y, x}},
		{"p", []*pubsubpb.RPC_SubOpts{sub(x, false), sub(z, true)}, 2, []string{y, z}},
		{"p", []*pubsubpb.RPC_SubOpts{{}}, 0, []string{y, z}},
		{"p", []*pubsubpb.RPC_SubOpts{sub(z, false), sub(x, true), sub(x, false), sub(z, true)}, 3, []string{y}},
	} {
		kept, err := a.FilterIncomingSubscriptions(step.from, step.subs)
		if err != nil || len(kept) != step.kept {
			t.Errorf("step %d: kept %d, %v; want %d", i, len(kept), err, step.kept)
		}
		if got := a.listened(10, everybody); !slices.Equal(got, step.topics) {
			t.Errorf("step %d: topics %v, want %v", i, got, step.topics)
		}
	}
	if a.total != 2 || changes != 5 {
		t.Errorf("%d subscriptions, %d changes", a.total, changes)
	}
	if got := a.listened(1, func(p peer.ID) bool { return p == "p" }); !slices.Equal(got, []string{y}) {
		t.Errorf("p alone: %v", got)
	}
	a.forget(func(p peer.ID) bool { return p == "q" })
	if got := a.listened(10, everybody); !slices.Equal(got, []string{y}) || a.total != 1 {
		t.Errorf("p gone: %v, %d", got, a.total)
	}
}

// FuzzValidate feeds bytes of a peer to the validator, and a good message with
// some of its bytes changed: no panic, and nothing but what was signed is heard.
func FuzzValidate(f *testing.F) {
	now := time.Now()
	a := protocoltest.NewAgent(f, realm, now)
	topic := scope(realm) + "finance"
	good := written(f, a.Host, 8, body(a, topic, "hello", now))
	f.Add([]byte{}, uint16(0), byte(7))
	f.Add([]byte{}, uint16(300), byte(1))
	f.Add(slices.Repeat([]byte{1}, bodyAt), uint16(0), byte(0))
	f.Add([]byte("\x08\x01\x12\x01a\x28\x01\x30\x02\x38\x01"), uint16(0), byte(0))
	f.Fuzz(func(t *testing.T, raw []byte, at uint16, change byte) {
		data := raw
		if len(raw) == 0 {
			data = slices.Clone(good)
			data[int(at)%len(data)] ^= change
		}
		g := listening(t, topic)
		m := &pubsub.Message{Message: &pubsubpb.Message{Topic: &topic, Data: data}}
		got := g.validate(context.Background(), "peer", m)
		honest := len(data) > 0 && slices.Equal(data[1:], good[1:])
		if (len(g.arrivals) == 1) != honest || got == pubsub.ValidationAccept && !honest {
			t.Errorf("%x: %v, heard %d", data, got, len(g.arrivals))
		}
	})
}

// listening returns a Gossip without a router that has a handler of a topic.
func listening(t *testing.T, topic string) *Gossip {
	t.Helper()
	l, err := Limits{}.filled()
	if err != nil {
		t.Fatal(err)
	}
	c, err := newCounts(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &Gossip{
		cfg:      Config{Host: named{}, Verify: identity.ParseCertificate, Certificate: new(identity.Certificate)},
		arrivals: make(chan arrival, 1), bouncer: newBouncer(l), faults: newFaults(), counts: c,
		topics: map[string]*interest{topic: {handlers: map[*Subscription]struct{}{{}: {}}}},
	}
}

// named is a host with an id and nothing else.
type named struct{ host.Host }

func (named) ID() peer.ID { return "self" }
