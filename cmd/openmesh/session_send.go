package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"openmesh/node/api"
	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/wire"
)

// defaultWait is how long --wait waits for an outcome.
const defaultWait = "30s"

// sending is what the flags of session send say.
type sending struct {
	req       openmeshv1.SendRequest // of every message, but for its body
	ttl, wait limit
	lines     bool
}

func newSessionSend(p *program) *cobra.Command {
	s := &sending{}
	cmd := &cobra.Command{
		Use: "send SESSION [DATA]", Short: "Send a message in a session", Args: cobra.RangeArgs(1, 2),
		Long: "Send a message in a session. DATA is JSON, @FILE or - for standard input; without it the message is {}.\n" +
			"It goes to the inbox of the other side (session recv), or with --capability to a handler. Done as soon as it\n" +
			"is accepted: from then on the session keeps the promise of its contract. With --wait the command waits for\n" +
			"the outcome and exits 0 if it is delivered, 1 if it failed, 6 if it expired or is pending still. A message\n" +
			"whose key was sent before is not sent again: the same command may be repeated.\n\n" +
			"With --lines each line of standard input is a message, several on their way at a time; in an ordered\n" +
			"session one is accepted after the other. With --key K their keys are K/1, K/2 and so on.",
		Example: `  openmesh session send 5f2c '{"pair":"EURUSD"}'
  openmesh session send 5f2c @order.json --capability shop/order --key order-17 --wait=2m
  seq 1000 | openmesh session send 5f2c --lines --key batch-3 --wait --json`,
		ValidArgsFunction: p.completeSession,
	}
	sendFlags(cmd, s)
	cmd.PreRunE = func(_ *cobra.Command, args []string) error { return p.prepareSend(s, args) }
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if s.lines {
			return p.ask(noLimit, func(ctx context.Context, d *api.Client, _ []string) error { return p.sendLines(ctx, d, s) })(cmd, args)
		}
		return p.ask(timeToReach+time.Duration(s.wait), func(ctx context.Context, d *api.Client, _ []string) error {
			return p.send(ctx, d, s)
		})(cmd, args)
	}
	return cmd
}

func sendFlags(cmd *cobra.Command, s *sending) {
	f := cmd.Flags()
	f.StringVar(&s.req.Capability, "capability", "", "whose handler takes it (default: the inbox of the other side)")
	f.StringVar(&s.req.Version, "version", "", "semantic version range of the capability")
	f.StringVar(&s.req.Key, "key", "", "idempotency key (default: a new one)")
	f.StringVar(&s.req.Schema, "schema", "", "schema of DATA, as `name@version`; translated if the other side speaks another version")
	f.Var(&s.ttl, "ttl", "how long it may wait for its delivery, if that is less than the session's")
	f.BoolVar(&s.lines, "lines", false, "each line of standard input is a message")
	waitFlag(cmd, &s.wait, "wait for the outcome, 30s or as in --wait=5s")
}

// waitFlag adds --wait, whose time may be left out.
func waitFlag(cmd *cobra.Command, wait *limit, usage string) {
	cmd.Flags().Var(wait, "wait", usage)
	cmd.Flags().Lookup("wait").NoOptDefVal = defaultWait
}

// prepareSend completes the request and finds what is wrong with it before
// anything is sent.
func (p *program) prepareSend(s *sending, args []string) error {
	s.req.Session = args[0]
	ttl, err := s.ttl.milliseconds("ttl")
	if err != nil {
		return err
	}
	s.req.TtlMs = uint64(ttl)
	if s.req.WaitMs, err = s.wait.milliseconds("wait"); err != nil {
		return err
	}
	if s.lines {
		if len(args) > 1 {
			return usagef("DATA and --lines: the messages come from standard input")
		}
		return nil
	}
	data := "{}"
	if len(args) == 2 {
		if data, err = p.readData(args[1]); err != nil {
			return err
		}
	}
	s.req.Body = &openmeshv1.SendRequest_Json{Json: data}
	return nil
}

func (p *program) send(ctx context.Context, d *api.Client, s *sending) error {
	res, err := d.Session.Send(ctx, &s.req)
	if err != nil {
		return err
	}
	doc := struct {
		Deliveries []deliveryDoc `json:"deliveries"`
	}{[]deliveryDoc{}}
	for _, v := range res.Deliveries {
		doc.Deliveries = append(doc.Deliveries, docOf(v))
		p.warn(v.Warnings)
	}
	if err := p.showValue(doc, func(g *page) { printDeliveries(g, doc.Deliveries) }); err != nil {
		return err
	}
	return verdict(res.Deliveries, time.Duration(s.wait))
}

