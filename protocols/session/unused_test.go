package session_test

import (
	"testing"
	"testing/synctest"
	"time"

	"openmesh/protocols/session"
	"openmesh/protocols/signal"
)

// A session that nobody uses is closed when it said that it would be.
func TestUnusedSession(t *testing.T) {
	for qos, stays := range map[signal.QoS]time.Duration{signal.AtMostOnce: time.Hour, signal.AtLeastOnce: 24 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			net := newWires(5 * time.Millisecond)
			short := func(c *session.Config) { keep(c); c.IdleTimeout, c.Retention = time.Hour, 24*time.Hour }
			a, b := net.node(t, short), net.node(t, short)
			began := time.Now()
			s := a.open(t, b, session.Want{Contract: signal.Contract{QoS: qos}})
			closes := s.Info().IdleAt
			if got := closes.Sub(began); got < stays || got > stays+time.Minute {
				t.Errorf("%s: it stays for %s, want %s", qos, got, stays)
			}
			time.Sleep(time.Until(closes) - time.Minute)
			if i := s.Info(); i.State != session.Active || !i.IdleAt.Equal(closes) {
				t.Errorf("%s: before its end it is %s, until %s", qos, i.State, i.IdleAt)
			}
			time.Sleep(2 * time.Minute)
			if i := s.Info(); i.State != session.Closed {
				t.Errorf("%s: after its end it is %s", qos, i.State)
			}
		})
	}
}
