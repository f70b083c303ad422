package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/handlers"
	"openmesh/node/schemas"
	"openmesh/overlay/directory"
	"openmesh/protocols/descriptor/descriptorpb"
	"openmesh/protocols/schema"
	"openmesh/protocols/schema/translate"
	"openmesh/protocols/wire"
)

// Calls between versions of a capability: the caller names the range that it
// speaks, the provider has one version. Whichever of the two has translations of
// NAME.request and NAME.response between them translates both documents; of two,
// the provider. It tells which versions it answers in its descriptor, as those of
// the protocol NAME.request.

// answered returns the versions that a capability of this agent answers.
func (n *Node) answered(name, version string) []string {
	return schemas.Answers(n.translations, name, version)
}

// answeredBy returns the versions that a capability answers by its descriptor.
func answeredBy(c *descriptorpb.Capability) []string {
	for _, p := range c.GetProtocols() {
		if p.GetName() == schemas.RequestSchema(c.GetName()) {
			return p.GetVersions()
		}
	}
	return []string{c.GetVersion()}
}

// serveVersion serves a request in a version that its caller speaks: the
// capability's own, or one that is translated here.
func (n *Node) serveVersion(ctx context.Context, req *handlers.Request) (*handlers.Response, error) {
	c, ok := n.registry.Get(req.Capability)
	if req.Version == "" || !ok || n.registry.Accepts(req.Capability, req.Version) {
		return n.registry.Serve(ctx, req)
	}
	versions := n.answered(c.Name, c.Version)
	theirs, ok := schemas.Within(versions, req.Version)
	if !ok {
		if _, err := n.registry.Serve(ctx, req); wire.CodeOf(err) != wire.Unsupported {
			return nil, err // no range at all
		}
		return nil, noCommonVersion(c.Name, req.CallerAgent+" asks for "+req.Version, "this agent answers "+strings.Join(versions, ", "))
	}
	in := *req
	in.Version = "=" + c.Version
	var warnings []string
	var err error
	if in.Body, warnings, err = n.translateCall(schemas.RequestSchema(c.Name), req.Body, req.Encoding, theirs, c.Version); err != nil {
		return nil, err
	}
	n.logLosses(ctx, req, warnings)
	resp, err := n.registry.Serve(ctx, &in)
	if err != nil {
		return nil, err
	}
	return n.translateAnswer(ctx, req, resp, c.Version, theirs)
}

// translateAnswer puts a response, or each part of one, into the caller's version.
func (n *Node) translateAnswer(ctx context.Context, req *handlers.Request, resp *handlers.Response, from, to string) (*handlers.Response, error) {
	rewrite := func(doc []byte) ([]byte, error) {
		out, warnings, err := n.translateCall(schemas.ResponseSchema(req.Capability), doc, resp.Encoding, from, to)
		n.logLosses(ctx, req, warnings)
		return out, asResponse(err)
	}
	if resp.Produce == nil {
		body, err := rewrite(resp.Body)
		if err != nil {
			return nil, err
		}
		return &handlers.Response{Body: body, Encoding: resp.Encoding}, nil
	}
	return &handlers.Response{Encoding: resp.Encoding, Produce: rewriting(resp.Produce, rewrite)}, nil
}

// translateCall rewrites one document of a call between two versions.
func (n *Node) translateCall(name string, doc []byte, enc schema.Encoding, from, to string) ([]byte, []string, error) {
	return n.translate(doc, enc, translate.Ref{Name: name, Version: from}.String(), translate.Ref{Name: name, Version: to}.String())
}

// asResponse is the error of a translation as that of a response that is not as it
// should be.
func asResponse(err error) error {
	var e *wire.Error
	if !errors.As(err, &e) || e.Code != wire.InvalidRequest {
		return err
	}
	return &wire.Error{Code: wire.InvalidResponse, Message: e.Message, Hint: e.Hint, Pointers: e.Pointers}
}

func noCommonVersion(name, ours, theirs string) error {
	return wire.Errorf(wire.NoCommonSchema, "no common version of %s: %.300s, %.300s", name, ours, theirs).
		WithHint("One side needs translations of %s and %s: openmesh schema example", schemas.RequestSchema(name), schemas.ResponseSchema(name))
}

// asks says what this agent would call a capability in.
func (n *Node) asks(name, span string) string {
	known := "no translations"
	if versions := schemas.Known(n.translations, name); len(versions) > 0 {
		known = "translations between " + strings.Join(versions, ", ")
	}
	return fmt.Sprintf("we ask for %s and have %s", span, known)
}

