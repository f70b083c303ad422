// Package mailbox keeps letters at relays for agents that are away.
//
//	depositor               relay                          recipient
//	                          ◀── Register certificate, lifetime ──
//	                          ── Registered expires, quota ──▶       for 30 days, say
//	── Deposit, body ──▶                                     (away)
//	◀── Stored until ──     on disk
//	                          ◀── Collect certificate, after ──      is back
//	                          ── Item cursor, body ──▶
//	                          ── Item cursor, body ──▶               and so on, as letters come
//	                          ◀── Ack done, later ──
//	                        deleted
//
// Each line of a depositor, Register and Forget is a stream of [Protocol] of its
// own; Collect is one that stays open. What is sent are frames (package wire):
//
//	Request           ≤ 8 KiB         opens every stream
//	body of a letter  ≤ [MaxBody]     follows a Deposit and each Item; not read before it is wanted
//	Ack               ≤ 4 KiB
//	others            ≤ 256 bytes
//
// A relay that refuses resets the stream with a wire.Code:
//
//	not_found            nobody has registered here for the recipient
//	resource_exhausted   the mailbox, the depositor's share of it, or the relay is full, or deposits come too fast
//	too_large            the body is over MaxBody
//	invalid_argument     expires is more than [MaxTTL] away
//	replayed             the letter has expired
//	denied               policy
//	key_expired, key_superseded, unauthenticated   the certificate of Register, Forget or Collect
//	already_exists       ends a Collect: the recipient has opened another
//
// # Delivery
//
// A letter is stored once however often it is deposited, comes in the order of
// its cursor, and comes again with each Collect until it is acknowledged.
// At most 64 letters or 8 MiB are under way unacknowledged. A sender that wants
// its letter to survive a relay leaves the same one with several; package
// collector delivers it once. Time limits: a request 10 s, a deposit 30 s, an item 2 min.
//
// # What a relay learns and can do
//
// It sees the recipient, the sizes in steps of at most 12 % (Padmé; Nikitin et
// al., PoPETs 2019), the times, and the depositor's peer id. Who wrote a letter
// and what it says is sealed to the recipient:
//
//	body       = Sealed{key version, HPKE(info, aad, plaintext)}
//	info       = "openmesh/mailbox/v1"
//	aad        = key version (4) ‖ expires (8, Unix seconds) ‖ letter id (16) ‖ recipient
//	plaintext  = frame of the envelope ‖ zeros up to the step
//	envelope   = libp2p signed envelope of Content{recipient, id, created, expires, certificate, payload}
//
// integers big-endian. So a relay can withhold letters, and drop or repeat them;
// it cannot make, alter, redirect or attribute one. A repeated letter is dropped
// by the collector while it remembers it: until the letter expires, but at most
// the last 4,096 letters, and after a crash not those of the last 5 s. Beyond
// that, the payload has to be one that may come twice.
//
// A sender's certificate counts if it was valid when the letter was created, for
// a sender may rotate its key while the letter waits. Whoever steals a key that
// was rotated away can thus write letters as of before for MaxTTL after.
package mailbox

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"openmesh/protocols/identity"
)

// Protocol is the libp2p protocol id.
const Protocol protocol.ID = "/openmesh/mailbox/1.0.0"

const (
	// MaxPayload bounds what a letter carries, in bytes: a session's largest
	// message and its headers.
	MaxPayload = 4<<20 + 64<<10
	// MaxBody bounds a letter's sealed body, in bytes.
	MaxBody = 4<<20 + 132<<10
	// MaxTTL bounds how long a letter waits.
	MaxTTL = 7 * 24 * time.Hour
	// MaxLifetime bounds a registration.
	MaxLifetime = 30 * 24 * time.Hour
)

const (
	maxRequest = 8 << 10
	maxAck     = 4 << 10
	maxSmall   = 256 // bytes of the other frames

	requestTime = 10 * time.Second // for a request and its answer; for a frame once it has begun
	depositTime = 30 * time.Second // for a deposit
	itemTime    = 2 * time.Minute  // for one item and its body

	maxFlight      = 64      // letters sent and not acknowledged
	maxFlightBytes = 8 << 20 // or bytes, but always one letter
)

// Entry is a letter as a relay holds it.
type Entry struct {
	Letter
	Cursor    uint64    // its place among the recipient's letters
	Depositor peer.ID   // who brought it
	Until     time.Time // when it is dropped, whole seconds; at most Letter.Expires
}

// Quota bounds what is held for one recipient, and how much of that one depositor may
// take: of letters and of bytes each a part of what is left free for others.
//
//	letters of the depositor before      × Share  <  Letters - letters held before
//	bytes of the depositor with this one × Share  ≤  Bytes   - bytes held with this one
//
// So the more there is, the less anybody may add, and who comes with little finds room
// (dynamic thresholds; Choudhury and Hahne, IEEE/ACM ToN 1998). Of bytes, an empty
// mailbox takes any letter that it can hold.
type Quota struct {
	Letters int
	Bytes   int64 // of bodies
	Share   int   // 0: one depositor may take all
}

// Box is a recipient's registration and what is held for it.
type Box struct {
	Version uint32    // of the key certificate that it was registered with
	Expires time.Time // of the registration, whole seconds
	Letters int
	Bytes   int64 // of bodies
}

// Usage is what a store holds in all.
type Usage struct {
	Recipients, Letters int
	Bytes               int64 // of bodies
}

// Store keeps registrations and letters. What a method has reported as done
// survives a power failure. Several relays may share one; package mailboxtest
// has what every implementation must do.
type Store interface {
	// Register keeps letters for recipient until expires, or renews that. Errors:
	// wire.KeySuperseded if it was registered with a higher key version,
	// wire.ResourceExhausted if most others are registered.
	Register(ctx context.Context, recipient identity.AgentID, version uint32, expires time.Time, most int) error

	// Forget drops a registration and its letters. If there is none, that is no
	// error.
	Forget(ctx context.Context, recipient identity.AgentID) error

	// Box returns a recipient's registration, which may have expired, or
	// wire.NotFound.
	Box(ctx context.Context, recipient identity.AgentID) (Box, error)

	// Deposit stores a letter under a cursor above all that the recipient ever had;
	// e.Cursor is ignored. A letter that is held already ([Letter.Digest]) stays as
	// it is, which is no error. Errors: wire.NotFound if the recipient is not
	// registered at now, wire.ResourceExhausted over q.
	Deposit(ctx context.Context, e Entry, q Quota, now time.Time) error

	// Read returns the first letters with a cursor above after that are not due to
	// be dropped, in order: at most limit, and of at most bytes, but always one. A
	// letter that is stored later never gets a cursor below one returned.
	Read(ctx context.Context, recipient identity.AgentID, after uint64, limit int, bytes int64, now time.Time) ([]Entry, error)

	// Remove deletes the letters with these cursors and returns how many there were.
	Remove(ctx context.Context, recipient identity.AgentID, cursors []uint64) (int, error)

	// Expire deletes up to most letters that are due to be dropped, and returns how
	// many there were; and registrations that have expired and hold nothing.
	Expire(ctx context.Context, now time.Time, most int) (int, error)

	// Last returns the highest cursor ever given for each of the recipients that is
	// registered.
	Last(ctx context.Context, recipients []identity.AgentID) (map[identity.AgentID]uint64, error)

	// Usage returns what is held.
	Usage(ctx context.Context) (Usage, error)
}
