package node

import (
	"context"
	"errors"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/trace"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/observe"
	"openmesh/protocols/identity"
	"openmesh/protocols/schema"
	"openmesh/protocols/session"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// qos is the promise of a call: its own, or the one of the configuration.
func (n *Node) qos(r *openmeshv1.CallRequest) signal.QoS {
	q, err := signal.ParseQoS(orDefault(r.Qos, n.settings.Session.QoS))
	if err != nil {
		return signal.AtMostOnce // checkCall has refused it before
	}
	return q
}

// countCall counts a call that is not counted as a message.
func (n *Node) countCall(r *openmeshv1.CallRequest, o observe.Outcome) {
	if n.qos(r) == signal.AtMostOnce {
		n.metrics.Message(observe.Out, observe.AtMostOnce, o)
	}
}

// callDurably posts the request as a message of a session that keeps it until its
// outcome is known, and waits for that until ctx ends. A call that was made
// before with the same key gets the outcome of that one. That the caller does not
// wait any longer does not end the message: the contract's TTL does.
func (n *Node) callDurably(ctx context.Context, c candidate, r *openmeshv1.CallRequest, key string, q signal.QoS) (*openmeshv1.CallResponse, error) {
	s, err := n.open(ctx, c, session.Want{Contract: signal.Contract{QoS: q, Market: r.Contract}})
	if err != nil {
		return nil, err
	}
	enc, body := bodyOf(r)
	m := n.message(ctx, key, c.capability, r.Version, enc, body)
	if r.IdempotencyKey == "" {
		m.Key = "" // Post gives it one that needs no look into the store
	}
	sequence, err := s.Post(ctx, m)
	if err != nil {
		return nil, err
	}
	o, err := outcomeOf(ctx, s, sequence, m.Key)
	if err != nil && ctx.Err() != nil {
		return nil, wire.Errorf(wire.DeadlineExceeded, "no answer from %s within the deadline", c.agent).
			WithHint("it may still be delivered; ask with: openmesh session outcome %s %s", s.Names().Session[:8], m.Key)
	}
	if err == nil {
		err = outcomeError(c.agent, o)
	}
	if err != nil {
		return nil, err
	}
	names := s.Names()
	out := &openmeshv1.CallResponse{
		Agent: names.Agent, Address: names.Address, Capability: c.capability, Attempts: o.Attempts,
		Session: names.Session, Request: strconv.FormatUint(sequence, 10), Suite: names.Suite, Path: pathMessage(s.Path()),
	}
	setBody(out, schema.Encoding(o.Encoding), o.Response)
	return out, nil
}

func (n *Node) message(ctx context.Context, key, capability, version string, enc schema.Encoding, body []byte) *delivery.Message {
	m := &delivery.Message{
		Key: key, Capability: capability, Version: version, Encoding: uint8(enc), Body: body,
		CorrelationID: trace.SpanContextFromContext(ctx).TraceID().String(),
	}
	m.Traceparent, m.Tracestate = observe.Inject(ctx)
	return m
}

// errAnswered is in an error that is what the other side answered to a message: whatever
// else went wrong, that is its word on it.
var errAnswered = errors.New("the other side's answer")

// outcomeError is the error of a message that was not delivered.
func outcomeError(agent identity.AgentID, o delivery.Outcome) error {
	switch o.Status {
	case delivery.Failed:
		e := wire.Errorf(orDefault(o.Code, wire.Internal), "%s answered %s", agent, o.Code)
		e.Pointers, e.Err = o.Pointers, errAnswered
		return e
	case delivery.Expired:
		return wire.Errorf(wire.DeadlineExceeded, "the message to %s expired before it was delivered", agent)
	case delivery.Pending:
		return wire.Errorf(wire.DeadlineExceeded, "the message to %s is not delivered yet", agent)
	}
	return nil
}

// outcomeOf waits for the outcome of a message. One that was settled long ago is
// found by its key.
func outcomeOf(ctx context.Context, s *session.Session, sequence uint64, key string) (delivery.Outcome, error) {
	o, err := s.Outcome(ctx, sequence)
	if wire.CodeOf(err) == wire.NotFound {
		_, o, err = s.Lookup(ctx, key)
	}
	return o, err
}

// statusNames are the words of the API for what became of a message.
var statusNames = [...]string{"pending", "delivered", "failed", "expired"}

func deliveryMessage(s *session.Session, key string, sequence uint64, o delivery.Outcome, began time.Time) *openmeshv1.Delivery {
	names := s.Names()
	d := outcomeMessage(key, sequence, o)
	d.Agent, d.Address, d.Session, d.ElapsedMs = names.Agent, names.Address, names.Session, millis(time.Since(began))
	return d
}

func outcomeMessage(key string, sequence uint64, o delivery.Outcome) *openmeshv1.Delivery {
	d := &openmeshv1.Delivery{
		Sequence: sequence, Key: key, Pointers: o.Pointers, Attempts: o.Attempts,
		Status: statusNames[min(int(o.Status), len(statusNames)-1)],
	}
	if o.Status == delivery.Failed {
		d.Code = o.Code.String()
	}
	switch {
	case o.Response == nil:
	case schema.Encoding(o.Encoding) == schema.Protobuf:
		d.Response = &openmeshv1.Delivery_Protobuf{Protobuf: o.Response}
	default:
		d.Response = &openmeshv1.Delivery_Json{Json: string(o.Response)}
	}
	return d
}

// failedDelivery tells a recipient's failure before there was a message.
func failedDelivery(agent, id string, key string, err error) *openmeshv1.Delivery {
	d := &openmeshv1.Delivery{Agent: agent, Session: id, Key: key, Status: "failed", Code: wire.CodeOf(err).String()}
	var e *wire.Error
	if errors.As(err, &e) {
		d.Pointers = e.Pointers
	}
	return d
}
