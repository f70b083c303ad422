package node

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.uber.org/zap"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/handlers"
	"openmesh/node/observe"
	"openmesh/protocols/market/document"
	"openmesh/protocols/schema"
	"openmesh/protocols/schema/translate"
	"openmesh/protocols/session"
	"openmesh/protocols/session/delivery"
	"openmesh/protocols/signal"
	"openmesh/protocols/wire"
)

// Agents of different versions work together: signaling agrees on one version of
// every schema that both sides name, and who does not speak it natively translates
// at home, both what it sends and what it receives.
//
// Native are the versions that capabilities declare (protocols), those of
// session.schemas, and the newest market/proposal, unless session.schemas names
// another. Translations are files of the home, and that of market/proposal.

// An offer names at most so many schemas, and spends so many bytes on them: it has
// other things to say.
const (
	maxOffered      = 64
	maxOfferedBytes = 32 << 10
)

// parseSchemas reads session.schemas: versions by name.
func parseSchemas(refs []string) (map[string][]string, error) {
	out := map[string][]string{}
	for _, text := range refs {
		ref, err := translate.ParseRef(text)
		if err != nil {
			return nil, fmt.Errorf("session.schemas: %w", err)
		}
		out[ref.Name] = append(out[ref.Name], ref.Version)
	}
	return out, nil
}

// natives returns the versions that this agent's programs speak, by name of
// schema. Those of capabilities that not everybody may see can be left out.
func (n *Node) natives(all bool) map[string][]string {
	out := make(map[string][]string, len(n.schemas))
	for name, versions := range n.schemas {
		out[name] = slices.Clip(versions)
	}
	if name, version, _ := strings.Cut(document.SchemaProposal, "@v"); out[name] == nil {
		out[name] = []string{version}
	}
	for _, c := range n.registry.List() {
		if !all && orDefault(c.Visibility, "public") != "public" {
			continue
		}
		for _, p := range c.Protocols {
			out[p.Name] = append(out[p.Name], p.Versions...)
		}
	}
	return out
}

// protocols is what this node offers in signaling, and the names of what there was
// no room for.
func (n *Node) protocols() (offered []signal.AppProtocol, left []string) {
	natives, room := n.natives(false), maxOfferedBytes
	for _, name := range slices.Sorted(maps.Keys(natives)) {
		o := n.translations.Offer(name, natives[name])
		size := len(name)
		for _, v := range o.Versions {
			size += len(v) + 4
		}
		if len(o.Versions) == 0 || len(offered) == maxOffered || size > room {
			left = append(left, name)
			continue
		}
		room -= size
		offered = append(offered, signal.AppProtocol{Name: name, Versions: o.Versions})
	}
	return offered, left
}

// checkOffered tells the operator of schemas that no other agent will hear of.
func (n *Node) checkOffered() {
	if _, left := n.protocols(); len(left) > 0 {
		n.log.Warn("too many schemas: not offered to other agents", zap.Strings("schemas", left))
	}
}

// outgoing puts a message into the version of its schema that the session speaks,
// and tells what it lost.
func (n *Node) outgoing(s *session.Session, m *delivery.Message) (warnings []string, err error) {
	if m.Schema == "" {
		return nil, nil
	}
	ref, err := translate.ParseRef(m.Schema)
	if err != nil {
		return nil, err
	}
	m.Schema = ref.String()
	version, ok := s.Protocol(ref.Name)
	if !ok || version == ref.Version {
		return nil, nil
	}
	agreed := translate.Ref{Name: ref.Name, Version: version}.String()
	if m.Body, warnings, err = n.translate(m.Body, schema.Encoding(m.Encoding), m.Schema, agreed); err != nil {
		return nil, fmt.Errorf("the session with %s speaks %s: %w", s.Peer().Agent, agreed, err)
	}
	m.Schema = agreed
	return warnings, nil
}

// native translates a document of another agent to a version that this agent
// speaks. It stays as it is if this agent speaks that version, or none.
func (n *Node) native(name string, enc schema.Encoding, doc []byte) (out []byte, as string, warnings []string, err error) {
	ref, err := translate.ParseRef(name)
	if err != nil {
		return doc, name, nil, nil // what another agent writes there is its own affair
	}
	natives := n.natives(true)[ref.Name]
	if len(natives) == 0 || slices.Contains(natives, ref.Version) {
		return doc, name, nil, nil
	}
	version, ok := n.translations.Native(ref.Name, ref.Version, natives)
	if !ok {
		return doc, name, nil, wire.Errorf(wire.NoCommonSchema, "%s is not spoken here: %.300q are, and no translation leads there", ref, natives).
			WithHint("Write a translation: openmesh schema example")
	}
	as = translate.Ref{Name: ref.Name, Version: version}.String()
	if out, warnings, err = n.translate(doc, enc, ref.String(), as); err != nil {
		return doc, name, nil, err
	}
	return out, as, warnings, nil
}

// translate rewrites a document, and tells what it lost in sentences.
func (n *Node) translate(doc []byte, enc schema.Encoding, from, to string) (out []byte, warnings []string, err error) {
	if enc == schema.Protobuf {
		return nil, nil, wire.Errorf(wire.NoCommonSchema, "%s to %s: only JSON is translated", from, to).WithHint("send it as JSON")
	}
	out, losses, err := n.translations.Translate(doc, from, to)
	if err != nil {
		return nil, nil, err
	}
	for _, l := range losses {
		warnings = append(warnings, fmt.Sprintf("%s to %s: %s %s", from, to, l.Pointer, l.What))
	}
	return out, warnings, nil
}

// inboxMessage is a message as the API shows it, in a version that this agent
// speaks. One that cannot be translated is shown as it came: it was delivered.
func (n *Node) inboxMessage(s *session.Session, m *delivery.Message) *openmeshv1.ReceivedMessage {
	enc := schema.Encoding(m.Encoding)
	body, as, warnings, err := n.native(m.Schema, enc, m.Body)
	if err != nil {
		warnings = []string{"not translated: " + err.Error()}
	}
	r := &openmeshv1.ReceivedMessage{
		Sequence: m.Sequence, Key: m.Key, Agent: string(s.Peer().Agent), Received: stamp(m.Accepted), Redelivered: m.Redelivered,
		Traceparent: m.Traceparent, CorrelationId: m.CorrelationID, Schema: as, Warnings: warnings,
	}
	if as != m.Schema {
		r.OriginalSchema = m.Schema
	}
	if enc == schema.Protobuf {
		r.Body = &openmeshv1.ReceivedMessage_Protobuf{Protobuf: body}
	} else {
		r.Body = &openmeshv1.ReceivedMessage_Json{Json: strings.ToValidUTF8(string(body), "\uFFFD")}
	}
	return r
}

// nativeRequest is a request whose body named its schema, in a version that this
// agent speaks.
func (n *Node) nativeRequest(ctx context.Context, req *handlers.Request) (*handlers.Request, error) {
	if req.Schema == "" {
		return req, nil
	}
	body, as, warnings, err := n.native(req.Schema, req.Encoding, req.Body)
	if err != nil {
		return nil, fmt.Errorf("message of %s: %w", req.CallerAgent, err)
	}
	n.logLosses(ctx, req, warnings)
	in := *req
	in.Body, in.Schema = body, as
	return &in, nil
}

func (n *Node) logLosses(ctx context.Context, req *handlers.Request, warnings []string) {
	if len(warnings) > 0 {
		n.log.Debug("lost in translation", zap.String("capability", req.Capability), zap.String("agent", req.CallerAgent),
			zap.Strings("losses", warnings), observe.TraceField(ctx))
	}
}
