package demo

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/wire"
)

// called is a call that was answered.
type called struct {
	res    *openmeshv1.CallResponse
	answer map[string]any
	key    string // idempotency key that it was made with
	trace  string // trace id that it was made in
}

// call lets the consumer call, in a trace and with a key that are known here,
// and checks what is said of every answer.
func (m *mesh) call(ctx context.Context, target, capability string, body any) (*called, error) {
	n := m.consumer()
	text, err := json.Marshal(body)
	if err != nil {
		return nil, n.errorf("write request: %w", err)
	}
	span := newSpan()
	c := &called{key: rand.Text(), trace: span.TraceID().String()}
	c.res, err = n.api.Session.Call(trace.ContextWithSpanContext(ctx, span), &openmeshv1.CallRequest{
		Target: target, Capability: capability, IdempotencyKey: c.key,
		Body: &openmeshv1.CallRequest_Json{Json: string(text)},
	})
	if err != nil {
		return nil, n.at(err)
	}
	if err := json.Unmarshal([]byte(c.res.GetJson()), &c.answer); err != nil {
		return nil, n.errorf("read the answer %.100q: %w", c.res.GetJson(), err)
	}
	switch {
	case c.res.Trace != c.trace:
		return nil, n.errorf("called in trace %s, was asked in %s", c.res.Trace, c.trace)
	case c.res.Path.GetKind() != "direct" || c.res.Suite == "" || c.res.Session == "":
		return nil, n.errorf("called over path %q, suite %q, session %q", c.res.Path.GetKind(), c.res.Suite, c.res.Session)
	}
	return c, nil
}

// newSpan is the root of a trace.
func newSpan() trace.SpanContext {
	config := trace.SpanContextConfig{TraceFlags: trace.FlagsSampled}
	rand.Read(config.TraceID[:]) // never fails (crypto/rand)
	rand.Read(config.SpanID[:])
	return trace.NewSpanContext(config)
}

// tell puts what a call showed into the step.
func (m *mesh) tell(s *Step, c *called, what string) {
	path, answer := c.res.Path, strings.TrimSpace(c.res.GetJson())
	maps.Copy(s.Facts, map[string]any{
		"by": m.consumer().name, "agent": c.res.Agent, "address": c.res.Address, "session": c.res.Session,
		"path": path.GetKind(), "transport": path.GetTransport(), "suite": c.res.Suite, "attempts": c.res.Attempts,
		"call_ms": c.res.ElapsedMs, "trace": c.res.Trace, "response": json.RawMessage(answer),
	})
	s.Say(fmt.Sprintf("%s called %s: %s answered %s in %s, %s over %s", m.consumer().name, what, m.nameOf(c.res.Agent),
		answer, ms(c.res.ElapsedMs), path.GetKind(), path.GetTransport()))
}

// callSum calls target for a sum, and checks the answer and, unless anyone may
// give it, who did.
func (m *mesh) callSum(ctx context.Context, s *Step, target, what string, by []*node) error {
	c, err := m.call(ctx, target, sumName, map[string]any{"numbers": []float64{1, 2, 39.5}})
	if err != nil {
		return err
	}
	if c.answer["sum"] != 42.5 {
		return m.consumer().errorf("was answered %s, want a sum of 42.5", c.res.GetJson())
	}
	if !slices.ContainsFunc(by, func(n *node) bool { return n.id.Agent == c.res.Agent && n.id.Address == c.res.Address }) {
		return m.consumer().errorf("was answered by %s (%s), who was not called", c.res.Agent, c.res.Address)
	}
	m.lastSum = c
	m.tell(s, c, what)
	return nil
}

func (m *mesh) callCapability(ctx context.Context, s *Step) error {
	return m.callSum(ctx, s, sumName, sumName, m.offering(sumName))
}

func (m *mesh) callAddress(ctx context.Context, s *Step) error {
	by := m.offering(sumName)[0]
	return m.callSum(ctx, s, by.id.Address, by.id.Address, []*node{by})
}

func (m *mesh) callAgent(ctx context.Context, s *Step) error {
	by := m.offering(sumName)[0]
	return m.callSum(ctx, s, by.id.Agent, short(by.id.Agent), []*node{by})
}

