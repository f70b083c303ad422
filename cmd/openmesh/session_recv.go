package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/wire"
)

const (
	maxReceive    = 1000              // messages of one answer
	maxReceiving  = 300 * time.Second // that the daemon waits for the first
	followRequest = 60 * time.Second  // wait of one request while following
)

// receiving is what the flags of session recv say.
type receiving struct {
	req             openmeshv1.ReceiveRequest
	wait            limit
	follow, consume bool
}

func newSessionRecv(p *program) *cobra.Command {
	r := &receiving{}
	cmd := &cobra.Command{
		Use: "recv SESSION", Short: "Receive what the other side sent to this agent's inbox", Args: cobra.ExactArgs(1),
		Long: "Receive what the other side sent to no capability, in the order of its numbers. Numbers that never came are\n" +
			"printed as gaps: those messages expired or failed at the sender, or were dropped here. Reading takes nothing\n" +
			"away: --consume does, after all of it was written to standard output, so that a reader that is killed loses\n" +
			"nothing. Without --cursor it starts behind what was consumed last.\n\n" +
			"--follow goes on until it is interrupted; with --json every message and every gap is one line then.",
		Example: "  openmesh session recv 5f2c\n" +
			"  openmesh session recv 5f2c --cursor 40 --limit 20 --wait=10s\n" +
			"  openmesh session recv 5f2c --follow --consume --json | jq -c 'select(.body).body'",
		ValidArgsFunction: p.completeSession,
	}
	f := cmd.Flags()
	f.Uint64Var(&r.req.Cursor, "cursor", 0, "only messages with a higher number (default: behind what was consumed)")
	f.Uint32Var(&r.req.Limit, "limit", 100, fmt.Sprintf("number of messages, at most %d; of each portion with --follow", maxReceive))
	f.BoolVarP(&r.follow, "follow", "f", false, "go on until interrupted")
	f.BoolVar(&r.consume, "consume", false, "forget what was printed, and all before it")
	waitFlag(cmd, &r.wait, "wait for the first message, 30s or as in --wait=5s")
	cmd.PreRunE = func(_ *cobra.Command, args []string) error {
		r.req.Session = args[0]
		return r.check()
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if r.follow {
			return p.ask(noLimit, func(ctx context.Context, d *api.Client, _ []string) error { return p.followSession(ctx, d, r) })(cmd, args)
		}
		return p.ask(timeToLook+time.Duration(r.wait), func(ctx context.Context, d *api.Client, _ []string) error {
			return p.receive(ctx, d, r)
		})(cmd, args)
	}
	return cmd
}

func (r *receiving) check() error {
	switch {
	case r.req.Limit < 1 || r.req.Limit > maxReceive:
		return usagef("--limit %d: want 1 to %d", r.req.Limit, maxReceive)
	case r.follow && r.wait > 0:
		return usagef("--follow and --wait: following waits until it is interrupted")
	case time.Duration(r.wait) > maxReceiving:
		return usagef("--wait %s: want at most %s; --follow waits longer", time.Duration(r.wait), maxReceiving)
	}
	var err error
	r.req.WaitMs, err = r.wait.milliseconds("wait")
	return err
}

func (p *program) receive(ctx context.Context, d *api.Client, r *receiving) error {
	res, err := d.Session.Receive(ctx, &r.req)
	if err != nil {
		return err
	}
	doc := inboxOf(res)
	for _, m := range doc.Messages {
		p.warn(m.Warnings)
	}
	if err := p.showValue(doc, func(g *page) { g.entries(doc.entries()) }); err != nil || !r.consume {
		return err
	}
	_, err = d.Session.Receive(ctx, consuming(r.req.Session, res.Cursor))
	return err
}

// consuming asks for all up to cursor to be forgotten. What is behind it comes
// as the answer, and stays.
func consuming(session string, cursor uint64) *openmeshv1.ReceiveRequest {
	return &openmeshv1.ReceiveRequest{Session: session, Cursor: cursor, Consume: true, Limit: 1}
}

// followSession prints messages as they come. What was printed is consumed with
// the question for more.
func (p *program) followSession(ctx context.Context, d *api.Client, r *receiving) error {
	cursor, printed := r.req.Cursor, false
	for {
		req := &openmeshv1.ReceiveRequest{Session: r.req.Session, Cursor: cursor, Limit: r.req.Limit,
			WaitMs: uint32(followRequest.Milliseconds()), Consume: r.consume && printed}
		res, err := d.Session.Receive(ctx, req)
		if err != nil {
			return p.followEnded(ctx, d, req, err)
		}
		if err := p.printEntries(inboxOf(res).entries()); err != nil {
			return err
		}
		cursor, printed = res.Cursor, printed || res.Cursor > cursor
	}
}

