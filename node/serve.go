package node

import (
	"context"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"openmesh/node/handlers"
	"openmesh/node/handlers/capability"
	"openmesh/node/observe"
	"openmesh/policy"
	"openmesh/protocols/descriptor"
	"openmesh/protocols/schema"
	"openmesh/protocols/session"
	"openmesh/protocols/wire"
)

// serve answers a request of another agent: may it, is it well formed, do it.
func (n *Node) serve(ctx context.Context, in *session.Inbound) (*session.Response, error) {
	n.load.working.Add(1)
	idle := func() { n.load.working.Add(-1) }
	defer func() { idle() }()
	names := in.Session.Names()
	contract, key := cited(in)
	req := &handlers.Request{
		Capability: in.Capability, Version: in.Version, Body: in.Body, Encoding: schema.Encoding(in.Encoding), Schema: in.Schema,
		CallerAgent: names.Agent, CallerAddress: names.Address,
		Session: names.Session, RequestID: strconv.FormatUint(in.ID, 10), IdempotencyKey: in.IdempotencyKey,
		Traceparent: in.Traceparent, Tracestate: in.Tracestate, CorrelationID: in.CorrelationID, Deadline: in.Deadline,
		Redelivered: in.Redelivered, Contract: contract,
	}
	ctx, span := n.traceInbound(ctx, req)
	resp, err := n.dispatch(ctx, req, policy.Request{On: policy.Call, Agent: in.Session.Peer().Agent}, key)
	if err == nil && resp.Produce != nil {
		idle = func() {}
		return &session.Response{Encoding: session.Encoding(resp.Encoding), Produce: endingWith(func(err error) {
			n.account(ctx, span, req, err)
			n.load.working.Add(-1)
		}, resp.Produce)}, nil
	}
	n.account(ctx, span, req, err)
	if err != nil {
		return nil, err
	}
	return &session.Response{Encoding: session.Encoding(resp.Encoding), Body: resp.Body}, nil
}

// dispatch does a request under policy and under its market contract, for which key
// names it. What the caller may not see is not there.
func (n *Node) dispatch(ctx context.Context, req *handlers.Request, who policy.Request, key string) (*handlers.Response, error) {
	if resp, ok, err := n.serveOwn(ctx, req); ok {
		return resp, err
	}
	c, ok := n.registry.Get(req.Capability)
	if !ok {
		return nil, wire.Errorf(wire.NotFound, "capability %.130q", req.Capability)
	}
	who.Circle = circleOf(c)
	if who.Circle != "" {
		d := n.circles.Decide(who)
		n.metrics.PolicyDecision(string(who.On), string(d.Effect))
		n.noteDecision(string(who.On), string(d.Effect), who.Agent, req.Session, d.Rule)
		if d.Effect == policy.Deny {
			n.log.Debug("call denied", zap.String("agent", string(who.Agent)), zap.String("capability", c.Name), zap.String("rule", d.Rule))
			return nil, wire.Errorf(wire.NotFound, "capability %.130q", req.Capability)
		}
	}
	req, err := n.nativeRequest(ctx, req)
	if err != nil {
		return nil, err
	}
	work, err := n.beginWork(ctx, c, req, key)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	resp, err := n.serveVersion(ctx, req)
	measure := func(err error) { n.metrics.Handler(c.Kind(), time.Since(start), err) }
	if err == nil && resp.Produce != nil {
		return &handlers.Response{Encoding: resp.Encoding, Produce: work.producing(endingWith(measure, resp.Produce))}, nil
	}
	measure(err)
	work.end(ctx, err)
	return resp, err
}

// circleOf returns the circle that c is visible to, or "".
func circleOf(c *capability.Capability) string {
	v, err := descriptor.ParseVisibility(orDefault(c.Visibility, "public"))
	if err != nil {
		return c.Visibility // of nobody
	}
	return v.Circle
}

// traceInbound continues the caller's trace, if traces are recorded; if not, its
// context goes on to the handler as it came.
func (n *Node) traceInbound(ctx context.Context, req *handlers.Request) (context.Context, trace.Span) {
	if !n.tracer.Enabled() {
		return ctx, nil
	}
	ctx = observe.Extract(ctx, req.Traceparent, req.Tracestate)
	ctx, span := n.tracer.Start(ctx, "serve "+req.Capability, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		attribute.String("openmesh.caller", req.CallerAgent), attribute.String("openmesh.session", req.Session)))
	req.Traceparent, req.Tracestate = observe.Inject(ctx)
	return ctx, span
}

// account tells metrics, trace and log how a request of another agent ended.
func (n *Node) account(ctx context.Context, span trace.Span, req *handlers.Request, err error) {
	outcome := observe.Delivered
	if err != nil {
		outcome = observe.Failed
		n.log.Debug("request failed", zap.String("capability", req.Capability), zap.String("agent", req.CallerAgent),
			zap.String("session", req.Session), observe.TraceField(ctx), zap.Error(err))
	}
	n.metrics.Message(observe.In, observe.AtMostOnce, outcome)
	if span != nil {
		if err != nil {
			span.SetStatus(codes.Error, wire.CodeOf(err).String())
		}
		span.End()
	}
}
