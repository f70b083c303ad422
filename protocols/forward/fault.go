package forward

import (
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"openmesh/protocols/wire"
)

// Fault is why a path failed, and where: [errors.As] finds it in the errors of
// [Dial] and of a [Conn] at its source. What a relay says about itself and the next
// hop is known to be from that relay; whether it is true is not.
type Fault struct {
	Code  wire.Code
	Peer  peer.ID // the hop that failed or could not be reached
	Place int     // of Peer: 1 is the first relay, one more than there are relays the target
	By    int     // place of the hop that tells; 0 is the source
	Lost  bool    // the circuit stood before

	peers []peer.ID // relays and target
}

func newFault(peers []peer.ID, by int, s status, lost bool) *Fault {
	f := &Fault{Code: s.code, By: by, Place: by, Lost: lost, peers: peers}
	if s.next && by < len(peers) {
		f.Place++
	}
	if f.Place > 0 {
		f.Peer = peers[f.Place-1]
	}
	return f
}

// Error tells it with the places and peer ids of the hops.
func (f *Fault) Error() string {
	failed, teller := f.name(f.Place), f.name(f.By)
	switch {
	case f.Place == f.By && f.Lost:
		return fmt.Sprintf("%s ended the circuit: %s", failed, f.Code)
	case f.Place == f.By:
		return fmt.Sprintf("%s refused: %s", failed, f.Code)
	case f.Lost:
		return fmt.Sprintf("%s lost %s", teller, failed)
	case f.Code == wire.Unreachable:
		return fmt.Sprintf("%s could not reach %s", teller, failed)
	}
	return fmt.Sprintf("%s was refused by %s: %s", teller, failed, f.Code)
}

// Unwrap returns the code.
func (f *Fault) Unwrap() error { return f.Code }

func (f *Fault) name(place int) string {
	switch {
	case place == 0:
		return "this node"
	case place == len(f.peers):
		return fmt.Sprintf("the target (%s)", f.peers[place-1])
	}
	return fmt.Sprintf("relay %d of %d (%s)", place, len(f.peers)-1, f.peers[place-1])
}

// failure is the error of f for a person.
func (f *Fault) failure() error {
	err := wire.Errorf(f.Code, "%w", f)
	switch {
	case f.Code == wire.Unreachable && f.Place < len(f.peers):
		return err.WithHint("Choose another relay in its place.")
	case f.Code == wire.ResourceExhausted:
		return err.WithHint("Try again later, or over other relays.")
	}
	return err
}
