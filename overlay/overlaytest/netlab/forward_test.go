//go:build linux

package netlab_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/overlay/overlaytest/netlab"
	"openmesh/protocols/identity"
)

// chainLab is a network in which a reaches b over forwarding relays and in no other
// way. All reach the backbone; else those reach each other that a line joins:
//
//	            ┌── r2 ──┐
//	a ─ home ─ r1        r3 ─ office ─ b
//	            └── r4 ──┘
type chainLab struct {
	*netlab.Lab
	backbone     *netlab.Daemon
	r1, r2       *netlab.Daemon
	r3, r4       *netlab.Daemon
	home, office *netlab.Router
	a, b         *netlab.Daemon
	work         *counter
}

// noRelays has an agent hold no slot and no mailbox anywhere: what it has to do with a
// relay is then what it does over it.
var noRelays = map[string]string{
	"OPENMESH_NETWORKING_RELAYS":             "",
	"OPENMESH_NETWORKING_RELAY_FALLBACK":     "false",
	"OPENMESH_MAILBOX_REPLICAS":              "0",
	"OPENMESH_NETWORKING_KEEPALIVE_INTERVAL": "1s",
}

// newChainLab calls watch when there are hosts, but no daemon runs yet.
func newChainLab(t *testing.T, watch func(hosts []*netlab.Host)) *chainLab {
	t.Helper()
	lab := netlab.New(t)
	lab.Cloud(netlab.Link{Delay: 5 * time.Millisecond})
	backbone := lab.Host("backbone")
	hosts := []*netlab.Host{lab.Host("r1"), lab.Host("r2"), lab.Host("r3"), lab.Host("r4")}
	m := &chainLab{Lab: lab, home: lab.Router("home", netlab.Easy), office: lab.Router("office", netlab.Easy), work: newCounter()}
	m.join(hosts)
	watch(hosts)
	m.backbone = lab.Backbone(backbone, nil)
	for i, r := range []**netlab.Daemon{&m.r1, &m.r2, &m.r3, &m.r4} {
		*r = lab.Relay(hosts[i], nil)
	}
	host := m.office.Host("b")
	for _, proto := range []string{"tcp", "udp"} {
		m.office.Forward(proto, netlab.Port, host.Addr)
	}
	announced := maps.Clone(noRelays)
	announced["OPENMESH_NETWORKING_ANNOUNCE"] = fmt.Sprintf("/ip4/%[1]s/tcp/%[2]d,/ip4/%[1]s/udp/%[2]d/quic-v1", m.office.Addr, netlab.Port)
	m.b = lab.Daemon(host, "b", announced, "--capability", m.work.offer(t, lab, host))
	m.a = lab.Daemon(m.home.Host("a"), "a", noRelays)
	return m
}

// join lets only neighbours reach each other.
func (m *chainLab) join(hosts []*netlab.Host) {
	type place struct {
		*netlab.Namespace
		addr netip.Addr
	}
	places := []place{{m.home.Namespace, m.home.Addr}}
	for _, h := range hosts {
		places = append(places, place{h.Namespace, h.Addr})
	}
	places = append(places, place{m.office.Namespace, m.office.Addr})
	lines := []string{"home r1", "r1 r2", "r2 r3", "r1 r4", "r3 r4", "r3 office"}
	for i, p := range places {
		for _, q := range places[i+1:] {
			if !slices.Contains(lines, p.Name+" "+q.Name) {
				p.IP("route add unreachable " + q.addr.String())
				q.IP("route add unreachable " + p.addr.String())
			}
		}
	}
}

// through names a chain of relays.
func through(chain ...*netlab.Daemon) string {
	var ids []string
	for _, r := range chain {
		ids = append(ids, r.Ready.Agent)
	}
	return strings.Join(ids, ",")
}

// called is what became of a call over relays.
type called struct {
	Response number
	Path     struct {
		Kind string
		Hops []string
	}
	Session string
}

// call has a call b over one of some chains.
func (m *chainLab) call(n int, chains ...string) (got called, err error) {
	args := []string{"call", m.b.Ready.Agent, fmt.Sprintf(`{"n": %d}`, n), "--capability", capability, "--timeout", "12s"}
	for _, c := range chains {
		args = append(args, "--through", c)
	}
	out, err := m.a.CLI(args...)
	if err == nil {
		err = json.Unmarshal(out, &got)
	}
	return got, err
}

// mustCall also checks the answer, and that it came over a chain.
func (m *chainLab) mustCall(t *testing.T, n int, over []*netlab.Daemon, chains ...string) called {
	t.Helper()
	got, err := m.call(n, chains...)
	if err != nil {
		t.Fatal(err)
	}
	var hops []string
	for _, r := range over {
		hops = append(hops, r.Ready.Peer)
	}
	if got.Response.N != n || got.Path.Kind != "forwarded" || !slices.Equal(got.Path.Hops, hops) {
		t.Fatalf("call %d was answered %d, %s over %v; want it forwarded over %v", n, got.Response.N, got.Path.Kind, got.Path.Hops, hops)
	}
	return got
}

// marker is a number that cannot be in anything encrypted by chance.
const marker = 730518462951

