//go:build linux

package netlab_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/identity"
	"openmesh/protocols/protocoltest"
	"openmesh/protocols/session"
	"openmesh/protocols/session/seal"
	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// violatorRate is what the violator's contract allows it: messages a second.
const violatorRate = 10

// A peer that sends far more than its contract allows costs its neighbours little:
// b's calls to a go on nearly as before while another agent, whose program keeps to
// nothing, floods a with requests. That one is warned, held back and cut off.
//
// It runs by itself, for it compares rates.
func TestViolatorCostsNeighboursLittle(t *testing.T) {
	m := newMesh(t, map[string]string{"OPENMESH_NETWORKING_KEEPALIVE_INTERVAL": "1s"}, nil)
	m.measure(t, time.Second) // the session is there, and warm
	before := m.measure(t, 5*time.Second)
	stop := m.violate(t)
	m.awaitNotice(t, "warn")
	warned := m.measure(t, 1500*time.Millisecond) // what it sends is let pass as yet
	m.awaitNotice(t, "throttle")
	throttled := m.measure(t, 4*time.Second)
	m.checkNotices(t, m.awaitNotice(t, "terminate"))
	stop()
	after := m.measure(t, 5*time.Second)
	baseline := (before.rate + after.rate) / 2
	t.Logf("before: %v; after: %v", before, after)
	t.Logf("beside a violator that is warned: %v, %.0f%% of that", warned, 100*warned.rate/baseline)
	t.Logf("beside a violator that is held back: %v, %.0f%% of that", throttled, 100*throttled.rate/baseline)
	if throttled.rate < 0.7*baseline {
		t.Errorf("%.0f calls a second beside the violator, %.0f without", throttled.rate, baseline)
	}
}

// speed is how fast calls were answered.
type speed struct {
	rate     float64 // a second
	p50, p99 time.Duration
}

func (s speed) String() string {
	return fmt.Sprintf("%.0f calls/s, p50 %v, p99 %v", s.rate, s.p50, s.p99)
}

