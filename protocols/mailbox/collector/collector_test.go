package collector_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"openmesh/overlay/overlaytest"
	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox"
	"openmesh/protocols/mailbox/collector"
	"openmesh/protocols/mailbox/mailboxtest"
	"openmesh/protocols/wire"
)

// mesh is some relays, and bob, who collects from them.
type mesh struct {
	*testing.T
	net    *overlaytest.Net
	relays []*relay
	bob    *mailboxtest.Identity
	host   host.Host // bob's

	mu      sync.Mutex
	got     []string // what was delivered, in order
	deliver func(payload string) error
	memory  []byte
}

type relay struct {
	host  host.Host
	info  peer.AddrInfo
	store *mailboxtest.Memory
	stop  func()
}

func newMesh(t *testing.T, relays int) *mesh {
	t.Helper()
	m := &mesh{T: t, net: overlaytest.NewNet(t, overlaytest.Latency), bob: mailboxtest.NewIdentity(t, time.Now())}
	m.host = m.net.Host(libp2p.Identity(m.bob.Host))
	m.deliver = func(string) error { return nil }
	for range relays {
		h := m.net.Host()
		r := &relay{host: h, info: overlaytest.Info(h), store: mailboxtest.NewMemory()}
		r.stop = m.start(func(ctx context.Context) {
			mailbox.NewServer(mailbox.ServerConfig{Store: r.store, Verifier: identity.NewVerifier(mailboxtest.Lab, time.Now), Log: zap.NewNop()}).Run(ctx, h)
		})
		m.relays = append(m.relays, r)
	}
	return m
}

// start runs f until stop is called or the test ends.
func (m *mesh) start(f func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); f(ctx) }()
	stop = func() { cancel(); <-done }
	m.Cleanup(stop)
	synctest.Wait()
	return stop
}

func (m *mesh) infos() (all []peer.AddrInfo) {
	for _, r := range m.relays {
		all = append(all, r.info)
	}
	return all
}

// collect starts bob's collector.
func (m *mesh) collect(change func(*collector.Config)) (stop func()) {
	r := m.bob.Recipient(time.Now)
	cfg := collector.Config{
		Dialer: m.host, Relays: m.infos, Certificate: func() *identity.Certificate { return m.bob.Cert }, Log: zap.NewNop(),
		Open: func(l *mailbox.Letter) (*identity.Certificate, []byte, error) { return mailbox.Open(r, l, time.Now()) },
		Deliver: func(_ context.Context, _ *identity.Certificate, payload []byte, _ mailbox.ID, done func(error)) {
			m.mu.Lock()
			err := m.deliver(string(payload))
			if err == nil {
				m.got = append(m.got, string(payload))
			}
			m.mu.Unlock()
			done(err)
		},
	}
	if change != nil {
		change(&cfg)
	}
	stop = m.start(func(ctx context.Context) { collector.New(cfg).Run(ctx) })
	time.Sleep(2 * time.Second)
	return stop
}

func (m *mesh) ok(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

// send leaves letters with relays.
func (m *mesh) send(from *mailboxtest.Identity, to []*relay, payloads ...string) {
	m.Helper()
	h := m.net.Host(libp2p.Identity(from.Host))
	defer h.Close()
	for _, p := range payloads {
		l, err := mailbox.Seal(from.Sender(), m.bob.Cert, []byte(p), time.Now(), time.Now().Add(12*time.Hour))
		m.ok(err)
		for _, r := range to {
			_, err = mailbox.Deposit(m.Context(), h, r.info, l)
			m.ok(err)
		}
	}
}

func (m *mesh) agent() *mailboxtest.Identity { return mailboxtest.NewIdentity(m, time.Now()) }

func (m *mesh) want(want ...string) {
	m.Helper()
	if got := m.delivered(); !slices.Equal(got, want) {
		m.Errorf("delivered %q, want %q", got, want)
	}
}

func (m *mesh) delivered() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.got)
}

// held expects so many letters at each relay.
func (m *mesh) held(want ...int) {
	m.Helper()
	for i, r := range m.relays {
		if n := len(r.store.Letters(m.bob.Agent)); n != want[i] {
			m.Errorf("relay %d holds %d letters, want %d", i, n, want[i])
		}
	}
}

// Bob is off, ten agents leave letters with both of his relays, one relay is
// destroyed, bob comes back: each letter once.
func TestAway(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 2)
		m.collect(nil)()
		m.want()
		var want []string
		for n := range 10 {
			a := m.agent()
			m.send(a, m.relays, fmt.Sprint(n, " first"), fmt.Sprint(n, " second"))
			want = append(want, fmt.Sprint(n, " first"), fmt.Sprint(n, " second"))
		}
		m.held(20, 20)
		m.relays[0].stop()
		m.relays[0].host.Close()
		m.collect(nil)
		m.want(want...)
		m.held(20, 0)
	})
}

