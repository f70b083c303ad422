package store

import (
	"bytes"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"

	"openmesh/protocols/session/delivery"
)

func FuzzMessage(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(messageRecord(&delivery.Message{Capability: "a/b", Version: "1", Schema: "s@v1", Encoding: 2, Traceparent: "tp", Tracestate: "ts",
		CorrelationID: "id", Accepted: time.Unix(1, 2), Expires: time.Unix(3, 4), Redelivered: true}))
	f.Add(protowire.AppendVarint(protowire.AppendTag(nil, 4, protowire.VarintType), 256))
	f.Fuzz(func(t *testing.T, b []byte) {
		var once, again delivery.Message
		if parseMessage(b, &once) != nil {
			return
		}
		record := messageRecord(&once)
		if err := parseMessage(record, &again); err != nil || !cmp.Equal(once, again) {
			t.Errorf("%x is %+v, and after writing and parsing %+v, %v", b, once, again, err)
		}
	})
}

func FuzzOutcome(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(outcomeRecord(&delivery.Outcome{Status: 1, Code: 2, Pointers: []string{"", "/a"}, Encoding: 3, Response: []byte{0}, Attempts: 4, At: time.Unix(5, 6)}))
	f.Add(protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), math.MaxUint32+1))
	f.Fuzz(func(t *testing.T, b []byte) {
		var once, again delivery.Outcome
		if parseOutcome(b, &once) != nil {
			return
		}
		record := outcomeRecord(&once)
		if err := parseOutcome(record, &again); err != nil || !cmp.Equal(once, again, cmp.Comparer(bytes.Equal)) {
			t.Errorf("%x is %+v, and after writing and parsing %+v, %v", b, once, again, err)
		}
	})
}

// A newer version's fields are skipped; damage is an error.
func TestRecords(t *testing.T) {
	t.Parallel()
	newer := protowire.AppendFixed64(protowire.AppendTag(nil, 99, protowire.Fixed64Type), 1)
	newer = appendBytes(newer, 98, "new")
	var m delivery.Message
	if err := parseMessage(append(newer, messageRecord(&delivery.Message{Capability: "a/b"})...), &m); err != nil || m.Capability != "a/b" {
		t.Errorf("%+v, %v", m, err)
	}
	for name, b := range map[string][]byte{
		"cut":            messageRecord(&delivery.Message{Capability: "a/b"})[:3],
		"tag":            {0xff},
		"encoding":       appendVarint(nil, 4, 256),
		"time":           appendBytes(nil, 8, "now"),
		"cut after skip": newer[:5],
	} {
		if err := parseMessage(b, &m); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestNanoseconds(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, test := range []struct {
		t    time.Time
		want int64
	}{
		{time.Time{}, math.MinInt64}, {time.Unix(0, 1), 1}, {now, now.UnixNano()}, {time.Unix(math.MaxInt64/1000000000, 0), math.MaxInt64},
		{time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), math.MaxInt64},
	} {
		if got := nanoseconds(test.t); got != test.want {
			t.Errorf("nanoseconds(%v) = %d, want %d", test.t, got, test.want)
		}
	}
}
