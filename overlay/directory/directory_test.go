package directory_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"openmesh/overlay/directory"
	"openmesh/overlay/directory/experience"
	"openmesh/overlay/directory/kad"
	"openmesh/overlay/overlaytest"
	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/wire"
)

func TestDiscover(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t)
		m.backbone(2)
		bank, shop, buyer := m.node(), m.node(), m.node()
		bank.offer(t, capability("finance/fx-pricing", "1.4.0", func(c *descriptorpb.Capability) { c.Tags = map[string]string{"asset": "fx"} }),
			capability("finance/settlement", "2.0.0"))
		shop.offer(t, capability("finance/fx-pricing", "2.1.0"), capability("financial-advice", "1.0.0"))
		buyer.offer(t, capability("finance/ledger", "1.0.0"))
		wait(5 * time.Second)
		fx1, fx2 := bank.label("finance/fx-pricing", "1.4.0"), shop.label("finance/fx-pricing", "2.1.0")
		for _, tc := range []struct {
			name string
			q    directory.Query
			want []string
		}{
			{"a prefix", directory.Query{Capability: "finance", Sort: "name"},
				[]string{fx1, fx2, buyer.label("finance/ledger", "1.0.0"), bank.label("finance/settlement", "2.0.0")}},
			{"a name", directory.Query{Capability: "finance/fx-pricing", Sort: "version"}, []string{fx1, fx2}},
			{"a major version", directory.Query{Capability: "finance/fx-pricing", Version: "^1.2"}, []string{fx1}},
			{"a range", directory.Query{Capability: "finance", Version: ">=1.4 <2", Sort: "name"}, []string{fx1}},
			{"a tag", directory.Query{Capability: "finance", Tags: map[string]string{"asset": "fx"}}, []string{fx1}},
			{"a region", directory.Query{Capability: "finance/fx-pricing", Region: "us"}, nil},
			{"within 150 ms", directory.Query{Capability: "finance/fx-pricing", MaxLatency: 150 * time.Millisecond, Sort: "version"}, []string{fx1, fx2}},
			{"within 50 ms", directory.Query{Capability: "finance/fx-pricing", MaxLatency: 50 * time.Millisecond}, nil},
			{"trusted", directory.Query{Capability: "finance", MinTrust: 0.6}, []string{buyer.label("finance/ledger", "1.0.0")}},
			{"at most one", directory.Query{Capability: "finance", Limit: 1, Sort: "version"}, []string{buyer.label("finance/ledger", "1.0.0")}},
			{"nothing there", directory.Query{Capability: "weather"}, nil},
		} {
			got := buyer.find(t, tc.q)
			if tc.q.Sort == "name" {
				slices.Sort(got[:min(2, len(got))]) // of one name: in no order
				slices.Sort(tc.want[:min(2, len(tc.want))])
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("%s: found %v, want %v", tc.name, got, tc.want)
			}
		}
		if _, err := buyer.Discover(t.Context(), directory.Query{Capability: "No Name"}); !errors.Is(err, wire.InvalidArgument) {
			t.Errorf("bad name: %v; want invalid_argument", err)
		}
	})
}

// A row says all that the contract promises, and a second question costs
// nothing.
func TestRow(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t)
		m.backbone(1)
		seller := m.node(func(c *directory.Config) { c.Load = func() float64 { return 0.25 } })
		buyer := m.node()
		seller.offer(t, capability("finance/fx", "1.0.0"))
		wait(5 * time.Second)
		first, err := buyer.Discover(t.Context(), directory.Query{Capability: "finance"})
		if err != nil || len(first.Rows) != 1 {
			t.Fatalf("%+v, %v", first, err)
		}
		wait(10 * time.Second)
		again, err := buyer.Discover(t.Context(), directory.Query{Capability: "finance"})
		if err != nil || first.Cached || !again.Cached || again.Elapsed != 0 {
			t.Errorf("first cached %v, again cached %v after %v, %v", first.Cached, again.Cached, again.Elapsed, err)
		}
		r := again.Rows[0]
		c := seller.Certificate
		if r.Agent != c.Agent || r.Address != c.Address || r.Peer != c.Peer || r.KeyVersion != 1 || r.Load != 0.25 ||
			r.Region != "eu-central" || r.Reachability != "direct" || r.Uptime != 100 || r.Trust != 0.5 ||
			r.Age != 10*time.Second || r.Latency < rtt || r.Latency > rtt*11/10 || r.Capability.Name != r.Name || r.Score <= 0 {
			t.Errorf("row %+v", r)
		}
	})
}

