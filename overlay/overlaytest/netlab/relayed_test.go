//go:build linux

package netlab_test

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/overlay/overlaytest/netlab"
)

// soakEnv is how long the session of [TestRelayedSession] lasts before its relay is
// killed; if it is set, it also carries a GiB.
const soakEnv = "OPENMESH_NETLAB_SOAK"

// Two agents that no hole can be punched between talk through a relay, as long as
// they like: calls, durable messages and bulk. When the relay that carries them ends,
// by whatever way, all go on through the other within two keepalives; nothing is lost
// and nothing is worked on twice.
func TestRelayedSession(t *testing.T) {
	t.Parallel()
	last, volume := soak(t)
	tests := []struct {
		name   string
		end    func(relay *netlab.Daemon)
		last   time.Duration // before that
		volume int           // bytes of bulk, at least
	}{
		{"killed", (*netlab.Daemon).Kill, last, volume},
		{"stopped", (*netlab.Daemon).Stop, time.Second, 0},
		{"link dead", func(relay *netlab.Daemon) { relay.Host.Link(false) }, time.Second, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newApart(t)
			all := m.startAll(t)
			relay := m.carrier(t, all)
			m.carry(t, all, relay, test.last, test.volume)
			test.end(relay)
			m.goOn(t, all, test.name, m.other(relay))
			for _, tr := range all {
				tr.end(t)
			}
		})
	}
}

// apart is a mesh whose agents a and b are behind symmetric routers.
type apart struct {
	*netlab.Mesh
	a, b *netlab.Daemon
	work []*counter // a's handlers, by load
}

// mixed are the loads of a session that lasts.
var mixed = []load{
	steady,
	{name: durable.name, workers: 4, padding: durable.padding, qos: durable.qos},
	bulk,
}

func newApart(t *testing.T) *apart {
	t.Helper()
	env := map[string]string{"OPENMESH_NETWORKING_KEEPALIVE_INTERVAL": "1s"}
	m := &apart{Mesh: netlab.NewMesh(t, netlab.Link{Delay: 20 * time.Millisecond}, env)}
	host := m.Router("a's router", netlab.Symmetric).Host("a")
	var flags []string
	for _, l := range mixed {
		work := newCounterOf("lab/" + strings.ReplaceAll(l.name, " ", "-"))
		m.work = append(m.work, work)
		flags = append(flags, "--capability", work.offer(t, m.Lab, host))
	}
	m.a = m.Daemon(host, "a", env, flags...)
	m.b = m.Daemon(m.Router("b's router", netlab.Symmetric).Host("b"), "b", env)
	for _, agent := range []*netlab.Daemon{m.a, m.b} {
		awaitRelays(t, agent, (*openmeshv1.Relay).GetReserved, m.Relays[:]...)
	}
	return m
}

// startAll has b begin with all loads.
func (m *apart) startAll(t *testing.T) (all []*traffic) {
	t.Helper()
	for i, l := range mixed {
		pair := &mesh{lab: m.Lab, a: m.a, b: m.b, work: m.work[i]}
		all = append(all, pair.start(t, l))
	}
	return all
}

// soak is how long the session is to last, and how many bytes of bulk it is to carry.
func soak(t *testing.T) (time.Duration, int) {
	t.Helper()
	text := os.Getenv(soakEnv)
	if text == "" {
		return 10 * time.Second, 32 << 20
	}
	last, err := time.ParseDuration(text)
	check(t, err)
	return last, 1 << 30
}

// carrier returns the relay that carries b's calls once there are any.
func (m *apart) carrier(t *testing.T, all []*traffic) (relay *netlab.Daemon) {
	t.Helper()
	await(t, "calls go through a relay", 30*time.Second, func() bool {
		i := slices.IndexFunc(m.Relays[:], func(r *netlab.Daemon) bool { return r.Ready.Peer == relayOf(all[0].channel(t)) })
		if i >= 0 {
			relay = m.Relays[i]
		}
		return i >= 0
	})
	for _, tr := range all {
		tr.untilOver(t, relay.Ready.Peer, relayOf, 30*time.Second)
	}
	return relay
}

// carry lets the loads run for so long and until bulk has so many bytes, through the
// relay without a pause.
func (m *apart) carry(t *testing.T, all []*traffic, relay *netlab.Daemon, last time.Duration, volume int) {
	t.Helper()
	bytes := func() int { return m.work[2].pulse.count() * bulk.padding }
	begin := time.Now()
	await(t, "the sessions carry what they shall", last+5*time.Minute, func() bool {
		return time.Since(begin) > last && bytes() > volume
	})
	t.Logf("%s: %d calls, %d durable messages, %d MiB of bulk",
		time.Since(begin).Round(time.Second), all[0].pulse.count(), all[1].pulse.count(), bytes()>>20)
	m.goOn(t, all, "before", relay)
}

