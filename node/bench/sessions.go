package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"openmesh/node/bench/load"
	"openmesh/protocols/session"
	"openmesh/protocols/signal"
)

// What nodes that have many sessions must allow.
const (
	manyOffers   = 10_000 // a second
	manySessions = 1_000_000
	parkAfter    = 50 * time.Millisecond
	openers      = 16
	perOpener    = 3     // libp2p lets one peer have 64 streams of a protocol: so many have a channel at a time, before they are parked
	sessionsMost = 200.0 // MB that all sessions may take on both sides together
)

// shortKeepalive makes a node look after its sessions, and park them, often.
const shortKeepalive = time.Second

// ForSessions is the setup that [Sessions] needs.
func ForSessions(transport string) Setup {
	return Setup{Transport: transport, ParkAfter: parkAfter, Sessions: manySessions, Offers: manyOffers}
}

// Sessions measures many idle sessions between two nodes: how long they take to
// open, what memory they take once parked, and how long a call takes that wakes
// one.
func Sessions(ctx context.Context, cfg Config) (*Report, error) {
	start := time.Now()
	cfg.defaults()
	m, err := join(ctx, cfg.Home, cfg.Setup, cfg.Server.Node)
	if err != nil {
		return nil, err
	}
	defer m.leave()
	r := cfg.report("sessions",
		fmt.Sprintf("%d sessions, each of its own, at most once, are opened by %d at a time, in batches of %d; one is open when its opener may use it; %s after its last use a session is parked: it keeps its keys and has no channel", cfg.Sessions, openers, openers*perOpener, cfg.Setup.ParkAfter),
		"memory is measured with no session and when all are parked, after each process has collected its garbage and given free memory back; with garbage is what it had before it did",
		fmt.Sprintf("wake-up is a call of %d bytes in a session that is parked, active one in a session that was just used", PayloadSize))
	p := &parking{member: m, cfg: cfg}
	if err := p.measure(ctx, r); err != nil {
		return nil, err
	}
	r.ElapsedS = time.Since(start).Seconds()
	return r, nil
}

// parking is where the sessions of a benchmark are.
type parking struct {
	*member
	cfg  Config
	busy *session.Session // one that is used, and not counted

	mu       sync.Mutex
	sessions []*session.Session
	next     int // that was not woken yet
}

func (p *parking) measure(ctx context.Context, r *Report) (err error) {
	if p.busy, err = p.open(ctx, p.cfg.Server, session.Want{}); err != nil {
		return err
	}
	here, there, err := p.usages(ctx)
	if err != nil {
		return err
	}
	if err := p.fillUp(ctx, r); err != nil {
		return err
	}
	hereAfter, thereAfter, err := p.usages(ctx)
	if err != nil {
		return err
	}
	r.Memory = []Memory{p.memory("initiator", here, hereAfter), p.memory("responder", there, thereAfter)}
	r.judge(fmt.Sprintf("memory of %d idle sessions on both nodes together, MB", p.cfg.Sessions),
		hereAfter.Resident-here.Resident+thereAfter.Resident-there.Resident, atMost(sessionsMost))
	return p.wakeUp(ctx, r)
}

func (p *parking) memory(process string, before, after usage) Memory {
	return Memory{
		Process: process, Before: before.Resident, After: after.Resident, Used: after.Used, HeapBefore: before.Heap, HeapAfter: after.Heap,
		PerSession: (after.Resident - before.Resident) * 1e6 / float64(p.cfg.Sessions),
	}
}

// usages are those of this process and the server's.
func (p *parking) usages(ctx context.Context) (here, there usage, err error) {
	if there, err = usageThere(ctx, p.busy); err != nil {
		return here, there, err
	}
	here, err = usageNow()
	return here, there, err
}

// fillUp opens all sessions, batch by batch: each is parked before the next.
func (p *parking) fillUp(ctx context.Context, r *Report) error {
	batches := p.cfg
	batches.Rounds = max(p.cfg.Sessions/(openers*perOpener), 1)
	one := workload{name: "open", unit: "sessions/s", ways: []way{{name: "mesh", sample: p.openBatch}}}
	if err := r.fill(ctx, batches, []workload{one}); err != nil {
		return err
	}
	p.cfg.Sessions = len(p.sessions)
	return nil
}

func (p *parking) openBatch(ctx context.Context, _ int, _ time.Duration) (load.Sample, error) {
	first := len(p.sessions)
	s, err := load.Run(ctx, load.Config{Workers: openers, Operations: perOpener, New: func(context.Context) (load.Worker, error) {
		return load.Worker{Do: p.openOne}, nil
	}})
	if err != nil {
		return s, err
	}
	return s, p.parked(ctx, p.sessions[first:])
}

func (p *parking) openOne(ctx context.Context) error {
	s, err := p.open(ctx, p.cfg.Server, session.Want{Contract: signal.Contract{Keepalive: shortKeepalive}})
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sessions = append(p.sessions, s)
	return nil
}

// parked waits until none of the sessions has a channel.
func (p *parking) parked(ctx context.Context, ss []*session.Session) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for _, s := range ss {
		for len(s.Info().Channels) > 0 {
			select {
			case <-tick.C:
			case <-s.Done():
				return fmt.Errorf("session %s has ended: %w", s.ID(), s.Info().Reason)
			case <-ctx.Done():
				return fmt.Errorf("wait until sessions are parked: %w", ctx.Err())
			}
		}
	}
	return nil
}

const wakes = 40 // in a round

func (p *parking) wakeUp(ctx context.Context, r *Report) error {
	w := workload{name: "call in an idle session", unit: "calls/s", concurrency: 1, operations: min(wakes, max(1, len(p.sessions)/p.cfg.Rounds)), ways: []way{
		{name: "wake-up", each: func(context.Context) (load.Worker, error) { return load.Worker{Do: p.wakeOne}, nil }},
		{name: "active", do: func(ctx context.Context) error { return call(ctx, p.busy) }},
	}}
	if err := r.fill(ctx, p.cfg, []workload{w}); err != nil {
		return err
	}
	r.compare([]comparison{{"wake-up p50 / active p50", w.name, "wake-up", "active", p50, limit{}}})
	return nil
}

// wakeOne calls in a session that is parked.
func (p *parking) wakeOne(ctx context.Context) error {
	if p.next >= len(p.sessions) {
		return errors.New("no session is parked any more")
	}
	s := p.sessions[p.next]
	p.next++
	return call(ctx, s)
}
