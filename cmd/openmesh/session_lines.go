package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/wire"
)

const (
	linesUnderWay = 64                     // messages accepted or waited for at a time
	timeForRoom   = time.Minute            // how long a full session may take no message
	firstPause    = 50 * time.Millisecond  // before a message that found no room is tried again
	progressEvery = 200 * time.Millisecond // on a terminal
)

// lineSender sends lines as messages.
type lineSender struct {
	*sending
	client  *api.Client
	ordered bool // accept one after the other
	durable bool // outcomes can be asked for later

	mu  sync.Mutex
	sum lineSummary
	bad []*openmeshv1.Delivery // the first that failed, expired or is pending
}

// lineSummary is what --lines prints in the end: how many lines were accepted,
// and what became of them, once for each recipient.
type lineSummary struct {
	Lines     int            `json:"lines"`
	Delivered int            `json:"delivered"`
	Failed    int            `json:"failed"`
	Expired   int            `json:"expired"`
	Pending   int            `json:"pending"`
	Codes     map[string]int `json:"codes"` // of those that failed
	ElapsedMs float64        `json:"elapsed_ms"`
}

func (p *program) sendLines(ctx context.Context, d *api.Client, s *sending) error {
	info, err := d.Session.Show(ctx, &openmeshv1.ShowSessionRequest{Session: s.req.Session})
	if err != nil {
		return err
	}
	l := &lineSender{
		sending: s, client: d, ordered: info.Contract.GetOrdered(), durable: info.Qos != qosModes[0],
		sum: lineSummary{Codes: map[string]int{}},
	}
	start, stop := time.Now(), p.progress(l.progress)
	err = l.run(ctx, p.in)
	stop()
	l.sum.ElapsedMs = float64(time.Since(start).Microseconds()) / 1000
	if shown := p.showValue(l.sum, func(g *page) { g.text("%s, in %s", l.progress(), milliseconds(l.sum.ElapsedMs)) }); err == nil {
		err = shown
	}
	if err == nil {
		err = verdict(l.bad, time.Duration(s.wait))
	}
	return err
}

// progress shows how far it has come on a terminal, until stop.
func (p *program) progress(text func() string) (stop func()) {
	if !isTerminal(p.err) {
		return func() {}
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				fmt.Fprintf(p.err, "\r\x1b[K%s", text())
			case <-end:
				fmt.Fprint(p.err, "\r\x1b[K")
				return
			}
		}
	}()
	return func() { close(end); <-ended }
}

func (l *lineSender) progress() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.sum
	return fmt.Sprintf("%d lines sent: %d delivered, %d failed, %d expired, %d pending", s.Lines, s.Delivered, s.Failed, s.Expired, s.Pending)
}

// run sends all lines of in. Each is either counted, or the error names it.
func (l *lineSender) run(ctx context.Context, in io.Reader) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(linesUnderWay)
	read := eachLine(ctx, in, func(number int, text string) error {
		if !l.ordered {
			group.Go(func() error {
				accepted, err := l.accept(ctx, number, text)
				if err != nil {
					return err
				}
				return l.settle(ctx, number, accepted)
			})
			return nil
		}
		accepted, err := l.accept(ctx, number, text)
		if err == nil {
			group.Go(func() error { return l.settle(ctx, number, accepted) })
		}
		return err
	})
	if err := group.Wait(); err != nil {
		return err // it ended the reading too
	}
	return read
}

// eachLine calls do for every line that is not empty, until it fails or ctx ends.
func eachLine(ctx context.Context, in io.Reader, do func(number int, text string) error) error {
	lines, failed := readLines(ctx, in)
	for number := 1; ; number++ {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case text, ok := <-lines:
			switch {
			case !ok && *failed != nil:
				return wire.Errorf(wire.InvalidArgument, "read line %d: %w", number, *failed)
			case !ok:
				return ctx.Err()
			case text == "":
				continue
			case !json.Valid([]byte(text)):
				return wire.Errorf(wire.InvalidArgument, "line %d is not JSON", number).
					WithHint("the lines before it are sent; given a --key, those can be repeated without harm")
			}
			if err := do(number, text); err != nil {
				return err
			}
		}
	}
}

// readLines reads lines until ctx ends. What failed is known once the channel is
// closed. A read under way cannot be interrupted: its goroutine may be left
// behind.
func readLines(ctx context.Context, in io.Reader) (_ <-chan string, failed *error) {
	lines := make(chan string)
	failed = new(error)
	go func() {
		defer close(lines)
		scanner := bufio.NewScanner(in)
		scanner.Buffer(nil, maxData)
		for scanner.Scan() {
			select {
			case lines <- scanner.Text():
			case <-ctx.Done():
				return
			}
		}
		*failed = scanner.Err()
	}()
	return lines, failed
}

// accept has the session accept a line. While there is no room in it, it tries
// again: such a refusal has no effect.
func (l *lineSender) accept(ctx context.Context, number int, text string) ([]*openmeshv1.Delivery, error) {
	req := l.request(number, text)
	giveUp, pause := time.Now().Add(timeForRoom), firstPause
	for {
		res, err := l.client.Session.Send(ctx, req)
		switch {
		case err == nil:
			l.mu.Lock()
			defer l.mu.Unlock()
			l.sum.Lines++
			return res.Deliveries, nil
		case wire.CodeOf(err) != wire.ResourceExhausted || time.Now().After(giveUp):
			return nil, lineError(number, err)
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, time.Second)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// request is the message of a line. At most once, nothing but the sending itself
// can tell the outcome.
func (l *lineSender) request(number int, text string) *openmeshv1.SendRequest {
	req := &openmeshv1.SendRequest{
		Session: l.req.Session, Body: &openmeshv1.SendRequest_Json{Json: text}, Capability: l.req.Capability,
		Version: l.req.Version, TtlMs: l.req.TtlMs, Schema: l.req.Schema,
	}
	if l.req.Key != "" {
		req.Key = fmt.Sprintf("%s/%d", l.req.Key, number)
	}
	if !l.durable {
		req.WaitMs = l.req.WaitMs
	}
	return req
}

func lineError(number int, err error) error {
	var known *wire.Error
	if !errors.As(err, &known) {
		return fmt.Errorf("line %d: %w", number, err)
	}
	named := *known
	named.Message = fmt.Sprintf("line %d: %s", number, known.Message)
	return &named
}

// settle counts what became of a line, once that is known.
func (l *lineSender) settle(ctx context.Context, number int, accepted []*openmeshv1.Delivery) error {
	for _, v := range accepted {
		if v.Status == "pending" && l.durable && l.wait > 0 {
			var err error
			v, err = l.client.Session.Outcome(ctx, &openmeshv1.OutcomeRequest{Session: v.Session, Key: v.Key, WaitMs: l.req.WaitMs})
			if err != nil {
				return lineError(number, err)
			}
		}
		l.mu.Lock()
		if l.sum.add(v) == 0 && v.Status != "delivered" {
			l.bad = append(l.bad, v)
		}
		l.mu.Unlock()
	}
	return nil
}

// add counts what became of a message, and returns how many had that before.
func (sum *lineSummary) add(v *openmeshv1.Delivery) (before int) {
	counter := &sum.Pending
	switch v.Status {
	case "delivered":
		counter = &sum.Delivered
	case "failed":
		counter = &sum.Failed
		sum.Codes[v.Code]++
	case "expired":
		counter = &sum.Expired
	}
	*counter++
	return *counter - 1
}
