package delivery_test

import (
	"encoding/hex"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/session/delivery/deliverypb"
	"openmesh/protocols/wire"
)

var start = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func full() *delivery.Message {
	return &delivery.Message{
		Sequence: 7, Key: "key", Capability: "test/handler", Version: "^1.2", Schema: "a@v1", Encoding: 2, Body: []byte("body"),
		Traceparent: "00-01-02-03", Tracestate: "a=b", CorrelationID: "c", Accepted: start, Expires: start.Add(90 * time.Second),
		Redelivered: true, Attempt: 3,
	}
}

func TestMessage(t *testing.T) {
	t.Parallel()
	now := start.Add(time.Minute)
	for _, m := range []*delivery.Message{full(), {Sequence: 1, Expires: now.Add(time.Millisecond), Body: []byte{}}, {Body: []byte{}}} {
		floor := max(m.Sequence, 1)
		b := delivery.AppendMessage([]byte("before"), m, floor, now)
		got, f, err := delivery.ParseMessage(b[6:], now)
		if err != nil || f != floor {
			t.Fatalf("floor %d, %v", f, err)
		}
		want := *m
		want.Accepted = now
		if want.Sequence == 0 {
			want.Expires = now
		}
		if d := cmp.Diff(&want, got); d != "" {
			t.Error(d)
		}
	}
}

// The form on the wire, for other implementations.
func TestGolden(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"message": {delivery.AppendMessage(nil, full(), 5, start.Add(time.Minute)),
			"42" + "0807" + "1005" + "1a036b6579" + "220c746573742f68616e646c6572" + "2a045e312e32" + "32046140763138" + "02" +
				"420b30302d30312d30322d3033" + "4a03613d62" + "520163" + "58b0ea01" + "6001" + "6803" + "626f6479"},
		"floor": {delivery.AppendMessage(nil, &delivery.Message{}, 300, start), "03" + "10ac02"},
		"ack": {delivery.AppendAck(nil, delivery.Ack{
			Delivered: []delivery.Range{{From: 1, To: 3}}, Working: []delivery.Range{{From: 4, To: 4}},
			Failed:    []delivery.Failure{{Sequence: 5, Attempt: 2, Code: wire.InvalidRequest, Pointers: []string{"/a"}}},
			Responses: []delivery.Response{{Sequence: 6, Encoding: 1, Body: []byte("yes")}},
		}), "0a0408011003" + "120408041004" + "1a0b0805100218910222022f61" + "220908061001" + "1a03796573"},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s is\n%s, want\n%s", name, got, c.want)
		}
	}
}

