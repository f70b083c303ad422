package signal

import (
	"fmt"
	"slices"
	"strings"

	"github.com/Masterminds/semver/v3"

	"openmesh/protocols/signal/signalpb"
	"openmesh/protocols/wire"
)

// Agree returns what this side, with these terms, answers to an offer of contract
// and protocols that came by mail. Errors are those of an Answer.
func (t Terms) Agree(contract Contract, offered []AppProtocol) (Contract, []AppProtocol, error) {
	agreed, err := t.Contract.Tighten(contract)
	if err != nil {
		return Contract{}, nil, err
	}
	chosen, err := t.commonProtocols(protocolMessages(offered))
	return agreed, protocolsOf(chosen), err
}

// commonProtocols chooses a version of every application protocol that the offer
// names, for all that both sides know. A protocol that both know without a version
// in common is wire.NoCommonSchema.
func (t Terms) commonProtocols(offered []*signalpb.AppProtocol) ([]*signalpb.AppProtocol, error) {
	var chosen []*signalpb.AppProtocol
	for _, o := range offered {
		ours, known := t.protocol(o.GetName())
		if !known {
			continue // a session without it may still be of use
		}
		v, ok := t.choose(ours.Versions, o.GetVersions())
		if !ok {
			return nil, &noCommonSchema{ours: ours, theirs: AppProtocol{o.GetName(), o.GetVersions()}}
		}
		chosen = append(chosen, &signalpb.AppProtocol{Name: o.GetName(), Versions: []string{v}})
	}
	return chosen, nil
}

// checkProtocols checks that an answer chose, of each protocol at most once, one
// version that this side offered.
func (t Terms) checkProtocols(chosen []*signalpb.AppProtocol) error {
	seen := make(map[string]bool)
	for _, c := range chosen {
		if len(c.GetVersions()) != 1 || seen[c.GetName()] {
			return wire.Errorf(wire.Malformed, "answer: %d versions of %.120q", len(c.GetVersions()), c.GetName())
		}
		seen[c.GetName()] = true
		ours, _ := t.protocol(c.GetName())
		version := c.GetVersions()[0]
		if v, ok := t.choose(ours.Versions, []string{version}); !ok || v != version {
			return wire.Errorf(wire.Unsupported, "answer chose %.120q %.70q, which was not offered", c.GetName(), version)
		}
	}
	return nil
}

func (t Terms) protocol(name string) (AppProtocol, bool) {
	i := slices.IndexFunc(t.Protocols, func(p AppProtocol) bool { return p.Name == name })
	if i < 0 {
		return AppProtocol{}, false
	}
	return t.Protocols[i], true
}

func (t Terms) choose(ours, theirs []string) (string, bool) {
	if t.Choose != nil {
		return t.Choose(ours, theirs)
	}
	return highestCommon(ours, theirs)
}

func highestCommon(ours, theirs []string) (string, bool) {
	var best *semver.Version
	var name string
	for _, s := range ours {
		v, err := semver.NewVersion(s)
		if err == nil && slices.Contains(theirs, s) && (best == nil || v.GreaterThan(best)) {
			best, name = v, s
		}
	}
	return name, best != nil
}

// noCommonSchema is a wire.NoCommonSchema that names both sides' versions.
type noCommonSchema struct{ ours, theirs AppProtocol }

func (e *noCommonSchema) Error() string {
	return fmt.Sprintf("no common schema version: we speak %s, the other side %s", e.ours, e.theirs)
}

func (e *noCommonSchema) Unwrap() error { return wire.NoCommonSchema }

// maxShown bounds the protocols, and the versions of each, that an error names.
const maxShown = 16

// String shows a protocol to a person; whoever sent it, the text is bounded and
// printable.
func (p AppProtocol) String() string {
	text := fmt.Sprintf("%.120q %.70q", p.Name, p.Versions[:min(len(p.Versions), maxShown)])
	if more := len(p.Versions) - maxShown; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

func describe(ps []AppProtocol) string {
	var s []string
	for _, p := range ps[:min(len(ps), maxShown)] {
		s = append(s, p.String())
	}
	if len(s) == 0 {
		return "nothing"
	}
	return strings.Join(s, ", ")
}

// refusal is the error of a Refusal. Of one for want of a common version it names
// both sides' versions: its own and those that the refusal tells.
func (t Terms) refusal(m *signalpb.Refusal) error {
	c := wire.Code(m.Code)
	if !c.Known() {
		c = wire.Denied
	}
	if c != wire.NoCommonSchema {
		return wire.Errorf(c, "the other side refused the session")
	}
	theirs := protocolsOf(m.Protocols)
	var ours []AppProtocol
	for _, p := range theirs {
		if o, ok := t.protocol(p.Name); ok {
			ours = append(ours, o)
		}
	}
	return wire.Errorf(c, "the other side refused the session: it speaks %s, we speak %s", describe(theirs), describe(ours)).
		WithHint("One side needs a translation: openmesh schema example")
}

func protocolMessages(ps []AppProtocol) []*signalpb.AppProtocol {
	var ms []*signalpb.AppProtocol
	for _, p := range ps {
		ms = append(ms, &signalpb.AppProtocol{Name: p.Name, Versions: p.Versions})
	}
	return ms
}

func protocolsOf(ms []*signalpb.AppProtocol) []AppProtocol {
	var ps []AppProtocol
	for _, m := range ms[:min(len(ms), maxLists)] {
		ps = append(ps, AppProtocol{m.GetName(), m.GetVersions()})
	}
	return ps
}

func transportMessages(ts []Transport) []*signalpb.Transport {
	var ms []*signalpb.Transport
	for _, t := range ts {
		ms = append(ms, &signalpb.Transport{Name: t.Name, Addrs: t.Addrs})
	}
	return ms
}

// maxAddrs bounds the addresses of one transport that are looked at.
const maxAddrs = 16

func transportsOf(ms []*signalpb.Transport) []Transport {
	var ts []Transport
	for _, m := range ms[:min(len(ms), maxSuites)] {
		ts = append(ts, Transport{m.GetName(), m.GetAddrs()[:min(len(m.GetAddrs()), maxAddrs)]})
	}
	return ts
}
