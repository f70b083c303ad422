package nat

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// behind is what is seen of a host behind a NAT.
func behind(m Mapping) View {
	return View{Mapping: m, Observers: 2, Outer: []Outer{{netip.MustParseAddrPort("9.9.9.9:4747"), 4747}}}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	port := []uint16{4747}
	easy := TransportEvidence{Ports: port, Seen: behind(EndpointIndependent)}
	symmetric := TransportEvidence{Ports: port, Seen: behind(EndpointDependent)}
	open := TransportEvidence{Ports: port, Seen: behind(NoNAT)}
	confirmed := TransportEvidence{Ports: port, Seen: behind(EndpointIndependent), Reachable: []string{"/ip4/9.9.9.9/tcp/4747"}}
	silent := TransportEvidence{Ports: port, Blocked: true}
	nothing := TransportEvidence{Ports: port}
	for _, tc := range []struct {
		name string
		e    Evidence
		want Reachability
		kind string
		help []string // begins of hints
	}{
		{"nothing known", Evidence{TCP: nothing, UDP: nothing, Circuits: true}, Unsure, "not known yet", nil},
		{"configured", Evidence{Forced: true, DialBack: Private, TCP: easy, UDP: easy}, Public, "easy NAT", nil},
		{"dialled back", Evidence{DialBack: Public, TCP: open, UDP: open}, Public, "no NAT", nil},
		{"one address confirmed", Evidence{DialBack: Private, TCP: confirmed, UDP: easy}, Public, "easy NAT", nil},
		{"NAT, early", Evidence{TCP: easy, UDP: easy, Waited: 2 * time.Second, Circuits: true}, Unsure, "easy NAT", nil},
		{"NAT, long enough", Evidence{TCP: easy, UDP: easy, Waited: patience, Circuits: true, Relays: 2}, Private, "easy NAT",
			[]string{"Forward TCP and UDP port 4747 to this machine"}},
		{"symmetric, no relay", Evidence{DialBack: Private, TCP: easy, UDP: symmetric, Circuits: true}, Private, "symmetric NAT",
			[]string{"Symmetric NAT:", "Forward TCP and UDP port 4747", "No relay is configured or found"}},
		{"UDP blocked", Evidence{DialBack: Private, TCP: easy, UDP: silent, Circuits: true, Relays: 1}, Private, "easy NAT, UDP blocked",
			[]string{"UDP is blocked", "Forward TCP"}},
		{"a firewall without a NAT", Evidence{DialBack: Private, TCP: open, UDP: open, Circuits: true, Relays: 1}, Private, "no NAT, but a firewall",
			[]string{"Forward TCP"}},
		{"relays off", Evidence{DialBack: Private, TCP: easy, UDP: easy}, Private, "easy NAT",
			[]string{"Forward", "Relays are not used: set networking.relay_fallback"}},
		{"blocked once, seen since", Evidence{TCP: easy, UDP: TransportEvidence{Seen: behind(Unknown), Blocked: true}}, Unsure, "easy NAT", nil},
		{"refuted", Evidence{TCP: TransportEvidence{Refuted: []string{"/ip4/9.9.9.9/tcp/4747"}}, Circuits: true, Relays: 1}, Private, "not known yet", nil},
	} {
		s := Judge(tc.e)
		if s.Reachability != tc.want || s.Kind != tc.kind || len(s.Help) != len(tc.help) {
			t.Errorf("%s: %s, %q, %q; want %s, %q, %q", tc.name, s.Reachability, s.Kind, s.Help, tc.want, tc.kind, tc.help)
			continue
		}
		for i, h := range tc.help {
			if !strings.HasPrefix(s.Help[i], h) {
				t.Errorf("%s: hint %q, want %q…", tc.name, s.Help[i], h)
			}
		}
	}
}

func TestForwardNamesPorts(t *testing.T) {
	t.Parallel()
	e := Evidence{TCP: TransportEvidence{Ports: []uint16{4747, 4748}}, UDP: TransportEvidence{Ports: []uint16{4747}}}
	if got := e.forward(); got != "TCP port 4747, 4748 and UDP port 4747" {
		t.Errorf("%q", got)
	}
}
