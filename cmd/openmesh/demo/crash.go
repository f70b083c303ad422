package demo

import (
	"context"
	"fmt"
	"time"

	openmeshv1 "openmesh/node/api/openmesh/v1"
)

// The terms of sessions that are to recover soon.
const (
	soonKeepalive  = time.Second // the least there is
	soonAckTimeout = time.Second
)

// crash: both ends of a durable session are killed, one after the other, while
// messages are being worked on and wait. None is lost.
func (m *mesh) crash(ctx context.Context, s *Step) error {
	from, to := m.consumer(), m.offering(sumName)[0]
	r, err := m.openSeries(ctx, from, to, &openmeshv1.OpenSessionRequest{
		Qos: "at-least-once", KeepaliveMs: uint32(soonKeepalive.Milliseconds()), AckTimeoutMs: uint32(soonAckTimeout.Milliseconds()),
	})
	if err != nil {
		return err
	}
	worked, sent, err := m.crashBoth(ctx, r)
	if err != nil {
		return err
	}
	again := r.repeats()
	for _, a := range again {
		if !a.again {
			return to.errorf("its handler got number %d once more, not marked as redelivered", a.number)
		}
	}
	if err := r.close(ctx); err != nil {
		return err
	}
	s.Facts["session"], s.Facts["from"], s.Facts["to"] = r.session, from.name, to.name
	s.Facts["sent"], s.Facts["delivered"], s.Facts["repeats"] = r.last, r.last, len(again)
	s.Facts["receiver_outage_ms"], s.Facts["sender_outage_ms"] = millis(worked), millis(sent)
	s.Say(fmt.Sprintf("%s sent %d numbers to %s, at least once: every one arrived, and is reported as delivered", from.name, r.last, to.name),
		fmt.Sprintf("%s killed while %d were worked on, and %d sent meanwhile: work went on after %s", to.name, crashBurst, crashHalf-2*crashBurst, ms(millis(worked))),
		fmt.Sprintf("%s killed while it waited for %d: the next ones arrived after %s", from.name, crashBurst, ms(millis(sent))),
		fmt.Sprintf("%d came once more after that, marked as redelivered", len(again)))
	return nil
}

// How many numbers are sent: until the sender is killed, in all, and unanswered
// whenever somebody is killed.
const crashHalf, crashAll, crashBurst = 100, 200, 25

// crashBoth kills first the receiver and then the sender, and checks that all
// numbers arrive and are known to have. It returns how long either was missed.
func (m *mesh) crashBoth(ctx context.Context, r *series) (receiver, sender time.Duration, err error) {
	if err := r.send(ctx, crashBurst); err != nil {
		return 0, 0, err
	}
	if err := r.settle(ctx); err != nil {
		return 0, 0, err
	}
	if receiver, err = m.crashOf(ctx, r.to, r, 2*crashBurst, crashHalf); err != nil {
		return 0, 0, fmt.Errorf("crash of the receiver: %w", err)
	}
	if err := r.settle(ctx); err != nil {
		return 0, 0, err
	}
	if sender, err = m.crashOf(ctx, r.from, r, crashHalf+crashBurst, crashAll); err != nil {
		return 0, 0, fmt.Errorf("crash of the sender: %w", err)
	}
	if err := r.settle(ctx); err != nil {
		return 0, 0, err
	}
	return receiver, sender, r.saw(ctx, r.last)
}

// crashOf kills one end of the series when the numbers up to working are being
// worked on and none of them is answered. More follow, up to last: while the
// receiver is down, or once the sender is back. It returns how long it took from
// the kill until the first of them arrived.
func (m *mesh) crashOf(ctx context.Context, n *node, r *series, working, last int) (outage time.Duration, err error) {
	m.desk.hold()
	defer m.desk.release()
	if err := r.send(ctx, working); err != nil {
		return 0, err
	}
	if err := r.saw(ctx, working); err != nil {
		return 0, err
	}
	killed := time.Now()
	n.kill()
	m.desk.release()
	if n != r.from {
		if err := r.send(ctx, last); err != nil {
			return 0, err
		}
	}
	if err := m.start(ctx, n, m.backbone.addrs); err != nil {
		return 0, err
	}
	if err := r.send(ctx, last); err != nil {
		return 0, err
	}
	at, err := r.arrived(ctx, working)
	return at.Sub(killed), err
}

// kill ends the daemon as a power failure would.
func (n *node) kill() {
	n.api.Close()
	n.api = nil
	n.proc.kill()
}
