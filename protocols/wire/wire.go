// Package wire is the vocabulary of all protocols: how messages are framed on a
// byte stream, and the closed list of codes that say why something failed.
//
// A frame is a length and that many bytes:
//
//	length  uvarint       // minimally encoded, at most the reader's limit
//	body    [length]byte
//
// Frames carry no type: a stream's protocol ID says what its frames mean.
package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
)

var (
	// ErrTooLarge reports a frame longer than the reader accepts.
	ErrTooLarge = errors.New("wire: frame too large")

	// ErrMalformed reports a length that is not a minimal uvarint.
	ErrMalformed = errors.New("wire: malformed length")
)

// AppendFrame appends body to b as one frame.
func AppendFrame(b, body []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(body)))
	return append(b, body...)
}

// ReadFrame reads one frame whose body is at most limit bytes. It returns
// io.EOF only if r ends before the first byte of the frame; a stream cut
// later is io.ErrUnexpectedEOF.
func ReadFrame(r *bufio.Reader, limit int) ([]byte, error) {
	n, err := ReadLength(r, limit)
	if err != nil {
		return nil, err
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, unexpected(err)
	}
	return body, nil
}

// ReadLength reads the length of a frame, for callers that read the body into
// memory of their own. Errors are those of [ReadFrame].
func ReadLength(r *bufio.Reader, limit int) (int, error) {
	n, err := readUvarint(r)
	if err == nil && n > uint64(limit) {
		return 0, ErrTooLarge
	}
	return int(n), err
}

func readUvarint(r *bufio.Reader) (uint64, error) {
	var n uint64
	for shift := uint(0); shift < 63; shift += 7 {
		c, err := r.ReadByte()
		if err != nil && shift > 0 {
			return 0, unexpected(err)
		}
		if err != nil {
			return 0, err
		}
		n |= uint64(c&0x7f) << shift
		if c < 0x80 {
			if c == 0 && shift > 0 {
				return 0, ErrMalformed // a longer encoding of a shorter length
			}
			return n, nil
		}
	}
	return 0, ErrMalformed
}

// unexpected turns a clean end of input into a cut one.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