// goOn waits until all loads run through a relay, and checks for how long there was no
// sign of life until then.
func (m *apart) goOn(t *testing.T, all []*traffic, when string, relay *netlab.Daemon) {
	t.Helper()
	for _, tr := range all {
		gap := tr.untilOver(t, relay.Ready.Peer, relayOf, 30*time.Second)
		t.Logf("%s, %s: %s without a sign of life", when, tr.load.name, round(gap))
		if gap > 2*time.Second {
			t.Errorf("%s: %s went %s without a sign of life, want at most two keepalives", when, tr.load.name, gap)
		}
	}
}

func (m *apart) other(relay *netlab.Daemon) *netlab.Daemon {
	if relay == m.Relays[0] {
		return m.Relays[1]
	}
	return m.Relays[0]
}

// An agent behind a router that is told to do without relays says so at start and when
// it is examined, and of a call that relays would have carried what would help.
func TestWithoutRelays(t *testing.T) {
	t.Parallel()
	const remedy = "networking.relay_fallback: true"
	m := netlab.NewMesh(t, netlab.Link{Delay: 5 * time.Millisecond}, nil)
	host := m.Router("a's router", netlab.Symmetric).Host("a")
	a := m.Daemon(host, "a", nil, "--capability", newCounter().offer(t, m.Lab, host))
	b := m.Daemon(m.Router("b's router", netlab.Easy).Host("b"), "b", map[string]string{"OPENMESH_NETWORKING_RELAY_FALLBACK": "false"})
	awaitRelays(t, a, (*openmeshv1.Relay).GetReserved, m.Relays[:]...)

	log, err := os.ReadFile(b.Home + ".log")
	check(t, err)
	if !slices.ContainsFunc(strings.Split(string(log), "\n"), func(line string) bool {
		return strings.Contains(line, `"warn"`) && strings.Contains(line, "networking.relay_fallback is false")
	}) {
		t.Errorf("there is no warning in the log:\n%s", log)
	}
	client := dial(t, b)
	await(t, "doctor warns", 40*time.Second, func() bool {
		resp, err := client.Node.Doctor(t.Context(), &openmeshv1.DoctorRequest{})
		check(t, err)
		return slices.ContainsFunc(resp.Checks, func(c *openmeshv1.Check) bool {
			return c.Name == "relays" && c.Status == "warn" && strings.Contains(c.Hint, remedy)
		})
	})
	start := time.Now()
	out, err := b.CLI("call", a.Ready.Agent, `{"n": 1}`, "--capability", capability, "--timeout", "10s")
	t.Logf("the call ended after %s: %v", round(time.Since(start)), err)
	if err == nil {
		t.Fatalf("a call that only a relay could carry was answered: %s", out)
	}
	if !strings.Contains(err.Error(), "set "+remedy) {
		t.Errorf("the error has no hint: %v", err)
	}
}

// relayOf is the peer id of the relay that a channel leads through; "" for none.
func relayOf(c *openmeshv1.Channel) string {
	before, _, circuit := strings.Cut(c.GetAddr(), "/p2p-circuit")
	if !circuit {
		return ""
	}
	return before[strings.LastIndexByte(before, '/')+1:]
}

// awaitRelays waits until an agent says of each of the relays what it shall.
func awaitRelays(t *testing.T, agent *netlab.Daemon, says func(*openmeshv1.Relay) bool, relays ...*netlab.Daemon) {
	t.Helper()
	client := dial(t, agent)
	await(t, agent.Host.Name+" has its relays", 30*time.Second, func() bool {
		known := knownRelays(t, client)
		return !slices.ContainsFunc(relays, func(want *netlab.Daemon) bool {
			return !slices.ContainsFunc(known, func(r *openmeshv1.Relay) bool { return r.Peer == want.Ready.Peer && says(r) })
		})
	})
}

func knownRelays(t *testing.T, client *api.Client) []*openmeshv1.Relay {
	t.Helper()
	resp, err := client.Node.Relays(t.Context(), &openmeshv1.RelaysRequest{})
	check(t, err)
	return resp.Relays
}

// await waits until something is so.
func await(t *testing.T, what string, atMost time.Duration, so func() bool) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(atMost); !so(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not so after %s: %s", atMost, what)
		}
	}
}
