package topic

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"openmesh/overlay/overlaytest"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// Three agents that are connected to nothing but a backbone node hear each
// other, and not themselves; the backbone node has no handler.
func TestBackboneCarries(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m, fx := newMesh(t), name(t, "finance/fx")
		hub, a, b, c := m.backbone(), m.node(), m.node(), m.node()
		for _, n := range []*node{a, b, c} {
			m.connect(n.host, hub.host)
			n.listen(fx)
		}
		wait(5 * time.Second)
		a.say(fx, "from a")
		b.say(fx, "from b")
		c.say(fx, "from c")
		wait(2 * time.Second)
		a.hears("a", "from b", "from c")
		b.hears("b", "from a", "from c")
		c.hears("c", "from a", "from b")
	})
}

// An agent that has never been in a topic publishes as soon as it is connected,
// and is heard at another backbone node. When the last listener has left, the
// backbone nodes do not keep each other in the topic.
func TestTwoBackboneNodes(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m, fx := newMesh(t), name(t, "finance")
		left, right, a, b := m.backbone(), m.backbone(), m.node(), m.node()
		m.connect(left.host, right.host)
		m.connect(b.host, right.host)
		s := b.listen(fx)
		wait(5 * time.Second)
		if left.in(fx) {
			t.Error("a backbone node is in a topic for another one")
		}
		m.connect(a.host, left.host)
		began := time.Now()
		a.say(fx, "hello")
		if took := time.Since(began); took > introduction/2 {
			t.Errorf("it took %v to be introduced", took)
		}
		wait(time.Second)
		b.hears("b", "hello")
		s.Leave()
		wait(linger + 4*sweep)
		for _, n := range []*node{left, right, a, b} {
			if n.in(fx) {
				t.Error("still in the topic")
			}
		}
	})
}

// A backbone node forgets the topics of an agent that is gone.
func TestDisconnect(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m, fx := newMesh(t), name(t, "finance")
		hub, a := m.backbone(), m.node()
		m.connect(a.host, hub.host)
		a.listen(fx)
		wait(time.Second)
		if !hub.in(fx) {
			t.Fatal("not joined")
		}
		if err := a.host.Network().ClosePeer(hub.host.ID()); err != nil {
			t.Fatal(err)
		}
		wait(3 * sweep)
		if hub.in(fx) || hub.audience.total != 0 {
			t.Errorf("in the topic %v, subscriptions kept: %d", hub.in(fx), hub.audience.total)
		}
	})
}

// A relay joins so many topics and no more, those with the most listeners.
func TestRelayedTopicsAreBounded(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t)
		hub := m.node(func(c *Config) { c.Relay, c.Limits.Relayed = true, 2 })
		a, b := m.node(), m.node()
		m.connect(a.host, hub.host)
		for _, p := range []string{"a", "b", "c"} {
			a.listen(name(t, p))
		}
		wait(time.Second)
		m.connect(b.host, hub.host)
		b.listen(name(t, "c"))
		wait(2 * sweep)
		var got []string
		for _, p := range []string{"a", "b", "c"} {
			if hub.in(name(t, p)) {
				got = append(got, p)
			}
		}
		if !slices.Equal(got, []string{"a", "c"}) {
			t.Errorf("joined %v, want a and c", got)
		}
	})
}

// On a line of nodes a message goes as many hops as it may.
func TestHops(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m, fx := newMesh(t), name(t, "finance/fx")
		first := m.node()
		line := []*node{first}
		for i := range 4 {
			n := m.node()
			m.connect(n.host, line[i].host)
			n.listen(fx)
			line = append(line, n)
		}
		first.listen(fx)
		wait(5 * time.Second)
		for hops := 1; hops <= 5; hops++ {
			first.cfg.Limits.Hops = hops
			first.say(fx, "hello")
			wait(5 * time.Second) // some heartbeats: gossip must not carry it on either
			for i, n := range line[1:] {
				var want []string
				if i < hops {
					want = []string{"hello"}
				}
				n.hears(fmt.Sprintf("%d hops, node %d", hops, i+1), want...)
			}
		}
	})
}

// Who joins late hears what is said later, and nothing from before.
func TestLateJoiner(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m, fx := newMesh(t), name(t, "finance/fx")
		hub, a, b, late := m.backbone(), m.node(), m.node(), m.node()
		m.connect(hub.host, a.host, b.host)
		b.listen(fx)
		wait(5 * time.Second)
		a.say(fx, "early")
		wait(30 * time.Second)
		m.connect(late.host, hub.host)
		s := late.listen(fx)
		wait(5 * time.Second)
		a.say(fx, "later")
		wait(time.Second)
		late.hears("late", "later")
		b.hears("b", "early", "later")
		s.Leave()
		a.say(fx, "last")
		wait(time.Second)
		late.hears("after leaving")
		b.hears("b", "last")
	})
}

