package wire

import (
	"errors"
	"fmt"
)

// Code says why something was refused or failed. It is what travels: as the
// error code of a reset stream (libp2p stream reset codes), in refusals, error
// frames and API errors. Codes are a closed list; append only.
type Code uint32

// The codes. Those marked "retry" may succeed if tried again later or
// elsewhere; the others fail again unless something is changed.
const (
	Internal           Code = 0x100 + iota // the answering side's fault; details are in its log
	Malformed                              // a message that cannot be decoded or breaks the protocol
	TooLarge                               // a message over its limit
	Denied                                 // policy refuses the peer or the request
	ResourceExhausted                      // a limit on streams, sessions, requests or rates (retry)
	NotFound                               // no such agent, address, capability or session
	Unsupported                            // no common version, suite or term, or an unknown critical option
	Unauthenticated                        // a signature, certificate or address proof that does not hold
	Replayed                               // a message seen before, or outside its time window
	KeyExpired                             // a key certificate outside its validity
	KeySuperseded                          // a key certificate older than one seen before
	KeyRevoked                             // a key certificate that its agent revoked
	AmbiguousAddress                       // two agents prove one address
	NoCommonSchema                         // no schema version in common and no translation
	NoCompliantPath                        // policy leaves no path
	PolicyViolation                        // a session ended by policy
	TrustRevoked                           // a session ended because trust was withdrawn
	InvalidRequest                         // the request breaks the capability's schema
	InvalidResponse                        // the handler's response breaks the capability's schema
	HandlerUnavailable                     // the handler could not be reached: the request had no effect (retry)
	HandlerFailed                          // the handler ran and failed
	DeadlineExceeded                       // no answer within the deadline
	Cancelled                              // the asking side gave up
	Unreachable                            // no path to the peer (retry)
	SessionClosed                          // the session ended before an answer (retry)
	InvalidArgument                        // a local request that makes no sense as it is
	IllegalTransition                      // a move that the state does not allow
	AlreadyExists                          // what should be made is there
)

var names = [...]string{
	"internal", "malformed", "too_large", "denied", "resource_exhausted", "not_found", "unsupported",
	"unauthenticated", "replayed", "key_expired", "key_superseded", "key_revoked", "ambiguous_address",
	"no_common_schema", "no_compliant_path", "policy_violation", "trust_revoked", "invalid_request",
	"invalid_response", "handler_unavailable", "handler_failed", "deadline_exceeded", "cancelled",
	"unreachable", "session_closed", "invalid_argument", "illegal_transition", "already_exists",
}

// String returns the code's name, such as "handler_unavailable".
func (c Code) String() string {
	if c.Known() {
		return names[c-Internal]
	}
	return fmt.Sprintf("code_%#x", uint32(c))
}

// Known reports whether c is in the list. A code from a newer peer may not be.
func (c Code) Known() bool { return c >= Internal && int(c-Internal) < len(names) }

// Error makes a Code usable as an error.
func (c Code) Error() string { return c.String() }

// Retry reports whether the same request may succeed later or elsewhere, and
// is known to have had no effect.
func (c Code) Retry() bool {
	switch c {
	case ResourceExhausted, HandlerUnavailable, Unreachable:
		return true
	}
	return false
}

// ParseCode returns the code with the given name.
func ParseCode(name string) (Code, bool) {
	for i, n := range names {
		if n == name {
			return Internal + Code(i), true
		}
	}
	return 0, false
}

// Codes returns the whole list, in order.
func Codes() []Code {
	cs := make([]Code, len(names))
	for i := range cs {
		cs[i] = Internal + Code(i)
	}
	return cs
}

// Error is a failure with its code and, for a person, what happened and what
// to do. Only Code and Pointers leave the node for another; the rest is for the
// local API and the log.
type Error struct {
	Code     Code
	Message  string   // what was being done and what went wrong
	Hint     string   // what to do about it; may be empty
	Pointers []string // JSON pointers (RFC 6901) to offending values
	Err      error    // cause; may be nil
}

// Errorf returns an [Error] with code c. A %w verb sets the cause.
func Errorf(c Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: c, Message: err.Error(), Err: errors.Unwrap(err)}
}

// WithHint sets what to do about the error.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

func (e *Error) Error() string {
	if e.Message == "" {
		return e.Code.String()
	}
	return e.Code.String() + ": " + e.Message
}

// Unwrap makes errors.Is find both the code and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Code}
	}
	return []error{e.Code, e.Err}
}

// CodeOf returns the code that err wraps, or Internal.
func CodeOf(err error) Code {
	var c Code
	if errors.As(err, &c) {
		return c
	}
	return Internal
}
