package proof

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"time"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/audit"
	"openmesh/protocols/identity"
	"openmesh/protocols/market"
	"openmesh/protocols/wire"
)

// VerifyLog checks an export of an audit log, as audit verify does with the log of a
// daemon, while it reads it. Against are texts that others hold: checkpoints of the
// log, exports of contracts, or exports of the log. What is wrong with the log is in
// the answer; errors are of the reading, and of texts that are none of these.
func VerifyLog(r io.Reader, against ...[]byte) (*openmeshv1.VerifyAuditResponse, error) {
	began := time.Now()
	in := bufio.NewReaderSize(r, maxHead)
	agent, err := subject(in)
	if err != nil {
		return nil, err
	}
	var checkpoints [][]byte
	if agent != "" { // else the checkpoint of the export is forged, and the report says so
		if checkpoints, err = Checkpoints(agent, against...); err != nil {
			return nil, err
		}
	}
	report, err := audit.ReadExport(in, nil, checkpoints...)
	if err != nil {
		return nil, err
	}
	if report.Agent != agent { // what others hold was looked for in another log's name
		return nil, wire.Errorf(wire.Malformed, "read an exported audit log: it is of %q, and its first line says %q", report.Agent, agent)
	}
	out := &openmeshv1.VerifyAuditResponse{
		Ok: report.OK, Entries: report.Entries, Root: hex.EncodeToString(report.Root[:]), Pruned: report.Pruned,
		Checkpoints: uint32(report.Checkpoints), Agent: string(report.Agent),
		ElapsedMs: float64(time.Since(began)) / float64(time.Millisecond),
	}
	if report.Bad != nil {
		out.Bad = &openmeshv1.AuditFault{Index: report.Bad.Index, Reason: report.Bad.Reason}
	}
	return out, nil
}

// maxHead bounds the first line of an export, in bytes: a checkpoint in JSON.
const maxHead = 2 * audit.MaxCheckpoint

// subject looks ahead to whose log an export is; empty if its checkpoint does not hold.
// A first line that cannot be read here is an error, whatever others make of it: nobody
// may get out of being compared by writing it in an odd way.
func subject(in *bufio.Reader) (identity.AgentID, error) {
	head, err := in.Peek(in.Size()) // less if the export is shorter
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	first, _, whole := bytes.Cut(head, []byte("\n"))
	text, ok := heading(first)
	if !whole || !ok {
		return "", wire.Errorf(wire.Malformed, "read an exported audit log: the first line is not that of the format %s", audit.Format)
	}
	c, err := audit.ParseCheckpoint(text)
	if err != nil {
		return "", nil
	}
	return c.Agent, nil
}

// heading is the checkpoint that the first line of an export of a log has.
func heading(first []byte) (checkpoint []byte, ok bool) {
	var head struct{ Format, Checkpoint string }
	if json.Unmarshal(first, &head) != nil || head.Format != audit.Format {
		return nil, false
	}
	return []byte(head.Checkpoint), true
}

// Checkpoints finds the checkpoints of an agent's log in texts: checkpoints, exports
// of contracts and exports of logs. An export without one of that agent is an error of
// [wire.InvalidArgument]. Whether a checkpoint holds is for those to say who compare
// it with the log.
func Checkpoints(agent identity.AgentID, texts ...[]byte) (found [][]byte, err error) {
	for i, text := range texts {
		if !bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) { // no export: a checkpoint, or what claims to be one
			found = append(found, text)
			continue
		}
		n := len(found)
		for _, c := range exported(text) {
			if c.Agent == agent {
				found = append(found, c.Bytes())
			}
		}
		if len(found) == n {
			return nil, wire.Errorf(wire.InvalidArgument, "find a checkpoint: there is none of %s in file %d of those to compare with", agent, i+1).
				WithHint("give checkpoints of that log, contracts of that agent, or exports of that log")
		}
	}
	return found, nil
}

// exported returns the checkpoints that an export of a log or of a contract has.
func exported(text []byte) (found []*audit.Checkpoint) {
	first, _, _ := bytes.Cut(text, []byte("\n"))
	if own, ok := heading(first); ok {
		if c, err := audit.ParseCheckpoint(own); err == nil {
			found = append(found, c)
		}
		return found
	}
	var deal struct{ Evidence struct{ Moves [][]byte } }
	if json.Unmarshal(text, &deal) != nil {
		return nil
	}
	for _, raw := range deal.Evidence.Moves {
		m, err := market.Parse(raw)
		if err != nil || len(m.Checkpoint) == 0 {
			continue
		}
		if c, err := audit.ParseCheckpoint(m.Checkpoint); err == nil {
			found = append(found, c)
		}
	}
	return found
}
