package audit

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"openmesh/protocols/identity"
)

// Report is what verification found.
type Report struct {
	OK          bool
	Agent       identity.AgentID // whose log it is
	Entries     uint64
	Root        Hash   // as recomputed, up to the fault if there is one
	Bad         *Fault // the first thing that is wrong; nil if nothing is
	Pruned      uint64 // entries whose payloads are gone; their hashes are in the tree
	Checkpoints int    // that were compared
	Expired     int    // of the agent's own: signed when their certificate had expired, which others refuse
}

// Fault is something wrong with a log.
type Fault struct {
	Index  uint64 // of the entry; of the first one that is missing; of the first that a checkpoint casts doubt on
	Reason string // a sentence
}

// Error implements error.
func (f *Fault) Error() string { return fmt.Sprintf("entry %d: %s", f.Index, f.Reason) }

func faultf(index uint64, format string, args ...any) *Fault {
	return &Fault{index, fmt.Sprintf(format, args...)}
}

// Verify recomputes the log from what is in the database: the hash of each payload
// that is there, each leaf, the tree, and the roots that this agent has signed. It
// compares them with the checkpoints that others hold, given as texts of this
// agent's checkpoints, too. What is wrong is in the report; an error is of the
// database.
//
// Nobody can tell a log from its copy that was rewritten in whole with the agent's
// key, but by a checkpoint from outside.
func (l *Log) Verify(ctx context.Context, against ...[]byte) (Report, error) {
	l.mu.Lock()
	known := l.committed.size
	l.mu.Unlock()
	v := &verification{report: Report{Agent: l.cfg.Agent}}
	own, err := l.checkpoints(ctx)
	if err != nil {
		return v.report, err
	}
	v.compareWith(storedHere, own)
	v.compareWith(heldElsewhere, against)
	err = l.each(ctx, 0, maxIndex, func(s *stored) error {
		if fault := v.entry(s); fault != nil {
			return fault
		}
		return nil
	})
	if err := v.fail(err); err != nil {
		return v.report, err
	}
	return v.finish(known), nil
}

// maxIndex is above every index.
const maxIndex = 1<<63 - 1

func (l *Log) checkpoints(ctx context.Context) (texts [][]byte, err error) {
	err = l.db.Query(ctx, "read checkpoints", func(rows *sql.Rows) error {
		var text []byte
		err := rows.Scan(&text)
		texts = append(texts, text)
		return err
	}, selectCheckpoints, l.db.Owner())
	return texts, err
}

// Where checkpoints are from.
const (
	storedHere    = "that this agent stored"
	heldElsewhere = "that others hold"
	ofExport      = "of the export"
)

// claim is what a checkpoint says, and where it is from.
type claim struct {
	*Checkpoint
	from string
}

// verification is a walk over the entries of a log, in order.
type verification struct {
	report Report
	tree   tree
	claims []claim // ahead, by size
	agreed uint64  // size of the last checkpoint that holds
}

// compareWith adds checkpoints to compare with. One that is not what it claims to
// be is a fault, unless there was one before. One that this agent signed and kept too
// late is none: its root is the agent's word all the same.
func (v *verification) compareWith(from string, texts [][]byte) {
	known := make(map[string]*identity.Certificate)
	certificate := func(raw []byte) (c *identity.Certificate, err error) {
		if c = known[string(raw)]; c == nil {
			if c, err = identity.ParseCertificate(raw); err == nil {
				known[string(raw)] = c
			}
		}
		return c, err
	}
	for i, text := range texts {
		c, err := parseUndated(text, certificate)
		if err == nil && c.Certificate.Valid(c.At) != nil {
			if from == storedHere {
				v.report.Expired++
			} else {
				err = c.Certificate.Valid(c.At)
			}
		}
		switch {
		case err != nil:
			v.fault(faultf(0, "checkpoint %d of those %s is forged or damaged: %v", i+1, from, err))
		case c.Agent != v.report.Agent:
			v.fault(faultf(0, "checkpoint %d of those %s is of the log of %s", i+1, from, c.Agent))
		default:
			v.claims = append(v.claims, claim{c, from})
		}
	}
	slices.SortStableFunc(v.claims, func(a, b claim) int { return int(min(max(int64(a.Size)-int64(b.Size), -1), 1)) })
}

