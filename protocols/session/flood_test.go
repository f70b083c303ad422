package session_test

import (
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"openmesh/protocols/session"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/session/seal"
	"openmesh/protocols/session/sessionpb"
	"openmesh/protocols/signal"
)

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestProbe(t *testing.T) {
	contract := signal.DefaultContract()
	contract.Keepalive = time.Second
	mk := func() (c signal.Contract) { return contract }
	_ = mk
	for _, tc := range []struct {
		name  string
		qos   signal.QoS
		flood func(r *rogue)
	}{
		{"requests never acknowledged", signal.AtMostOnce, func(r *rogue) {
			for i := range 50000 {
				r.message(seal.Request, &sessionpb.Request{Id: uint64(i + 1), Capability: "x", Body: make([]byte, 100)})
				if i%500 == 0 {
					time.Sleep(10 * time.Millisecond)
				}
			}
		}},
		{"data never acknowledged", signal.AtLeastOnce, func(r *rogue) {
			for i := range 50000 {
				plain := delivery.AppendMessage(nil, &delivery.Message{Sequence: 1, Body: []byte("x"), Expires: time.Now().Add(time.Hour)}, 1, time.Now())
				r.send(seal.Data, plain)
				if i%100 == 0 {
					time.Sleep(10 * time.Millisecond)
				}
			}
		}},
		{"refusals", signal.AtMostOnce, func(r *rogue) {
			for range 20 {
				for i := range 3000 {
					r.message(seal.Request, &sessionpb.Request{Id: uint64(i%2000 + 1), Capability: "wait", Body: make([]byte, 100)})
				}
				time.Sleep(2 * time.Second)
				r.dial(nil)
			}
		}},
		{"pings", signal.AtMostOnce, func(r *rogue) {
			for i := range 50000 {
				r.send(seal.Ping, make([]byte, 8))
				if i%100 == 0 {
					time.Sleep(10 * time.Millisecond)
				}
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWires(5 * time.Millisecond)
				b := w.node(t, func(c *session.Config) { keep(c) })
				c := contract
				c.QoS = tc.qos
				r := w.rogue(t, b, c)
				time.Sleep(time.Second)
				g0, h0 := runtime.NumGoroutine(), heap()
				tc.flood(r)
				time.Sleep(3 * time.Second)
				g1, h1 := runtime.NumGoroutine(), heap()
				fmt.Printf("%s: goroutines %d → %d, heap %d → %d KiB; got %v closed %v %v\n", tc.name, g0, g1, h0>>10, h1>>10, r.got, r.over, r.closed)
			})
		})
	}
}
