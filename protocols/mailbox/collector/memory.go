package collector

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"openmesh/protocols/identity"
	"openmesh/protocols/mailbox"
	"openmesh/protocols/wire"
)

// Memory keeps which letters were delivered, as one small document, so that a
// relay cannot repeat one after a restart.
type Memory interface {
	// Load returns what was saved last, or nothing; wire.NotFound is no failure.
	Load(ctx context.Context) ([]byte, error)
	// Save replaces it.
	Save(ctx context.Context, document []byte) error
}

const (
	maxRemembered = 4096 // letters: more than two full mailboxes
	rememberedRow = 16 + 8
)

// delivered remembers letters until they expire, the newest maxRemembered of
// them. A letter is known by its sender and its id: the sender signed both,
// whereas a relay could change an id or wrap the content anew.
type delivered struct {
	expires map[[16]byte]int64 // Unix seconds
	order   [][16]byte         // oldest first
	dirty   bool               // not saved
}

func letterKey(sender identity.AgentID, id mailbox.ID) [16]byte {
	sum := sha256.Sum256(append([]byte(sender), id[:]...))
	return [16]byte(sum[:16])
}

func (d *delivered) has(k [16]byte) bool {
	_, ok := d.expires[k]
	return ok
}

func (d *delivered) add(k [16]byte, expires, now time.Time) {
	if len(d.order) >= maxRemembered {
		d.forget(now)
	}
	d.expires[k] = expires.Unix()
	d.order = append(d.order, k)
	d.dirty = true
}

// forget makes room: what has expired goes, and if that is little, the oldest
// eighth.
func (d *delivered) forget(now time.Time) {
	d.order = slices.DeleteFunc(d.order, func(k [16]byte) bool {
		old := d.expires[k] <= now.Unix()
		if old {
			delete(d.expires, k)
		}
		return old
	})
	if len(d.order) > maxRemembered*7/8 {
		for _, k := range d.order[:maxRemembered/8] {
			delete(d.expires, k)
		}
		d.order = slices.Delete(d.order, 0, maxRemembered/8)
	}
}

// marshal returns the letters, oldest first: key (16), expires (8, big-endian).
func (d *delivered) marshal() []byte {
	b := make([]byte, 0, len(d.order)*rememberedRow)
	for _, k := range d.order {
		b = binary.BigEndian.AppendUint64(append(b, k[:]...), uint64(d.expires[k]))
	}
	return b
}

// unmarshal reads what marshal wrote. Errors: wire.Malformed.
func (d *delivered) unmarshal(b []byte) error {
	if len(b)%rememberedRow != 0 || len(b) > maxRemembered*rememberedRow {
		return wire.Errorf(wire.Malformed, "delivered letters: %d bytes", len(b))
	}
	d.expires, d.order = make(map[[16]byte]int64), nil
	for row := range slices.Chunk(b, rememberedRow) {
		k := [16]byte(row)
		if !d.has(k) {
			d.order = append(d.order, k)
		}
		d.expires[k] = int64(binary.BigEndian.Uint64(row[16:]))
	}
	return nil
}

// load reads what m has. A document that is damaged is none: it can only cost
// that a letter comes twice.
func (d *delivered) load(ctx context.Context, m Memory) error {
	b, err := m.Load(ctx)
	if errors.Is(err, wire.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return d.unmarshal(b)
}
