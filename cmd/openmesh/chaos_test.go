package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/wire"
)

// The promise that matters most: a message that was accepted is never lost,
// whatever is killed, and whenever. In these tests A sends numbered messages to
// B, and both are killed again and again; the tests are their supervisors, the
// application that sends, and the one that receives.
//
// OPENMESH_CHAOS=full makes them long. OPENMESH_CHAOS_SEEDS are the seeds of the
// plans of when to kill whom, such as 1,2,3: each is a run of its own.

// scale is how much is done with each seed.
type scale struct {
	messages, kills int // kills of either daemon, at least
	pause           time.Duration
	limit           time.Duration
	seeds           string
}

func chaosScale(t *testing.T) scale {
	s := scale{messages: 2000, kills: 4, pause: 300 * time.Millisecond, limit: 10 * time.Minute, seeds: "1"}
	if os.Getenv("OPENMESH_CHAOS") == "full" {
		s = scale{messages: 10_000, kills: 12, pause: 2 * time.Second, limit: 10 * time.Minute, seeds: "1,2,3"}
	} else {
		t.Parallel()
	}
	if seeds := os.Getenv("OPENMESH_CHAOS_SEEDS"); seeds != "" {
		s.seeds = seeds
	}
	return s
}

// chaos runs a test once for each seed.
func chaos(t *testing.T, test func(*testing.T, scale, *rand.Rand)) {
	s := chaosScale(t)
	for _, text := range strings.Split(s.seeds, ",") {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("OPENMESH_CHAOS_SEEDS: %v", err)
		}
		t.Run("seed "+text, func(t *testing.T) { test(t, s, rand.New(rand.NewPCG(seed, 0))) })
	}
}

func TestChaosAtLeastOnce(t *testing.T) {
	chaos(t, func(t *testing.T, s scale, random *rand.Rand) {
		chaosHandler(t, s, random, "at-least-once")
	})
}

func TestChaosExactlyOnce(t *testing.T) {
	chaos(t, func(t *testing.T, s scale, random *rand.Rand) {
		st := chaosHandler(t, s, random, "exactly-once")
		r, most := st.ledger.repeats(), st.b.kills*window
		if r.all > most {
			t.Errorf("%d repeats; of %d kills with %d messages in hand there can be %d", r.all, st.b.kills, window, most)
		}
		if _, again := st.ledger.first()[st.b.kills]; again {
			t.Error("what B had done long before it was killed was done again")
		}
	})
}

func TestChaosInbox(t *testing.T) {
	chaos(t, func(t *testing.T, s scale, random *rand.Rand) {
		st := newStorm(t, s)
		st.open(&openmeshv1.OpenSessionRequest{Qos: "exactly-once", Ordered: true})
		reader := &reader{session: st.session, arrived: st.gauge.step, random: rand.New(rand.NewPCG(random.Uint64(), 1)), every: 20}
		st.rage(random, func(ctx context.Context) error { return reader.run(ctx, s.messages, st.b.api) })
		outcomes := st.outcomes()
		numbers := map[string]bool{}
		for i, m := range reader.done {
			numbers[m.GetJson()] = true
			if m.Sequence != outcomes[numberOf(t, m.Key)].GetSequence() {
				t.Errorf("message %d of key %s: the sender says %v", i+1, m.Key, outcomes[numberOf(t, m.Key)])
			}
		}
		if len(numbers) != s.messages {
			t.Errorf("%d different messages, want %d", len(numbers), s.messages)
		}
		st.report("; the reader crashed %d times", reader.crashes)
	})
}

// window is how many messages may be in hand.
const window = 256

// chaosHandler sends to a handler, which must have been asked for every message,
// and again only if B was killed, and told so.
func chaosHandler(t *testing.T, s scale, random *rand.Rand, qos string) *storm {
	st := newStorm(t, s)
	st.open(&openmeshv1.OpenSessionRequest{Qos: qos, MaxPending: window})
	st.capability = "work"
	st.rage(random, func(context.Context) error { return nil })
	unanswered := 0
	for n, d := range st.outcomes() {
		switch d.GetJson() {
		case bodyOf(n):
		case "":
			unanswered++
		default:
			t.Errorf("message %d was answered %s", n, d.GetJson())
		}
	}
	l := st.ledger
	for n := 1; n <= s.messages; n++ {
		if len(l.visits[n]) == 0 {
			st.explain()
			t.Fatalf("message %d was accepted and lost", n)
		}
	}
	if len(l.visits) != s.messages || len(l.wrong) > 0 {
		t.Errorf("%d different messages, want %d; wrong: %v", len(l.visits), s.messages, l.wrong)
	}
	r := l.repeats()
	if r.unmarked > 0 || r.calm > 0 {
		t.Errorf("of %d repeats %d were not marked, %d without a crash", r.all, r.unmarked, r.calm)
	}
	st.report("; %d repeats, at most %d requests for one; %d delivered whose answer was lost; first request after a start: %s",
		r.all, r.most, unanswered, st.recovery())
	return st
}

// storm is a sender and a receiver in a mesh of their own.
type storm struct {
	*lab
	scale
	a, b       *victim
	ledger     *ledger
	gauge      gauge // messages accepted and messages arrived
	session    string
	capability string
	took       time.Duration
	retried    atomic.Int64
}