// With both relays up every letter comes twice and is delivered once; new ones
// are pushed, and taken from wherever they are.
func TestTwoRelays(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 2)
		registered := make(chan peer.ID, 10)
		m.collect(func(c *collector.Config) {
			c.Registered = func(relay peer.ID, _ time.Time, err error) {
				m.ok(err)
				registered <- relay
			}
		})
		if len(registered) != 2 {
			t.Fatalf("registered %d times", len(registered))
		}
		if first, second := <-registered, <-registered; first == second {
			t.Errorf("registered twice at %s, want once at each relay", first)
		}
		a := m.agent()
		m.send(a, m.relays, "1", "2")
		m.send(a, m.relays[:1], "3")
		m.send(a, m.relays[1:], "4")
		time.Sleep(time.Second)
		m.want("1", "2", "3", "4")
		m.held(0, 0)
	})
}

// A relay that restarts without its store gets a new registration.
func TestRelayForgets(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 1)
		m.collect(nil)
		r := m.relays[0]
		m.ok(r.store.Forget(t.Context(), m.bob.Agent))
		r.host.Network().ClosePeer(m.host.ID())
		time.Sleep(10 * time.Second)
		m.send(m.agent(), m.relays, "1")
		time.Sleep(time.Second)
		m.want("1")
	})
}

// Registrations are renewed at half of their lifetime, and when the key changes.
func TestRenewal(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 1)
		m.collect(func(c *collector.Config) { c.Lifetime = time.Hour })
		for range 10 {
			time.Sleep(20 * time.Minute)
			box, err := m.relays[0].store.Box(t.Context(), m.bob.Agent)
			if left := time.Until(box.Expires); err != nil || left < 29*time.Minute {
				t.Errorf("registered for another %v, %v", left, err)
			}
		}
		m.bob.Certify(t, 2, time.Now(), time.Now().Add(24*time.Hour))
		m.relays[0].host.Network().ClosePeer(m.host.ID())
		time.Sleep(time.Minute)
		if box, err := m.relays[0].store.Box(t.Context(), m.bob.Agent); err != nil || box.Version != 2 {
			t.Errorf("registered with version %d, %v", box.Version, err)
		}
		m.send(m.agent(), m.relays, "1")
		time.Sleep(time.Second)
		m.want("1")
	})
}

// What cannot be delivered now is tried again, in its sender's order; others go on.
func TestTemporary(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 2)
		broken, tries := true, 0
		m.deliver = func(p string) error {
			if tries++; broken && p[0] == 'a' {
				return errors.New("not now")
			}
			return nil
		}
		m.collect(nil)
		m.send(m.agent(), m.relays, "a1", "a2", "a3")
		m.send(m.agent(), m.relays, "b1", "b2")
		time.Sleep(time.Minute)
		m.want("b1", "b2")
		if m.held(3, 3); tries > 2+10 {
			t.Errorf("%d tries in a minute", tries)
		}
		m.mu.Lock()
		broken = false
		m.mu.Unlock()
		m.send(m.agent(), m.relays[1:], "c1")
		time.Sleep(10 * time.Minute)
		m.want("b1", "b2", "c1", "a1", "a2", "a3")
		m.held(0, 0)
	})
}

// More letters of one stuck sender than a relay has under way do not stop others.
func TestManyStuck(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 1)
		m.deliver = func(p string) error {
			if p[0] == 'a' {
				return errors.New("never")
			}
			return nil
		}
		m.collect(nil)
		var many []string
		for n := range 100 {
			many = append(many, fmt.Sprint("a", n))
		}
		m.send(m.agent(), m.relays, many...)
		m.send(m.agent(), m.relays, "b")
		time.Sleep(time.Minute)
		m.want("b")
		m.held(100)
	})
}

// A letter that is refused for good is dropped.
func TestPermanent(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 2)
		tries := 0
		m.deliver = func(p string) error {
			if tries++; p == "bad" {
				return fmt.Errorf("no: %w", &collector.Permanent{Err: wire.InvalidRequest})
			}
			return nil
		}
		m.collect(nil)
		m.send(m.agent(), m.relays, "bad", "good")
		time.Sleep(time.Second)
		m.want("good")
		m.held(0, 0)
		if tries != 2 {
			t.Errorf("%d tries", tries)
		}
	})
}

