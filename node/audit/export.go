package audit

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// An export is JSON lines, one document each: a file of any length is written and
// checked while it streams, and tools for lines can cut it.
//
//	{"format":"openmesh-audit/1","checkpoint":"openmesh/audit/did:key:z6Mk…"}
//	{"entry":{"index":0,"at":"…","kind":"signal.offer","hash":"…","digest":"…","size":812,"payload":"…"}}
//	{"hashes":{"from":1,"to":7,"subtrees":["…","…","…"]}}
//	{"entry":{"index":7,…}}
//
// The checkpoint has the agent's certificate in it and signs the root that the rest
// must give. An entry has all of its fields, its leaf hash, and the payload in
// base64 if it was there. Entries that were not asked for are their perfect
// subtrees' hashes, largest first as they fit: who reads the file learns nothing of
// them, and still that nothing was left out between. Such a line ends at the size of
// each checkpoint that the agent signed, so that who holds one can compare it.

// Format names the format of exports.
const Format = "openmesh-audit/1"

// maxLine bounds a line of an export, in bytes.
const maxLine = 4<<20 + 2*MaxCheckpoint

type line struct {
	Format     string    `json:"format,omitempty"`
	Checkpoint string    `json:"checkpoint,omitempty"`
	Entry      *exported `json:"entry,omitempty"`
	Hashes     *omitted  `json:"hashes,omitempty"`
}

type exported struct {
	Index     uint64    `json:"index"`
	At        time.Time `json:"at"`
	Kind      string    `json:"kind"`
	Direction string    `json:"direction"`
	Agent     string    `json:"agent,omitempty"`
	Session   string    `json:"session,omitempty"`
	Ref       string    `json:"ref,omitempty"`
	Note      string    `json:"note,omitempty"`
	Hash      hexHash   `json:"hash"`
	Digest    hexHash   `json:"digest"`
	Size      int       `json:"size"`
	Payload   []byte    `json:"payload,omitempty"`
}

// omitted is entries from From up to To, without To, of which only hashes are there.
type omitted struct {
	From     uint64    `json:"from"`
	To       uint64    `json:"to"`
	Subtrees []hexHash `json:"subtrees"`
}

// hexHash is 32 bytes, in JSON as 64 hexadecimal digits.
type hexHash [sha256.Size]byte

// MarshalText implements [encoding.TextMarshaler].
func (h hexHash) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h[:])), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (h *hexHash) UnmarshalText(b []byte) error {
	if len(b) != 2*len(h) {
		return fmt.Errorf("hash of %d digits", len(b))
	}
	_, err := hex.Decode(h[:], b)
	return err
}

// Export writes the log to w, as it is now: all of it, or the entries of some ids
// and what is related to them, and of the others the hashes.
func (l *Log) Export(ctx context.Context, w io.Writer, ids ...string) error {
	c, err := l.Checkpoint(ctx)
	if err != nil {
		return fmt.Errorf("export the audit log: %w", err)
	}
	x := &exporter{log: l, out: json.NewEncoder(w), size: c.Size}
	if err := x.out.Encode(line{Format: Format, Checkpoint: c.String()}); err != nil {
		return fmt.Errorf("export the audit log: %w", err)
	}
	if len(ids) == 0 {
		err = l.each(ctx, 0, c.Size, func(s *stored) error { return x.entry(ctx, &s.Entry) })
	} else {
		err = x.some(ctx, ids)
	}
	if err == nil {
		err = x.omit(ctx, c.Size)
	}
	if err != nil {
		return fmt.Errorf("export the audit log: %w", err)
	}
	return nil
}

// exporter writes the lines of an export.
type exporter struct {
	log        *Log
	out        *json.Encoder
	size, next uint64 // of the tree; the entry that comes next
}

func (x *exporter) some(ctx context.Context, ids []string) error {
	indexes, err := x.log.indexesOf(ctx, ids, nil)
	if err != nil {
		return err
	}
	for _, i := range indexes {
		if i >= x.size {
			break // it came meanwhile
		}
		e, err := x.log.Get(ctx, i)
		if err != nil {
			return err
		}
		if err := x.entry(ctx, &e); err != nil {
			return err
		}
	}
	return nil
}

func (x *exporter) entry(ctx context.Context, e *Entry) error {
	if err := x.omit(ctx, e.Index); err != nil {
		return err
	}
	x.next = e.Index + 1
	return x.out.Encode(line{Entry: &exported{
		Index: e.Index, At: e.At, Kind: e.Kind, Direction: e.Direction, Agent: string(e.Agent), Session: e.Session, Ref: e.Ref, Note: e.Note,
		Hash: hexHash(e.Hash), Digest: e.Digest, Size: e.Size, Payload: e.Payload,
	}})
}

// omit writes the hashes of the entries up to one.
func (x *exporter) omit(ctx context.Context, to uint64) error {
	if x.next >= to {
		return nil
	}
	sizes, err := x.log.sizes(ctx, x.next, to)
	if err != nil {
		return err
	}
	for _, size := range append(sizes, to) {
		if err := x.hashes(ctx, size); err != nil {
			return err
		}
	}
	return nil
}

// hashes writes a line with the hashes of the entries up to one.
func (x *exporter) hashes(ctx context.Context, to uint64) error {
	o := &omitted{From: x.next, To: to}
	for _, s := range cover(x.next, to) {
		h, err := x.log.hashOf(ctx, s)
		if err != nil {
			return err
		}
		o.Subtrees = append(o.Subtrees, hexHash(h))
	}
	x.next = to
	return x.out.Encode(line{Hashes: o})
}