// sealedSession: both ends tell the same of the session that the calls ran in.
func (m *mesh) sealedSession(ctx context.Context, s *Step) error {
	from, to := m.consumer(), m.offering(sumName)[0]
	here, err := from.session(ctx, m.lastSum.res.Session)
	if err != nil {
		return err
	}
	there, err := to.session(ctx, m.lastSum.res.Session)
	if err != nil {
		return err
	}
	if here.Agent != to.id.Agent || there.Agent != from.id.Agent {
		return from.errorf("has the session with %s, and %s with %s", here.Agent, to.name, there.Agent)
	}
	a, b := terms(here), terms(there)
	if a != b {
		return from.errorf("says %+v, %s says %+v", a, to.name, b)
	}
	if a.state != "active" || a.suite != m.lastSum.res.Suite || here.Role == there.Role {
		return from.errorf("says state %s, suite %s, role %s", a.state, a.suite, here.Role)
	}
	maps.Copy(s.Facts, map[string]any{
		"session": a.session, "suite": a.suite, "epoch": a.epoch, "path": a.path, "transport": a.transport,
		"state": a.state, "initiator": from.name, "responder": to.name, "sent": here.Sent, "received": here.Received,
	})
	s.Say(fmt.Sprintf("%s and %s agree: session %s, epoch %d, %s over %s", from.name, to.name, a.session, a.epoch, a.path, a.transport),
		"sealed with "+a.suite)
	return nil
}

// agreed is what both ends of a session must tell alike.
type agreed struct {
	session, state, suite, path, transport string
	epoch                                  uint32
}

func terms(i *openmeshv1.SessionInfo) agreed {
	a := agreed{session: i.Session, state: i.State, suite: i.Suite, epoch: i.Epoch}
	if len(i.Channels) > 0 {
		a.path, a.transport = i.Channels[0].Kind, i.Channels[0].Transport
	}
	return a
}

// session finds a session in the node's list.
func (n *node) session(ctx context.Context, id string) (*openmeshv1.SessionInfo, error) {
	list, err := n.api.Session.List(ctx, &openmeshv1.ListSessionsRequest{})
	if err != nil {
		return nil, n.at(err)
	}
	for _, s := range list.Sessions {
		if s.Session == id {
			return s, nil
		}
	}
	return nil, n.errorf("does not list session %s", id)
}

// handlerContext: the HTTP handler was told who asked, and in which session,
// trace and attempt.
func (m *mesh) handlerContext(_ context.Context, s *Step) error {
	from, to, c := m.consumer(), m.offering(sumName)[0], m.lastSum
	seen := m.desk.sightings()
	i := slices.IndexFunc(seen, func(s sighting) bool { return s.Key == c.key })
	if i < 0 {
		return to.errorf("its handler saw no request with idempotency key %s, but %+v", c.key, seen)
	}
	got := seen[i]
	want := sighting{
		Caller: from.id.Agent, Address: from.id.Address, Session: c.res.Session, Key: c.key,
		Traceparent: got.Traceparent, Correlation: c.trace, Capability: sumName, At: got.At,
	}
	if got != want {
		return to.errorf("its handler was told %+v, want %+v", got, want)
	}
	if !strings.HasPrefix(got.Traceparent, "00-"+c.trace+"-") {
		return to.errorf("its handler was told the traceparent %q, want one of trace %s", got.Traceparent, c.trace)
	}
	maps.Copy(s.Facts, map[string]any{
		"caller": got.Caller, "caller_address": got.Address, "session": got.Session, "idempotency_key": got.Key,
		"traceparent": got.Traceparent, "correlation": got.Correlation, "requests_seen": len(seen),
	})
	s.Say(fmt.Sprintf("%s's HTTP handler was told the caller %s and its session", to.name, short(got.Caller)),
		"traceparent "+got.Traceparent, "idempotency key "+got.Key)
	return nil
}

