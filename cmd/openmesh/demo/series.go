package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	openmeshv1 "openmesh/node/api/openmesh/v1"
)

// series are numbered messages that one agent sends to another in a session: each
// asks the desk for a sum with its number in it, which is its idempotency key too.
type series struct {
	desk     *desk
	from, to *node
	session  string
	last     int // number sent
}

// openSeries opens the session, with whatever terms req has beside its target.
func (m *mesh) openSeries(ctx context.Context, from, to *node, req *openmeshv1.OpenSessionRequest) (*series, error) {
	req.Targets = []string{to.id.Agent}
	s, err := from.api.Session.Open(ctx, req)
	if err != nil {
		return nil, from.at(err)
	}
	if s.Qos != req.Qos || !s.Persistent || s.Agent != to.id.Agent || s.Contract.GetKeepaliveMs() != req.KeepaliveMs {
		return nil, from.errorf("opened a session with %s, %s, persistent %t, keepalive %d ms", s.Agent, s.Qos, s.Persistent, s.Contract.GetKeepaliveMs())
	}
	return &series{desk: m.desk, from: from, to: to, session: s.Session}, nil
}

// send sends the next numbers, up to last, and returns once all are accepted.
func (r *series) send(ctx context.Context, last int) error {
	for n := r.last + 1; n <= last; n++ {
		res, err := r.from.api.Session.Send(ctx, &openmeshv1.SendRequest{
			Session: r.session, Capability: sumName, Key: strconv.Itoa(n),
			Body: &openmeshv1.SendRequest_Json{Json: fmt.Sprintf(`{"numbers":[%d,0.5]}`, n)},
		})
		if err != nil {
			return r.from.errorf("send number %d: %w", n, err)
		}
		if len(res.Deliveries) != 1 || res.Deliveries[0].Sequence != uint64(n) {
			return r.from.errorf("accepted number %d as %v", n, res.Deliveries)
		}
		r.last = n
	}
	return nil
}

// settle waits for the outcome of all numbers sent: each must be delivered, and
// answered with its sum.
func (r *series) settle(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(32)
	for n := 1; n <= r.last; n++ {
		group.Go(func() error {
			d, err := r.from.api.Session.Outcome(ctx, &openmeshv1.OutcomeRequest{
				Session: r.session, Key: strconv.Itoa(n), WaitMs: uint32(stepTime.Milliseconds()),
			})
			if err != nil {
				return r.from.errorf("outcome of number %d: %w", n, err)
			}
			var answer struct{ Sum float64 }
			if err := json.Unmarshal([]byte(d.GetJson()), &answer); d.Status != "delivered" || err != nil || answer.Sum != float64(n)+0.5 {
				return r.from.errorf("number %d is %s (%s), answered %q", n, d.Status, d.Code, d.GetJson())
			}
			return nil
		})
	}
	return group.Wait()
}

// arrival is a request that the desk saw.
type arrival struct {
	number int
	again  bool // marked as one that may have been worked on before
	at     time.Time
}

// arrivals returns what the desk saw of the series, in that order.
func (r *series) arrivals() []arrival {
	var all []arrival
	for _, s := range r.desk.sightings() {
		if s.Session != r.session {
			continue
		}
		n, _ := strconv.Atoi(s.Key) // 0 is none that was sent
		all = append(all, arrival{n, s.Redelivered, s.At})
	}
	return all
}

// arrived waits until the desk has seen a number above n, and returns when it did.
func (r *series) arrived(ctx context.Context, n int) (at time.Time, err error) {
	err = until(ctx, func(context.Context) error {
		all := r.arrivals()
		i := slices.IndexFunc(all, func(a arrival) bool { return a.number > n })
		if i < 0 {
			return r.to.errorf("its handler saw no number above %d", n)
		}
		at = all[i].at
		return nil
	})
	return at, err
}

// saw waits until the desk has seen all numbers up to last.
func (r *series) saw(ctx context.Context, last int) error {
	return until(ctx, func(context.Context) error {
		if missing := r.missing(last); len(missing) > 0 {
			return r.to.errorf("its handler never saw %d of %d numbers, such as %d", len(missing), last, missing[0])
		}
		return nil
	})
}

// missing are the numbers up to last that the desk never saw.
func (r *series) missing(last int) (missing []int) {
	seen := map[int]bool{}
	for _, a := range r.arrivals() {
		seen[a.number] = true
	}
	for n := 1; n <= last; n++ {
		if !seen[n] {
			missing = append(missing, n)
		}
	}
	return missing
}

// repeats are the arrivals of numbers that had arrived before.
func (r *series) repeats() (repeats []arrival) {
	seen := map[int]bool{}
	for _, a := range r.arrivals() {
		if seen[a.number] {
			repeats = append(repeats, a)
		}
		seen[a.number] = true
	}
	return repeats
}

// interrupt sends numbers without a pause, and makes a cut meanwhile. It goes on
// until numbers arrive again that were sent after the cut, and returns when that was
// made.
func (r *series) interrupt(ctx context.Context, sever func()) (cut time.Time, err error) {
	const around = 25 // numbers before the cut, and after the gap
	const pace = 10 * time.Millisecond
	resumed := make(chan struct{})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(resumed)
		if _, err := r.arrived(ctx, around); err != nil {
			return err
		}
		sever()
		cut = time.Now()
		_, err := r.arrived(ctx, len(r.arrivals())+around) // sent some time after the cut
		return err
	})
	group.Go(func() error {
		tick := time.NewTicker(pace)
		defer tick.Stop()
		for {
			if err := r.send(ctx, r.last+1); err != nil {
				return err
			}
			select {
			case <-tick.C:
			case <-resumed:
				return r.settle(ctx)
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	err = group.Wait()
	return cut, err
}

// gap is the longest time between two arrivals since the cut; the last one before
// it counts too.
func (r *series) gap(cut time.Time) (gap time.Duration) {
	all := r.arrivals()
	slices.SortFunc(all, func(a, b arrival) int { return a.at.Compare(b.at) })
	for i := 1; i < len(all); i++ {
		if all[i].at.After(cut) {
			gap = max(gap, all[i].at.Sub(all[i-1].at))
		}
	}
	return gap
}

// once checks that every number was worked on, and none of them again.
func (r *series) once() error {
	if missing := r.missing(r.last); len(missing) > 0 {
		return r.to.errorf("its handler never saw %d of %d numbers, such as %d", len(missing), r.last, missing[0])
	}
	if again := r.repeats(); len(again) > 0 {
		return r.to.errorf("its handler got %d numbers more than once, such as %d", len(again), again[0].number)
	}
	return nil
}

// close closes the session, and waits until both ends say that it is closed.
func (r *series) close(ctx context.Context) error {
	if _, err := r.from.api.Session.Close(ctx, &openmeshv1.CloseSessionRequest{Session: r.session}); err != nil {
		return r.from.at(err)
	}
	for _, n := range []*node{r.from, r.to} {
		err := until(ctx, func(ctx context.Context) error {
			s, err := n.api.Session.Show(ctx, &openmeshv1.ShowSessionRequest{Session: r.session})
			if err == nil && s.State != "closed" {
				err = fmt.Errorf("session %s is %s (%s), want closed", s.Session, s.State, s.Reason)
			}
			return n.at(err)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
