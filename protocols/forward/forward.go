// Package forward carries a stream over a chain of relays that its source chose,
// each of which learns only its neighbours: from whom it has the stream, and to
// whom it passes it on.
//
// Between two neighbours there is one libp2p stream of /openmesh/forward/1.0.0:
//
//	source            relay 1            relay 2            target
//	  │ envelope 10,800  │                  │                  │
//	  ├─────────────────▶│ envelope 10,800  │                  │
//	  │◀─── waiting 1 ───┤─────────────────▶│ envelope 10,800  │
//	  │                  │◀─── waiting 1 ───┤─────────────────▶│
//	  │                  │                  │◀─── waiting 1 ───┤
//	  │                  │◀── status 109 ───┤◀── status 109 ───┤
//	  │◀── status 109 ───┤                  │                  │
//	  │◀═══════════════ records, spliced by the relays ═══════▶│
//
// Sizes are in bytes and constant, so no message has a length. The setup costs
// one round trip along the chain; no record is sent before its status. A hop says
// "waiting", a byte 1, as soon as it has opened its envelope, and then each second
// until its status, which begins with a byte 2.
//
// # Envelope
//
// An envelope has five slots: one for each of at most four relays and the target.
// A hop opens the first and turns the rest into the envelope of the next hop, of the
// same size: it learns neither the length of the chain nor its own place. The
// layout is that of Sphinx (Danezis, Goldberg, 2009) with an HPKE encapsulation
// (RFC 9180, base mode) to each hop's certified mailbox key in place of its
// blinded keys: X25519 with ML-KEM-768, HKDF-SHA256, AES-256-GCM.
//
//	slot      2,160  enc 1,120 ‖ AEAD(layer 1,024) with the other four slots as associated data
//	envelope  5 × 2,160
//	info      "openmesh/forward/1.0.0 envelope" ‖ peer id of the hop
//	layer     length uint16 big-endian ‖ forwardpb.Layer ‖ zeros
//	next      AES-256-CTR(rest key; the other four slots ‖ 2,160 zeros)
//
// So every byte is authenticated at every hop. What is behind the target's slot and
// not there because of the zeros is random. Each hop's keys are one export of its
// HPKE context, for "openmesh/forward/1.0.0 keys":
//
//	path 16 ‖ rest 32 ‖ status 32 ‖ wrap 32 ‖ reset 32 ‖ ahead 4 ‖ back 4 ‖ records 32
//
// A hop refuses an envelope that has expired ([MaxLife], and [identity.ClockSkew]
// on either side), and one that it has seen: it remembers path until the
// envelope cannot be valid any more. A hop that restarts forgets; what a replay
// gets then is a circuit over which nothing opens, for the target's salt is another.
//
// # Status
//
// The hop at which the setup ends, the target or one that cannot go on, seals a
// status with its status key; each relay on the way back encrypts it again with its
// wrap key, as Lightning does with errors (BOLT 4). The source peels until it opens:
// so it knows who made it, and no relay learns how far away that was, or whether
// the setup succeeded.
//
//	cell  108  nonce 12 ‖ AES-256-GCM(length uint8 ‖ forwardpb.Status ‖ zeros to 80)
//	wrap       XOR with AES-256-CTR(wrap key)
//
// A hop that cannot open the envelope, or has no room, has no key to seal with: it
// resets the stream with a [wire.Code], and the relay before it tells.
//
// # Resets
//
// Once a hop has sent its status, or passed one on, the code of a reset stream is
// a word of 32 bits that means something to one end only:
//
//	word  HMAC-SHA256(reset key, direction ‖ low byte)[:3] ‖ low byte
//	low   wire.Code − wire.Internal, 7 bits ‖ 1 if it is about the next hop
//
// Each relay that passes it on XORs its mask for the direction, ahead or back. So a
// relay that loses its neighbour tells the source, which knows who told.
//
// # Records
//
//	record  length uint16 big-endian of what follows ‖ AES-256-GCM(1 to 32,750 bytes)
//	end     a record of no bytes; a stream that ends without one was cut
//	secret  HKDF-Extract(salt: the status's, IKM: records key of the target), SHA-256
//	        then HKDF-Expand(·, "openmesh/forward/1.0.0 " + "source" or "target"), one per writer
//	key     HKDF-Expand(secret, "key"), iv likewise; nonce: iv XOR number of the record
//	next    HKDF-Expand(secret, "next") replaces secret after 2^20 records
//
// The target is authenticated by opening the envelope; the source is not, and
// there is no forward secrecy against who learns the target's mailbox key later:
// both come from the session inside.
//
// # Times
//
//	5 s   to send a whole envelope, or for a byte of an answer to go out
//	5 s   to connect to the next hop
//	3 s   for the next hop to say something, until its status
//	40 s  for the status, in all
//
// They are the same for every hop, since a budget that shrinks from hop to hop would
// tell each its place. A hop that is dead, or dies during the setup, is found by the
// one before it, which hears nothing, while the others still hear that theirs wait.
package forward