// elsewhere finds whom a request may go to when nobody offers the version asked
// for: those with whom there is a translation, on either side.
func (n *Node) elsewhere(ctx context.Context, name, span string, minTrust float64) ([]candidate, error) {
	res, err := n.directory.Discover(ctx, directory.Query{Capability: name, MinTrust: minTrust, Limit: maxCandidates})
	if err != nil || len(res.Rows) == 0 {
		return nil, err
	}
	var cs []candidate
	var offered []string
	for _, row := range res.Rows {
		c := candidateOf(row)
		if _, ok := schemas.Meet(n.translations, c.capability, span, c.versions); ok {
			cs = append(cs, c)
			continue
		}
		if v := strings.Join(c.versions, ", "); !slices.Contains(offered, v) {
			offered = append(offered, v)
		}
	}
	if len(cs) == 0 {
		return nil, noCommonVersion(name, n.asks(name, span), "others answer "+strings.Join(offered, "; "))
	}
	return cs, nil
}

// callOne sends the request to one agent, in a version that the agent answers. The
// deadline, if not zero, comes on top of that of ctx.
func (n *Node) callOne(ctx context.Context, c candidate, r *openmeshv1.CallRequest, key string, deadline time.Time) (answer, error) {
	_, span, err := splitVersion(r.Target, r.Version)
	if err != nil || span == "" {
		return n.callAgent(ctx, c, r, key, deadline)
	}
	if c.versions == nil && len(schemas.Known(n.translations, c.capability)) > 0 {
		c.versions = n.versionsOf(ctx, c)
	}
	var b schemas.Bridge // none: the other side knows what it answers
	if c.versions != nil {
		var ok bool
		if b, ok = schemas.Meet(n.translations, c.capability, span, c.versions); !ok {
			return answer{}, n.noCommonVersion(c, span, c.versions)
		}
	}
	if b.Ours != b.Theirs {
		return n.callAcross(ctx, c, r, b, key, deadline)
	}
	if r.Version != span { // the target named it
		r = proto.CloneOf(r)
		r.Version = span
	}
	a, err := n.callAgent(ctx, c, r, key, deadline)
	if err != nil && wire.CodeOf(err) == wire.NoCommonSchema {
		if versions := n.versionsOf(ctx, c); versions != nil {
			err = n.noCommonVersion(c, span, versions)
		}
	}
	return a, err
}

// callAcross makes a call between two versions and translates both documents.
func (n *Node) callAcross(ctx context.Context, c candidate, r *openmeshv1.CallRequest, b schemas.Bridge, key string, deadline time.Time) (answer, error) {
	enc, doc := bodyOf(r)
	doc, warnings, err := n.translateCall(schemas.RequestSchema(c.capability), doc, enc, b.Ours, b.Theirs)
	if err != nil {
		return answer{}, err
	}
	r = proto.CloneOf(r)
	r.Version, r.Body = "="+b.Theirs, &openmeshv1.CallRequest_Json{Json: string(doc)}
	a, err := n.callAgent(ctx, c, r, key, deadline)
	if err != nil {
		return answer{}, err
	}
	return a.rewritten(warnings, func(doc []byte) ([]byte, []string, error) {
		out, more, err := n.translateCall(schemas.ResponseSchema(c.capability), doc, schema.JSON, b.Theirs, b.Ours)
		return out, more, asResponse(err)
	})
}

// rewriting is produce with each part rewritten.
func rewriting(produce producer, rewrite func([]byte) ([]byte, error)) producer {
	return func(ctx context.Context, send func([]byte) error) error {
		return produce(ctx, func(part []byte) error {
			out, err := rewrite(part)
			if err != nil {
				return err
			}
			return send(out)
		})
	}
}

// noCommonVersion is the error of a call for which neither side has a translation.
func (n *Node) noCommonVersion(c candidate, span string, theirs []string) error {
	return noCommonVersion(c.capability, n.asks(c.capability, span), string(c.agent)+" answers "+strings.Join(theirs, ", "))
}

// versionsOf looks up which versions an agent answers; nil if it does not tell.
func (n *Node) versionsOf(ctx context.Context, c candidate) []string {
	d, err := n.directory.Descriptor(ctx, directory.Agent{ID: c.agent, Address: c.address, Peer: c.peer})
	if err != nil {
		return nil
	}
	for _, offered := range d.Body.Capabilities {
		if offered.Name == c.capability {
			return answeredBy(offered)
		}
	}
	return nil
}