// A relay that alters, redirects and repeats letters, sends them in any order and
// lets another use the id of a letter that is to be lost: bob gets what there is, once.
func TestLyingRelay(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 2)
		liar := m.relays[0]
		m.collect(nil)()
		a, mallory := m.agent(), m.agent()
		m.send(a, m.relays, "1", "2", "3")
		good := m.entries(liar)
		forMallory, err := mailbox.Seal(a.Sender(), mallory.Cert, []byte("for mallory"), time.Now(), time.Now().Add(time.Hour))
		m.ok(err)
		forMallory.Recipient = m.bob.Agent
		theirs := mailboxtest.SealAs(t, good[1].ID, mallory, m.bob.Cert, "mallory's", time.Now(), time.Now().Add(time.Hour))
		altered := good[0]
		altered.Body = slices.Clone(altered.Body)
		altered.Body[len(altered.Body)-1] ^= 1
		wrapped := good[2] // an unknown field: another body with the same content
		wrapped.Body = append(slices.Clone(wrapped.Body), 0xfa, 0x07, 0x01, 'x')

		m.ok(liar.store.Forget(t.Context(), m.bob.Agent))
		m.ok(liar.store.Register(t.Context(), m.bob.Agent, 1, time.Now().Add(time.Hour), 10))
		for i, l := range []mailbox.Letter{altered.Letter, {Recipient: m.bob.Agent, ID: good[1].ID, Expires: good[1].Expires, Body: []byte("made up")}, *forMallory, *theirs, good[2].Letter, wrapped.Letter, good[1].Letter} {
			e := mailbox.Entry{Letter: l, Depositor: peer.ID(fmt.Sprint(i)), Until: l.Expires}
			m.ok(liar.store.Deposit(t.Context(), e, mailbox.Quota{Letters: 100, Bytes: 1 << 30}, time.Now()))
		}
		stop := m.collect(func(c *collector.Config) { c.Memory = m })
		m.held(0, 0)
		if got := slices.Sorted(slices.Values(m.delivered())); !slices.Equal(got, []string{"1", "2", "3", "mallory's"}) {
			t.Errorf("delivered %q", got)
		}
		// Replayed later, and after a restart of bob.
		for range 2 {
			for _, e := range good {
				m.ok(liar.store.Deposit(t.Context(), e, mailbox.Quota{Letters: 100, Bytes: 1 << 30}, time.Now()))
			}
			stop()
			stop = m.collect(func(c *collector.Config) { c.Memory = m })
			m.held(0, 0)
		}
		if got := m.delivered(); len(got) != 4 {
			t.Errorf("after a replay %q were delivered", got)
		}
	})
}

// entries returns what a relay holds for bob.
func (m *mesh) entries(r *relay) []mailbox.Entry {
	m.Helper()
	es, err := r.store.Read(m.Context(), m.bob.Agent, 0, 100, 1<<30, time.Now())
	m.ok(err)
	return es
}

// Load implements [collector.Memory].
func (m *mesh) Load(context.Context) ([]byte, error) {
	if m.memory == nil {
		return nil, wire.NotFound
	}
	return m.memory, nil
}

// Save implements [collector.Memory].
func (m *mesh) Save(_ context.Context, document []byte) error {
	m.memory = document
	return nil
}

// Relays come and go while the collector runs.
func TestRelaysChange(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 2)
		var mu sync.Mutex
		use := m.infos()[:1]
		m.collect(func(c *collector.Config) {
			c.Relays = func() []peer.AddrInfo { mu.Lock(); defer mu.Unlock(); return use }
		})
		m.send(m.agent(), m.relays[:1], "1")
		mu.Lock()
		use = m.infos()[1:]
		mu.Unlock()
		time.Sleep(10 * time.Second)
		m.send(m.agent(), m.relays[:1], "2") // still registered, not collected from
		m.send(m.agent(), m.relays[1:], "3")
		time.Sleep(10 * time.Second)
		m.want("1", "3")
		m.held(1, 0)
	})
}

// A relay out of reach is tried again with pauses, and used once it is back.
func TestRelayDown(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 1)
		m.net.Cut(m.relays[0].host, true)
		m.collect(nil)
		time.Sleep(10 * time.Minute)
		m.net.Cut(m.relays[0].host, false)
		time.Sleep(3 * time.Minute)
		if m.host.Network().Connectedness(m.relays[0].host.ID()) != network.Connected {
			t.Error("the relay is not used again")
		}
		m.send(m.agent(), m.relays, strings.Repeat("x", 1<<20))
		time.Sleep(10 * time.Second)
		if n := len(m.delivered()); n != 1 {
			t.Errorf("delivered %d letters", n)
		}
	})
}
