package delivery

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"openmesh/protocols/session/delivery/deliverypb"
	"openmesh/protocols/wire"
)

// Limits of what travels.
const (
	maxHeader     = 8 << 10 // encoded
	maxMeta       = maxHeader - 128
	maxKey        = 256
	maxCapability = 120
	MaxEntries    = 1024    // of an ack
	maxFailure    = 8 << 10 // encoded
	MaxPointers   = 16
	MaxPointer    = 256
	maxRemaining  = uint64(math.MaxInt64 / int64(time.Millisecond) / 2)
)

// AppendMessage appends m to b as it travels; its life goes as what remains of
// it at now. A message that an outbox took has a header of at most 8 KiB.
// With sequence 0 only the floor is told.
func AppendMessage(b []byte, m *Message, floor uint64, now time.Time) []byte {
	h := &deliverypb.Header{
		Sequence: m.Sequence, Floor: floor,
		Key: valid(m.Key), Capability: valid(m.Capability), Version: valid(m.Version), Schema: valid(m.Schema),
		Encoding: uint32(m.Encoding), Traceparent: valid(m.Traceparent), Tracestate: valid(m.Tracestate),
		CorrelationId: valid(m.CorrelationID), Redelivered: m.Redelivered, Attempt: m.Attempt,
	}
	if m.Sequence != 0 {
		h.Remaining = uint64(max(m.Expires.Sub(now).Milliseconds(), 1))
	}
	b = binary.AppendUvarint(b, uint64(proto.Size(h)))
	b = appendProto(b, h)
	return append(b, m.Body...)
}

// valid is s as protobuf takes it; strings that Send took come through as they
// are.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// appendProto appends m, all of whose strings are valid UTF-8: there is nothing
// else that encoding can fail at.
func appendProto(b []byte, m proto.Message) []byte {
	b, err := proto.MarshalOptions{}.MarshalAppend(b, m)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", m, err))
	}
	return b
}

// ParseMessage reads what AppendMessage made. Accepted is now, Body aliases b.
// The error has the code wire.Malformed or wire.TooLarge.
func ParseMessage(b []byte, now time.Time) (m *Message, floor uint64, err error) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n > uint64(len(b)-size) {
		return nil, 0, wire.Errorf(wire.Malformed, "read a message: its header is cut")
	}
	if n > maxHeader {
		return nil, 0, wire.Errorf(wire.TooLarge, "read a message: a header of %d bytes, the limit is %d", n, maxHeader)
	}
	h, body := new(deliverypb.Header), b[size+int(n):]
	if err := proto.Unmarshal(b[size:size+int(n)], h); err != nil {
		return nil, 0, wire.Errorf(wire.Malformed, "read the header of a message: %w", err)
	}
	if err := checkHeader(h, len(body)); err != nil {
		return nil, 0, err
	}
	m = &Message{
		Sequence: h.Sequence, Key: h.Key, Capability: h.Capability, Version: h.Version, Schema: h.Schema,
		Encoding: uint8(h.Encoding), Body: body, Traceparent: h.Traceparent, Tracestate: h.Tracestate,
		CorrelationID: h.CorrelationId, Accepted: now, Redelivered: h.Redelivered, Attempt: h.Attempt,
	}
	m.Expires = now.Add(time.Duration(h.Remaining) * time.Millisecond)
	return m, h.Floor, nil
}

func checkHeader(h *deliverypb.Header, body int) error {
	if len(h.Key) > maxKey || len(h.Capability) > maxCapability {
		return wire.Errorf(wire.TooLarge, "read a message: a key of %d bytes for a capability of %d; the limits are %d and %d",
			len(h.Key), len(h.Capability), maxKey, maxCapability)
	}
	bad := h.Floor == 0 || h.Floor > MaxSequence || h.Sequence > MaxSequence ||
		h.Encoding > math.MaxUint8 || h.Remaining > maxRemaining
	if h.Sequence == 0 {
		bad = bad || body > 0
	} else {
		bad = bad || h.Floor > h.Sequence || h.Remaining == 0
	}
	if bad {
		return wire.Errorf(wire.Malformed, "read a message: sequence %d, floor %d, encoding %d, %d ms left and %d bytes cannot be",
			h.Sequence, h.Floor, h.Encoding, h.Remaining, body)
	}
	return nil
}

// Check says whether the strings of m fit its header; the error has the code
// wire.TooLarge or wire.InvalidArgument.
func (m *Message) Check() error {
	if len(m.Key) > maxKey || len(m.Capability) > maxCapability {
		return wire.Errorf(wire.TooLarge, "send a message: a key of %d bytes for a capability of %d; the limits are %d and %d",
			len(m.Key), len(m.Capability), maxKey, maxCapability)
	}
	meta := 0
	for _, s := range []string{m.Key, m.Capability, m.Version, m.Schema, m.Traceparent, m.Tracestate, m.CorrelationID} {
		if !utf8.ValidString(s) {
			return wire.Errorf(wire.InvalidArgument, "send a message: %q is not UTF-8", s)
		}
		meta += len(s)
	}
	if meta > maxMeta {
		return wire.Errorf(wire.TooLarge, "send a message: %d bytes of names, trace context and keys, the limit is %d", meta, maxMeta)
	}
	return nil
}