// measure has b call a, four times at once, for so long.
func (m *mesh) measure(t *testing.T, atMost time.Duration) speed {
	t.Helper()
	tr := &traffic{mesh: m, client: dial(t, m.b)}
	ctx, cancel := context.WithTimeout(t.Context(), atMost)
	defer cancel()
	var mu sync.Mutex
	var took []time.Duration
	var all sync.WaitGroup
	begin := time.Now()
	for range 4 {
		all.Go(func() {
			for ctx.Err() == nil {
				start := time.Now()
				if err := tr.call(t.Context(), tr.next()); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				took = append(took, time.Since(start))
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if len(took) == 0 {
		t.Fatal("no call was answered")
	}
	slices.Sort(took)
	return speed{float64(len(took)) / time.Since(begin).Seconds(), took[len(took)/2], took[len(took)*99/100]}
}

// violate has a program flood a until stop is called. It is this one, in a
// process of its own, on a host of its own.
func (m *mesh) violate(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	// A machine of its own it has not, so it gets what CPU the others leave.
	cmd := m.lab.Host("violator").Command(ctx, "nice", "-n", "19", os.Args[0], "-test.run", "^TestViolator$", "-test.v")
	cmd.Env = append(os.Environ(), victimEnv+"="+m.a.Ready.Addrs[0], victimAgentEnv+"="+m.a.Ready.Agent)
	out := new(lockedBuffer)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }() // it is killed
	stop = func() { cancel(); <-ended }
	t.Cleanup(func() {
		stop()
		t.Logf("violator:\n%s", out.String())
	})
	return stop
}

// awaitNotice waits until a has told the violator of an effect, and returns in which
// session.
func (m *mesh) awaitNotice(t *testing.T, effect string) (session string) {
	t.Helper()
	client := dial(t, m.a)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(40 * time.Second); ; {
		list, err := client.Session.List(t.Context(), &openmeshv1.ListSessionsRequest{All: true})
		check(t, err)
		for _, s := range list.Sessions {
			shown, err := client.Session.Show(t.Context(), &openmeshv1.ShowSessionRequest{Session: s.Session})
			check(t, err)
			if slices.ContainsFunc(shown.Notices, func(n *openmeshv1.Notice) bool { return n.Direction == "sent" && n.Effect == effect }) {
				return s.Session
			}
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("no session has been told: %s", effect)
		}
	}
}

// checkNotices checks that `openmesh session show` tells what became of the session.
func (m *mesh) checkNotices(t *testing.T, session string) {
	t.Helper()
	s := m.show(t, session)
	var effects []string
	for _, n := range s.Notices {
		effects = append(effects, n.Effect)
	}
	if s.State != "terminated" || s.Reason != wire.ResourceExhausted.String() || !slices.Equal(effects, []string{"warn", "throttle", "terminate"}) {
		t.Errorf("the violator's session is %s (%s) with notices %v", s.State, s.Reason, effects)
	}
}

type shownSession struct {
	State, Reason string
	Notices       []struct{ Direction, Effect string }
}

// show is what `openmesh session show` prints on a.
func (m *mesh) show(t *testing.T, id string) (s shownSession) {
	t.Helper()
	out, err := m.a.CLI("session", "show", id)
	if err == nil {
		err = json.Unmarshal(out, &s)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// The environment of a violator's process.
const (
	victimEnv      = "OPENMESH_NETLAB_VICTIM" // multiaddr
	victimAgentEnv = "OPENMESH_NETLAB_VICTIM_AGENT"
)

// TestViolator is no test but the violator's program.
func TestViolator(t *testing.T) {
	victim := os.Getenv(victimEnv)
	if victim == "" {
		t.Skip("runs as a process of TestViolatorCostsNeighboursLittle")
	}
	at, err := peer.AddrInfoFromString(victim)
	check(t, err)
	agent := protocoltest.NewAgent(t, identity.FirstPrivateRealm, time.Now())
	h, err := libp2p.New(libp2p.Identity(agent.Host), libp2p.NoListenAddrs, libp2p.DisableRelay(),
		libp2p.ResourceManager(&network.NullResourceManager{}), libp2p.DisableMetrics())
	check(t, err)
	for {
		check(t, h.Connect(t.Context(), *at))
		v := &violator{host: h, victim: at.ID, met: make(chan struct{})}
		v.open(t, agent)
		v.flood(t)
	}
}

// violator is a peer that proves who it is and then sends as fast as it can, over
// several channels at once, for one of them would be held to the limit.
type violator struct {
	host    host.Host
	victim  peer.ID
	est     *signal.Established
	keys    *seal.Keys
	channel network.Stream // the first
	met     chan struct{}  // closed once the victim has answered over it, or ended it

	once     sync.Once
	mu       sync.Mutex
	sequence uint64
	sent     int
	notices  []string
}

// open agrees on a contract with a low rate.
func (v *violator) open(t *testing.T, agent *protocoltest.Agent) {
	cfg := signal.Config{
		Local:    func() signal.Local { return signal.Local{Certificate: agent.Certificate, Key: agent.Host} },
		Verifier: identity.NewVerifier(identity.FirstPrivateRealm, time.Now),
	}
	contract := signal.DefaultContract()
	contract.MessageRate, contract.Keepalive = violatorRate, time.Second
	est, confirm, err := signal.Open(t.Context(), signal.Over(v.host, v.victim, 5*time.Second),
		identity.AgentID(os.Getenv(victimAgentEnv)), signal.Terms{Suites: signal.Suites(), Contract: contract}, cfg)
	check(t, err)
	v.est = est
	v.keys, err = seal.New(seal.Config{Session: est.ID, Suite: est.Suite, Initiator: true, Interval: time.Hour}, &est.Secret, time.Now())
	check(t, err)
	v.channel = v.attach(t, confirm)
	go v.listen(v.channel)
	check(t, v.seal(v.channel, seal.Ping, make([]byte, 8)))
	<-v.met // before that there is no session to attach to
}

// attach opens a channel.
func (v *violator) attach(t *testing.T, confirm []byte) network.Stream {
	st, err := v.host.NewStream(t.Context(), v.victim, session.Protocol)
	check(t, err)
	attach, err := proto.Marshal(&sessionpb.Attach{Session: v.est.ID[:], Confirm: confirm})
	check(t, err)
	_, err = st.Write(wire.AppendFrame(nil, attach))
	check(t, err)
	if confirm == nil {
		check(t, v.send(st, seal.Rebind, &sessionpb.Rebind{Received: &sessionpb.Received{}}))
	}
	return st
}

// flood sends requests over three channels in turn until the victim has ended the
// session. The first channel is left to what must not be held back.
func (v *violator) flood(t *testing.T) {
	var channels [3]network.Stream
	for i := range channels {
		channels[i] = v.attach(t, nil)
		go v.listen(channels[i])
	}
	begin := time.Now()
	for i := 0; v.request(channels[i%len(channels)]) == nil; i++ {
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	t.Logf("%d requests in %v, then the session was over; notices: %v", v.sent, time.Since(begin).Round(time.Millisecond), v.notices)
}

// request asks for work.
func (v *violator) request(st network.Stream) error {
	v.mu.Lock()
	v.sent++
	id := uint64(v.sent)
	v.mu.Unlock()
	return v.send(st, seal.Request, &sessionpb.Request{Id: id, Capability: capability, Body: []byte(`{"n": -1}`)})
}

func (v *violator) send(st network.Stream, typ seal.Type, m proto.Message) error {
	plain, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	return v.seal(st, typ, plain)
}

func (v *violator) seal(st network.Stream, typ seal.Type, plain []byte) error {
	v.mu.Lock()
	v.sequence++
	frame := v.keys.Seal(nil, typ, v.sequence, plain)
	v.mu.Unlock()
	_, err := st.Write(wire.AppendFrame(nil, frame))
	return err
}

// listen takes note of notices, and says what it has got so that the victim need not
// keep it; at the session's end it ends the channels.
func (v *violator) listen(st network.Stream) {
	defer st.Reset()
	if st == v.channel {
		defer v.meet()
	}
	in := bufio.NewReader(st)
	for n := 0; ; n++ {
		frame, err := wire.ReadFrame(in, 1<<20)
		if err != nil {
			return
		}
		h, plain, err := v.keys.Open(frame)
		switch {
		case err != nil:
			continue
		case h.Type == seal.Pong:
			v.meet()
		case h.Type == seal.Ping && st == v.channel: // on the others requests tell that they live
			_ = v.seal(st, seal.Pong, plain) // or the channel is over
		case h.Type == seal.Close:
			return
		case h.Type == seal.PolicyNotice:
			m := new(sessionpb.Notice)
			if proto.Unmarshal(plain, m) == nil {
				v.mu.Lock()
				v.notices = append(v.notices, m.Effect.String())
				v.mu.Unlock()
			}
		case n%16 == 0:
			newest, _ := v.keys.Received(0)
			_ = v.send(v.channel, seal.Received, &sessionpb.Received{Newest: newest}) // or the channel is over
		}
	}
}

func (v *violator) meet() { v.once.Do(func() { close(v.met) }) }

// lockedBuffer is a buffer that a process may write to while others read.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
