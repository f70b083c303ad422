package nat

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Reachability says whether strangers can connect to a host at an address of its
// own.
type Reachability string

// The verdicts.
const (
	Public  Reachability = "public"
	Private Reachability = "private"
	Unsure  Reachability = "unknown"
)

// Evidence is what is known about where a host stands.
type Evidence struct {
	Forced   bool          // the configuration says that it is public
	DialBack Reachability  // what peers that dialled back say (AutoNAT v1)
	Waited   time.Duration // since a peer first saw this host

	TCP, UDP TransportEvidence

	Relays   int  // reservations held
	Circuits bool // relays may be used
}

// TransportEvidence is the part of one network, "tcp" or "udp".
type TransportEvidence struct {
	Ports     []uint16 // listened on
	Reachable []string // addresses that peers confirmed one by one (AutoNAT v2)
	Refuted   []string // addresses that they could not reach
	Seen      View
	Blocked   bool // dials fail where those of the other network do not
}

// Standing is where a host stands in the network.
type Standing struct {
	Reachability Reachability
	Kind         string   // of NAT, in words: "no NAT", "easy NAT", "symmetric NAT", …
	Help         []string // what would make it better, for people
	TCP, UDP     Transport
}

// Transport is how one network, "tcp" or "udp", is reached.
type Transport struct {
	Reachable []string // confirmed addresses
	Observed  []string // outer addresses, host:port
	Mapping   Mapping
	Blocked   bool // nothing gets out
}

// patience is how long a host behind a NAT may take to prove that it is reached
// nevertheless; a dial-back that succeeds takes two or three seconds, one that
// fails fifteen.
const patience = 10 * time.Second

// Judge weighs the evidence.
func Judge(e Evidence) Standing {
	s := Standing{Reachability: e.reachability(), TCP: e.TCP.sum(), UDP: e.UDP.sum()}
	s.Kind = s.kind()
	if s.Reachability != Public {
		s.Help = e.help(s)
	}
	return s
}

func (e Evidence) reachability() Reachability {
	refuted := len(e.TCP.Refuted)+len(e.UDP.Refuted) > 0
	switch {
	case e.Forced, len(e.TCP.Reachable) > 0, len(e.UDP.Reachable) > 0:
		return Public
	case e.DialBack != Unsure && e.DialBack != "":
		return e.DialBack
	case refuted, e.translated() && e.Waited >= patience:
		return Private
	}
	return Unsure
}

// translated reports whether a NAT is certainly there.
func (e Evidence) translated() bool {
	return slices.ContainsFunc([]View{e.TCP.Seen, e.UDP.Seen}, func(v View) bool {
		return v.Observers > 0 && v.Mapping != NoNAT
	})
}

func (t TransportEvidence) sum() Transport {
	out := Transport{Reachable: t.Reachable, Mapping: t.Seen.Mapping, Blocked: t.Blocked && t.Seen.Observers == 0}
	for _, o := range t.Seen.Outer {
		out.Observed = append(out.Observed, o.Addr.String())
	}
	return out
}

func (s Standing) kind() string {
	mapping := s.UDP.Mapping
	if mapping == Unknown || mapping == "" {
		mapping = s.TCP.Mapping
	}
	kind := "not known yet"
	switch mapping {
	case NoNAT:
		kind = "no NAT"
		if s.Reachability == Private {
			kind = "no NAT, but a firewall"
		}
	case EndpointIndependent:
		kind = "easy NAT"
	case EndpointDependent:
		kind = "symmetric NAT"
	default:
		if len(s.TCP.Observed)+len(s.UDP.Observed) > 0 {
			kind = "NAT of a kind not known yet"
		}
	}
	if s.UDP.Blocked {
		kind += ", UDP blocked"
	}
	return kind
}

// help says what a person can do.
func (e Evidence) help(s Standing) []string {
	var hints []string
	if s.UDP.Blocked {
		hints = append(hints, "UDP is blocked: allow outgoing UDP, else connections use TCP")
	}
	if s.Reachability != Private {
		return hints
	}
	if s.TCP.Mapping == EndpointDependent || s.UDP.Mapping == EndpointDependent {
		hints = append(hints, "Symmetric NAT: peers are reached through relays unless they have a public address; port forwarding or UPnP helps")
	}
	if ports := e.forward(); ports != "" {
		hints = append(hints, fmt.Sprintf("Forward %s to this machine", ports))
	}
	switch {
	case !e.Circuits:
		hints = append(hints, "Relays are not used: set networking.relay_fallback: true, else nobody can reach this node")
	case e.Relays == 0:
		hints = append(hints, "No relay is configured or found: nobody can reach this node")
	}
	return hints
}

// forward names the ports that a router would have to forward.
func (e Evidence) forward() string {
	var parts []string
	same := len(e.TCP.Ports) == 1 && slices.Equal(e.TCP.Ports, e.UDP.Ports)
	if same {
		return fmt.Sprintf("TCP and UDP port %d", e.TCP.Ports[0])
	}
	for _, n := range []struct {
		name  string
		ports []uint16
	}{{"TCP", e.TCP.Ports}, {"UDP", e.UDP.Ports}} {
		if len(n.ports) > 0 {
			parts = append(parts, fmt.Sprintf("%s port %s", n.name, strings.Trim(strings.ReplaceAll(fmt.Sprint(n.ports), " ", ", "), "[]")))
		}
	}
	return strings.Join(parts, " and ")
}