// Who announces later is found at once; who stops is gone within the cache's
// lifetime; who is killed, too.
func TestComeAndGo(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		const ttl = 30 * time.Second
		m := newMesh(t)
		m.backbone(2)
		buyer := m.node(func(c *directory.Config) { c.CacheTTL = ttl })
		stays, stops, dies := m.node(), m.node(), m.node()
		wait(5 * time.Second)
		q := directory.Query{Capability: "finance/fx"}
		if got := buyer.find(t, q); got != nil {
			t.Fatalf("found %v too early", got)
		}
		stays.offer(t, capability("finance/fx", "1.0.0"))
		stops.offer(t, capability("finance/fx", "1.0.0"))
		dies.offer(t, capability("finance/fx", "1.0.0"))
		wait(2 * time.Second)
		if got := buyer.find(t, q); len(got) != 3 {
			t.Errorf("2 s after the announcements: found %v, want three", got)
		}
		stops.stop()
		m.net.Cut(dies.host, true)
		wait(ttl)
		if got, want := buyer.find(t, q), []string{stays.label("finance/fx", "1.0.0")}; !slices.Equal(got, want) {
			t.Errorf("after the cache's lifetime: found %v, want %v", got, want)
		}
	})
}

// Who shuts down takes its registrations back: nobody even tries to ask it.
// A provider that restarts at another address is found by one who has the old
// one in its cache, by name and by agent id.
func TestRestartElsewhere(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t)
		m.backbone(2)
		p := m.node()
		p.offer(t, capability("a/b", "1.0.0"))
		q := m.node()
		time.Sleep(5 * time.Second)
		if got := q.find(t, directory.Query{Capability: "a/b"}); len(got) != 1 {
			t.Fatalf("before: %v", got)
		}
		p.stop()
		p.host.Close()
		again := m.nodeOf(p.Agent)
		again.offer(t, capability("a/b", "1.0.0"))
		time.Sleep(5 * time.Second)
		if got := q.find(t, directory.Query{Capability: "a/b"}); len(got) != 1 {
			t.Errorf("after: %v", got)
		}
		q.Doubt(p.Agent.Agent, p.host.ID())
		a, err := q.Resolve(t.Context(), directory.Target{Agent: p.Agent.Agent})
		if err != nil || !slices.ContainsFunc(a.Peer.Addrs, again.host.Addrs()[0].Equal) {
			t.Errorf("Resolve = %v, %v; want an address of %v", a.Peer, err, again.host.Addrs())
		}
	})
}

func TestWithdrawOnShutdown(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t)
		m.backbone(2)
		seller := m.node()
		seller.offer(t, capability("finance/fx", "1.0.0"))
		wait(5 * time.Second)
		start := time.Now()
		seller.stop()
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("shutting down took %v", took)
		}
		seen := make(observer, 100)
		buyer := m.node(func(c *directory.Config) { c.Observer = seen })
		if got := buyer.find(t, directory.Query{Capability: "finance"}); got != nil {
			t.Errorf("found %v", got)
		}
		buyer.stop()
		close(seen)
		for s := range seen {
			if strings.HasPrefix(s, "descriptor") {
				t.Errorf("the index still led to a provider: %s", s)
			}
		}
	})
}

// Providers that do not answer hold a query up for a moment, and the next one
// not at all.
func TestDeadProviders(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t)
		m.backbone(1)
		lives := m.node()
		all := []*node{lives}
		for range 5 {
			all = append(all, m.node())
		}
		for _, n := range all {
			n.offer(t, capability("finance/fx", "1.0.0"))
		}
		wait(5 * time.Second)
		for _, n := range all[1:] {
			m.net.Cut(n.host, true)
		}
		buyer := m.node()
		want := []string{lives.label("finance/fx", "1.0.0")}
		wait(5 * time.Second)
		start := time.Now()
		if got := buyer.find(t, directory.Query{Capability: "finance/fx"}); !slices.Equal(got, want) || time.Since(start) > 3*time.Second {
			t.Errorf("found %v in %v, want %v", got, time.Since(start), want)
		}
		wait(3 * time.Second)
		start = time.Now()
		if got := buyer.find(t, directory.Query{Capability: "finance"}); !slices.Equal(got, want) || time.Since(start) > 2*rtt {
			t.Errorf("the next time: found %v in %v, want %v at once", got, time.Since(start), want)
		}
	})
}

