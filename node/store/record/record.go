// Package record is how the store encodes what no query looks into: the columns
// message and outcome. They are in the encoding of Protobuf (strings may be any
// bytes), so that fields can be added; zero values are left out.
//
//	message                       outcome
//	1 capability    bytes         1 status    varint
//	2 version       bytes         2 code      varint
//	3 schema        bytes         3 pointer   bytes, repeated
//	4 encoding      varint        4 encoding  varint
//	5 traceparent   bytes         5 response  bytes
//	6 tracestate    bytes         6 attempts  varint
//	7 correlation   bytes         7 at        bytes: time
//	8 accepted      bytes: time
//	9 expires       bytes: time
//	10 redelivered  varint
//
// A time is that of [time.Time.MarshalBinary], in UTC.
package record

import (
	"errors"
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"openmesh/protocols/session/delivery"
	"openmesh/protocols/wire"
)

// Message is the record of m without its sequence, key and body, which have
// columns of their own.
func Message(m *delivery.Message) []byte {
	b := make([]byte, 0, 192)
	b = appendBytes(b, 1, m.Capability)
	b = appendBytes(b, 2, m.Version)
	b = appendBytes(b, 3, m.Schema)
	b = appendVarint(b, 4, uint64(m.Encoding))
	b = appendBytes(b, 5, m.Traceparent)
	b = appendBytes(b, 6, m.Tracestate)
	b = appendBytes(b, 7, m.CorrelationID)
	b = appendTime(b, 8, m.Accepted)
	b = appendTime(b, 9, m.Expires)
	return appendVarint(b, 10, protowire.EncodeBool(m.Redelivered))
}

// ParseMessage sets the fields of m that b is a record of. Errors say which field is
// malformed.
func ParseMessage(b []byte, m *delivery.Message) error {
	return parseFields(b, func(field protowire.Number, n uint64, v []byte) (err error) {
		switch field {
		case 1:
			m.Capability = string(v)
		case 2:
			m.Version = string(v)
		case 3:
			m.Schema = string(v)
		case 4:
			m.Encoding, err = narrow[uint8](n, math.MaxUint8)
		case 5:
			m.Traceparent = string(v)
		case 6:
			m.Tracestate = string(v)
		case 7:
			m.CorrelationID = string(v)
		case 8:
			err = m.Accepted.UnmarshalBinary(v)
		case 9:
			err = m.Expires.UnmarshalBinary(v)
		case 10:
			m.Redelivered = protowire.DecodeBool(n)
		}
		return err
	})
}

// Outcome is the record of o. It is never nil, which would be that of a pending message.
func Outcome(o *delivery.Outcome) []byte {
	b := make([]byte, 0, 64+len(o.Response))
	b = appendVarint(b, 1, uint64(o.Status))
	b = appendVarint(b, 2, uint64(o.Code))
	for _, p := range o.Pointers {
		b = protowire.AppendTag(b, 3, protowire.BytesType)
		b = protowire.AppendString(b, p)
	}
	b = appendVarint(b, 4, uint64(o.Encoding))
	b = appendBytes(b, 5, o.Response)
	b = appendVarint(b, 6, uint64(o.Attempts))
	return appendTime(b, 7, o.At)
}

// ParseOutcome is the inverse of Outcome; o.Response aliases b.
func ParseOutcome(b []byte, o *delivery.Outcome) error {
	return parseFields(b, func(field protowire.Number, n uint64, v []byte) (err error) {
		switch field {
		case 1:
			o.Status, err = narrow[delivery.Status](n, math.MaxUint8)
		case 2:
			o.Code, err = narrow[wire.Code](n, math.MaxUint32)
		case 3:
			o.Pointers = append(o.Pointers, string(v))
		case 4:
			o.Encoding, err = narrow[uint8](n, math.MaxUint8)
		case 5:
			o.Response = v
		case 6:
			o.Attempts, err = narrow[uint32](n, math.MaxUint32)
		case 7:
			err = o.At.UnmarshalBinary(v)
		}
		return err
	})
}

func appendBytes[T string | []byte](b []byte, field protowire.Number, v T) []byte {
	if len(v) == 0 {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(v)))
	return append(b, v...)
}

func appendVarint(b []byte, field protowire.Number, n uint64) []byte {
	if n == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), n)
}

func appendTime(b []byte, field protowire.Number, t time.Time) []byte {
	if t.IsZero() {
		return b
	}
	v, err := t.UTC().MarshalBinary()
	if err != nil {
		panic(err) // only of zones whose offset has fractions of a minute
	}
	return appendBytes(b, field, v)
}

// parseFields calls f with every field of b that is a varint or bytes, which
// alias b. Others are of a newer version, and skipped like unknown numbers.
func parseFields(b []byte, f func(field protowire.Number, n uint64, v []byte) error) error {
	for len(b) > 0 {
		field, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return protowire.ParseError(size)
		}
		b = b[size:]
		var n uint64
		var v []byte
		switch kind {
		case protowire.VarintType:
			n, size = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			v, size = protowire.ConsumeBytes(b)
		default:
			size = protowire.ConsumeFieldValue(field, kind, b)
		}
		if size < 0 {
			return protowire.ParseError(size)
		}
		b = b[size:]
		if kind != protowire.VarintType && kind != protowire.BytesType {
			continue
		}
		if err := f(field, n, v); err != nil {
			return fmt.Errorf("field %d: %w", field, err)
		}
	}
	return nil
}

var errRange = errors.New("number out of range")

func narrow[T ~uint8 | ~uint32](n, most uint64) (T, error) {
	if n > most {
		return 0, errRange
	}
	return T(n), nil
}
