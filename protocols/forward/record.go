package forward

import (
	"bufio"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	pool "github.com/libp2p/go-buffer-pool"

	"openmesh/protocols/wire"
)

const (
	headerSize   = 2
	maxRecord    = 32 << 10 // with header and tag
	maxPlain     = maxRecord - headerSize - tagSize
	recordsInKey = 1 << 20 // so that a key never seals more than 32 GiB
	readAhead    = 4 << 10

	recordsContext = "openmesh/forward/1.0.0 "
)

// recordSecret is the first secret of the writer, "source" or "target".
func recordSecret(k *keys, salt []byte, writer string) ([]byte, error) {
	prk, err := hkdf.Extract(sha256.New, k.records[:], salt)
	if err != nil {
		return nil, fmt.Errorf("derive secret of records: %w", err)
	}
	return hkdf.Expand(sha256.New, prk, recordsContext+writer, sha256.Size)
}

// sealer counts the records of one direction and changes their key in time. Both
// sides have one that is the same.
type sealer struct {
	secret []byte
	gcm    cipher.AEAD
	iv     [nonceSize]byte
	count  uint64 // with the present secret
}

func newSealer(secret []byte) (*sealer, error) {
	s := &sealer{secret: secret}
	return s, s.derive()
}

func (s *sealer) derive() error {
	key, err := hkdf.Expand(sha256.New, s.secret, "key", 32)
	if err != nil {
		return fmt.Errorf("derive key of records: %w", err)
	}
	iv, err := hkdf.Expand(sha256.New, s.secret, "iv", nonceSize)
	if err != nil {
		return fmt.Errorf("derive key of records: %w", err)
	}
	s.gcm, s.count = newGCM(key), 0
	copy(s.iv[:], iv)
	return nil
}

// nonce returns that of the next record.
func (s *sealer) nonce() ([nonceSize]byte, error) {
	if s.count == recordsInKey {
		next, err := hkdf.Expand(sha256.New, s.secret, "next", sha256.Size)
		if err != nil {
			return s.iv, fmt.Errorf("change key of records: %w", err)
		}
		clear(s.secret)
		s.secret = next
		if err := s.derive(); err != nil {
			return s.iv, err
		}
	}
	n := s.iv
	binary.BigEndian.PutUint64(n[4:], binary.BigEndian.Uint64(n[4:])^s.count)
	s.count++
	return n, nil
}

// seal appends the record of plain to b; none at all is the end.
func (s *sealer) seal(b, plain []byte) ([]byte, error) {
	n, err := s.nonce()
	if err != nil {
		return nil, err
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(plain)+tagSize))
	return s.gcm.Seal(b, n[:], plain, b[len(b)-headerSize:]), nil
}

// open appends what was sealed to b.
func (s *sealer) open(b, sealed []byte) ([]byte, error) {
	n, err := s.nonce()
	if err != nil {
		return nil, err
	}
	var header [headerSize]byte
	binary.BigEndian.PutUint16(header[:], uint16(len(sealed)))
	plain, err := s.gcm.Open(b, n[:], sealed, header[:])
	if err != nil {
		return nil, wire.Errorf(wire.Unauthenticated, "a record does not open")
	}
	return plain, nil
}

// recordWriter writes what it is given in records. Safe for concurrent use.
type recordWriter struct {
	w io.Writer

	mu     sync.Mutex
	sealer *sealer
	err    error // ends all writing: a record that was cut cannot be mended
}

var errEnded = wire.Errorf(wire.SessionClosed, "write after the end")

func (w *recordWriter) Write(b []byte) (n int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(b) > 0 {
		part := b[:min(len(b), maxPlain)]
		if err := w.record(part); err != nil {
			return n, err
		}
		n += len(part)
		b = b[len(part):]
	}
	return n, w.err
}

// end says that nothing follows.
func (w *recordWriter) end() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if errors.Is(w.err, errEnded) {
		return nil
	}
	err := w.record(nil)
	if err == nil {
		w.err = errEnded
	}
	return err
}

// record writes one record; w.mu is held.
func (w *recordWriter) record(plain []byte) error {
	if w.err != nil {
		return w.err
	}
	buf := pool.Get(headerSize + len(plain) + tagSize)
	defer pool.Put(buf)
	b, err := w.sealer.seal(buf[:0], plain)
	if err == nil {
		_, err = w.w.Write(b)
	}
	w.err = err
	return err
}

// recordReader reads what comes in records. A deadline that passes in the middle of
// a record loses nothing. Safe for concurrent use.
type recordReader struct {
	mu     sync.Mutex
	r      *bufio.Reader
	sealer *sealer
	header [headerSize]byte
	have   int    // bytes of the record, header included, that have come
	body   []byte // of the record under way or, once it is whole, pooled buffer of plain
	plain  []byte // opened and not yet read
	err    error  // io.EOF after the end
}

func newRecordReader(r io.Reader, s *sealer) *recordReader {
	return &recordReader{r: bufio.NewReaderSize(r, readAhead), sealer: s}
}

func (r *recordReader) Read(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(b) == 0 {
		return 0, nil
	}
	if len(r.plain) == 0 {
		if n, err := r.next(b); n > 0 || err != nil {
			return n, err
		}
	}
	n := copy(b, r.plain)
	if r.plain = r.plain[n:]; len(r.plain) == 0 {
		r.release()
	}
	return n, nil
}

// next takes a record: straight into b if that has room, else into r.plain.
func (r *recordReader) next(b []byte) (n int, err error) {
	if r.err != nil {
		return 0, r.err
	}
	if err := r.fill(); err != nil {
		return 0, r.cut(err)
	}
	r.have = 0
	size := len(r.body) - tagSize
	if size > 0 && size <= len(b) {
		_, r.err = r.sealer.open(b[:0], r.body)
		r.release()
		if r.err != nil {
			return 0, r.err
		}
		return size, nil
	}
	r.plain, r.err = r.sealer.open(r.body[:0], r.body)
	if r.err == nil && size == 0 {
		r.err = io.EOF
	}
	if r.err != nil {
		r.release()
	}
	return 0, r.err
}

// fill goes on reading a record until it is whole.
func (r *recordReader) fill() error {
	for r.have < headerSize {
		c, err := r.r.ReadByte()
		if err != nil {
			return err
		}
		r.header[r.have] = c
		r.have++
	}
	if r.body == nil {
		size := int(binary.BigEndian.Uint16(r.header[:]))
		if size < tagSize || size > maxPlain+tagSize {
			r.err = wire.Errorf(wire.Malformed, "a record of %d bytes", size)
			return r.err
		}
		r.body = pool.Get(size)
	}
	n, err := io.ReadFull(r.r, r.body[r.have-headerSize:])
	r.have += n
	return err
}

// cut says what it means that a record could not be read.
func (r *recordReader) cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		r.err = wire.Errorf(wire.Unreachable, "the path was cut: %w", io.ErrUnexpectedEOF)
		err = r.err
	}
	return err
}

func (r *recordReader) release() {
	if r.body != nil {
		pool.Put(r.body)
	}
	r.body, r.plain = nil, nil
}
