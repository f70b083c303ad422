//go:build linux

package netlab_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	pbv2 "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/util"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/overlay/overlaytest/netlab"
)

// smallQuotas are soon used up: two agents and their session leave two slots.
var smallQuotas = map[string]string{
	"OPENMESH_RELAY_MAX_RESERVATIONS":      "4",
	"OPENMESH_RELAY_MAX_CIRCUITS_PER_PEER": "2",
	"OPENMESH_RELAY_MAX_CIRCUITS":          "8",
	"OPENMESH_RELAY_BYTE_RATE":             "2MiB",
}

// A host that floods a relay with requests and bytes, under many names, is refused by
// status and gets no more than the quotas; two agents that talk through the relay
// hardly notice.
//
// It runs by itself, for it compares rates.
func TestRelayAbuse(t *testing.T) {
	m, relay := newThroughOne(t)
	m.measure(t, time.Second) // the session is there, and warm
	before := m.measure(t, 3*time.Second)
	abuse := startAbuse(t, m, relay)
	abuse.await(t, "reserve RESERVATION_REFUSED", "connect RESOURCE_LIMIT_EXCEEDED", "connect OK", "connect NO_RESERVATION")
	during := m.measure(t, 4*time.Second)
	m.checkRefusals(t, relay)
	abuse.stop()
	after := m.measure(t, 3*time.Second)
	baseline := (before.rate + after.rate) / 2
	t.Logf("before: %v; after: %v; during: %v, %.0f%%", before, after, during, 100*during.rate/baseline)
	if during.rate < 0.9*baseline {
		t.Errorf("%.0f calls a second during the abuse, %.0f without", during.rate, baseline)
	}
	if kind := sessionKind(t, m); kind != "relayed" {
		t.Errorf("the session is %s, want it relayed", kind)
	}
}

// newThroughOne brings two agents up that only reach each other through one relay
// with small quotas.
func newThroughOne(t *testing.T) (*mesh, *netlab.Daemon) {
	t.Helper()
	m := &mesh{lab: netlab.New(t), work: newCounter()}
	m.lab.Cloud(netlab.Link{Delay: 20 * time.Millisecond})
	m.lab.Backbone(m.lab.Host("backbone"), nil)
	relay := m.lab.Relay(m.lab.Host("relay"), maps.Clone(smallQuotas))
	host := m.lab.Router("a's router", netlab.Symmetric).Host("a")
	m.a = m.lab.Daemon(host, "a", nil, "--capability", m.work.offer(t, m.lab, host))
	m.b = m.lab.Daemon(m.lab.Router("b's router", netlab.Symmetric).Host("b"), "b", nil)
	for _, agent := range []*netlab.Daemon{m.a, m.b} {
		awaitRelays(t, agent, (*openmeshv1.Relay).GetReserved, relay)
	}
	m.awaitOffer(t)
	return m, relay
}

func sessionKind(t *testing.T, m *mesh) string {
	t.Helper()
	for _, s := range sessions(t, dial(t, m.b), m.a) {
		if len(s.Channels) > 0 {
			return s.Channels[0].Kind
		}
	}
	return "gone"
}

// abuse is the program of an abusive host.
type abuse struct {
	said *lockedBuffer
	stop func()
}

// startAbuse runs this program again, in a process of its own, on a host of its own.
func startAbuse(t *testing.T, m *mesh, relay *netlab.Daemon) *abuse {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	// A machine of its own it has not, so it gets what CPU the others leave.
	cmd := m.lab.Host("abuser").Command(ctx, "nice", "-n", "19", os.Args[0], "-test.run", "^TestAbuser$", "-test.v")
	at := slices.IndexFunc(relay.Ready.Addrs, func(a string) bool { return strings.Contains(a, fmt.Sprintf("/tcp/%d/p2p/", netlab.Port)) })
	cmd.Env = append(os.Environ(), victimEnv+"="+relay.Ready.Addrs[at], victimAgentEnv+"="+m.a.Ready.Peer)
	a := &abuse{said: new(lockedBuffer)}
	cmd.Stdout, cmd.Stderr = a.said, a.said
	check(t, cmd.Start())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }() // it is killed
	a.stop = func() { cancel(); <-ended }
	t.Cleanup(func() {
		a.stop()
		t.Logf("abuser:\n%s", a.said.String())
	})
	return a
}

// await waits until the abuser has got these answers.
func (a *abuse) await(t *testing.T, answers ...string) {
	t.Helper()
	for _, answer := range answers {
		await(t, "the abuser was answered: "+answer, 20*time.Second, func() bool { return strings.Contains(a.said.String(), answer) })
	}
}

// usage is part of what `openmesh relays` says on a relay.
type usage struct {
	Reservations, Circuits int
	Refusals               map[string]int
	Clients                []struct {
		Peer          string
		ReservedUntil string `json:"reserved_until"` // empty: it has no slot, and so no circuit leads to it
		Circuits      int
		Refusals      map[string]int
	}
}

func usageOf(t *testing.T, relay *netlab.Daemon) usage {
	t.Helper()
	out, err := relay.CLI("relays")
	check(t, err)
	var got struct{ Usage usage }
	check(t, json.Unmarshal(out, &got))
	return got.Usage
}

