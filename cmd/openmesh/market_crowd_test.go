package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	deal "openmesh/protocols/market"
	"openmesh/protocols/wire"
)

// crowd is how many negotiations one pair of daemons has at the same time.
const crowd = 1000

// Many negotiate at the same time: all come to their contract, and both logs are whole.
func TestChaosMarketCrowd(t *testing.T) {
	if os.Getenv("OPENMESH_CHAOS") != "full" {
		t.Skip("takes all of the machine for half a minute; OPENMESH_CHAOS=full runs it")
	}
	tr := newTrade(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	took := &times{}
	heard, stop, err := tr.hearing(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	began := time.Now()
	err = inParallel(named("lot", crowd), crowd, func(item string) error {
		if err := tr.bargain(ctx, item, heard, took); err != nil {
			return fmt.Errorf("%s: %w", item, err)
		}
		return nil
	})
	elapsed := time.Since(began)
	if err != nil {
		t.Fatalf("%v, after %v with %d moves%s", err, elapsed, len(took.all), tr.lastWords())
	}
	for role, v := range tr.sides {
		r, err := verified(ctx, v)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("the log of the %s has %d entries, verified in %.0f ms", role, r.Entries, r.ElapsedMs)
	}
	t.Logf("%d negotiations to their contract in %v, %.0f a second; %d moves, answered in %v (median), %v (99 %%); %d were answered later",
		crowd, elapsed.Round(time.Millisecond), crowd/elapsed.Seconds(), len(took.all), quantile(took.all, 0.5), quantile(took.all, 0.99), took.late)
}

// times are how long moves took, from the call of the local API to its answer, which
// has the answer of the other side.
type times struct {
	mu   sync.Mutex
	all  []time.Duration
	late int // the other side had not answered then
}

func (t *times) add(d time.Duration, delivered bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.all = append(t.all, d)
	if !delivered {
		t.late++
	}
}

// posted tells of requests that the seller has.
type posted struct {
	mu  sync.Mutex
	has map[string]chan struct{}
}

func (p *posted) of(rfp string) chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.has[rfp] == nil {
		p.has[rfp] = make(chan struct{})
	}
	return p.has[rfp]
}

func (tr *trade) hearing(ctx context.Context) (p *posted, stop func(), err error) {
	p = &posted{has: make(map[string]chan struct{})}
	ctx, cancel := context.WithCancel(ctx)
	events, err := tr.sides[deal.Seller].api().Market.Watch(ctx, &openmeshv1.WatchMarketRequest{})
	if err != nil {
		cancel()
		return nil, nil, err
	}
	events.ResponseHeader() // has come once it hears
	go func() {
		for events.Receive() {
			if m := events.Msg(); m.Event == "posted" {
				close(p.of(m.Rfp))
			}
		}
	}()
	return p, cancel, nil
}

// bargain brings one negotiation to its contract.
func (tr *trade) bargain(ctx context.Context, item string, heard *posted, took *times) error {
	rfp, err := tr.sides[deal.Buyer].api().Market.PostRFP(ctx, &openmeshv1.PostRFPRequest{Json: requestOf(item, stands)})
	if err != nil {
		return err
	}
	d, err := tr.dealing(rfp, tr.sides[deal.Seller])
	if err != nil {
		return err
	}
	select {
	case <-heard.of(d.rfp):
	case <-ctx.Done():
		return fmt.Errorf("the seller does not hear: %w", ctx.Err())
	}
	for _, s := range []step{{deal.Seller, deal.Propose}, {deal.Buyer, deal.Counter}, {deal.Seller, deal.Amend}, {deal.Buyer, deal.Accept}} {
		if err := d.timed(ctx, s, took); err != nil {
			return fmt.Errorf("%s by the %s: %w", s.move, s.by, err)
		}
	}
	_, err = d.agree(ctx, deal.Contracted)
	return err
}

// timed makes a move; if the one before has not come yet, again.
func (d *dealing) timed(ctx context.Context, s step, took *times) error {
	for {
		began := time.Now()
		resp, err := d.move(ctx, s.by, s.move, stands)
		if err == nil {
			took.add(time.Since(began), resp.Delivered)
			return nil
		}
		if err := unless(err, wire.IllegalTransition, wire.NotFound); err != nil {
			return err
		}
		if pause(ctx, 200*time.Millisecond); ctx.Err() != nil {
			return ctx.Err()
		}
	}
}
