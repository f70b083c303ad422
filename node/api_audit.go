package node

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/audit"
	"openmesh/node/audit/replay"
	"openmesh/node/proof"
	"openmesh/protocols/identity"
	deal "openmesh/protocols/market"
	"openmesh/protocols/signal/signalpb"
	"openmesh/protocols/wire"
)

// auditAPI serves openmesh.v1.Audit.
type auditAPI struct{ *Node }

func (n auditAPI) List(ctx context.Context, r *openmeshv1.ListAuditRequest) (*openmeshv1.ListAuditResponse, error) {
	f := audit.Filter{From: r.From, Limit: int(min(r.Limit, 1000)), Kind: r.Kind, Last: r.Last}
	if r.Of != "" {
		id, err := n.auditID(ctx, r.Of)
		if err != nil {
			return nil, err
		}
		if f.Of, err = n.auditIDs(ctx, id); err != nil {
			return nil, err
		}
	}
	entries, err := n.audit.List(ctx, f)
	if err != nil {
		return nil, err
	}
	resp := &openmeshv1.ListAuditResponse{Entries: []*openmeshv1.AuditEntry{}, Size: n.audit.Size()}
	for i := range entries {
		resp.Entries = append(resp.Entries, auditMessage(&entries[i]))
	}
	return resp, nil
}

func (n auditAPI) Show(ctx context.Context, r *openmeshv1.ShowAuditRequest) (*openmeshv1.AuditEntry, error) {
	e, err := n.audit.Get(ctx, r.Index)
	if err != nil {
		return nil, err
	}
	m := auditMessage(&e)
	m.Payload, m.Json = e.Payload, originalJSON(&e)
	return m, nil
}

func auditMessage(e *audit.Entry) *openmeshv1.AuditEntry {
	return &openmeshv1.AuditEntry{
		Index: e.Index, At: e.At.Format(time.RFC3339Nano), Kind: e.Kind, Direction: e.Direction, Agent: string(e.Agent), Session: e.Session,
		Ref: e.Ref, Hash: hex.EncodeToString(e.Hash[:]), Summary: summaryOf(e), Size: uint32(e.Size), Pruned: e.Omit,
	}
}

// summaryOf tells an entry in a sentence.
func summaryOf(e *audit.Entry) string {
	_, what, _ := strings.Cut(e.Kind, ".")
	switch e.Direction {
	case audit.Sent:
		return fmt.Sprintf("%s to the other side: %s", what, e.Note)
	case audit.Received:
		return fmt.Sprintf("%s of the other side: %s", what, e.Note)
	}
	return cmp.Or(e.Note, what)
}

// originalJSON shows what was signed as JSON, if it can be read; else it is empty.
func originalJSON(e *audit.Entry) string {
	switch e.Kind {
	case "signal.offer":
		return signedJSON(e.Payload, new(signalpb.Offer))
	case "signal.confirm":
		return signedJSON(e.Payload, new(signalpb.Confirm))
	case "signal.answer":
		var reply signalpb.Reply
		if proto.Unmarshal(e.Payload, &reply) != nil {
			return ""
		}
		return payloadJSON(reply.GetAnswer(), new(signalpb.Answer))
	case "market.receipt":
		r, err := deal.ParseReceipt(e.Payload)
		if err != nil {
			return ""
		}
		return jsonOf(r)
	}
	if m, err := deal.Parse(e.Payload); err == nil {
		return moveJSON(m)
	}
	return ""
}

func signedJSON(raw []byte, m proto.Message) string {
	var s signalpb.Signed
	if proto.Unmarshal(raw, &s) != nil {
		return ""
	}
	return payloadJSON(&s, m)
}

func payloadJSON(s *signalpb.Signed, m proto.Message) string {
	if proto.Unmarshal(s.GetPayload(), m) != nil {
		return ""
	}
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return ""
	}
	return string(b)
}

// moveJSON shows a move with its document as it is.
func moveJSON(m *deal.Signed) string {
	return jsonOf(struct {
		Kind     string           `json:"kind"`
		Hash     string           `json:"hash"`
		RFP      string           `json:"rfp,omitempty"`
		Prev     string           `json:"prev,omitempty"`
		Author   identity.AgentID `json:"author"`
		To       identity.AgentID `json:"to,omitempty"`
		At       time.Time        `json:"at"`
		Schema   string           `json:"schema,omitempty"`
		Document json.RawMessage  `json:"document,omitempty"`
		Reason   string           `json:"reason,omitempty"`
	}{m.Kind.String(), m.Hash.String(), hashText(m.RFP), hashText(m.Prev), m.Author, m.To, m.At, m.Schema, m.Document, m.Reason})
}

func hashText(h deal.Hash) string {
	if h == (deal.Hash{}) {
		return ""
	}
	return h.String()
}

func jsonOf(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(b)
}

// Verify compares with the checkpoints in this agent's own contracts, too: those that
// it gave away when it signed them.
func (n auditAPI) Verify(ctx context.Context, r *openmeshv1.VerifyAuditRequest) (*openmeshv1.VerifyAuditResponse, error) {
	texts := make([][]byte, 0, len(r.Against))
	for _, text := range r.Against {
		texts = append(texts, []byte(text))
	}
	if r.Export != "" {
		return proof.VerifyLog(strings.NewReader(r.Export), texts...)
	}
	began := time.Now()
	against, err := proof.Checkpoints(n.audit.Agent(), texts...)
	if err != nil {
		return nil, err
	}
	given, err := n.givenCheckpoints(ctx)
	if err != nil {
		return nil, err
	}
	report, err := n.audit.Verify(ctx, append(against, given...)...)
	if err != nil {
		return nil, err
	}
	resp := &openmeshv1.VerifyAuditResponse{
		Ok: report.OK, Entries: report.Entries, Root: hex.EncodeToString(report.Root[:]), Pruned: report.Pruned,
		Checkpoints: uint32(report.Checkpoints), Agent: string(report.Agent), ElapsedMs: millis(time.Since(began)),
		Expired: uint32(report.Expired),
	}
	if report.Bad != nil {
		resp.Bad = &openmeshv1.AuditFault{Index: report.Bad.Index, Reason: report.Bad.Reason}
	}
	return resp, nil
}