// ReadExport verifies an exported log while it reads it, and calls f, which may be
// nil, with every entry that is there and fits. It compares with the checkpoints
// that others hold, as [Log.Verify] does. One that falls within entries of which only
// hashes are there cannot be compared, and that is a fault: the agent that wrote the
// file could have told the size of each checkpoint that it signed.
//
// What is wrong with the log is in the report. Errors are those of r and f, and
// [wire.Malformed] if this is no export.
func ReadExport(r io.Reader, f func(*Entry) error, against ...[]byte) (Report, error) {
	in := &importer{in: bufio.NewReaderSize(r, 64<<10)}
	first, err := in.line()
	if err != nil && !errors.Is(err, io.EOF) {
		return Report{}, err
	}
	if err != nil || first.Format != Format || first.Entry != nil || first.Hashes != nil {
		return Report{}, wire.Errorf(wire.Malformed, "this is no exported audit log of the format %s", Format)
	}
	v := &verification{}
	c, err := ParseCheckpoint([]byte(first.Checkpoint))
	if err != nil {
		v.fault(faultf(0, "the checkpoint of the export is forged or damaged: %v", err))
		return v.finish(0), nil
	}
	v.report.Agent = c.Agent
	v.claims = []claim{{c, ofExport}}
	v.compareWith(heldElsewhere, against)
	if err := v.fail(in.all(v, f)); err != nil {
		return v.report, err
	}
	report := v.finish(0)
	if report.Bad == nil && report.Entries > c.Size {
		report.Bad = faultf(c.Size, "the export has more entries than the %d of its checkpoint", c.Size)
		report.OK = false
	}
	return report, nil
}

// importer reads the lines of an export.
type importer struct{ in *bufio.Reader }

// line reads the next, which is one document and nothing else; io.EOF at the end.
func (r *importer) line() (*line, error) {
	var b []byte
	for {
		part, err := r.in.ReadSlice('\n')
		if b = append(b, part...); len(b) > maxLine {
			return nil, wire.Errorf(wire.TooLarge, "read an exported audit log: a line has more than %d bytes", maxLine)
		}
		if err == nil {
			break
		}
		if errors.Is(err, io.EOF) && len(bytes.TrimSpace(b)) > 0 {
			return nil, faultf(0, "the last line of the export is cut off")
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var l line
	if err := d.Decode(&l); err != nil { // of an empty line, io.EOF, which is not the end
		return nil, wire.Errorf(wire.Malformed, "read an exported audit log: a line is no document: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, wire.Errorf(wire.Malformed, "read an exported audit log: a line has more than a document")
	}
	return &l, nil
}

func (r *importer) all(v *verification, f func(*Entry) error) error {
	for {
		l, err := r.line()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if fault := (*Fault)(nil); errors.As(err, &fault) {
			return faultf(v.tree.size, "%s", fault.Reason)
		}
		if err == nil {
			err = v.line(l, f)
		}
		if err != nil {
			return err
		}
	}
}

func (v *verification) line(l *line, f func(*Entry) error) error {
	switch {
	case l.Format != "" || l.Checkpoint != "":
	case l.Hashes != nil && l.Entry == nil:
		if fault := v.skip(l.Hashes); fault != nil {
			return fault
		}
		return nil
	case l.Entry != nil && l.Hashes == nil:
		e, fault := l.Entry.entry(v.tree.size)
		if fault == nil {
			fault = v.entry(&stored{Entry: e})
		}
		if fault != nil {
			return fault
		}
		if f != nil {
			return f(&e)
		}
		return nil
	}
	return faultf(v.tree.size, "a line of the export is neither an entry nor hashes")
}

// skip takes the hashes of entries that are not there.
func (v *verification) skip(o *omitted) *Fault {
	if fault := v.settle(); fault != nil {
		return fault
	}
	at := v.tree.size
	if o.From != at || o.To <= o.From || o.To > maxIndex {
		return faultf(at, "it is missing: the export goes on with hashes of entries %d up to %d", o.From, o.To)
	}
	subtrees := cover(o.From, o.To)
	if len(subtrees) != len(o.Subtrees) {
		return faultf(at, "of the entries from here up to %d the export has %d hashes, which need %d", o.To, len(o.Subtrees), len(subtrees))
	}
	for i, s := range subtrees {
		next, err := v.tree.push(s.level, Hash(o.Subtrees[i]), nil)
		if err != nil {
			return faultf(at, "%v", err)
		}
		v.tree = next
	}
	return nil
}

// entry is the entry that a line has, at the place where one is expected.
func (x *exported) entry(at uint64) (Entry, *Fault) {
	e := Entry{
		Index: x.Index, At: x.At.UTC(), Kind: x.Kind, Direction: x.Direction, Agent: identity.AgentID(x.Agent), Session: x.Session,
		Ref: x.Ref, Note: x.Note, Hash: Hash(x.Hash), Digest: x.Digest, Size: x.Size, Payload: x.Payload,
		Omit: x.Size > 0 && len(x.Payload) == 0,
	}
	if x.Size < 0 || x.Size > math.MaxInt32 || len(x.Payload) > MaxPayload || !slices.Contains([]string{Sent, Received, Local}, x.Direction) {
		return e, faultf(at, "it is not an entry that a log has")
	}
	return e, nil
}