// followEnded says how following ended: by the user, with the session, or by a
// failure. The last question may not have reached the daemon.
func (p *program) followEnded(ctx context.Context, d *api.Client, last *openmeshv1.ReceiveRequest, err error) error {
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeToLook)
	defer cancel()
	switch wire.CodeOf(err) {
	case wire.Cancelled:
		if !last.Consume {
			return nil
		}
		_, err = d.Session.Receive(after, consuming(last.Session, last.Cursor))
		return err
	case wire.SessionClosed:
		s, failed := d.Session.Show(after, &openmeshv1.ShowSessionRequest{Session: last.Session})
		if failed == nil && s.State == "closed" {
			p.note("session %s is closed: there is nothing more to come", s.Session)
			return nil
		}
	}
	p.note("go on with: --cursor %d", last.Cursor)
	return err
}

// messageDoc is a received message, as --json prints it. Body is the sender's
// document as it came, or null.
type messageDoc struct {
	Sequence      uint64          `json:"sequence"`
	Key           string          `json:"key"`
	Body          json.RawMessage `json:"body"`
	Protobuf      []byte          `json:"protobuf,omitempty"` // the body in that form, in base64
	Agent         string          `json:"agent"`
	Received      string          `json:"received"`
	Redelivered   bool            `json:"redelivered"`
	Schema        string          `json:"schema"`
	Original      string          `json:"original_schema,omitempty"` // that it came in, if it was translated
	Warnings      []string        `json:"warnings"`                  // of the translation
	Traceparent   string          `json:"traceparent"`
	CorrelationID string          `json:"correlation_id"`
}

// gapDoc are numbers that never came, both included.
type gapDoc struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

// inboxDoc is what session recv prints with --json.
type inboxDoc struct {
	Messages []messageDoc `json:"messages"`
	Gaps     []gapDoc     `json:"gaps"`
	Cursor   uint64       `json:"cursor"`
}

func inboxOf(res *openmeshv1.ReceiveResponse) inboxDoc {
	doc := inboxDoc{Messages: []messageDoc{}, Gaps: []gapDoc{}, Cursor: res.Cursor}
	for _, m := range res.Messages {
		doc.Messages = append(doc.Messages, messageDoc{
			Sequence: m.Sequence, Key: m.Key, Body: rawJSON(m.GetJson()), Protobuf: m.GetProtobuf(), Agent: m.Agent, Received: m.Received,
			Redelivered: m.Redelivered, Schema: m.Schema, Original: m.OriginalSchema, Warnings: append([]string{}, m.Warnings...), Traceparent: m.Traceparent, CorrelationID: m.CorrelationId,
		})
	}
	for _, g := range res.Gaps {
		doc.Gaps = append(doc.Gaps, gapDoc{g.From, g.To})
	}
	return doc
}

// entry is a message or a gap, at its place in the order.
type entry struct {
	at      uint64
	message *messageDoc
	gap     *gapDoc
}

func (doc inboxDoc) entries() []entry {
	var all []entry
	for _, m := range doc.Messages {
		all = append(all, entry{at: m.Sequence, message: &m})
	}
	for _, g := range doc.Gaps {
		all = append(all, entry{at: g.From, gap: &g})
	}
	slices.SortStableFunc(all, func(a, b entry) int { return cmp.Compare(a.at, b.at) })
	return all
}

// printEntries prints what came, each on a line, in one piece.
func (p *program) printEntries(all []entry) error {
	if !p.json {
		return p.print(func(g *page) { g.entries(all) })
	}
	var text []byte
	for _, e := range all {
		var v any = e.message
		if e.gap != nil {
			v = map[string]*gapDoc{"gap": e.gap}
		}
		line, err := oneLine(v)
		if err != nil {
			return err
		}
		text = append(text, line...)
	}
	_, err := p.out.Write(text)
	return err
}

func (g *page) entries(all []entry) {
	for _, e := range all {
		g.entry(e)
	}
}

// entry prints a message or a gap on a line.
func (g *page) entry(e entry) {
	if gap := e.gap; gap != nil {
		numbers := fmt.Sprint(gap.From)
		if gap.To > gap.From {
			numbers += fmt.Sprintf("-%d", gap.To)
		}
		g.row([]string{numbers, "never came"}, []int{0, 0}, g.style.yellow)
		return
	}
	m := e.message
	body := strings.ReplaceAll(printable(bodyText(m.Body, m.Protobuf)), "\n", " ")
	if m.Redelivered {
		body += " (again)"
	}
	g.row([]string{fmt.Sprint(m.Sequence), g.when(m.Received, time.Now()), printable(m.Key), body}, make([]int, 4), g.style.word)
}