// What is withdrawn, changed or added is so for others once their cache is over.
func TestChange(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t)
		m.backbone(2)
		seller := m.node()
		seller.offer(t, capability("finance/fx", "1.0.0"), capability("weather", "1.0.0"))
		wait(5 * time.Second)
		if got := seller.Registered(); len(got) != 2 || time.Until(got["weather@1.0.0"]) < 11*time.Hour {
			t.Errorf("registered %v", got)
		}
		seller.offer(t, capability("finance/fx", "2.0.0"), capability("secret", "1.0.0", func(c *descriptorpb.Capability) { c.Visibility = "private" }))
		wait(5 * time.Second)
		if got := seller.Registered(); len(got) != 1 || got["finance/fx@2.0.0"].IsZero() {
			t.Errorf("registered %v", got)
		}
		buyer := m.node()
		for name, want := range map[string][]string{"weather": nil, "secret": nil, "finance": {seller.label("finance/fx", "2.0.0")}} {
			if got := buyer.find(t, directory.Query{Capability: name}); !slices.Equal(got, want) {
				t.Errorf("%s: found %v, want %v", name, got, want)
			}
		}
		if err := seller.Announce(directory.Profile{Capabilities: []*descriptorpb.Capability{{Name: "Bad"}}}); err == nil {
			t.Error("a bad capability is announced")
		}
		if got := seller.Registered(); len(got) != 1 {
			t.Errorf("after a refused change: registered %v", got)
		}
	})
}

// Registrations are renewed in time, for as long as the agent runs.
func TestRenewal(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		const ttl = 10 * time.Minute
		m := newMesh(t)
		short := func(c *directory.Config) { c.RegistrationTTL = ttl }
		s := m.node(short, func(c *directory.Config) { c.Mode = kad.Server })
		m.list(overlaytest.Info(s.host))
		seller := m.node(short)
		seller.offer(t, capability("finance/fx", "1.0.0"))
		for range 3 {
			wait(ttl - time.Second)
			until := seller.Registered()["finance/fx@1.0.0"]
			if time.Until(until) < ttl*2/5 {
				t.Errorf("%v before the end it is not renewed", time.Until(until))
			}
			if got := m.node(short).find(t, directory.Query{Capability: "finance"}); len(got) != 1 {
				t.Errorf("found %v", got)
			}
		}
	})
}

// A node that starts before any directory server announces itself when there is
// one.
func TestServerComesLast(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t)
		seller := m.node()
		seller.offer(t, capability("finance/fx", "1.0.0"))
		wait(3 * time.Minute)
		if s := seller.Status(); !s.Partitioned() || s.Why == nil {
			t.Errorf("status %+v", s)
		}
		if _, err := seller.Discover(t.Context(), directory.Query{Capability: "weather"}); !errors.Is(err, wire.Unreachable) {
			t.Errorf("Discover = %v; want unreachable", err)
		}
		m.backbone(1)
		wait(50 * time.Second) // the longest backoff, with jitter
		if s := seller.Status(); s.Partitioned() || s.Servers != 1 {
			t.Errorf("status %+v", s)
		}
		if got := m.node().find(t, directory.Query{Capability: "finance"}); len(got) != 1 {
			t.Errorf("found %v", got)
		}
	})
}

// A directory server that is all by itself finds itself.
func TestAlone(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t)
		only := m.backbone(1)[0]
		only.offer(t, capability("finance/fx", "1.0.0"))
		wait(time.Second)
		if got := only.find(t, directory.Query{Capability: "finance"}); len(got) != 1 {
			t.Errorf("found %v", got)
		}
		if s := only.Status(); s.Partitioned() {
			t.Errorf("status %+v", s)
		}
		if len(only.Registered()) != 1 {
			t.Error("not registered")
		}
		if _, err := only.Resolve(t.Context(), directory.Target{Agent: protocoltest.NewAgent(t, realm, time.Now()).Agent}); !errors.Is(err, wire.NotFound) {
			t.Errorf("Resolve = %v; want not_found", err)
		}
	})
}

func TestResolve(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t)
		m.backbone(2)
		seller, buyer, late := m.node(), m.node(), m.node()
		if err := seller.Announce(directory.Profile{Mailboxes: []string{"/ip4/192.0.2.2/tcp/4747"}}); err != nil {
			t.Fatal(err)
		}
		wait(5 * time.Second)
		check := func(n *node, target string, reach string) {
			t.Helper()
			to, err := directory.ParseTarget(target)
			if err != nil {
				t.Fatal(err)
			}
			a, err := n.Resolve(t.Context(), to)
			if err != nil || a.ID != seller.Agent.Agent || a.Address != seller.Certificate.Address || a.Peer.ID != seller.host.ID() ||
				len(a.Peer.Addrs) == 0 || len(a.Mailboxes) != 1 || a.Reachability != reach {
				t.Errorf("Resolve(%s) = %+v, %v", target, a, err)
			}
		}
		check(buyer, string(seller.Agent.Agent), "mailbox")
		check(buyer, seller.Certificate.Address.String(), "mailbox")
		check(seller, seller.Certificate.Address.String(), "mailbox")
		a, err := buyer.Resolve(t.Context(), directory.Target{Agent: seller.Agent.Agent})
		if err != nil {
			t.Fatal(err)
		}
		if d, err := buyer.Descriptor(t.Context(), a); err != nil || d.Certificate.Agent != seller.Agent.Agent {
			t.Errorf("Descriptor = %v, %v", d, err)
		}
		check(buyer, string(seller.Agent.Agent), "direct")
		seller.stop()
		seller.host.Close()
		check(late, seller.Certificate.Address.String(), "mailbox") // the record outlives the agent's presence
	})
}