func TestMessageRefused(t *testing.T) {
	t.Parallel()
	good := func(change func(*deliverypb.Header)) *deliverypb.Header {
		h := &deliverypb.Header{Sequence: 7, Floor: 5, Remaining: 1}
		change(h)
		return h
	}
	for name, c := range map[string]struct {
		header *deliverypb.Header
		want   wire.Code
	}{
		"floor above":     {good(func(h *deliverypb.Header) { h.Floor = 8 }), wire.Malformed},
		"no floor":        {good(func(h *deliverypb.Header) { h.Floor = 0 }), wire.Malformed},
		"floor and body":  {good(func(h *deliverypb.Header) { h.Sequence = 0 }), wire.Malformed},
		"no time":         {good(func(h *deliverypb.Header) { h.Remaining = 0 }), wire.Malformed},
		"eternity":        {good(func(h *deliverypb.Header) { h.Remaining = math.MaxUint64 }), wire.Malformed},
		"huge sequence":   {good(func(h *deliverypb.Header) { h.Sequence = 1 << 62 }), wire.Malformed},
		"huge encoding":   {good(func(h *deliverypb.Header) { h.Encoding = 256 }), wire.Malformed},
		"long key":        {good(func(h *deliverypb.Header) { h.Key = strings.Repeat("k", 257) }), wire.TooLarge},
		"long capability": {good(func(h *deliverypb.Header) { h.Capability = strings.Repeat("k", 121) }), wire.TooLarge},
		"long header":     {good(func(h *deliverypb.Header) { h.Tracestate = strings.Repeat("k", 8<<10) }), wire.TooLarge},
	} {
		h, err := proto.Marshal(c.header)
		if err != nil {
			t.Fatal(err)
		}
		b := append(protowire.AppendVarint(nil, uint64(len(h))), h...)
		if _, _, err := delivery.ParseMessage(append(b, 'x'), start); wire.CodeOf(err) != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	for _, b := range []string{"", "\x02\x08", "\x01\xff", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"} {
		if _, _, err := delivery.ParseMessage([]byte(b), start); wire.CodeOf(err) != wire.Malformed {
			t.Errorf("%x: %v, want malformed", b, err)
		}
	}
}

func TestAckRefused(t *testing.T) {
	t.Parallel()
	few := func(n int) []delivery.Range {
		rs := make([]delivery.Range, n)
		for i := range rs {
			rs[i] = delivery.Range{From: uint64(2*i + 1), To: uint64(2*i + 1)}
		}
		return rs
	}
	for name, c := range map[string]struct {
		ack delivery.Ack
		ok  bool
	}{
		"all":           {delivery.Ack{Delivered: few(512), Working: few(512)}, true},
		"too many":      {delivery.Ack{Delivered: few(512), Working: few(513)}, false},
		"upside down":   {delivery.Ack{Delivered: []delivery.Range{{From: 2, To: 1}}}, false},
		"overlap":       {delivery.Ack{Delivered: []delivery.Range{{From: 1, To: 3}, {From: 3, To: 4}}}, false},
		"zero":          {delivery.Ack{Working: []delivery.Range{{}}}, false},
		"huge":          {delivery.Ack{Working: []delivery.Range{{From: 1, To: 1 << 62}}}, false},
		"zero failed":   {delivery.Ack{Failed: []delivery.Failure{{}}}, false},
		"zero answered": {delivery.Ack{Responses: []delivery.Response{{}}}, false},
		"pointers":      {delivery.Ack{Failed: []delivery.Failure{{Sequence: 1, Pointers: make([]string, 17)}}}, false},
		"long pointer":  {delivery.Ack{Failed: []delivery.Failure{{Sequence: 1, Pointers: []string{strings.Repeat("x", 8<<10)}}}}, false},
	} {
		got, err := delivery.ParseAck(delivery.AppendAck(nil, c.ack))
		if c.ok && (err != nil || !reflect.DeepEqual(got, c.ack)) || !c.ok && wire.CodeOf(err) != wire.Malformed {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, b := range []string{"\x0a", "\x0b", "\x00", "\x0a\x02\xff\xff"} {
		if _, err := delivery.ParseAck([]byte(b)); wire.CodeOf(err) != wire.Malformed {
			t.Errorf("%x: %v, want malformed", b, err)
		}
	}
}

func FuzzParseMessage(f *testing.F) {
	f.Add(delivery.AppendMessage(nil, full(), 5, start))
	f.Add(delivery.AppendMessage(nil, &delivery.Message{}, 9, start))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, floor, err := delivery.ParseMessage(b, start)
		if err != nil {
			return
		}
		if floor == 0 || m.Sequence != 0 && floor > m.Sequence || len(m.Key) > 256 || len(m.Capability) > 120 || m.Expires.Before(start) {
			t.Fatalf("%+v, floor %d", m, floor)
		}
		again, floor2, err := delivery.ParseMessage(delivery.AppendMessage(nil, m, floor, start), start)
		if err != nil || floor2 != floor {
			t.Fatalf("floor %d, then %d, %v", floor, floor2, err)
		}
		again.Expires = m.Expires // of a floor alone there is none
		if d := cmp.Diff(m, again); d != "" {
			t.Fatal(d)
		}
	})
}

func FuzzParseAck(f *testing.F) {
	f.Add(delivery.AppendAck(nil, delivery.Ack{
		Delivered: []delivery.Range{{From: 1, To: 2}}, Working: []delivery.Range{{From: 3, To: 3}},
		Failed:    []delivery.Failure{{Sequence: 4, Attempt: 1, Code: wire.Denied, Pointers: []string{"/a"}}},
		Responses: []delivery.Response{{Sequence: 5, Encoding: 1, Body: []byte("x")}},
	}))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := delivery.ParseAck(b)
		if err != nil {
			return
		}
		if n := len(a.Delivered) + len(a.Working) + len(a.Failed) + len(a.Responses); n > 1024 {
			t.Fatalf("%d entries", n)
		}
		again, err := delivery.ParseAck(delivery.AppendAck(nil, a))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(a, again); d != "" {
			t.Fatal(d)
		}
	})
}

func TestRetry(t *testing.T) {
	t.Parallel()
	r := delivery.Retry{Initial: time.Second, Multiplier: 2, MaxInterval: time.Minute, Jitter: 0.5}
	for _, c := range []struct {
		n      int
		random float64
		want   time.Duration
	}{{0, 0.5, time.Second}, {0, 0, time.Second / 2}, {0, 1, 3 * time.Second / 2}, {3, 0.5, 8 * time.Second}, {9, 0.5, time.Minute}, {9999, 1, 90 * time.Second}} {
		if got := r.After(c.n, c.random); got != c.want {
			t.Errorf("after refusal %d, %v: %s, want %s", c.n, c.random, got, c.want)
		}
	}
	if got := (delivery.Retry{Initial: time.Hour, Multiplier: 10}).After(999, 0.5); got <= 0 {
		t.Errorf("after refusal 999: %s", got)
	}
}