// checkRefusals checks what the relay says while the abuse goes on.
func (m *mesh) checkRefusals(t *testing.T, relay *netlab.Daemon) {
	t.Helper()
	var u usage
	await(t, "the relay has refused for every reason", 20*time.Second, func() bool {
		u = usageOf(t, relay)
		return !slices.ContainsFunc([]string{"no_slot", "no_reservation", "too_fast", "no_circuit", "no_circuit_of_peer"},
			func(why string) bool { return u.Refusals[why] == 0 })
	})
	t.Logf("%d slots, %d circuits, refused: %v", u.Reservations, u.Circuits, u.Refusals)
	if u.Reservations > 4 || u.Circuits > 8 {
		t.Errorf("%d slots and %d circuits are in use, more than the quotas", u.Reservations, u.Circuits)
	}
	refused := 0
	for _, c := range u.Clients {
		switch {
		case c.Circuits > 2 && c.ReservedUntil == "":
			t.Errorf("%s has %d circuits", c.Peer, c.Circuits)
		case len(c.Refusals) == 0:
		case c.Peer == m.a.Ready.Peer || c.Peer == m.b.Ready.Peer:
			t.Errorf("%s was refused, and is no abuser: %v", c.Peer, c.Refusals)
		default:
			refused++
		}
	}
	if refused != abusers {
		t.Errorf("refusals are shown of %d peers, want %d", refused, abusers)
	}
}

// abusers are the names under which the abusive host comes.
const abusers = 6

// TestAbuser is no test but the abuser's program.
func TestAbuser(t *testing.T) {
	addr := os.Getenv(victimEnv)
	if addr == "" {
		t.Skip("runs as a process of TestRelayAbuse")
	}
	relay, err := peer.AddrInfoFromString(addr)
	check(t, err)
	victim, err := peer.Decode(os.Getenv(victimAgentEnv))
	check(t, err)
	a := &abuser{relay: relay.ID, targets: []peer.ID{victim}, answers: make(map[string]int)}
	var hosts []host.Host
	for range abusers {
		h, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableRelay(), libp2p.ResourceManager(&network.NullResourceManager{}), libp2p.DisableMetrics())
		check(t, err)
		check(t, h.Connect(t.Context(), *relay))
		h.SetStreamHandler(proto.ProtoIDv2Stop, swallow)
		hosts, a.targets = append(hosts, h), append(a.targets, h.ID())
	}
	var all sync.WaitGroup
	for _, h := range hosts {
		all.Go(func() { a.flood(t.Context(), h) })
	}
	all.Wait() // it is killed
}

type abuser struct {
	relay   peer.ID
	targets []peer.ID // of circuits

	mu      sync.Mutex
	answers map[string]int
}

// flood asks for slots and circuits all the time, and fills those circuits that it
// gets.
func (a *abuser) flood(ctx context.Context, h host.Host) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		if st := a.ask(ctx, h, "reserve", &pbv2.HopMessage{Type: pbv2.HopMessage_RESERVE.Enum()}); st != nil {
			st.Close()
		}
		<-tick.C
		target := a.targets[n%len(a.targets)]
		st := a.ask(ctx, h, "connect", &pbv2.HopMessage{Type: pbv2.HopMessage_CONNECT.Enum(), Peer: &pbv2.Peer{Id: []byte(target)}})
		if st != nil {
			go fill(st)
		}
		<-tick.C
	}
}

// ask makes a request and takes note of the answer; it returns the stream if that is
// OK.
func (a *abuser) ask(ctx context.Context, h host.Host, what string, m *pbv2.HopMessage) network.Stream {
	st, err := h.NewStream(ctx, a.relay, proto.ProtoIDv2Hop)
	if err != nil {
		a.note(what + " no stream")
		return nil
	}
	rd := util.NewDelimitedReader(st, 4<<10)
	defer rd.Close()
	var answer pbv2.HopMessage
	if util.NewDelimitedWriter(st).WriteMsg(m) != nil || rd.ReadMsg(&answer) != nil {
		a.note(what + " reset")
		st.Reset()
		return nil
	}
	a.note(what + " " + answer.GetStatus().String())
	if answer.GetStatus() != pbv2.Status_OK {
		st.Reset()
		return nil
	}
	return st
}

// note prints an answer the first time.
func (a *abuser) note(answer string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.answers[answer]++; a.answers[answer] == 1 {
		fmt.Println(answer)
	}
}

// fill writes as fast as it can until the circuit ends.
func fill(st network.Stream) {
	defer st.Reset()
	for chunk := make([]byte, 64<<10); ; {
		if _, err := st.Write(chunk); err != nil {
			return
		}
	}
}

// swallow accepts a circuit and reads what comes.
func swallow(st network.Stream) {
	defer st.Reset()
	rd := util.NewDelimitedReader(st, 4<<10)
	defer rd.Close()
	var m pbv2.StopMessage
	ok := &pbv2.StopMessage{Type: pbv2.StopMessage_STATUS.Enum(), Status: pbv2.Status_OK.Enum()}
	if rd.ReadMsg(&m) != nil || util.NewDelimitedWriter(st).WriteMsg(ok) != nil {
		return
	}
	for buf := make([]byte, 64<<10); ; {
		if _, err := st.Read(buf); err != nil {
			return
		}
	}
}