func TestResolveNothing(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t)
		m.backbone(1)
		n := m.node()
		nobody := protocoltest.NewAgent(t, realm, time.Now())
		for name, to := range map[string]directory.Target{
			"agent":         {Agent: nobody.Agent},
			"address":       {Address: nobody.Certificate.Address},
			"another realm": {Address: identity.Address{Realm: 7, Bits: 7}},
		} {
			start := time.Now()
			if _, err := n.Resolve(t.Context(), to); !errors.Is(err, wire.NotFound) || time.Since(start) > 5*time.Second {
				t.Errorf("%s: %v after %v; want not_found", name, err, time.Since(start))
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := n.Resolve(ctx, directory.Target{Agent: nobody.Agent}); !errors.Is(err, wire.DeadlineExceeded) {
			t.Errorf("in a hurry: %v; want deadline_exceeded", err)
		}
	})
}

func TestParseTarget(t *testing.T) {
	t.Parallel()
	for in, ok := range map[string]bool{
		"0:A91F.0000.7C2E": true, "did:key:z6MkehRgf7yJbgaGfYsdoAsKdBPE3dj2CYhowQdcjqSJgvVd": true,
		"": false, "did:key:z6Mk": false, "did:web:example.org": false, "finance/fx": false,
	} {
		to, err := directory.ParseTarget(in)
		if ok && (err != nil || to.String() != in) || !ok && !errors.Is(err, wire.InvalidArgument) {
			t.Errorf("ParseTarget(%q) = %v, %v", in, to, err)
		}
	}
}

// An agent in use is probed: its uptime falls while it is down, and what was
// learned survives a restart.
func TestExperience(t *testing.T) {
	file := filepath.Join(t.TempDir(), "experience.json")
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t)
		m.backbone(1)
		seller := m.node()
		keeps := func(c *directory.Config) { c.ExperienceFile, c.ProbeInterval = file, time.Minute }
		buyer := m.node(keeps)
		seller.offer(t, capability("finance/fx", "1.0.0"))
		wait(5 * time.Second)
		buyer.find(t, directory.Query{Capability: "finance"})
		wait(10 * time.Minute)
		v := buyer.Experience(seller.Agent.Agent)
		if v.Uptime != 100 || v.Latency < rtt || v.Latency > rtt*11/10 || v.Trust != 0.5 {
			t.Errorf("up for ten minutes: %+v", v)
		}
		m.net.Cut(seller.host, true)
		wait(10 * time.Minute)
		if v = buyer.Experience(seller.Agent.Agent); v.Uptime < 40 || v.Uptime > 65 {
			t.Errorf("down for half of the time: %+v", v)
		}
		buyer.Record(seller.Agent.Agent, experience.Failure)
		buyer.stop()
		again := m.nodeOf(protocoltest.NewAgent(t, realm, time.Now()), keeps)
		if v := again.Experience(seller.Agent.Agent); v.Trust > 0.34 || v.Uptime > 65 || v.Uptime == 0 {
			t.Errorf("after a restart: %+v", v)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []directory.Config{{RegistrationTTL: time.Second}, {RegistrationTTL: 8 * 24 * time.Hour}, {CacheTTL: -1}, {ProbeInterval: -1}} {
		if _, err := directory.New(c); !errors.Is(err, wire.InvalidArgument) {
			t.Errorf("New(%+v) = %v; want invalid_argument", c, err)
		}
	}
}

// Every operation is reported.
func TestObserver(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t)
		m.backbone(1)
		seen := make(observer, 100)
		n := m.node(func(c *directory.Config) { c.Observer = seen })
		wait(2 * time.Second)
		n.find(t, directory.Query{Capability: "weather"})
		_, _ = n.Resolve(t.Context(), directory.Target{Agent: n.Agent.Agent})
		n.stop()
		close(seen)
		got := make(map[string]bool)
		for s := range seen {
			got[s] = true
		}
		for _, want := range []string{"announce ok", "discover empty", "resolve cached"} {
			if !got[want] {
				t.Errorf("observed %v, want %s", got, want)
			}
		}
	})
}

type observer chan string

func (o observer) Observe(kind string, _ time.Duration, outcome string) { o <- kind + " " + outcome }

var _ directory.Index = (*kad.Table)(nil)