func (v *verification) fault(f *Fault) {
	if v.report.Bad == nil {
		v.report.Bad = f
	}
}

// entry checks the next entry.
func (v *verification) entry(s *stored) *Fault {
	if f := v.settle(); f != nil {
		return f
	}
	if f := v.single(&s.Entry); f != nil {
		return f
	}
	next, hashes := v.tree.add(s.Hash)
	if s.hashes != nil && !slices.Equal(s.hashes, hashes) {
		return faultf(s.Index, "the hashes of the tree that are stored with it are not those of the entries")
	}
	v.tree = next
	return nil
}

// single checks what an entry tells by itself: its place, its payload, its hash.
func (v *verification) single(e *Entry) *Fault {
	at := v.tree.size
	if e.Index != at {
		return faultf(at, "it is missing: entry %d follows on entry %d", e.Index, int64(at)-1)
	}
	if e.Omit {
		v.report.Pruned++
	} else if sha256.Sum256(e.Payload) != e.Digest || len(e.Payload) != e.Size {
		return faultf(at, "its payload is not the one that was recorded")
	}
	if e.leaf() == e.Hash {
		return nil
	}
	if from, ok := moved(e); ok {
		return faultf(at, "in its place is entry %d: entries were put in another order", from)
	}
	return faultf(at, "it is not what was recorded: its hash is that of something else")
}

// moved looks whether an entry is one from another place, not far away.
func moved(e *Entry) (from uint64, ok bool) {
	const far = 4096
	other := *e
	for i := e.Index - min(e.Index, far); i <= e.Index+far; i++ {
		if other.Index = i; i != e.Index && other.leaf() == e.Hash {
			return i, true
		}
	}
	return 0, false
}

// settle compares the tree with the checkpoints of its size. One that the tree grew
// past, by hashes of many entries at once, is a fault; what comes after it may tell more.
func (v *verification) settle() *Fault {
	for len(v.claims) > 0 && v.claims[0].Size <= v.tree.size {
		c := v.claims[0]
		v.claims = v.claims[1:]
		if c.Size < v.tree.size {
			v.fault(faultf(v.agreed, "a checkpoint %s over %d entries, signed %s, cannot be compared: of those around its end there are only hashes",
				c.from, c.Size, c.At.Format("2006-01-02 15:04:05")))
			continue
		}
		if c.Root != v.tree.root() {
			return faultf(v.agreed, "entries from here up to %d were rewritten: a checkpoint %s over %d entries, signed %s, has another root",
				c.Size, c.from, c.Size, c.At.Format("2006-01-02 15:04:05"))
		}
		v.agreed = c.Size
		v.report.Checkpoints++
	}
	return nil
}

// fail notes the fault that ended a walk; other errors it returns.
func (v *verification) fail(err error) error {
	if f := (*Fault)(nil); errors.As(err, &f) {
		v.report.Bad = f // which is more telling than a checkpoint that is no good
		return nil
	}
	return err
}

// finish checks what can only be said at the end: known is a size that the log is
// known to have had.
func (v *verification) finish(known uint64) Report {
	r := &v.report
	r.Entries, r.Root = v.tree.size, v.tree.root()
	if f := v.settle(); f != nil {
		r.Bad = f
	}
	if size := v.tree.size; r.Bad == nil && len(v.claims) > 0 {
		c := v.claims[len(v.claims)-1]
		r.Bad = faultf(size, "the end is cut off: a checkpoint %s, signed %s, is over %d entries, and there are %d",
			c.from, c.At.Format("2006-01-02 15:04:05"), c.Size, size)
	} else if r.Bad == nil && size < known {
		r.Bad = faultf(size, "the end is cut off: this node has recorded %d entries, and there are %d", known, size)
	}
	r.OK = r.Bad == nil
	return *r
}
