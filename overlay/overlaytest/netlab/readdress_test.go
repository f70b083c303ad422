//go:build linux

package netlab_test

import (
	"strings"
	"testing"
	"time"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/overlay/overlaytest/netlab"
)

// A router gets another public address and forgets its connections, while two agents
// talk through a hole: b sends durable messages and calls. Neither is told. The
// session goes on through a relay, then through a new hole; nothing is lost, nothing
// is worked on twice.
func TestReaddress(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name      string
		kind      netlab.Kind // of both routers
		moves     string
		transport string // of the hole
	}{
		{"caller's router", netlab.Easy, "b", "quic-v1"},
		{"called agent's router", netlab.Easy, "a", "quic-v1"},
		{"caller's router, TCP", netlab.NoUDP, "b", "tcp"},
		{"called agent's router, TCP", netlab.NoUDP, "a", "tcp"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := newHomes(t, test.kind)
			all := h.startAll(t)
			for _, tr := range all {
				tr.untilOver(t, test.transport, hole, settle)
			}
			old := h.routers[test.moves].Addr
			h.routers[test.moves].Readdress()
			moved := time.Now()
			t.Logf("%s became %s", old, h.routers[test.moves].Addr)
			for _, tr := range all {
				gap := tr.untilOver(t, test.transport, hole, settle)
				t.Logf("%s: %v without a sign of life; through a new hole %v after the move", tr.load.name, round(gap), round(time.Since(moved)))
				if gap > resumed {
					t.Errorf("%s: %v without a sign of life, want at most %v", tr.load.name, round(gap), resumed)
				}
			}
			h.checkSeen(t, test.moves)
			for _, tr := range all {
				tr.end(t)
			}
		})
	}
}

// resumed is how long a session may be silent after a router has moved: to miss two
// pongs takes two seconds, to find that a relay is reached no more another one.
const resumed = 5 * time.Second

// homes are agents a and b behind routers that holes can be punched through.
type homes struct {
	*netlab.Mesh
	a, b    *netlab.Daemon
	routers map[string]*netlab.Router
	work    []*counter // a's handlers, by load
}

// lasting are the loads of a session that a move does not end.
var lasting = []load{steady, {name: durable.name, workers: 4, padding: durable.padding, qos: durable.qos}}

func newHomes(t *testing.T, kind netlab.Kind) *homes {
	t.Helper()
	env := map[string]string{"OPENMESH_NETWORKING_KEEPALIVE_INTERVAL": "1s"}
	m := netlab.NewMesh(t, netlab.Link{Delay: 20 * time.Millisecond}, env)
	h := &homes{Mesh: m, routers: map[string]*netlab.Router{"a": m.Router("a's router", kind), "b": m.Router("b's router", kind)}}
	host := h.routers["a"].Host("a")
	var flags []string
	for _, l := range lasting {
		work := newCounterOf("lab/" + strings.ReplaceAll(l.name, " ", "-"))
		h.work = append(h.work, work)
		flags = append(flags, "--capability", work.offer(t, m.Lab, host))
	}
	h.a = m.Daemon(host, "a", env, flags...)
	h.b = m.Daemon(h.routers["b"].Host("b"), "b", env)
	p := &pair{a: dial(t, h.a), b: dial(t, h.b)}
	p.await(t, m.Relays)
	await(t, "a has told the directory where its relays are", known, func() bool {
		_, err := p.b.Session.Open(t.Context(), &openmeshv1.OpenSessionRequest{Targets: []string{h.a.Ready.Agent}})
		return err == nil
	})
	return h
}

// startAll has b begin with all loads.
func (h *homes) startAll(t *testing.T) (all []*traffic) {
	t.Helper()
	for i, l := range lasting {
		m := &mesh{lab: h.Lab, a: h.a, b: h.b, work: h.work[i]}
		all = append(all, m.start(t, l))
	}
	return all
}

// checkSeen checks that the agent that stayed talks to the other one at its router's
// new address.
func (h *homes) checkSeen(t *testing.T, moved string) {
	t.Helper()
	agents := map[string]*netlab.Daemon{"a": h.a, "b": h.b}
	stayed := map[string]string{"a": "b", "b": "a"}[moved]
	at := h.routers[moved].Addr.String()
	for _, s := range sessions(t, dial(t, agents[stayed]), agents[moved]) {
		if len(s.Channels) == 0 || !strings.Contains(s.Channels[0].Addr, "/"+at+"/") {
			t.Errorf("%s has session %s over %v, want the other end at %s", stayed, s.Session, s.Channels, at)
		}
	}
}

// hole is the transport of a channel that leads through a hole; "" of any other.
func hole(c *openmeshv1.Channel) string {
	if c.GetKind() != "holepunched" {
		return ""
	}
	return c.Transport
}
