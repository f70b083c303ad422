package delivery_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/session/delivery/inbox"
	"openmesh/protocols/session/delivery/outbox"
)

// instant is a store that has everything at once and forgets it.
type instant struct{ delivery.Store }

func (instant) Commit(_ delivery.Change, _ bool, done func(error)) {
	if done != nil {
		done(nil)
	}
}

// pair is an outbox and an inbox in one process, without a network between.
func pair(q delivery.QoS, encode bool) *outbox.Outbox {
	terms := delivery.Terms{QoS: q, TTL: time.Hour, AckTimeout: 10 * time.Second}
	now := time.Now()
	var out *outbox.Outbox
	in := inbox.New(inbox.Config{
		Terms: terms, Store: instant{},
		Handle: func(_ *delivery.Message, done func(delivery.Outcome)) {
			done(delivery.Outcome{Status: delivery.Delivered})
		},
		SendAck: func(a delivery.Ack) bool {
			if encode {
				a, _ = delivery.ParseAck(delivery.AppendAck(nil, a))
			}
			out.Ack(a, now)
			return true
		},
	})
	out = outbox.New(outbox.Config{
		Terms: terms, Store: instant{},
		Transmit: func(m *delivery.Message, floor uint64) bool {
			if encode {
				m, floor, _ = delivery.ParseMessage(delivery.AppendMessage(nil, m, floor, now), now)
			}
			in.Receive(m, floor, now)
			return true
		},
	})
	return out
}

// One message from Send to the handler and back to its outcome, without network,
// disk and seal; with the codec where it says so.
func BenchmarkDelivery(b *testing.B) {
	names := map[delivery.QoS]string{delivery.AtMostOnce: "at-most-once", delivery.AtLeastOnce: "at-least-once", delivery.ExactlyOnce: "exactly-once"}
	for _, q := range []delivery.QoS{delivery.AtMostOnce, delivery.AtLeastOnce, delivery.ExactlyOnce} {
		for _, encode := range []bool{false, true} {
			name := names[q]
			if encode {
				name += "-encoded"
			}
			b.Run(name, func(b *testing.B) {
				out, now, body := pair(q, encode), time.Now(), make([]byte, 256)
				b.ReportAllocs()
				for b.Loop() {
					m := &delivery.Message{Capability: "bench/echo", Encoding: 1, Body: body}
					if _, err := out.Send(context.Background(), m, now); err != nil {
						b.Fatal(err)
					}
				}
				if n := out.Pending(); n > 0 {
					b.Fatalf("%d messages have no outcome", n)
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
			})
		}
	}
}

// Many senders of one session; the goroutine that transmits does so for all.
func TestManySenders(t *testing.T) {
	t.Parallel()
	for _, q := range []delivery.QoS{delivery.AtMostOnce, delivery.AtLeastOnce, delivery.ExactlyOnce} {
		out, now := pair(q, true), time.Now()
		var group sync.WaitGroup
		for range 16 {
			group.Go(func() {
				for range 200 {
					sequence, err := out.Send(t.Context(), &delivery.Message{Capability: "test/echo", Encoding: 1, Body: []byte("{}")}, now)
					if err != nil {
						t.Error(err)
						return
					}
					if o, err := out.Wait(t.Context(), sequence); err != nil || o.Status != delivery.Delivered {
						t.Errorf("message %d: %+v, %v", sequence, o, err)
					}
				}
			})
		}
		group.Go(func() {
			for range 50 {
				out.Due(now)
			}
		})
		group.Wait()
		if n := out.Pending(); n > 0 {
			t.Errorf("%d messages have no outcome", n)
		}
	}
}
