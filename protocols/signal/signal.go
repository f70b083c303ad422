// Package signal sets sessions up: both sides learn for certain who the other
// is, agree on suite and terms, and hold a secret that nobody else has.
//
//	initiator                                   responder
//	Offer   versions, both agent ids, certificate,
//	        nonce, time, suites, ephemeral KEM keys,
//	        transports, protocols, contract      ──────▶
//	        ◀──────  Answer   version, certificate, nonce, suite,
//	                          enc, transports, protocols, contract
//	Confirm transcript, ahead of the first frame ──────▶
//
// Offer and Answer are the request and response of one stream of [Protocol],
// each one frame of at most [MaxMessage] bytes. Confirm opens the session's first
// channel, in the same flight as the first sealed frame: a request on a new
// session has its response after two round trips. A responder that refuses sends
// a Refusal with a wire.Code in place of the Answer.
//
// Every message is signed with its sender's host key, over all that went before:
//
//	offer    "openmesh-signal-offer-v1:"   ‖ payload
//	answer   "openmesh-signal-answer-v1:"  ‖ SHA-256(offer payload) ‖ payload
//	confirm  "openmesh-signal-confirm-v1:" ‖ transcript ‖ payload
//
//	transcript = SHA-256("openmesh-signal-transcript-v1:" ‖
//	             len(offer payload) ‖ offer payload ‖ len(answer payload) ‖ answer payload)
//
// with lengths as 8 bytes, big-endian. So nothing can be downgraded, replayed,
// spliced or attributed to another without a signature failing (SIGMA; Krawczyk
// 2003). The secret comes from HPKE (RFC 9180, base mode): the responder
// encapsulates to the initiator's ephemeral key with
// info = "openmesh/session/v1" ‖ SHA-256(offer payload), and both export
//
//	secret  = Export("openmesh/session/v1/secret" ‖ transcript, 32)
//	session = first 16 bytes of SHA-256("openmesh/session/v1/id" ‖ transcript)
//
// An offer may name a session to go on with, whose keys were lost in a restart.
// Then that is the session, its contract stays, and the secret is as fresh as that
// of a new one. The other side agrees only if it knows the session, and as one
// with the agent that now proves itself.
//
// Offers are answered within a window of [identity.ClockSkew] around their time
// and once only. Limits: signaling messages 64 KiB; inbound offers by rate, per
// peer and in all; unconfirmed sessions by number, and six times [Config].Timeout.
package signal

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"

	"openmesh/protocols/identity"
)

const (
	// Protocol is the libp2p protocol id.
	Protocol = "/openmesh/signal/1.0.0"

	// MaxMessage bounds a signaling message, in bytes.
	MaxMessage = 64 << 10

	// Version is the version of the session protocol that this package speaks.
	Version = 1

	nonceSize = 32
	maxSuites = 16
	maxLists  = 64 // entries of any other repeated field
)

// ID names a session: 16 bytes derived from its transcript.
type ID [16]byte

// String returns the id as 32 hex digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// bytes returns the id as it travels; the zero id is none.
func (id ID) bytes() []byte {
	if id == (ID{}) {
		return nil
	}
	return id[:]
}

// Local is this side: its certificate and the host key that it certifies.
type Local struct {
	Certificate *identity.Certificate
	Key         crypto.PrivKey
}

// Terms are what one side brings to the exchange.
type Terms struct {
	Suites     []Suite // best first
	Contract   Contract
	Transports []Transport
	Protocols  []AppProtocol

	// Choose picks the version of a protocol from those of two sides. It must not
	// matter which side asks, and what is chosen must be among those of each. Nil:
	// the highest that both name.
	Choose func(ours, theirs []string) (version string, ok bool)

	// Resume, if not zero, is a session to go on with: then Contract is the one
	// that it has.
	Resume ID

	// Begin, with Resume, has the other side begin the session if it does not have
	// it. The contract is what is offered then.
	Begin bool
}

// Transport is a way to open channels.
type Transport struct {
	Name  string   // quic-v1, tcp, ws, …
	Addrs [][]byte // multiaddrs
}

// AppProtocol is an application protocol with the versions spoken.
type AppProtocol struct {
	Name     string
	Versions []string
}

// Established is what both sides hold in the end. The two differ only in Peer
// and Initiator.
type Established struct {
	ID        ID
	Peer      *identity.Certificate // the other side's
	Initiator bool                  // this side made the offer
	Suite     Suite
	Contract  Contract
	Protocols []AppProtocol // with the version chosen

	Transports []Transport // of the other side, best first
	Resumed    bool        // ID was not made by this exchange: the session was there before, or begins by Begin
	Begin      bool        // of the responder: it does not have the session yet
	Secret     [32]byte    // erase after deriving keys
	At         time.Time
}

const (
	offerDomain   = "openmesh-signal-offer-v1:"
	answerDomain  = "openmesh-signal-answer-v1:"
	confirmDomain = "openmesh-signal-confirm-v1:"
)

type hash = [sha256.Size]byte

func transcriptOf(offer, answer []byte) hash {
	h := sha256.New()
	h.Write([]byte("openmesh-signal-transcript-v1:"))
	for _, part := range [][]byte{offer, answer} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		h.Write(n[:])
		h.Write(part)
	}
	return hash(h.Sum(nil))
}

func idOf(transcript hash) ID {
	h := sha256.Sum256(append([]byte("openmesh/session/v1/id"), transcript[:]...))
	return ID(h[:16])
}

func hpkeInfo(offer []byte) []byte {
	h := sha256.Sum256(offer)
	return append([]byte("openmesh/session/v1"), h[:]...)
}

func secretContext(transcript hash) string {
	return "openmesh/session/v1/secret" + string(transcript[:])
}