// One origin that floods is cut to its rate, by the backbone node already;
// another one gets through.
func TestFlood(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m, fx := newMesh(t), name(t, "finance/fx")
		hub, honest, ear := m.backbone(), m.node(), m.node()
		flood := m.node(func(c *Config) { c.Limits.Every, c.Limits.Burst = time.Millisecond, 1000 })
		m.connect(hub.host, honest.host, ear.host, flood.host)
		ear.listen(fx)
		wait(5 * time.Second)
		const burst = 20 + 20/4 + 1
		for i := range 3 * burst {
			flood.say(fx, fmt.Sprintf("flood%03d", i))
			wait(time.Millisecond)
		}
		honest.say(fx, "honest")
		wait(2 * time.Second)
		ear.hears("the listener", append(numbered("flood", burst), "honest")...)
		if hub.count(limited) == 0 || ear.count(limited) != 0 || ear.count(rejected) != 0 {
			t.Errorf("limited at the backbone %d, at the listener %d, rejected there %d", hub.count(limited), ear.count(limited), ear.count(rejected))
		}
		wait(9 * time.Second) // more than three are allowed again
		honest.say(fx, "honest again")
		wait(time.Second)
		ear.hears("the listener", "honest again")
	})
}

// An honest node holds itself back, and says so.
func TestPublishLimit(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m, fx := newMesh(t), name(t, "finance/fx")
		a := m.node()
		wait(time.Second)
		for range 20 {
			a.say(fx, "x")
			wait(time.Millisecond)
		}
		err := a.Publish(t.Context(), fx, []byte("x"), time.Hour)
		if !errors.Is(err, wire.ResourceExhausted) {
			t.Errorf("the 21st: %v", err)
		}
		a.say(name(t, "finance"), "another topic")
		wait(3 * time.Second)
		a.say(fx, "x")
	})
}

func TestPublishRefuses(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m, fx := newMesh(t), name(t, "finance/fx")
		a := m.node()
		wait(time.Second)
		for _, tc := range []struct {
			name, topic string
			size        int
			ttl         time.Duration
			want        wire.Code
		}{
			{"no lifetime", fx, 1, 0, wire.InvalidArgument},
			{"a long lifetime", fx, 1, MaxLifetime + 1, wire.InvalidArgument},
			{"much", fx, MaxMessage - 1000, time.Hour, wire.TooLarge},
			{"too much by itself", fx, MaxMessage + 1, time.Hour, wire.TooLarge},
			{"another realm", "/openmesh/1/cap/finance", 1, time.Hour, wire.InvalidArgument},
			{"no capability", scope(realm) + "Finance", 1, time.Hour, wire.InvalidArgument},
		} {
			if err := a.Publish(t.Context(), tc.topic, make([]byte, tc.size), tc.ttl); !errors.Is(err, tc.want) {
				t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := a.Publish(ctx, fx, nil, time.Hour); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		a.stop()
		if err := a.Publish(t.Context(), fx, nil, time.Hour); !errors.Is(err, wire.Unreachable) {
			t.Errorf("stopped: %v", err)
		}
		if _, err := a.Subscribe("finance", nil); !errors.Is(err, wire.InvalidArgument) {
			t.Errorf("subscribe: %v", err)
		}
	})
}

// A handler that is stuck costs its own node messages, and nobody else.
func TestSlowHandler(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m, fx := newMesh(t), name(t, "finance/fx")
		generous := func(c *Config) { c.Limits.Every, c.Limits.Burst = time.Millisecond, 4*maxArrivals }
		hub, a, slow, quick := m.node(generous, func(c *Config) { c.Relay = true }), m.node(generous), m.node(generous), m.node(generous)
		m.connect(hub.host, a.host, slow.host, quick.host)
		release := make(chan struct{})
		if _, err := slow.Subscribe(fx, func(identity.AgentID, []byte) { <-release }); err != nil {
			t.Fatal(err)
		}
		quick.listen(fx)
		wait(5 * time.Second)
		all := numbered("m", maxArrivals+50)
		for _, s := range all {
			a.say(fx, s)
			wait(10 * time.Millisecond)
		}
		wait(time.Second)
		close(release)
		quick.hears("the quick one", all...)
		if got := slow.count(dropped); got != len(all)-maxArrivals-1 {
			t.Errorf("dropped %d", got)
		}
	})
}

// A node whose host is replaced counts on where it was.
func TestCountsGoOn(t *testing.T) {
	t.Parallel()
	r := prometheus.NewRegistry()
	for range 2 {
		c, err := newCounts(r)
		if err != nil {
			t.Fatal(err)
		}
		c.add(delivered)
	}
	if n := (&node{t: t, metrics: r}).count(delivered); n != 2 {
		t.Errorf("counted %d", n)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	got, err := Capabilities(7, "finance/fx-pricing/spot")
	want := []string{"/openmesh/7/cap/finance", "/openmesh/7/cap/finance/fx-pricing", "/openmesh/7/cap/finance/fx-pricing/spot"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "/", "a//b", "A", "a/", "a/b/c/d/e/f"} {
		if _, err := Capabilities(7, bad); !errors.Is(err, wire.InvalidArgument) {
			t.Errorf("%q: %v", bad, err)
		}
		if isTopic(7, scope(7)+bad) {
			t.Errorf("%q is a topic", bad)
		}
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	l, err := Limits{}.filled()
	if err != nil || l != (Limits{3 * time.Second, 20, 16, 1024, 1024}) {
		t.Errorf("defaults: %+v, %v", l, err)
	}
	for _, bad := range []Limits{{Every: -1}, {Burst: -1}, {Hops: MaxHops + 1}, {PerPeer: -1}, {Relayed: -1}} {
		if _, err := bad.filled(); !errors.Is(err, wire.InvalidArgument) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
