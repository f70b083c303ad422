package record

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
	f.Add(Message(&delivery.Message{Capability: "a/b", Version: "1", Schema: "s@v1", Encoding: 2, Traceparent: "tp", Tracestate: "ts",
		CorrelationID: "id", Accepted: time.Unix(1, 2), Expires: time.Unix(3, 4), Redelivered: true}))
	f.Add(protowire.AppendVarint(protowire.AppendTag(nil, 4, protowire.VarintType), 256))
	f.Fuzz(func(t *testing.T, b []byte) {
		var once, again delivery.Message
		if ParseMessage(b, &once) != nil {
			return
		}
		record := Message(&once)
		if err := ParseMessage(record, &again); err != nil || !cmp.Equal(once, again) {
			t.Errorf("%x is %+v, and after writing and parsing %+v, %v", b, once, again, err)
		}
	})
}

func FuzzOutcome(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(Outcome(&delivery.Outcome{Status: 1, Code: 2, Pointers: []string{"", "/a"}, Encoding: 3, Response: []byte{0}, Attempts: 4, At: time.Unix(5, 6)}))
	f.Add(protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), math.MaxUint32+1))
	f.Fuzz(func(t *testing.T, b []byte) {
		var once, again delivery.Outcome
		if ParseOutcome(b, &once) != nil {
			return
		}
		record := Outcome(&once)
		if err := ParseOutcome(record, &again); err != nil || !cmp.Equal(once, again, cmp.Comparer(bytes.Equal)) {
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
	if err := ParseMessage(append(newer, Message(&delivery.Message{Capability: "a/b"})...), &m); err != nil || m.Capability != "a/b" {
		t.Errorf("%+v, %v", m, err)
	}
	for name, b := range map[string][]byte{
		"cut":            Message(&delivery.Message{Capability: "a/b"})[:3],
		"tag":            {0xff},
		"encoding":       appendVarint(nil, 4, 256),
		"time":           appendBytes(nil, 8, "now"),
		"cut after skip": newer[:5],
	} {
		if err := ParseMessage(b, &m); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
