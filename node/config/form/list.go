package form

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/multiformats/go-multiaddr"

	"openmesh/node/automation/strategy"
	"openmesh/protocols/identity"
)

// List allows a list of what c allows, without repeats and with at least min
// entries.
func List[T any](c Codec[T], min int) Codec[[]T] {
	l := Codec[[]T]{Type: "list of " + plural(c.Type), Allowed: c.Allowed, Values: c.Values, Shape: Listing}
	if min > 0 {
		l.Allowed += "; at least one"
	}
	l.Read = func(v Value, fail Fail) []T {
		if v.Shape != Listing {
			fail(v, "is "+v.Shape.String()+" where a list is expected")
			return nil
		}
		if len(v.Items) < min {
			fail(v, "is empty")
		}
		return readItems(c, v.Items, fail)
	}
	l.Write = func(ts []T) Value {
		v := Value{Shape: Listing}
		for _, t := range ts {
			v.Items = append(v.Items, c.Write(t))
		}
		return v
	}
	return l
}

func plural(noun string) string {
	if stem, ok := strings.CutSuffix(noun, "ss"); ok {
		return stem + "sses"
	}
	return noun + "s"
}

func readItems[T any](c Codec[T], items []Value, fail Fail) []T {
	ts := make([]T, 0, len(items))
	seen := make(map[string]bool, len(items))
	for _, item := range items {
		t := c.Read(item, fail)
		if item.Shape == Scalar && seen[item.Text] {
			fail(item, "is there twice")
		}
		seen[item.Text] = true
		ts = append(ts, t)
	}
	return ts
}

// Circles allows a map of circle names to agent ids.
func Circles() Codec[map[string][]string] {
	members := List(atom("string", "", func(s string) (string, error) {
		if _, err := identity.ParseAgentID(s); err != nil {
			return "", errors.New("is no agent id")
		}
		return s, nil
	}, same), 0)
	c := Codec[map[string][]string]{Type: "map of lists of agent ids", Shape: Mapping,
		Allowed: "names of a-z, 0-9 and hyphens, at most 64; agent ids did:key:z6Mk…"}
	c.Read = func(v Value, fail Fail) map[string][]string {
		if v.Shape != Mapping {
			fail(v, "is "+v.Shape.String()+" where a map of circles is expected")
			return nil
		}
		m := make(map[string][]string, len(v.Items))
		for _, item := range v.Items {
			name := Value{At: item.At, Text: item.Name}
			if _, twice := m[item.Name]; twice {
				fail(name, "is there twice")
			} else if item.Shape == Listing && !circleName.MatchString(item.Name) {
				fail(name, "is no name of a circle")
			}
			m[item.Name] = members.Read(item, fail)
		}
		return m
	}
	c.Write = func(m map[string][]string) Value {
		v := Value{Shape: Mapping}
		for _, name := range slices.Sorted(maps.Keys(m)) {
			item := members.Write(m[name])
			item.Name = name
			v.Items = append(v.Items, item)
		}
		return v
	}
	return c
}

// SellRule allows a rule of how to sell a capability.
func SellRule() Codec[strategy.Rule] {
	return atom("rule", strategy.Syntax, strategy.ParseRule, strategy.Rule.String)
}

// parseAddr parses a multiaddr and says what is wrong with it without quoting it.
func parseAddr(s string) (multiaddr.Multiaddr, error) {
	a, err := multiaddr.NewMultiaddr(s)
	if err == nil {
		return a, nil
	}
	why := strings.TrimPrefix(err.Error(), fmt.Sprintf("failed to parse multiaddr %q: ", strings.TrimRight(s, "/")))
	return nil, errors.New("is no multiaddr: " + why)
}

func has(a multiaddr.Multiaddr, protocols ...int) bool {
	return slices.ContainsFunc(a.Protocols(), func(p multiaddr.Protocol) bool { return slices.Contains(protocols, p.Code) })
}

// AnnounceAddr allows where a peer can connect to.
func AnnounceAddr() Codec[multiaddr.Multiaddr] {
	return atom("multiaddr", "TCP or UDP, without /p2p, such as /dns4/a.example/tcp/4747", func(s string) (multiaddr.Multiaddr, error) {
		a, err := parseAddr(s)
		switch {
		case err != nil:
			return nil, err
		case has(a, multiaddr.P_P2P):
			return nil, errors.New("names a peer")
		case !has(a, multiaddr.P_TCP, multiaddr.P_UDP):
			return nil, errors.New("has neither TCP nor UDP")
		}
		return a, nil
	}, multiaddr.Multiaddr.String)
}

// ListenAddr allows what an interface of this machine can have.
func ListenAddr() Codec[multiaddr.Multiaddr] {
	announce := AnnounceAddr()
	listeners := []int{multiaddr.P_TCP, multiaddr.P_QUIC_V1, multiaddr.P_WS, multiaddr.P_WEBTRANSPORT, multiaddr.P_WEBRTC_DIRECT}
	return atom(announce.Type, "IP with TCP or UDP, without /p2p, such as /ip4/0.0.0.0/tcp/4747", func(s string) (a multiaddr.Multiaddr, err error) {
		a = announce.Read(Value{Text: s}, func(_ Value, why string) { err = errors.New(why) })
		if err == nil && !slices.Contains([]int{multiaddr.P_IP4, multiaddr.P_IP6}, a.Protocols()[0].Code) {
			err = errors.New("does not begin with /ip4 or /ip6")
		}
		if err == nil && !slices.Contains(listeners, a.Protocols()[len(a.Protocols())-1].Code) {
			err = errors.New("ends in no transport to listen with: those are /tcp/PORT, /quic-v1, /ws, /webtransport and /webrtc-direct")
		}
		return a, err
	}, multiaddr.Multiaddr.String)
}

// PeerSource allows the address of a named peer, or "@" and a file of such.
func PeerSource() Codec[string] {
	return atom("string", "multiaddrs with /p2p/, or @FILE with one a line", func(s string) (string, error) {
		if name, ok := strings.CutPrefix(s, "@"); ok {
			return s, fileName(name)
		}
		a, err := parseAddr(s)
		if err == nil && !has(a, multiaddr.P_P2P) {
			err = errors.New("does not name the peer: /p2p/ and its id are missing")
		}
		return s, err
	}, same)
}
