//go:build linux

package netlab_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/overlay/overlaytest/netlab"
)

// load is a way to have b send a numbers 0, 1, 2 …, each to be worked on once.
type load struct {
	name    string
	every   time.Duration // a number begins, whether those before are answered or not
	workers int           // or so many numbers are under way at all times
	padding int           // bytes that travel with each
	qos     string        // of the session opened for it; calls have the one that there is
}

// Loads of the tests: calls like a person's or program's, and transfers in bulk.
var (
	steady  = load{name: "calls", every: 20 * time.Millisecond}
	durable = load{name: "durable messages", workers: 32, padding: 1 << 10, qos: "exactly-once"}
	bulk    = load{name: "bulk messages", workers: 8, padding: 32 << 10, qos: "at-most-once"}
)

// traffic is a load under way.
type traffic struct {
	mesh   *mesh
	load   load
	client *api.Client // of b
	pulse  *pulse      // of answers, or of arrivals where nothing is answered
	stop   context.CancelFunc
	all    sync.WaitGroup

	mu      sync.Mutex
	session string // opened for it; calls find theirs
	count   int
	failed  []error
}

// start has b begin with a load, until end is called.
func (m *mesh) start(t *testing.T, l load) *traffic {
	t.Helper()
	tr := &traffic{mesh: m, load: l, client: dial(t, m.b), pulse: newPulse()}
	if l.qos != "" {
		tr.session = m.open(t, tr.client, &openmeshv1.OpenSessionRequest{Qos: l.qos}).Session
	}
	if l.qos == bulk.qos {
		tr.pulse = m.work.pulse
	}
	return tr.begin(t)
}

func (tr *traffic) begin(t *testing.T) *traffic {
	ctx, stop := context.WithCancel(t.Context())
	tr.stop = stop
	t.Cleanup(tr.all.Wait)
	t.Cleanup(stop)
	if tr.load.every > 0 {
		tr.all.Go(func() { tr.tick(ctx, t.Context()) })
	}
	for range tr.load.workers {
		tr.all.Go(func() {
			for ctx.Err() == nil {
				tr.one(t.Context(), tr.next())
			}
		})
	}
	return tr
}

// tick begins a number from time to time until ctx ends; each goes on until test
// does.
func (tr *traffic) tick(ctx, test context.Context) {
	tick := time.NewTicker(tr.load.every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			n := tr.next()
			tr.all.Go(func() { tr.one(test, n) })
		case <-ctx.Done():
			return
		}
	}
}

func (tr *traffic) next() int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.count++
	return tr.count - 1
}

// one sends number n and takes note of how that ends.
func (tr *traffic) one(ctx context.Context, n int) {
	send := tr.message
	if tr.load.qos == "" {
		send = tr.call
	}
	err := send(ctx, n)
	if err == nil {
		tr.pulse.beat()
	} else if ctx.Err() == nil { // else the test has ended
		tr.mu.Lock()
		tr.failed = append(tr.failed, fmt.Errorf("number %d: %w", n, err))
		tr.mu.Unlock()
	}
}

const patience = 30_000 // ms, with one number

func (tr *traffic) call(ctx context.Context, n int) error {
	resp, err := tr.client.Session.Call(ctx, &openmeshv1.CallRequest{
		Target: tr.mesh.a.Ready.Agent, Capability: tr.mesh.work.capability, TimeoutMs: patience, Body: &openmeshv1.CallRequest_Json{Json: tr.body(n)},
	})
	if err != nil {
		return err
	}
	tr.mu.Lock()
	tr.session = resp.Session
	tr.mu.Unlock()
	return isNumber(resp.GetJson(), n)
}

func (tr *traffic) message(ctx context.Context, n int) error {
	resp, err := tr.client.Session.Send(ctx, &openmeshv1.SendRequest{
		Session: tr.session, Capability: tr.mesh.work.capability, WaitMs: patience, Body: &openmeshv1.SendRequest_Json{Json: tr.body(n)},
	})
	switch {
	case err != nil:
		return err
	case resp.Deliveries[0].Status != "delivered":
		return fmt.Errorf("is %s %s", resp.Deliveries[0].Status, resp.Deliveries[0].Code)
	case tr.load.qos == bulk.qos:
		return nil // nobody answers
	}
	return isNumber(resp.Deliveries[0].GetJson(), n)
}

