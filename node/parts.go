package node

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/identity"
	"openmesh/protocols/schema"
	"openmesh/protocols/session"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// Responses in parts, from one side to the other:
//
//	handler ─ Produce ─ session ═══ credit ═══ session ─ Parts ─ take: an array (Call),
//	   one part at a time, as the next reader has room for it        messages (CallStream)
//
// Nothing is kept on the way but what flow control gave credit for, so that a slow
// reader slows its handler down and nobody else. As in gRPC the deadline is for all
// of the call. A response whose first part has come is not asked for again
// elsewhere: delivery is at most once.

// producer sends parts as [handlers.Response] says. What it sends is not kept.
type producer = func(ctx context.Context, send func(part []byte) error) error

// answer is how a call was answered.
type answer struct {
	response *openmeshv1.CallResponse
	encoding schema.Encoding
	produce  producer // the parts, to be called once; nil: the response has a body
}

// whole is an answer that is all there.
func whole(r *openmeshv1.CallResponse, err error) (answer, error) { return answer{response: r}, err }

// maxWarnings bounds what is told of the losses in many parts.
const maxWarnings = 64

// rewritten is an answer of which every document passes through rewrite. Warnings,
// to which rewrite adds, become those of the response.
func (a answer) rewritten(warnings []string, rewrite func([]byte) ([]byte, []string, error)) (answer, error) {
	out := a.response
	if out.Warnings = warnings; a.produce == nil {
		doc, more, err := rewrite([]byte(out.GetJson()))
		if err != nil {
			return answer{}, err
		}
		setBody(out, schema.JSON, doc)
		out.Warnings = append(out.Warnings, more...)
		return a, nil
	}
	produce := a.produce
	a.produce = func(ctx context.Context, send func([]byte) error) error {
		return produce(ctx, func(part []byte) error {
			doc, more, err := rewrite(part)
			if err != nil {
				return err
			}
			for _, w := range more {
				if len(out.Warnings) < maxWarnings && !slices.Contains(out.Warnings, w) {
					out.Warnings = append(out.Warnings, w)
				}
			}
			return send(doc)
		})
	}
	return a, nil
}

// taker takes the answer to a call.
type taker func(context.Context, answer) error

// CallStream is like [Node.Call], but passes each part of the response on as it
// comes. Send gets them in order, and holds up only this call while it does not
// return. The response has no body. Delivery is at most once: a stronger promise is
// refused.
func (n *Node) CallStream(ctx context.Context, r *openmeshv1.CallRequest, send func(*openmeshv1.CallPart) error) (*openmeshv1.CallResponse, error) {
	if n.qos(r) != signal.AtMostOnce {
		return nil, wire.Errorf(wire.Unsupported, "call %s: parts are delivered at most once", r.Target).
			WithHint("add --qos at-most-once; or leave out --stream: the parts come as one array")
	}
	return n.call(ctx, r, func(ctx context.Context, a answer) error {
		if a.produce != nil {
			return a.produce(ctx, func(part []byte) error { return send(partMessage(a.encoding, part)) })
		}
		part := &openmeshv1.CallPart{Part: &openmeshv1.CallPart_Json{Json: a.response.GetJson()}}
		if b, ok := a.response.Body.(*openmeshv1.CallResponse_Protobuf); ok {
			part.Part = &openmeshv1.CallPart_Protobuf{Protobuf: b.Protobuf}
		}
		a.response.Body = nil
		return send(part)
	})
}

func partMessage(enc schema.Encoding, part []byte) *openmeshv1.CallPart {
	if enc == schema.Protobuf {
		return &openmeshv1.CallPart{Part: &openmeshv1.CallPart_Protobuf{Protobuf: slices.Clone(part)}}
	}
	return &openmeshv1.CallPart{Part: &openmeshv1.CallPart_Json{Json: strings.ToValidUTF8(string(part), "\uFFFD")}}
}

// collect makes one JSON array of an answer in parts.
func (n *Node) collect(ctx context.Context, a answer) error {
	if a.produce == nil {
		return nil
	}
	limit, body := n.settings.Session.MaxMessageBytes, []byte{'['}
	err := a.produce(ctx, func(part []byte) error {
		switch {
		case a.encoding == schema.Protobuf:
			return wire.Errorf(wire.Unsupported, "the response comes in parts of Protobuf, which make no array").
				WithHint("ask for the parts one by one, with CallStream")
		case len(body)+len(part)+1 > limit:
			return wire.Errorf(wire.TooLarge, "the response comes in parts, together more than %d bytes", limit).
				WithHint("take them one by one, with --stream; or raise session.max_message_bytes")
		case len(body) > 1:
			body = append(body, ',')
		}
		body = append(body, part...)
		return nil
	})
	if err == nil {
		setBody(a.response, schema.JSON, append(body, ']'))
	}
	return err
}

// taken hands an answer to who takes it, until the deadline passes.
func (n *Node) taken(ctx context.Context, a answer, deadline time.Time, take taker) (*openmeshv1.CallResponse, error) {
	if a.produce == nil {
		return a.response, take(ctx, a)
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	produce := a.produce
	var ours error // what went wrong on this side
	a.produce = func(ctx context.Context, send func([]byte) error) error {
		return produce(ctx, func(part []byte) error {
			if ours = send(part); ours == nil {
				a.response.Parts++
			}
			return ours
		})
	}
	err := take(ctx, a)
	switch {
	case ours != nil:
		return nil, ours
	case err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = wire.Errorf(wire.DeadlineExceeded, "the response had not ended by the deadline, after %d parts", a.response.Parts).
			WithHint("a longer --timeout waits longer: it is for all parts together")
	}
	n.learn(identity.AgentID(a.response.Agent), err)
	return a.response, err
}

// partsOf are the parts of a response that comes over a session.
func partsOf(resp *session.Response) producer {
	return func(ctx context.Context, send func([]byte) error) error {
		defer resp.Parts.Close()
		defer context.AfterFunc(ctx, resp.Parts.Close)()
		for {
			part, err := resp.Parts.Next()
			switch {
			case err == io.EOF:
				return nil
			case ctx.Err() != nil:
				return wire.Errorf(wire.Cancelled, "the parts of a response were given up: %w", ctx.Err())
			case err != nil:
				return err
			}
			if err := send(part); err != nil {
				return err
			}
		}
	}
}

// endingWith is produce that tells done how it ended.
func endingWith(done func(error), produce producer) producer {
	return func(ctx context.Context, send func([]byte) error) error {
		result := error(wire.Internal) // a panic's
		defer func() { done(result) }()
		result = produce(ctx, send)
		return result
	}
}

func bodyOf(r *openmeshv1.CallRequest) (schema.Encoding, []byte) {
	if b, ok := r.Body.(*openmeshv1.CallRequest_Protobuf); ok {
		return schema.Protobuf, b.Protobuf
	}
	return schema.JSON, []byte(orDefault(r.GetJson(), "{}"))
}

func setBody(r *openmeshv1.CallResponse, enc schema.Encoding, body []byte) {
	if enc == schema.Protobuf {
		r.Body = &openmeshv1.CallResponse_Protobuf{Protobuf: body}
	} else {
		r.Body = &openmeshv1.CallResponse_Json{Json: strings.ToValidUTF8(string(body), "\uFFFD")}
	}
}
