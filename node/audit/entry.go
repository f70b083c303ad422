package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/tlog"

	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// The directions of an entry: who said what it records.
const (
	Sent     = "sent"     // this agent, to another
	Received = "received" // another agent, to this one
	Local    = "local"    // nobody: this agent decided or noticed it
)

const (
	// MaxPayload bounds the payload of an entry, in bytes.
	MaxPayload = 1 << 20
	maxName    = 128 // bytes of kind, direction, agent, session and ref
	maxNote    = 1024
	entryMagic = "openmesh/audit/entry/1\x00"
)

// Entry is one event of the log.
type Entry struct {
	At        time.Time // zero: when it is recorded; whole nanoseconds
	Kind      string    // signal.offer, session.state, market.propose, …
	Direction string    // Sent, Received or Local
	Agent     identity.AgentID
	Session   string // id of a session, if it belongs to one
	Ref       string // id of a negotiation, request or contract
	Payload   []byte // the signed original, as it was sent or received
	Note      string // what came of it: an outcome, for people and for replay

	// Omit has the log keep the hash of the payload only. Of an entry that is read it
	// says that the payload is gone: by this, or by retention.
	Omit bool

	// Set when an entry is read.
	Index  uint64
	Hash   Hash              // of its leaf
	Digest [sha256.Size]byte // of the payload
	Size   int               // bytes of the payload, whether it is there or not
}

// seal makes an entry ready to be recorded, all but its index.
func (e *Entry) seal(now time.Time) {
	if e.At.IsZero() {
		e.At = now
	}
	e.At = time.Unix(0, e.At.UnixNano()).UTC()
	e.Kind, e.Direction = clean(e.Kind, maxName), clean(e.Direction, maxName)
	e.Agent = identity.AgentID(clean(string(e.Agent), maxName))
	e.Session, e.Ref, e.Note = clean(e.Session, maxName), clean(e.Ref, maxName), clean(e.Note, maxNote)
	e.Digest, e.Size = sha256.Sum256(e.Payload), len(e.Payload)
	if e.Omit {
		e.Payload = nil
	}
}

// check refuses what the log does not take.
func (e *Entry) check() error {
	if e.Kind == "" || e.Direction != Sent && e.Direction != Received && e.Direction != Local {
		return wire.Errorf(wire.InvalidArgument, "audit entry of kind %q: direction %q", e.Kind, e.Direction)
	}
	if len(e.Payload) > MaxPayload {
		return wire.Errorf(wire.TooLarge, "audit entry of kind %s: payload of %d bytes, at most %d", e.Kind, len(e.Payload), MaxPayload)
	}
	return nil
}

// clean makes s a text that every database takes, of at most limit bytes: parts of
// it may come from others.
func clean(s string, limit int) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit]
}

// leaf is the hash of the entry as a leaf of the tree: SHA-256 over a zero byte
// and
//
//	"openmesh/audit/entry/1" 0 ‖ index ‖ at ‖ size ‖ digest ‖
//	kind ‖ direction ‖ agent ‖ session ‖ ref ‖ note
//
// where numbers are 8 bytes, big-endian, at is in nanoseconds since 1970, and each
// text is preceded by its length in 4 bytes. The payload is there by its hash only:
// once it is gone, the tree is still whole.
func (e *Entry) leaf() Hash {
	b := make([]byte, 0, 512)
	b = append(b, entryMagic...)
	b = binary.BigEndian.AppendUint64(b, e.Index)
	b = binary.BigEndian.AppendUint64(b, uint64(e.At.UnixNano()))
	b = binary.BigEndian.AppendUint64(b, uint64(e.Size))
	b = append(b, e.Digest[:]...)
	for _, s := range [...]string{e.Kind, e.Direction, string(e.Agent), e.Session, e.Ref, e.Note} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return tlog.RecordHash(b)
}
