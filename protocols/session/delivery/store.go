package delivery

import (
	"context"
	"time"

	"openmesh/protocols/wire"
)

// SessionID names a session; it is a signal.ID.
type SessionID = [16]byte

// Message is one message of a session in one direction.
type Message struct {
	Sequence   uint64 // counts the messages of this direction from 1; the outbox gives it
	Key        string // idempotency key; unique within session and direction; at most 256 bytes
	Capability string // whose handler takes it; empty: the peer's inbox
	Version    string // semantic version range of the capability that will do
	Schema     string // name@vVERSION of the body's schema, if it was said
	Encoding   uint8  // a session.Encoding
	Body       []byte

	Traceparent   string // W3C trace context
	Tracestate    string
	CorrelationID string

	Accepted time.Time // when the outbox took it
	Expires  time.Time // not delivered by then: expired

	// Redelivered says that an earlier transmission may have reached a handler
	// whose outcome the sender never learned.
	Redelivered bool

	// Attempt counts the transmissions of this message by an outbox since its
	// start. A refusal names it. It is not stored.
	Attempt uint32
}

// Status is how far a message has come. Values are stored: append only.
type Status uint8

// The states of a message. All but Pending are final.
const (
	Pending   Status = iota // accepted: on disk, on its way
	Delivered               // the handler answered, or the peer's inbox has it on disk
	Failed                  // it never will be: Code says why
	Expired                 // not delivered within its time
)

// Outcome is what became of a message.
type Outcome struct {
	Status   Status
	Code     wire.Code // of Failed
	Pointers []string  // JSON pointers of Failed; at most 16
	Encoding uint8     // of Response
	Response []byte    // what the handler answered, if there was a handler
	Attempts uint32    // transmissions
	At       time.Time // when it became final
}

// Change is one write to a [Store].
type Change interface{ change() }

// The changes. Each belongs to one session; those of one session are applied in
// the order given.
type (
	// SaveSession stores what a session needs to go on after a restart, in place
	// of what was stored of it before.
	SaveSession struct {
		Session SessionID
		Data    []byte // of the session package
	}

	// ForgetSession removes all that was stored of a session.
	ForgetSession struct{ Session SessionID }

	// Enqueue adds a message to the outbox. A second one with the same key is an
	// error that wraps wire.AlreadyExists.
	Enqueue struct {
		Session SessionID
		Message *Message // not changed any more
	}

	// Settle gives a message of the outbox its outcome; the body is dropped.
	Settle struct {
		Session  SessionID
		Sequence uint64
		Outcome  Outcome
	}

	// PruneOutbox forgets settled messages of the outbox whose outcome is of
	// before Before.
	PruneOutbox struct {
		Session SessionID
		Before  time.Time
	}

	// Receive adds a message to the inbox. One with a sequence that is there
	// changes nothing.
	Receive struct {
		Session SessionID
		Message *Message
	}

	// Consume removes messages from the inbox up to and including Cursor, and
	// remembers the highest Cursor.
	Consume struct {
		Session SessionID
		Cursor  uint64
	}

	// Finish adds what a handler answered to the idempotency window.
	Finish struct {
		Session  SessionID
		Sequence uint64
		Outcome  Outcome
	}

	// Advance raises the floor of the idempotency window: everything below Floor
	// is settled for good, and what was kept of it is removed.
	Advance struct {
		Session SessionID
		Floor   uint64
	}
)

func (SaveSession) change()   {}
func (ForgetSession) change() {}
func (Enqueue) change()       {}
func (Settle) change()        {}
func (PruneOutbox) change()   {}
func (Receive) change()       {}
func (Consume) change()       {}
func (Finish) change()        {}
func (Advance) change()       {}

// Store keeps what must outlive the process. It is safe for concurrent use.
//
// Writes gather and are committed together: one fsync serves all that came while
// the one before was under way.
type Store interface {
	// Commit applies c and then calls done from a goroutine of the store, which
	// it must not hold up. With durable, done is called once c and all changes
	// given before it would survive a power failure; without, once they would
	// survive the end of the process, which may be later. Done may be nil. A
	// failed change affects no other. After Close done gets an error.
	Commit(c Change, durable bool, done func(error))

	// Sessions returns the data of every session saved.
	Sessions(ctx context.Context) (map[SessionID][]byte, error)

	// Outbox returns pending messages with a sequence above after, in order, at
	// most limit; and the highest sequence that the session ever gave.
	Outbox(ctx context.Context, s SessionID, after uint64, limit int) (pending []Message, last uint64, err error)

	// Outcome returns what became of the message with key, and its sequence;
	// wire.NotFound if there is none.
	Outcome(ctx context.Context, s SessionID, key string) (uint64, Outcome, error)

	// Inbox returns received messages with a sequence above after, in order, at
	// most limit; and the highest cursor consumed.
	Inbox(ctx context.Context, s SessionID, after uint64, limit int) (messages []Message, cursor uint64, err error)

	// Window returns the idempotency window: its floor, and what was finished at
	// or above it.
	Window(ctx context.Context, s SessionID) (floor uint64, finished map[uint64]Outcome, err error)
}
