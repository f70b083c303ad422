package mux

import (
	"encoding/binary"

	"openmesh/protocols/wire"
)

// Type says what a frame is. The session below gives each a frame type of its
// own; these values are not on the wire.
type Type uint8

// The frames; the package comment draws them.
const (
	TypeOpen Type = iota + 1
	TypeData
	TypeWindow
	TypeEnd
)

func (t Type) String() string {
	switch t {
	case TypeOpen:
		return "stream-open"
	case TypeData:
		return "stream-data"
	case TypeWindow:
		return "stream-window"
	case TypeEnd:
		return "stream-end"
	}
	return "unknown frame"
}

const (
	// MaxMeta bounds the metadata of an open, in bytes.
	MaxMeta = 8 << 10

	maxChunk  = 32 << 10                  // bytes of one data frame
	maxNumber = 1<<62 - 1                 // ids, offsets and limits; sums of two do not overflow
	maxHead   = 3 * binary.MaxVarintLen64 // the numbers of one frame
	dataHead  = 2 * binary.MaxVarintLen64 // those of a data frame
	maxCode   = uint64(^wire.Code(0))     // codes have 32 bits
)

// numbers returns how many uvarints begin a frame of type t.
func (t Type) numbers() int {
	switch t {
	case TypeOpen, TypeData, TypeWindow:
		return 2
	case TypeEnd:
		return 3
	}
	return 0
}

// parse splits a frame into its numbers and what follows them. Its error is
// wire.Malformed.
func parse(t Type, payload []byte) (v [3]uint64, rest []byte, err error) {
	count := t.numbers()
	if count == 0 {
		return v, nil, wire.Errorf(wire.Malformed, "frame of type %d is not of a stream", uint8(t))
	}
	rest = payload
	for i := range count {
		n, size := binary.Uvarint(rest)
		if size <= 0 || n > maxNumber {
			return v, nil, wire.Errorf(wire.Malformed, "%v of %d bytes: bad number %d", t, len(payload), i)
		}
		v[i], rest = n, rest[size:]
	}
	if err := checkBody(t, v, rest); err != nil {
		return v, nil, err
	}
	return v, rest, nil
}

// checkBody holds each type to what may follow its numbers.
func checkBody(t Type, v [3]uint64, rest []byte) error {
	switch {
	case t == TypeOpen && len(rest) > MaxMeta:
		return wire.Errorf(wire.Malformed, "%v %d: metadata of %d bytes, at most %d", t, v[0], len(rest), MaxMeta)
	case t == TypeData && len(rest) == 0:
		return wire.Errorf(wire.Malformed, "%v %d: no data", t, v[0])
	case (t == TypeWindow || t == TypeEnd) && len(rest) > 0:
		return wire.Errorf(wire.Malformed, "%v %d: %d bytes too many", t, v[0], len(rest))
	case t == TypeEnd && v[2] > maxCode:
		return wire.Errorf(wire.Malformed, "%v %d: code %d", t, v[0], v[2])
	}
	return nil
}

// appendNumbers appends the numbers that begin a frame.
func appendNumbers(b []byte, numbers ...uint64) []byte {
	for _, n := range numbers {
		b = binary.AppendUvarint(b, n)
	}
	return b
}