func (tr *traffic) body(n int) string {
	return fmt.Sprintf(`{"n": %d, "pad": "%0*d"}`, n, tr.load.padding, 0)
}

func isNumber(body string, n int) error {
	var got number
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		return fmt.Errorf("read the answer %.100q: %w", body, err)
	}
	if got.N != n {
		return fmt.Errorf("was answered as number %d", got.N)
	}
	return nil
}

// until waits until the session has run over a transport for a second and 50
// numbers more have come through, and returns the longest time without any since it
// returned before.
func (tr *traffic) until(t *testing.T, transport string, within time.Duration) (gap time.Duration) {
	t.Helper()
	return tr.untilOver(t, transport, (*openmeshv1.Channel).GetTransport, within)
}

// untilOver is until for what way says of the channel in use.
func (tr *traffic) untilOver(t *testing.T, want string, way func(*openmeshv1.Channel) string, within time.Duration) (gap time.Duration) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(within)
	var since time.Time
	from, now := 0, ""
	for {
		if now = way(tr.channel(t)); now != want {
			since = time.Time{}
		} else if since.IsZero() {
			since, from = time.Now(), tr.pulse.count()
		}
		if !since.IsZero() && time.Since(since) > time.Second && tr.pulse.count() >= from+50 {
			return tr.pulse.lap()
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("after %s the session runs over %q, want %s; %d numbers came through; failures: %v",
				within, now, want, tr.pulse.count(), errors.Join(tr.failures()...))
		}
	}
}

// channel is what the session with a runs over now; nil for none.
func (tr *traffic) channel(t *testing.T) *openmeshv1.Channel {
	t.Helper()
	tr.mu.Lock()
	id := tr.session
	tr.mu.Unlock()
	for _, s := range sessions(t, tr.client, tr.mesh.a) {
		if s.Session == id && len(s.Channels) > 0 {
			return s.Channels[0]
		}
	}
	return nil
}

func (tr *traffic) failures() []error {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.failed[:min(len(tr.failed), 3)]
}

// end begins no more, waits for what is under way, and checks that each number
// came through and was worked on once.
func (tr *traffic) end(t *testing.T) {
	t.Helper()
	tr.stop()
	tr.all.Wait()
	if len(tr.failed) > 0 {
		t.Errorf("%d of %d numbers failed, such as: %v", len(tr.failed), tr.count, errors.Join(tr.failures()...))
	}
	tr.mesh.work.await(tr.count, 10*time.Second)
	missing, twice := tr.mesh.work.faults(tr.count)
	if len(missing)+len(twice) > 0 {
		t.Errorf("of %d numbers %d were lost (%.40v) and %d worked on more than once (%.40v)",
			tr.count, len(missing), fmt.Sprint(missing), len(twice), fmt.Sprint(twice))
	}
	t.Logf("%d numbers came through", tr.count)
}

// dial connects to a daemon.
func dial(t *testing.T, d *netlab.Daemon) *api.Client {
	t.Helper()
	client, err := api.Dial(d.Home)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// open has b open a session with a.
func (m *mesh) open(t *testing.T, client *api.Client, r *openmeshv1.OpenSessionRequest) *openmeshv1.SessionInfo {
	t.Helper()
	r.Targets = []string{m.a.Ready.Agent}
	s, err := client.Session.Open(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sessions are those of a daemon with peer.
func sessions(t *testing.T, client *api.Client, peer *netlab.Daemon) []*openmeshv1.SessionInfo {
	t.Helper()
	resp, err := client.Session.List(t.Context(), &openmeshv1.ListSessionsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var found []*openmeshv1.SessionInfo
	for _, s := range resp.Sessions {
		if s.Agent == peer.Ready.Agent {
			found = append(found, s)
		}
	}
	return found
}

// pulse measures the time between signs of life.
type pulse struct {
	mu    sync.Mutex
	last  time.Time
	gap   time.Duration // the longest
	beats int
}

func newPulse() *pulse { return &pulse{last: time.Now()} }

func (p *pulse) beat() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.gap, p.last = max(p.gap, now.Sub(p.last)), now
	p.beats++
}

func (p *pulse) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.beats
}

// lap returns the longest gap since the last lap.
func (p *pulse) lap() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	gap := p.gap
	p.gap = 0
	return gap
}
