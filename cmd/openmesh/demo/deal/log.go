package deal

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	openmeshv1 "openmesh/node/api/openmesh/v1"
)

// Audit: nobody's log was changed. Those of buyer and seller are compared with the
// contract, too, in which each told the other how its log stood.
func (d *Deal) Audit(ctx context.Context, r Report) error {
	entries := map[string]uint64{}
	var all uint64
	for _, p := range d.cfg.All {
		req := new(openmeshv1.VerifyAuditRequest)
		if p.Agent == d.cfg.Buyer.Agent || p.Agent == d.seller().Agent {
			req.Against = []string{string(d.proof)}
		}
		res, err := p.API.Audit.Verify(ctx, req)
		switch {
		case err != nil:
			return p.At(err)
		case !res.Ok || res.Agent != p.Agent:
			return p.errorf("has a log of %s that does not verify: entry %d: %s", res.Agent, res.Bad.GetIndex(), res.Bad.GetReason())
		case req.Against != nil && (res.Entries == 0 || res.Checkpoints == 0):
			return p.errorf("has verified %d entries and %d checkpoints", res.Entries, res.Checkpoints)
		}
		entries[p.Name], all = res.Entries, all+res.Entries
	}
	buyer, seller := d.cfg.Buyer.Name, d.seller().Name
	r.Fact("entries", entries)
	r.Say(fmt.Sprintf("all %d agents have their logs verified: %d entries, none changed, removed or out of order", len(entries), all),
		fmt.Sprintf("%s's (%d) and %s's (%d) also go with what each told the other of its log when they signed", buyer, entries[buyer], seller, entries[seller]))
	return nil
}

// logVerdict is what `openmesh audit verify` prints.
type logVerdict struct {
	OK      bool
	Entries uint64
	Bad     struct {
		Index  uint64
		Reason string
	}
}

// ForgeLog: the buyer would like its log to say that the price was another one. Whoever
// gets the log finds out.
func (d *Deal) ForgeLog(ctx context.Context, r Report) error {
	file, err := d.exportLog(ctx)
	if err != nil {
		return err
	}
	var good, bad logVerdict
	if err := d.examine(ctx, "log.json", file, true, &good, "audit", "verify"); err != nil {
		return err
	}
	forged, index, err := rewritten(file, agreed, "8"+agreed[1:])
	if err != nil {
		return err
	}
	if err := d.examine(ctx, "log.json", forged, false, &bad, "audit", "verify"); err != nil {
		return err
	}
	if !good.OK || good.Entries == 0 || bad.OK || bad.Bad.Index != index || bad.Bad.Reason == "" {
		return fmt.Errorf("entry %d was changed; the verdict on the log before is %+v, and after %+v", index, good, bad)
	}
	buyer := d.cfg.Buyer.Name
	r.Fact("bytes", len(file))
	r.Fact("entries", good.Entries)
	r.Fact("bad", map[string]any{"index": bad.Bad.Index, "reason": bad.Bad.Reason})
	r.Say(fmt.Sprintf("%s exports its log, %d entries; a program that has the file alone finds it whole", buyer, good.Entries),
		fmt.Sprintf("a copy that says %s offered 8%s %s fails: entry %d, %s", d.seller().Name, agreed[1:], currency, index, bad.Bad.Reason))
	return nil
}

// exportLog returns the buyer's log.
func (d *Deal) exportLog(ctx context.Context) ([]byte, error) {
	const most = 64 << 20
	buyer := d.cfg.Buyer
	stream, err := buyer.API.Audit.Export(ctx, new(openmeshv1.ExportAuditRequest))
	if err != nil {
		return nil, buyer.At(err)
	}
	defer stream.Close()
	var file bytes.Buffer
	for stream.Receive() {
		if file.Write(stream.Msg().Data); file.Len() > most {
			return nil, buyer.errorf("exports a log of more than %d bytes", most)
		}
	}
	return file.Bytes(), buyer.At(stream.Err())
}

