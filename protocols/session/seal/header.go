package seal

import (
	"encoding/binary"
	"fmt"

	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// Type says what a frame's plaintext is. Values are on the wire: append only.
// Types that a version does not act on are dropped once opened, so that a newer
// peer may send them.
type Type uint8

// The types of frames.
const (
	Data Type = iota + 1
	Ack
	Request
	Response
	Error
	StreamOpen
	StreamData
	StreamWindow
	StreamEnd
	Ping
	Pong
	Rekey
	Rebind
	PolicyNotice
	Close
	Received
)

// Reliable reports whether frames of type t are kept until the peer has them and
// sent again if a channel loses them. The others speak of a channel or repeat
// themselves.
func (t Type) Reliable() bool {
	switch t {
	case Ping, Pong, Rebind, Close, Received:
		return false
	}
	return true
}

const (
	frameVersion = 1

	// HeaderSize is the size of a frame's header, in bytes.
	HeaderSize = 1 + 1 + len(signal.ID{}) + 4 + 8

	// Overhead is how much longer a frame is than its plaintext, in bytes.
	Overhead = HeaderSize + tagSize

	tagSize = 16
)

// Header is the part of a frame in the clear; it is authenticated.
type Header struct {
	Type     Type
	Session  signal.ID
	Epoch    uint32
	Sequence uint64
}

func (h Header) append(b []byte) []byte {
	b = append(b, frameVersion, byte(h.Type))
	b = append(b, h.Session[:]...)
	b = binary.BigEndian.AppendUint32(b, h.Epoch)
	return binary.BigEndian.AppendUint64(b, h.Sequence)
}

// parseHeader reads the header of a whole frame.
func parseHeader(frame []byte) (Header, error) {
	if len(frame) < Overhead {
		return Header{}, fmt.Errorf("%w: frame of %d bytes", wire.Malformed, len(frame))
	}
	if frame[0] != frameVersion {
		return Header{}, fmt.Errorf("%w: frame version %d", wire.Unsupported, frame[0])
	}
	return Header{
		Type:     Type(frame[1]),
		Session:  signal.ID(frame[2:18]),
		Epoch:    binary.BigEndian.Uint32(frame[18:]),
		Sequence: binary.BigEndian.Uint64(frame[22:]),
	}, nil
}