import (
	"context"
	"crypto/hpke"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"openmesh/protocols/identity"
	"openmesh/protocols/wire"
)

const (
	// Protocol is what neighbours on a path speak.
	Protocol protocol.ID = "/openmesh/forward/1.0.0"

	// ProbeProtocol is answered by every hop as a target: yes, and that is all.
	ProbeProtocol protocol.ID = "/openmesh/forward/1.0.0/probe"

	// MaxHops bounds the relays of a path; the target is not counted.
	MaxHops = 4

	// MaxLife bounds how long an envelope is valid.
	MaxLife = time.Minute

	// MaxAddrs bounds the addresses of a hop that travel.
	MaxAddrs = 8
)

const (
	service     = "openmesh.forward"
	maxProtocol = 128 // bytes

	sendTime   = 5 * time.Second
	dialTime   = 5 * time.Second
	waitEvery  = time.Second
	aliveTime  = 3 * waitEvery
	answerTime = 40 * time.Second
)

// Hop is a relay or a target: where it is, and the key that its certificate
// binds to it.
type Hop struct {
	Peer  peer.ID
	Addrs []ma.Multiaddr // best first; what does not fit into an envelope is left out
	KEM   uint16         // HPKE code point; only that of identity.MailboxKEM
	Key   []byte         // serialized HPKE public key
}

// HopOf returns the hop that c, which the caller has verified, is about.
func HopOf(c *identity.Certificate, addrs []ma.Multiaddr) Hop {
	return Hop{Peer: c.Peer, Addrs: addrs, KEM: c.MailboxKEM, Key: c.MailboxKey}
}

func (h Hop) key() (hpke.PublicKey, error) {
	if h.KEM != identity.MailboxKEM.ID() {
		return nil, wire.Errorf(wire.Unsupported, "%s has a mailbox key of KEM %#04x", h.Peer, h.KEM)
	}
	key, err := identity.MailboxKEM.NewPublicKey(h.Key)
	if err != nil {
		return nil, wire.Errorf(wire.InvalidArgument, "mailbox key of %s: %w", h.Peer, err)
	}
	return key, nil
}

// Path is a chain of 1 to [MaxHops] relays and the target behind them. No host may
// be in it twice.
type Path struct {
	Hops   []Hop
	Target Hop
}

// all returns the relays and the target.
func (p Path) all() []Hop { return append(p.Hops[:len(p.Hops):len(p.Hops)], p.Target) }

func (p Path) check() error {
	if n := len(p.Hops); n == 0 || n > MaxHops {
		return wire.Errorf(wire.InvalidArgument, "a path over %d relays", n).WithHint("Choose 1 to %d relays.", MaxHops)
	}
	seen := make(map[peer.ID]bool)
	for _, h := range p.all() {
		if err := h.Peer.Validate(); err != nil {
			return wire.Errorf(wire.InvalidArgument, "a hop without a peer id: %w", err)
		}
		if seen[h.Peer] {
			return wire.Errorf(wire.InvalidArgument, "%s is twice in the path", h.Peer).WithHint("Choose distinct relays.")
		}
		seen[h.Peer] = true
	}
	return nil
}

// A Dialer opens streams to hosts whose addresses may be known to the caller only.
// Peers choose what a relay dials: the Dialer refuses addresses that it must not
// reach for others, and uses limited connections if it wants to.
type Dialer interface {
	NewStream(ctx context.Context, p peer.ID, addrs []ma.Multiaddr, id protocol.ID) (network.Stream, error)
}
