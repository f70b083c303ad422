package collector_test

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"openmesh/overlay/overlaytest"
	"openmesh/protocols/mailbox/collector"
	"openmesh/protocols/wire"
)

// A relay that gives way to another is collected from until its registration lapses,
// and the one that takes its place after a restart too; none is renewed.
func TestFormerRelay(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 2)
		var mu sync.Mutex
		use, expires := m.infos()[:1], make(map[peer.ID]time.Time)
		change := func(c *collector.Config) {
			c.Lifetime = time.Hour
			c.Relays = func() []peer.AddrInfo { mu.Lock(); defer mu.Unlock(); return use }
			c.Former = func() (former []peer.AddrInfo) {
				mu.Lock()
				defer mu.Unlock()
				for _, r := range m.infos() {
					if time.Now().Before(expires[r.ID]) {
						former = append(former, r)
					}
				}
				return former
			}
			c.Registered = func(relay peer.ID, until time.Time, err error) {
				mu.Lock()
				defer mu.Unlock()
				if expires[relay] = until; err != nil && !errors.Is(err, wire.NotFound) {
					t.Errorf("registered with %s: %v", relay, err)
				}
			}
		}
		stop := m.collect(change)
		mu.Lock()
		first := expires[m.relays[0].info.ID]
		use = m.infos()[1:]
		mu.Unlock()
		if d := time.Until(first); d < 59*time.Minute-5*time.Second || d > time.Hour {
			t.Errorf("registered for another %v, want an hour", d)
		}
		time.Sleep(5 * time.Second)
		m.send(m.agent(), m.relays[:1], "1")
		time.Sleep(5 * time.Second)
		m.want("1")
		stop()
		m.send(m.agent(), m.relays[:1], "2")
		m.collect(change)
		m.want("1", "2")
		time.Sleep(40 * time.Minute)
		if box, err := m.relays[0].store.Box(t.Context(), m.bob.Agent); err != nil || box.Expires.After(first) {
			t.Errorf("the relay of before has %+v, %v", box, err)
		}
		mu.Lock()
		if left := time.Until(expires[m.relays[1].info.ID]); left < 29*time.Minute {
			t.Errorf("the present one keeps letters for %v", left)
		}
		use = m.infos()
		mu.Unlock()
		time.Sleep(5 * time.Second)
		if box, err := m.relays[0].store.Box(t.Context(), m.bob.Agent); err != nil || !box.Expires.After(first) {
			t.Errorf("a relay that is wanted again has %+v, %v", box, err)
		}
		m.held(0, 0)
	})
}

// A former relay that has lost the registration is done with.
func TestFormerRelayForgets(t *testing.T) {
	overlaytest.Run(t, func(t *testing.T) {
		m := newMesh(t, 1)
		gone := make(chan error, 10)
		m.collect(func(c *collector.Config) {
			c.Relays, c.Former = func() []peer.AddrInfo { return nil }, m.infos
			c.Registered = func(_ peer.ID, until time.Time, err error) {
				if gone <- err; !until.IsZero() {
					t.Errorf("registered until %v", until)
				}
			}
		})
		if err := <-gone; !errors.Is(err, wire.NotFound) {
			t.Errorf("registered: %v", err)
		}
	})
}