// Who calls over a chain of relays is known to the first and to nobody else, who is
// called to the last; none sees what is said, nor between whom, nor in what session.
// When a relay dies, an error names it, and another chain does: for new calls, and for
// a session that is in use.
func TestForwarding(t *testing.T) {
	t.Parallel()
	var captures []*netlab.Capture
	m := newChainLab(t, func(hosts []*netlab.Host) {
		for _, h := range hosts {
			captures = append(captures, h.Capture(nil))
		}
	})
	chain, detour := through(m.r1, m.r2, m.r3), through(m.r1, m.r4, m.r3)
	m.awaitRecords(t)
	first := m.mustCall(t, marker, []*netlab.Daemon{m.r1, m.r2, m.r3}, chain)
	m.mustCall(t, marker+1, []*netlab.Daemon{m.r1, m.r2, m.r3}, chain)
	m.checkSeen(t, captures, first.Session)

	tr := m.startOver(t, chain, detour)
	await(t, "messages flow", 20*time.Second, func() bool { return tr.pulse.count() > 50 })
	tr.pulse.lap()
	m.r2.Kill()
	killed := tr.pulse.count()
	await(t, "messages flow again", 30*time.Second, func() bool { return tr.pulse.count() > killed+100 })
	gap := tr.pulse.lap()
	t.Logf("relay 2 killed: %s without an answer", round(gap))
	if gap > 10*time.Second { // relay 1 has to find out, for the path and for another over it
		t.Errorf("relay 2 killed: %s without an answer", gap)
	}
	m.checkError(t, chain)
	m.mustCall(t, marker+3, []*netlab.Daemon{m.r1, m.r4, m.r3}, chain, detour)
	tr.end(t)
}

// awaitRecords waits until the agents know where relays and b are.
func (m *chainLab) awaitRecords(t *testing.T) {
	t.Helper()
	for _, d := range []*netlab.Daemon{m.r1, m.r2, m.r3, m.r4, m.b} {
		await(t, d.Host.Name+" is in the directory", 20*time.Second, func() bool {
			_, err := m.a.CLI("resolve", d.Ready.Agent)
			return err == nil
		})
	}
}

// checkError has a call over the chain whose second relay is dead.
func (m *chainLab) checkError(t *testing.T, chain string) {
	t.Helper()
	start := time.Now()
	_, err := m.call(marker+2, chain)
	t.Logf("after %s: %v", round(time.Since(start)), err)
	if err == nil {
		t.Fatal("a call over a dead relay was answered")
	}
	for _, want := range []string{"relay 2 of 3", m.r2.Ready.Peer} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name %s: %v", want, err)
		}
	}
}

// startOver has a begin with durable messages to b over the first of some chains that
// works.
func (m *chainLab) startOver(t *testing.T, chains ...string) *traffic {
	t.Helper()
	pair := &mesh{lab: m.Lab, a: m.b, b: m.a, work: newCounterOf("lab/over")}
	file := pair.work.offer(t, m.Lab, m.b.Host)
	if _, err := m.b.CLI("capability", "add", file); err != nil {
		t.Fatal(err)
	}
	l := load{name: durable.name, workers: 4, padding: durable.padding, qos: durable.qos}
	tr := &traffic{mesh: pair, load: l, client: dial(t, m.a), pulse: newPulse()}
	tr.session = pair.open(t, tr.client, &openmeshv1.OpenSessionRequest{Qos: l.qos, Through: chains}).Session
	return tr.begin(t)
}

// checkSeen checks what passed the relays.
func (m *chainLab) checkSeen(t *testing.T, captures []*netlab.Capture, session string) {
	t.Helper()
	secrets := m.secrets(t, session)
	neighbours := [][]netip.Addr{ // of those on the chain, first
		{m.home.Addr, m.r2.Host.Addr, m.r4.Host.Addr},
		{m.r1.Host.Addr, m.r3.Host.Addr},
		{m.office.Addr, m.r2.Host.Addr, m.r4.Host.Addr},
		{m.r1.Host.Addr, m.r3.Host.Addr},
	}
	for i, c := range captures {
		seen := c.Stop()
		remotes := seen.Remotes()
		t.Logf("r%d dealt with %v", i+1, remotes)
		for _, addr := range remotes {
			if addr != m.backbone.Host.Addr && !slices.Contains(neighbours[i], addr) {
				t.Errorf("r%d dealt with %s", i+1, addr)
			}
		}
		for _, addr := range neighbours[i][:2] {
			if !slices.Contains(remotes, addr) {
				t.Errorf("r%d was not seen to deal with %s", i+1, addr)
			}
		}
		for what, secret := range secrets {
			if seen.Contains(secret) {
				t.Errorf("%s passed r%d in the clear", what, i+1)
			}
		}
	}
}

// secrets are what no relay is to see.
func (m *chainLab) secrets(t *testing.T, session string) map[string][]byte {
	t.Helper()
	id, err := hex.DecodeString(session)
	check(t, err)
	all := map[string][]byte{"the request": fmt.Append(nil, marker), "the session's id": id, "the session's id in hex": []byte(session)}
	for _, d := range []*netlab.Daemon{m.a, m.b} {
		key, err := identity.AgentID(d.Ready.Agent).PublicKey()
		check(t, err)
		host, err := peer.Decode(d.Ready.Peer)
		check(t, err)
		files, err := filepath.Glob(filepath.Join(d.Home, "keys", "*", "cert*"))
		check(t, err)
		if len(files) == 0 {
			t.Fatal("no certificate was found")
		}
		certificate, err := os.ReadFile(files[0])
		check(t, err)
		name := d.Host.Name
		all[name+"'s agent id"] = []byte(strings.TrimPrefix(d.Ready.Agent, "did:key:"))
		all[name+"'s root key"] = bytes.Clone(key)
		all[name+"'s peer id"] = []byte(host)
		all[name+"'s certificate"] = certificate[len(certificate)-32:] // of its signature
	}
	return all
}
