package signal

import (
	"fmt"
	"slices"
	"strings"

	"github.com/Masterminds/semver/v3"

	"openmesh/protocols/signal/signalpb"
	"openmesh/protocols/wire"
)

// commonProtocols chooses the highest common version of every application
// protocol that the offer names, for all that both sides know. A protocol that
// both know without a version in common is wire.NoCommonSchema.
func commonProtocols(ours []AppProtocol, offered []*signalpb.AppProtocol) ([]*signalpb.AppProtocol, error) {
	var chosen []*signalpb.AppProtocol
	for _, o := range offered {
		i := slices.IndexFunc(ours, func(p AppProtocol) bool { return p.Name == o.GetName() })
		if i < 0 {
			continue // a session without it may still be of use
		}
		v, ok := highestCommon(ours[i].Versions, o.GetVersions())
		if !ok {
			return nil, &noCommonSchema{ours: ours[i : i+1], theirs: protocolsOf([]*signalpb.AppProtocol{o})}
		}
		chosen = append(chosen, &signalpb.AppProtocol{Name: o.GetName(), Versions: []string{v}})
	}
	return chosen, nil
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
type noCommonSchema struct{ ours, theirs []AppProtocol }

func (e *noCommonSchema) Error() string {
	return fmt.Sprintf("no common schema version: we speak %s, the other side %s", describe(e.ours), describe(e.theirs))
}

func (e *noCommonSchema) Unwrap() error { return wire.NoCommonSchema }

func describe(ps []AppProtocol) string {
	var s []string
	for _, p := range ps {
		s = append(s, fmt.Sprintf("%.120q %.120q", p.Name, p.Versions))
	}
	if len(s) == 0 {
		return "nothing"
	}
	return strings.Join(s, ", ")
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
