package topic

import (
	"fmt"
	"strings"

	"openmesh/protocols/descriptor"
	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

// Capability returns the topic of a capability, or of a prefix of capabilities,
// in realm r. The error is wire.InvalidArgument.
func Capability(r identity.Realm, prefix string) (string, error) {
	if err := descriptor.CheckName(prefix); err != nil {
		return "", wire.Errorf(wire.InvalidArgument, "topic of a capability: %w", err).
			WithHint("A capability has a name such as finance/fx-pricing.")
	}
	return scope(r) + prefix, nil
}

// Capabilities returns the topics of a capability and of all its prefixes, the
// shortest first: where those listen who offer it. The error is
// wire.InvalidArgument.
func Capabilities(r identity.Realm, name string) ([]string, error) {
	longest, err := Capability(r, name)
	if err != nil {
		return nil, err
	}
	var all []string
	for i := len(scope(r)); i < len(longest); i++ {
		if longest[i] == '/' {
			all = append(all, longest[:i])
		}
	}
	return append(all, longest), nil
}

// scope is what the topics of capabilities begin with.
func scope(r identity.Realm) string { return fmt.Sprintf("/openmesh/%d/cap/", r) }

// isTopic reports whether a topic is one of realm r, as [Capability] writes it.
func isTopic(r identity.Realm, topic string) bool {
	name, ok := strings.CutPrefix(topic, scope(r))
	return ok && descriptor.CheckName(name) == nil
}

func (g *Gossip) check(topic string) error {
	if isTopic(g.cfg.Realm, topic) {
		return nil
	}
	return wire.Errorf(wire.InvalidArgument, "%.200q is no topic of realm %d", topic, g.cfg.Realm).
		WithHint("Topics are %sNAME, with the name of a capability or a prefix of it.", scope(g.cfg.Realm))
}
