package session_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"openmesh/protocols/session"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// speak makes a node speak versions of the protocol x, which may change.
func speak(versions *atomic.Pointer[[]string]) func(*session.Config) {
	return func(c *session.Config) {
		keep(c)
		terms := c.Signal.Terms
		c.Signal.Terms = func() signal.Terms {
			t := terms()
			t.Protocols = []signal.AppProtocol{{Name: "x", Versions: *versions.Load()}}
			return t
		}
	}
}

// Both sides have the version that signaling agreed on; it survives a restart, and
// a side that comes back with other versions agrees anew.
func TestProtocol(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ours, theirs atomic.Pointer[[]string]
		ours.Store(&[]string{"1.0.0", "2.0.0"})
		theirs.Store(&[]string{"1.0.0", "2.0.0", "3.0.0"})
		net := newWires(10 * time.Millisecond)
		a, b, mute := net.node(t, speak(&ours)), net.node(t, speak(&theirs)), net.node(t, keep)
		want := session.Want{Contract: signal.Contract{QoS: signal.AtLeastOnce}}
		s := a.open(t, b, want)
		agreed := func(version string) {
			t.Helper()
			for _, n := range []*wired{a, b} {
				s, info, err := n.Find(s.ID().String())
				if err != nil || s == nil {
					t.Fatal("session is gone", err)
				}
				if v, ok := s.Protocol("x"); v != version || !ok || info.Protocols[0].Versions[0] != version {
					t.Errorf("%q, %v; info %v; want %s", v, ok, info.Protocols, version)
				}
				if v, ok := s.Protocol("y"); ok {
					t.Errorf("agreed on y %s", v)
				}
			}
		}
		agreed("2.0.0")
		if v, ok := a.open(t, mute, want).Protocol("x"); ok {
			t.Errorf("agreed on %s with one who does not know it", v)
		}

		theirs.Store(&[]string{"1.0.0"})
		b.crash(t)
		synctest.Wait() // b has its sessions back; what either side has asked is still under way
		agreed("2.0.0")
		deliverOne(t, a, s.ID())
		agreed("1.0.0")

		theirs.Store(&[]string{"4.0.0"})
		_, err := a.Open(t.Context(), b.target(), session.Want{Exclusive: true})
		if wire.CodeOf(err) != wire.NoCommonSchema {
			t.Errorf("without a common version: %v", err)
		}
	})
}

// deliverOne has the session deliver a message, for which it is resumed if need be.
func deliverOne(t *testing.T, n *wired, id signal.ID) {
	t.Helper()
	s, _, err := n.Find(id.String())
	if err != nil {
		t.Fatal(err)
	}
	seq, err := s.Post(t.Context(), &delivery.Message{Body: []byte("{}")})
	if err != nil {
		t.Fatal(err)
	}
	if o, err := s.Outcome(t.Context(), seq); err != nil || o.Status != delivery.Delivered {
		t.Fatalf("%v, %v", o, err)
	}
}