// compared is how many of the newest contracts Verify looks at.
const compared = 10_000

// givenCheckpoints are the checkpoints in the moves of this agent's contracts.
func (n auditAPI) givenCheckpoints(ctx context.Context) (given [][]byte, err error) {
	contracts, err := n.market.Contracts(ctx, true, compared)
	if err != nil {
		return nil, err
	}
	seen := make(map[string]bool)
	for _, c := range contracts {
		for _, m := range c.Moves() {
			if text := string(m.Checkpoint); m.Author == n.audit.Agent() && text != "" && !seen[text] {
				seen[text] = true
				given = append(given, m.Checkpoint)
			}
		}
	}
	return given, nil
}

func (n auditAPI) Replay(ctx context.Context, r *openmeshv1.ReplayAuditRequest) (*openmeshv1.ReplayAuditResponse, error) {
	if r.Export != "" {
		return proof.ReplayLog(strings.NewReader(r.Export), r.Session)
	}
	id, err := n.auditID(ctx, r.Session)
	if err != nil {
		return nil, err
	}
	ids, err := n.auditIDs(ctx, id)
	if err != nil {
		return nil, err
	}
	entries, err := n.audit.Of(ctx, ids...)
	if err != nil {
		return nil, err
	}
	report := replay.Run(n.audit.Agent(), id, entries)
	resp := &openmeshv1.ReplayAuditResponse{Ok: report.OK, Outcome: report.Outcome, Divergence: report.Divergence, Steps: []*openmeshv1.ReplayStep{}}
	for _, s := range report.Steps {
		resp.Steps = append(resp.Steps, &openmeshv1.ReplayStep{
			Index: s.Index, Kind: s.Kind, Direction: s.Direction, Agent: string(s.Agent), Recorded: s.Recorded, Recomputed: s.Recomputed,
			Ok: s.OK, At: s.At.Format(time.RFC3339Nano),
		})
	}
	return resp, nil
}

// auditID is the id that begins with a prefix: of the log, or of a contract, which the
// log has under its negotiation.
func (n auditAPI) auditID(ctx context.Context, prefix string) (string, error) {
	id, err := n.audit.Resolve(ctx, prefix)
	if err == nil {
		return id, nil
	}
	if t, notFound := n.market.Contract(ctx, prefix); notFound == nil && t.Agreement() != nil {
		return t.Agreement().ID, nil
	}
	return "", err
}

// auditIDs are the ids under which the log has what belongs to one: of a contract the
// negotiation too, of a request all about it.
func (n auditAPI) auditIDs(ctx context.Context, id string) ([]string, error) {
	ids := []string{id}
	t, err := n.market.Contract(ctx, id)
	if err == nil {
		ids = append(ids, t.ID())
	} else if !isNone(err) {
		return nil, err
	}
	all, err := n.market.Negotiations(ctx, id, true, math.MaxInt)
	if err != nil && !isNone(err) {
		return nil, err
	}
	for _, s := range all {
		ids = append(ids, s.Negotiation.ID())
	}
	return ids, nil
}

// isNone reports whether an error of the market says that it has nothing with an id,
// which may be that of a session.
func isNone(err error) bool {
	return errors.Is(err, wire.NotFound) || errors.Is(err, wire.InvalidArgument)
}

func (n auditAPI) Export(ctx context.Context, r *openmeshv1.ExportAuditRequest, out *connect.ServerStream[openmeshv1.ExportAuditResponse]) error {
	var ids []string
	if r.Of != "" {
		id, err := n.auditID(ctx, r.Of)
		if err != nil {
			return err
		}
		if ids, err = n.auditIDs(ctx, id); err != nil {
			return err
		}
	}
	w := &pieces{send: func(b []byte) error { return out.Send(&openmeshv1.ExportAuditResponse{Data: b}) }}
	if err := n.audit.Export(ctx, w, ids...); err != nil {
		return err
	}
	return w.flush()
}

func (n auditAPI) Checkpoint(ctx context.Context, _ *openmeshv1.AuditCheckpointRequest) (*openmeshv1.AuditCheckpoint, error) {
	c, err := n.audit.Checkpoint(ctx)
	if err != nil {
		return nil, err
	}
	return &openmeshv1.AuditCheckpoint{Text: c.String(), Size: c.Size, Root: hex.EncodeToString(c.Root[:])}, nil
}

// pieces gathers what is written to messages of some size.
type pieces struct {
	send func([]byte) error
	b    []byte
}

var _ io.Writer = (*pieces)(nil)

const pieceSize = 64 << 10

func (p *pieces) Write(b []byte) (int, error) {
	if p.b = append(p.b, b...); len(p.b) < pieceSize {
		return len(b), nil
	}
	return len(b), p.flush()
}

func (p *pieces) flush() error {
	b := p.b
	if p.b = nil; len(b) == 0 {
		return nil
	}
	return p.send(b)
}
