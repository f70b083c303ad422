package node

import (
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"openmesh/node/config"
	"openmesh/protocols/forward"
	"openmesh/protocols/identity"
)

// Only the configuration makes a neighbour a relay that always may ask for many paths:
// in its own descriptor anybody calls himself one.
func TestForwardQuota(t *testing.T) {
	t.Parallel()
	settings, err := config.Load(t.TempDir(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{settings: settings, relays: newRelays()}
	for _, i := range []relayInfo{
		{services: []string{serviceForward}, configured: true, certificate: &identity.Certificate{Peer: "configured"}},
		{services: []string{serviceForward}, certificate: &identity.Certificate{Peer: "claims"}},
		{services: []string{serviceMailbox}, configured: true, certificate: &identity.Certificate{Peer: "mailbox"}},
	} {
		n.relays.put(i)
	}
	for p, want := range map[peer.ID]forward.Quota{
		"configured": {Circuits: 256, Spare: 256},
		"claims":     {Circuits: 16, Spare: 256},
		"mailbox":    {Circuits: 16},
		"agent":      {Circuits: 16},
	} {
		if got := n.forwardQuota(p); got != want {
			t.Errorf("%s: %+v, want %+v", p, got, want)
		}
	}
}