// refuseInvalid: a request that breaks the schema comes back with the place of
// the fault, and no handler sees it.
func (m *mesh) refuseInvalid(ctx context.Context, s *Step) error {
	const pointer = "/numbers/1"
	n, before := m.consumer(), len(m.desk.sightings())
	c, err := m.call(ctx, sumName, "", map[string]any{"numbers": []any{1, "two", 3}})
	if err == nil {
		return n.errorf("was answered %s for a request that breaks the schema", c.res.GetJson())
	}
	var refused *wire.Error
	if !errors.As(err, &refused) || refused.Code != wire.InvalidRequest || !slices.Contains(refused.Pointers, pointer) {
		return n.errorf("want invalid_request at %s: %w", pointer, err)
	}
	if after := len(m.desk.sightings()); after != before {
		return n.errorf("the handler saw %d requests that it should not have seen", after-before)
	}
	s.Facts["code"], s.Facts["pointers"], s.Facts["reached_handler"] = refused.Code.String(), refused.Pointers, false
	s.Say(fmt.Sprintf("a text among the numbers: %s at %s, and the handler never saw it", refused.Code, strings.Join(refused.Pointers, ", ")))
	return nil
}

// callExec: the handler is a program, started for the request.
func (m *mesh) callExec(ctx context.Context, s *Step) error {
	const text = "the quick brown fox"
	c, err := m.call(ctx, countName, "", map[string]any{"text": text})
	if err != nil {
		return err
	}
	from := m.consumer()
	if c.answer["words"] != 4.0 || c.answer["bytes"] != float64(len(text)) {
		return from.errorf("was answered %s for %q", c.res.GetJson(), text)
	}
	if c.answer["caller"] != from.id.Agent || c.answer["session"] != c.res.Session || c.answer["key"] != c.key {
		return from.errorf("the handler was told other things than were sent: %s", c.res.GetJson())
	}
	m.tell(s, c, countName)
	s.Say(fmt.Sprintf("%s called %s: %s ran a program, which counted %v words, in %s", from.name, countName,
		m.nameOf(c.res.Agent), c.answer["words"], ms(c.res.ElapsedMs)))
	return nil
}

// callAPI: the handler is an application that pulls requests: this one.
func (m *mesh) callAPI(ctx context.Context, s *Step) error {
	by, from := m.offering(approveName)[0], m.consumer()
	var c *called
	var pulled *openmeshv1.PullResponse
	group, ctx := errgroup.WithContext(ctx) // if one of the two fails, the other need not wait
	group.Go(func() (err error) {
		pulled, err = by.serveOne(ctx, approveName)
		return err
	})
	group.Go(func() (err error) {
		c, err = m.call(ctx, by.id.Address, approveName, map[string]any{"item": "a chair", "amount": 240})
		return err
	})
	if err := group.Wait(); err != nil {
		return err
	}
	if c.answer["approved"] != true || c.res.Agent != by.id.Agent {
		return from.errorf("was answered %s by %s", c.res.GetJson(), c.res.Agent)
	}
	if pulled.CallerAgent != from.id.Agent || pulled.Session != c.res.Session || pulled.IdempotencyKey != c.key {
		return by.errorf("handed on a request of %s in session %s with key %s", pulled.CallerAgent, pulled.Session, pulled.IdempotencyKey)
	}
	m.tell(s, c, approveName)
	s.Say(fmt.Sprintf("%s called %s: this process pulled the request from %s and approved, in %s",
		from.name, approveName, by.name, ms(c.res.ElapsedMs)))
	return nil
}

// serveOne pulls one request from the node, does it and replies.
func (n *node) serveOne(ctx context.Context, name string) (*openmeshv1.PullResponse, error) {
	req, err := n.api.Session.Pull(ctx, &openmeshv1.PullRequest{
		Capabilities: []string{name}, WaitMs: uint32(stepTime.Milliseconds()),
	})
	if err != nil {
		return nil, n.at(err)
	}
	if req.Id == "" {
		return nil, n.errorf("no request for %s came", name)
	}
	answer, err := work(name, []byte(req.GetJson()))
	if err != nil {
		return nil, n.at(err)
	}
	text, err := json.Marshal(answer)
	if err != nil {
		return nil, n.errorf("write answer: %w", err)
	}
	_, err = n.api.Session.Reply(ctx, &openmeshv1.ReplyRequest{Id: req.Id, Body: &openmeshv1.ReplyRequest_Json{Json: string(text)}})
	return req, n.at(err)
}