// Range is sequence numbers, both ends included; 1 ≤ From ≤ To. Those of a list
// ascend and do not overlap.
type Range struct{ From, To uint64 }

// Failure is a message that was refused or whose handler failed.
type Failure struct {
	Sequence uint64
	Attempt  uint32 // of the message that was refused
	Code     wire.Code
	Pointers []string // JSON pointers; at most 16 of at most 256 bytes
}

// Response is a message that a handler answered.
type Response struct {
	Sequence uint64
	Encoding uint8
	Body     []byte
}

// Ack is what a receiver tells about messages; at most 1,024 entries in all.
type Ack struct {
	Delivered []Range // settled, without an answer
	Working   []Range // in hand, without an outcome
	Failed    []Failure
	Responses []Response
}

// Highest is the highest sequence that a says something final about, or 0.
func (a Ack) Highest() (n uint64) {
	if i := len(a.Delivered); i > 0 {
		n = a.Delivered[i-1].To
	}
	for _, f := range a.Failed {
		n = max(n, f.Sequence)
	}
	for _, r := range a.Responses {
		n = max(n, r.Sequence)
	}
	return n
}

// AppendAck appends a to b as it travels. An Ack that an inbox sends takes at
// most 8 KiB besides its longest response.
func AppendAck(b []byte, a Ack) []byte {
	m := &deliverypb.Ack{Delivered: ranges(a.Delivered), Working: ranges(a.Working)}
	for _, f := range a.Failed {
		p := &deliverypb.Failure{Sequence: f.Sequence, Attempt: f.Attempt, Code: uint32(f.Code)}
		for _, s := range f.Pointers {
			p.Pointers = append(p.Pointers, valid(s))
		}
		m.Failed = append(m.Failed, p)
	}
	for _, r := range a.Responses {
		m.Responses = append(m.Responses, &deliverypb.Response{Sequence: r.Sequence, Encoding: uint32(r.Encoding), Body: r.Body})
	}
	return appendProto(b, m)
}

func ranges(rs []Range) []*deliverypb.Range {
	ms := make([]*deliverypb.Range, len(rs))
	for i, r := range rs {
		ms[i] = &deliverypb.Range{From: r.From, To: r.To}
	}
	return ms
}

// ParseAck reads what AppendAck made; the result shares no memory with b. The
// error has the code wire.Malformed.
func ParseAck(b []byte) (Ack, error) {
	if err := scanAck(b); err != nil {
		return Ack{}, err
	}
	m := new(deliverypb.Ack)
	if err := proto.Unmarshal(b, m); err != nil {
		return Ack{}, wire.Errorf(wire.Malformed, "read an ack: %w", err)
	}
	var a Ack
	ok := parseRanges(&a.Delivered, m.Delivered) && parseRanges(&a.Working, m.Working)
	for _, f := range m.Failed {
		ok = ok && f.Sequence > 0 && f.Sequence <= MaxSequence && len(f.Pointers) <= MaxPointers
		a.Failed = append(a.Failed, Failure{f.Sequence, f.Attempt, wire.Code(f.Code), f.Pointers})
	}
	for _, r := range m.Responses {
		ok = ok && r.Sequence > 0 && r.Sequence <= MaxSequence && r.Encoding <= math.MaxUint8
		a.Responses = append(a.Responses, Response{r.Sequence, uint8(r.Encoding), r.Body})
	}
	if !ok {
		return Ack{}, wire.Errorf(wire.Malformed, "read an ack: an entry is out of range")
	}
	return a, nil
}

// scanAck bounds the entries of an encoded ack before memory is made for them:
// one takes far more of it than of the wire.
func scanAck(b []byte) error {
	const failed = 3 // the field
	for entries := 0; len(b) > 0; entries++ {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return wire.Errorf(wire.Malformed, "read an ack: %w", protowire.ParseError(n))
		}
		size := protowire.ConsumeFieldValue(field, kind, b[n:])
		if size < 0 {
			return wire.Errorf(wire.Malformed, "read an ack: %w", protowire.ParseError(size))
		}
		if entries >= MaxEntries || field == failed && size > maxFailure {
			return wire.Errorf(wire.Malformed, "read an ack: over %d entries, or a failure over %d bytes", MaxEntries, maxFailure)
		}
		b = b[n+size:]
	}
	return nil
}

func parseRanges(to *[]Range, ms []*deliverypb.Range) bool {
	last := uint64(0)
	for _, m := range ms {
		if m.From <= last || m.From > m.To || m.To > MaxSequence {
			return false
		}
		last = m.To
		*to = append(*to, Range{m.From, m.To})
	}
	return true
}