func newSessionOutcome(p *program) *cobra.Command {
	var wait limit
	cmd := &cobra.Command{
		Use: "outcome SESSION KEY", Short: "Tell what became of a message", Args: cobra.ExactArgs(2),
		Long: "Tell what became of the message that was sent with a key. Exits as session send --wait does, but for a\n" +
			"message that is pending: that is 6 only with --wait. Of a message sent to several, each has an outcome of its\n" +
			"own, in the session that session send named.",
		Example:           "  openmesh session outcome 5f2c order-17\n  openmesh session outcome 5f2c order-17 --wait=5m --json",
		ValidArgsFunction: p.completeSession,
	}
	waitFlag(cmd, &wait, "wait for it if it is pending, 30s or as in --wait=5s")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ms, err := wait.milliseconds("wait")
		if err != nil {
			return err
		}
		return p.ask(timeToLook+time.Duration(wait), func(ctx context.Context, d *api.Client, args []string) error {
			v, err := d.Session.Outcome(ctx, &openmeshv1.OutcomeRequest{Session: args[0], Key: args[1], WaitMs: ms})
			if err != nil {
				return err
			}
			doc := docOf(v)
			if err := p.showValue(doc, func(g *page) { printDeliveries(g, []deliveryDoc{doc}) }); err != nil {
				return err
			}
			return verdict([]*openmeshv1.Delivery{v}, time.Duration(wait))
		})(cmd, args)
	}
	return cmd
}

// deliveryDoc is what became of a message towards one recipient, as --json
// prints it. Response is the handler's document as it came, or null.
type deliveryDoc struct {
	Agent     string          `json:"agent"`
	Address   string          `json:"address"`
	Session   string          `json:"session"`
	Sequence  uint64          `json:"sequence"`
	Key       string          `json:"key"`
	Status    string          `json:"status"`
	Code      string          `json:"code"`
	Pointers  []string        `json:"pointers"`
	Response  json.RawMessage `json:"response"`
	Protobuf  []byte          `json:"protobuf,omitempty"` // the response in that form, in base64
	Attempts  uint32          `json:"attempts"`
	ElapsedMs float64         `json:"elapsed_ms"`
	Schema    string          `json:"schema"` // of the body as it was sent; of session send only
	Warnings  []string        `json:"warnings"`
}

func docOf(v *openmeshv1.Delivery) deliveryDoc {
	return deliveryDoc{
		Agent: v.Agent, Address: v.Address, Session: v.Session, Sequence: v.Sequence, Key: v.Key, Status: v.Status, Code: v.Code,
		Pointers: append([]string{}, v.Pointers...), Response: rawJSON(v.GetJson()), Protobuf: v.GetProtobuf(),
		Attempts: v.Attempts, ElapsedMs: v.ElapsedMs, Schema: v.Schema, Warnings: append([]string{}, v.Warnings...),
	}
}

// rawJSON is a document that another agent wrote, or null: whatever it says, what
// this program prints stays JSON.
func rawJSON(text string) json.RawMessage {
	if !json.Valid([]byte(text)) {
		return json.RawMessage("null")
	}
	return json.RawMessage(text)
}

func printDeliveries(g *page, deliveries []deliveryDoc) {
	var rows [][]string
	for _, v := range deliveries {
		status := v.Status
		if v.Code != "" {
			status += " (" + v.Code + ")"
		}
		rows = append(rows, []string{
			fmt.Sprint(v.Sequence), status, v.Address, g.id(v.Agent), v.Key, fmt.Sprint(v.Attempts), milliseconds(v.ElapsedMs),
			bodyText(v.Response, v.Protobuf),
		})
	}
	g.table(strings.Fields("SEQUENCE STATUS ADDRESS AGENT KEY ATTEMPTS ELAPSED RESPONSE"), rows)
}

// bodyText shows a body on one line.
func bodyText(doc json.RawMessage, protobuf []byte) string {
	switch {
	case len(protobuf) > 0:
		return fmt.Sprintf("%d bytes of Protobuf", len(protobuf))
	case string(doc) == "null":
		return "-"
	}
	var line bytes.Buffer
	if err := json.Compact(&line, doc); err != nil {
		return string(doc)
	}
	return line.String()
}

// undelivered is a message that failed. Whatever the code says, the exit code is
// that of a failure: the others are about the command itself.
type undelivered struct{ err *wire.Error }

func (u *undelivered) Error() string { return u.err.Message }
func (u *undelivered) Unwrap() error { return u.err }

// verdict is nil if all was delivered, or accepted where nobody waited for more.
// Else it says the worst: failed before expired before pending.
func verdict(deliveries []*openmeshv1.Delivery, wait time.Duration) error {
	for _, v := range deliveries {
		if v.Status == "failed" {
			return failedDelivery(v)
		}
	}
	for _, v := range deliveries {
		if v.Status == "expired" {
			return wire.Errorf(wire.DeadlineExceeded, "message %d to %s expired", v.Sequence, v.Address).
				WithHint("send it again under another key, with more time by --ttl")
		}
	}
	for _, v := range deliveries {
		if v.Status == "pending" && wait > 0 {
			return wire.Errorf(wire.DeadlineExceeded, "message %d to %s has no outcome after %s; the session goes on with it", v.Sequence, v.Address, wait).
				WithHint("ask later: openmesh session outcome %s %s --wait", v.Session, v.Key)
		}
	}
	return nil
}

func failedDelivery(v *openmeshv1.Delivery) error {
	code, known := wire.ParseCode(v.Code)
	if !known { // of a newer daemon
		code = wire.Internal
	}
	return &undelivered{&wire.Error{
		Code: code, Message: fmt.Sprintf("message %d to %s failed: %s", v.Sequence, v.Address, v.Code), Pointers: v.Pointers,
		Hint: "once the cause is mended, send it again under another key",
	}}
}
