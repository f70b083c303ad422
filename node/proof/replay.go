package proof

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/audit"
	"openmesh/node/audit/replay"
	"openmesh/protocols/wire"
)

// MaxReplay bounds the originals that [ReplayLog] keeps of an export, in bytes.
const MaxReplay = 256 << 20

// ReplayLog runs what an export of an audit log has of a session, negotiation,
// request or contract again, as audit replay does with the log of a daemon. Id may be
// a prefix that only one has. An export that was changed diverges where it was
// changed.
//
// Errors: [wire.NotFound] if the export has nothing of id, [wire.InvalidArgument] if
// several ids begin so, [wire.TooLarge] for more than [MaxReplay], and those of
// [audit.ReadExport].
func ReplayLog(r io.Reader, id string) (*openmeshv1.ReplayAuditResponse, error) {
	var kept keeper
	intact, err := audit.ReadExport(r, kept.keep)
	if err != nil {
		return nil, unreadable(err)
	}
	if id, err = kept.resolve(id); err != nil {
		return nil, err
	}
	report := replay.Run(intact.Agent, id, kept.entries)
	out := &openmeshv1.ReplayAuditResponse{Ok: report.OK, Outcome: report.Outcome, Divergence: report.Divergence}
	if intact.Bad != nil {
		out.Ok, out.Divergence = false, fmt.Sprintf("the export was changed: %s", intact.Bad)
	}
	for _, s := range report.Steps {
		out.Steps = append(out.Steps, &openmeshv1.ReplayStep{
			Index: s.Index, Kind: s.Kind, Direction: s.Direction, Agent: string(s.Agent), Recorded: s.Recorded, Recomputed: s.Recomputed,
			Ok: s.OK, At: s.At.UTC().Format(time.RFC3339Nano),
		})
	}
	return out, nil
}

// unreadable gives a file that ends before its first line does the code of a file
// that is no export.
func unreadable(err error) error {
	if f, ok := errors.AsType[*audit.Fault](err); ok {
		return wire.Errorf(wire.Malformed, "read an exported audit log: %s", f.Reason)
	}
	return err
}

// keeper keeps the entries of an export that can be run again.
type keeper struct {
	entries []audit.Entry
	size    int // bytes of their originals
}

func (k *keeper) keep(e *audit.Entry) error {
	family, _, _ := strings.Cut(e.Kind, ".")
	if !slices.Contains([]string{"signal", "session", "market"}, family) {
		return nil
	}
	if k.size += len(e.Payload); k.size > MaxReplay {
		return wire.Errorf(wire.TooLarge, "read an exported audit log: it has more than %d bytes to run again", MaxReplay).
			WithHint("export only what is to be run again: openmesh audit export --of ID")
	}
	k.entries = append(k.entries, *e)
	return nil
}

// resolve returns the one id that begins with a prefix.
func (k *keeper) resolve(prefix string) (string, error) {
	found := map[string]bool{}
	for i := range k.entries {
		for _, id := range replay.IDs(&k.entries[i]) {
			if strings.HasPrefix(id, prefix) {
				found[id] = true
			}
		}
	}
	switch {
	case found[prefix] && prefix != "":
		return prefix, nil
	case len(found) == 0:
		return "", wire.Errorf(wire.NotFound, "the export has nothing of %s", prefix).
			WithHint("see which ids there are, where it was made: openmesh audit list")
	case len(found) > 1:
		return "", wire.Errorf(wire.InvalidArgument, "several ids in the export begin with %q", prefix).WithHint("give more of it")
	}
	for id := range found {
		prefix = id
	}
	return prefix, nil
}
