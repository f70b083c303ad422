package bench

import (
	"context"
	"fmt"
	"time"

	"openmesh/node/bench/load"
	"openmesh/protocols/session"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/signal"
)

// Ways of durable delivery.
const (
	toHandler = "handler"
	toInbox   = "inbox"
)

// Durable measures messages delivered at least once: senders that share a session
// each post a message and wait for its outcome. Where there is a baseline, it
// takes turns with that.
func Durable(ctx context.Context, cfg Config) (*Report, error) {
	start := time.Now()
	cfg.defaults()
	m, err := join(ctx, cfg.Home, cfg.Setup, cfg.Server.Node)
	if err != nil {
		return nil, err
	}
	defer m.leave()
	s, err := m.open(ctx, cfg.Server, session.Want{Contract: signal.Contract{QoS: signal.AtLeastOnce}})
	if err != nil {
		return nil, err
	}
	r := cfg.report("durable",
		fmt.Sprintf("a message has %d bytes; senders share one at-least-once session, sealed end to end, over one connection, and each waits for its message's outcome before the next; every process has its own database on the same disk", PayloadSize),
		toHandler+": delivered says that the message was synced in the sender's database and that the receiver's handler has answered it; the answer came back with it",
		toInbox+": delivered says that the message was synced in the sender's database, then in the receiver's, which keeps it until a reader has consumed it; a reader does so meanwhile")
	if cfg.Baseline != nil {
		r.Method = append(r.Method, cfg.Baseline.Method...)
	}
	if err := r.fill(ctx, cfg, durableWorkloads(cfg, s)); err != nil {
		return nil, err
	}
	r.compare(durableComparisons(cfg))
	r.ElapsedS = time.Since(start).Seconds()
	return r, nil
}

func durableWorkloads(cfg Config, s *session.Session) (ws []workload) {
	ways := []way{{name: toHandler, do: deliver(s, echoCapability)}, {name: toInbox, do: deliver(s, "")}}
	if b := cfg.Baseline; b != nil {
		for _, name := range b.Ways {
			ways = append(ways, way{name: name, sample: func(_ context.Context, workers int, d time.Duration) (load.Sample, error) {
				return b.Sample(name, workers, d, PayloadSize)
			}})
		}
	}
	for _, n := range cfg.Senders {
		ws = append(ws, workload{name: durableTable(n), unit: "messages/s", concurrency: n, ways: ways})
	}
	return ws
}

func durableTable(senders int) string {
	if senders == 1 {
		return "durable, 1 sender"
	}
	return fmt.Sprintf("durable, %d senders", senders)
}

// durableTarget is what of a baseline's rate ours should be with several senders,
// where that promises a synced message too: its first way. With one sender, two
// databases that are synced one after the other cannot be faster than one.
const durableTarget = 1.5

func durableComparisons(cfg Config) (cs []comparison) {
	if cfg.Baseline == nil {
		return nil
	}
	for _, n := range cfg.Senders {
		for _, ours := range []string{toHandler, toInbox} {
			for i, theirs := range cfg.Baseline.Ways {
				c := comparison{
					name:  fmt.Sprintf("%s: %s / %s, %s", durableTable(n), ours, cfg.Baseline.Name, theirs),
					table: durableTable(n), of: ours, to: theirs, what: perSecond,
				}
				if i == 0 && n > 1 {
					c.target = atLeast(durableTarget)
				}
				cs = append(cs, c)
			}
		}
	}
	return cs
}

// deliver returns an operation: a message to a capability's handler, or to the
// peer's inbox if it names none, with its outcome.
func deliver(s *session.Session, capability string) func(context.Context) error {
	return func(ctx context.Context) error {
		sequence, err := s.Post(ctx, &delivery.Message{Capability: capability, Encoding: uint8(session.JSON), Body: payload})
		if err != nil {
			return err
		}
		o, err := s.Outcome(ctx, sequence)
		if err != nil {
			return err
		}
		if o.Status != delivery.Delivered {
			return fmt.Errorf("message %d has status %d: %w", sequence, o.Status, o.Code)
		}
		return nil
	}
}