func newStorm(t *testing.T, s scale) *storm {
	st := &storm{lab: newLab(t, "OPENMESH_NETWORKING_KEEPALIVE_INTERVAL=1s"), scale: s}
	st.ledger = newLedger(st.gauge.step)
	t.Cleanup(st.ledger.Close)
	st.backbone()
	st.a = st.victim("a", func() {})
	st.b = st.victim("b", func() {
		if err := st.ledger.succeed(); err != nil {
			t.Errorf("the handler: %v", err)
		}
	})
	file := filepath.Join(st.dir, "work.yaml")
	if err := os.WriteFile(file, []byte("{name: work, version: 1.0.0, handler: {http: {url: "+st.ledger.URL+"/}}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	st.run("b", "capability", "add", file)
	return st
}

func (st *storm) victim(name string, buried func()) *victim {
	st.t.Helper()
	st.lab.run(name, "init")
	v := &victim{home: filepath.Join(st.dir, name), env: st.env, buried: buried}
	if err := v.start(); err != nil {
		st.t.Fatal(err)
	}
	st.t.Cleanup(v.kill)
	return v
}

// open opens the session of A with B.
func (st *storm) open(req *openmeshv1.OpenSessionRequest) {
	st.t.Helper()
	req.Targets = []string{st.b.agent}
	eventually(st.t, "no session", func() bool {
		info, err := st.a.api().Session.Open(st.t.Context(), req)
		st.session = info.GetSession()
		return err == nil
	})
}

// rage sends all messages, and kills, until all have arrived. Work is what else is
// to be done.
func (st *storm) rage(random *rand.Rand, work func(context.Context) error) {
	st.t.Helper()
	began := time.Now()
	deadline, cancel := context.WithTimeout(st.t.Context(), st.limit)
	defer cancel()
	group, ctx := errgroup.WithContext(deadline)
	a, b := schedule(random, st.kills, 2*st.messages, st.pause)
	group.Go(func() error { return st.a.suffer(ctx, a, &st.gauge) })
	group.Go(func() error { return st.b.suffer(ctx, b, &st.gauge) })
	group.Go(func() error { return work(ctx) })
	st.each(group, func(n int) error { return st.send(ctx, n) })
	if err := group.Wait(); err != nil {
		st.explain()
		st.t.Fatalf("%v, with %d of %d accepted or arrived", err, st.gauge.count(), 2*st.messages)
	}
	st.took = time.Since(began)
}

// each does something for each message, 32 at a time.
func (st *storm) each(group *errgroup.Group, do func(n int) error) {
	var next atomic.Int64
	for range 32 {
		group.Go(func() error {
			for {
				n := int(next.Add(1))
				if n > st.messages {
					return nil
				}
				if err := do(n); err != nil {
					return fmt.Errorf("message %d: %w", n, err)
				}
			}
		})
	}
}

// send sends a message until it is accepted: with the same key, it is the same.
func (st *storm) send(ctx context.Context, n int) error {
	for {
		_, err := st.a.api().Session.Send(ctx, &openmeshv1.SendRequest{
			Session: st.session, Key: keyOf(n), Capability: st.capability, Body: &openmeshv1.SendRequest_Json{Json: bodyOf(n)},
		})
		switch {
		case err == nil:
			st.gauge.step()
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case !down(err):
			return err
		}
		st.retried.Add(1)
		pause(ctx, 10*time.Millisecond)
	}
}

// down reports whether err says that the daemon was killed or is starting.
func down(err error) bool {
	return wire.CodeOf(err) == wire.Unreachable
}

// outcomes asks A what became of each message. That is to be delivered, and
// their sequences are to be 1, 2, 3….
func (st *storm) outcomes() map[int]*openmeshv1.Delivery {
	st.t.Helper()
	ctx, cancel := context.WithTimeout(st.t.Context(), st.limit)
	defer cancel()
	var mu sync.Mutex
	found, sequences := map[int]*openmeshv1.Delivery{}, map[uint64]bool{}
	var group errgroup.Group
	st.each(&group, func(n int) error {
		d, err := st.a.api().Session.Outcome(ctx, &openmeshv1.OutcomeRequest{Session: st.session, Key: keyOf(n), WaitMs: uint32(patience.Milliseconds())})
		mu.Lock()
		defer mu.Unlock()
		found[n], sequences[d.GetSequence()] = d, true
		if err == nil && d.Status != "delivered" {
			err = errors.New(d.Status + " " + d.Code)
		}
		return err
	})
	if err := group.Wait(); err != nil {
		st.explain()
		st.t.Fatalf("outcome: %v", err)
	}
	for n := 1; n <= st.messages; n++ {
		if !sequences[uint64(n)] {
			st.t.Fatalf("no message has the sequence %d", n)
		}
	}
	return found
}

// recovery tells how long it took from a start of B, or of A if that was later,
// until B's handler was asked.
func (st *storm) recovery() string {
	first := st.ledger.first()
	var took []time.Duration
	for i, b := range st.b.lives {
		at, ok := first[b.generation]
		a, met := st.a.livingAt(at)
		switch {
		case i == 0 || !ok || !met:
		case a.started.After(b.started):
			took = append(took, at.Sub(a.started))
		default:
			took = append(took, at.Sub(b.started))
		}
	}
	if len(took) == 0 {
		return "never"
	}
	slices.Sort(took)
	return fmt.Sprintf("median %v, max %v of %d", took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond), len(took))
}

func (st *storm) report(more string, args ...any) {
	nowA, peakA := st.a.memory()
	nowB, peakB := st.b.memory()
	st.t.Logf("%d messages in %v, %.0f a second; kills: A %d, B %d; %d calls failed and were made again; memory: A %d MB (peak %d), B %d MB (peak %d)%s",
		st.messages, st.took.Round(time.Millisecond), float64(st.messages)/st.took.Seconds(), st.a.kills, st.b.kills, st.retried.Load(),
		nowA, peakA, nowB, peakB, fmt.Sprintf(more, args...))
}
