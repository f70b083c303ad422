package session

import (
	"encoding/binary"
	"fmt"

	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// frameType says what a frame's plaintext is. Values are on the wire: append
// only. Types that this version does not act on are dropped once opened, so
// that a newer peer may send them.
type frameType uint8

const (
	typeData frameType = iota + 1
	typeAck
	typeRequest
	typeResponse
	typeError
	typeStreamOpen
	typeStreamData
	typeStreamWindow
	typeStreamEnd
	typePing
	typePong
	typeRekey
	typeRebind
	typePolicyNotice
	typeClose
)

const (
	frameVersion = 1
	headerSize   = 1 + 1 + len(signal.ID{}) + 4 + 8
	tagSize      = 16
	overhead     = headerSize + tagSize
	maxPrefix    = 5 // of a uvarint length up to 32 bits
)

// header is the part of a frame in the clear; it is authenticated.
type header struct {
	typ      frameType
	session  signal.ID
	epoch    uint32
	sequence uint64
}

func (h header) put(b []byte) {
	b[0], b[1] = frameVersion, byte(h.typ)
	copy(b[2:], h.session[:])
	binary.BigEndian.PutUint32(b[18:], h.epoch)
	binary.BigEndian.PutUint64(b[22:], h.sequence)
}

// parseHeader reads the header of a whole frame.
func parseHeader(frame []byte) (header, error) {
	if len(frame) < overhead {
		return header{}, fmt.Errorf("%w: frame of %d bytes", wire.Malformed, len(frame))
	}
	if frame[0] != frameVersion {
		return header{}, fmt.Errorf("%w: frame version %d", wire.Unsupported, frame[0])
	}
	return header{
		typ:      frameType(frame[1]),
		session:  signal.ID(frame[2:18]),
		epoch:    binary.BigEndian.Uint32(frame[18:]),
		sequence: binary.BigEndian.Uint64(frame[22:]),
	}, nil
}