// rewritten replaces a text by another one of the same length in the first amended offer
// of an exported log that has it, and returns the index of that entry.
func rewritten(file []byte, from, to string) ([]byte, uint64, error) {
	before := 0 // bytes of the lines before
	for line := range bytes.Lines(file) {
		var l struct {
			Entry struct {
				Index   uint64
				Kind    string
				Payload []byte
			}
		}
		if err := json.Unmarshal(line, &l); err != nil {
			return nil, 0, fmt.Errorf("read a line of the log: %w", err)
		}
		if l.Entry.Kind != "market.amend" || !bytes.Contains(l.Entry.Payload, []byte(from)) {
			before += len(line)
			continue
		}
		old := base64.StdEncoding.EncodeToString(l.Entry.Payload)
		other := base64.StdEncoding.EncodeToString(bytes.Replace(l.Entry.Payload, []byte(from), []byte(to), 1))
		line = bytes.Replace(line, []byte(old), []byte(other), 1)
		return slices.Concat(file[:before], line, file[before+len(line):]), l.Entry.Index, nil
	}
	return nil, 0, fmt.Errorf("the log has no amended offer that says %s", from)
}

// Replay: from the logs alone, every session and every negotiation of the demo comes to
// the outcome that was recorded.
func (d *Deal) Replay(ctx context.Context, r Report) error {
	t := *d.cfg.Gone
	for _, p := range d.cfg.All {
		if err := t.Add(ctx, p); err != nil {
			return err
		}
	}
	if t.Sessions == 0 || t.Deals < 2*len(d.cfg.Sellers) {
		return fmt.Errorf("%d sessions and %d negotiations were replayed", t.Sessions, t.Deals)
	}
	r.Fact("sessions", t.Sessions)
	r.Fact("negotiations", t.Deals)
	r.Fact("steps", t.Steps)
	r.Say(fmt.Sprintf("%d sessions and %d requests, negotiations and contracts were run again from what each agent had logged", t.Sessions, t.Deals),
		fmt.Sprintf("%d steps, every one to the outcome that was recorded", t.Steps))
	return nil
}

// Tally counts what was replayed, as often as it is in logs.
type Tally struct {
	Sessions, Deals int // Deals: requests, negotiations and contracts
	Steps           int // of all
}

// Add replays all that a party's log tells of. It fails unless all of it comes to the
// outcome that was recorded.
func (t *Tally) Add(ctx context.Context, p *Party) error {
	ids, err := logged(ctx, p)
	if err != nil {
		return err
	}
	for id, kind := range ids {
		res, err := p.API.Audit.Replay(ctx, &openmeshv1.ReplayAuditRequest{Session: id})
		switch {
		case err != nil:
			return p.errorf("replay %s %s: %w", kind, id, err)
		case !res.Ok || res.Divergence != "" || len(res.Steps) == 0:
			return p.errorf("%s %s does not replay in %d steps: %s", kind, id, len(res.Steps), res.Divergence)
		}
		t.Steps += len(res.Steps)
		if kind == ofSession {
			t.Sessions++
		} else {
			t.Deals++
		}
	}
	return nil
}

// What an id in a log is of.
const ofSession, ofMarket = "session", "negotiation"

// logged returns what a party's log tells of: ids, and what each is of.
func logged(ctx context.Context, p *Party) (map[string]string, error) {
	ids := map[string]string{}
	for from := uint64(0); ; {
		res, err := p.API.Audit.List(ctx, &openmeshv1.ListAuditRequest{From: from, Limit: 1000})
		if err != nil {
			return nil, p.At(err)
		}
		if len(res.Entries) == 0 {
			return ids, nil
		}
		for _, e := range res.Entries {
			from = e.Index + 1
			if e.Session != "" {
				ids[e.Session] = ofSession
			}
			if e.Ref != "" && strings.HasPrefix(e.Kind, "market.") {
				ids[e.Ref] = ofMarket
			}
		}
	}
}
