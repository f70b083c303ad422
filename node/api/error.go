package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"

	"connectrpc.com/connect"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/protocols/wire"
)

// ErrNotRunning reports that no daemon serves a home, or that it went away
// during a call.
var ErrNotRunning = errors.New("the daemon is not running")

// connectCode is what a gRPC or Connect client without our detail makes of c.
func connectCode(c wire.Code) connect.Code {
	switch c {
	case wire.Malformed, wire.InvalidRequest, wire.InvalidArgument, wire.TooLarge:
		return connect.CodeInvalidArgument
	case wire.Denied, wire.NoCompliantPath, wire.PolicyViolation, wire.TrustRevoked,
		wire.KeyExpired, wire.KeySuperseded, wire.KeyRevoked, wire.Replayed:
		return connect.CodePermissionDenied
	case wire.Unauthenticated:
		return connect.CodeUnauthenticated
	case wire.ResourceExhausted:
		return connect.CodeResourceExhausted
	case wire.NotFound:
		return connect.CodeNotFound
	case wire.Unsupported:
		return connect.CodeUnimplemented
	case wire.AmbiguousAddress, wire.NoCommonSchema, wire.IllegalTransition:
		return connect.CodeFailedPrecondition
	case wire.InvalidResponse, wire.HandlerFailed:
		return connect.CodeUnknown
	case wire.HandlerUnavailable, wire.Unreachable:
		return connect.CodeUnavailable
	case wire.DeadlineExceeded:
		return connect.CodeDeadlineExceeded
	case wire.Cancelled:
		return connect.CodeCanceled
	case wire.SessionClosed:
		return connect.CodeAborted
	case wire.AlreadyExists:
		return connect.CodeAlreadyExists
	}
	return connect.CodeInternal
}

// wireCode is the nearest code for an error that Connect itself made.
func wireCode(c connect.Code) wire.Code {
	switch c {
	case connect.CodeInvalidArgument, connect.CodeOutOfRange:
		return wire.InvalidArgument
	case connect.CodeDeadlineExceeded:
		return wire.DeadlineExceeded
	case connect.CodeNotFound:
		return wire.NotFound
	case connect.CodeAlreadyExists:
		return wire.AlreadyExists
	case connect.CodePermissionDenied:
		return wire.Denied
	case connect.CodeResourceExhausted:
		return wire.ResourceExhausted
	case connect.CodeUnimplemented:
		return wire.Unsupported
	case connect.CodeUnavailable:
		return wire.Unreachable
	case connect.CodeUnauthenticated:
		return wire.Unauthenticated
	case connect.CodeCanceled:
		return wire.Cancelled
	}
	return wire.Internal
}

// toConnect makes of any error one that carries an openmesh.v1.Error.
func toConnect(err error) *connect.Error {
	detail := Describe(err)
	code, _ := wire.ParseCode(detail.Code)
	out := connect.NewError(connectCode(code), errors.New(detail.Message))
	if d, err := connect.NewErrorDetail(detail); err == nil { // it is a valid message
		out.AddDetail(d)
	}
	return out
}

// Describe tells what an error means to a person or a script: its code, and the
// message without it. An error of an unknown kind is internal.
func Describe(err error) *openmeshv1.Error {
	detail := &openmeshv1.Error{Code: codeOf(err).String(), Message: err.Error()}
	var known *wire.Error
	if errors.As(err, &known) {
		detail.Hint, detail.Pointers = known.Hint, known.Pointers
		if err == error(known) && known.Message != "" {
			detail.Message = known.Message // without the code, which stands beside it
		}
	}
	return detail
}

func codeOf(err error) wire.Code {
	var code wire.Code
	var foreign *connect.Error
	switch {
	case errors.As(err, &code):
		return code
	case errors.As(err, &foreign):
		return wireCode(foreign.Code())
	case errors.Is(err, context.DeadlineExceeded):
		return wire.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return wire.Cancelled
	}
	return wire.Internal
}

// fromConnect is the client's end of toConnect: what a procedure returned, as a
// [wire.Error]. It wraps ErrNotRunning if the daemon could not be asked.
func fromConnect(err error) error {
	var failed *connect.Error
	if !errors.As(err, &failed) {
		return err
	}
	for _, d := range failed.Details() {
		value, err := d.Value()
		if detail, ok := value.(*openmeshv1.Error); ok && err == nil {
			code, known := wire.ParseCode(detail.Code)
			if !known { // of a newer daemon
				code = wireCode(failed.Code())
			}
			return &wire.Error{Code: code, Message: detail.Message, Hint: detail.Hint, Pointers: detail.Pointers}
		}
	}
	out := &wire.Error{Code: wireCode(failed.Code()), Message: failed.Message()}
	if wentAway(failed) {
		out.Code, out.Message, out.Err = wire.Unreachable, "the daemon went away", fmt.Errorf("%w: %w", ErrNotRunning, err)
	}
	return out
}

// wentAway reports whether a call ended because the daemon did. For Connect a
// connection that is reset during a call was cancelled, and an answer that is cut
// off is an internal error.
func wentAway(err *connect.Error) bool {
	if connect.IsWireError(err) {
		return false
	}
	cut := func(target error) bool { return errors.Is(err, target) }
	// Where one call fails to write, net/http ends the others with an error that has
	// no name outside it.
	lost := func(text string) bool { return strings.Contains(err.Error(), text) }
	return err.Code() == connect.CodeUnavailable || slices.ContainsFunc([]error{syscall.EPIPE, syscall.ECONNRESET, io.ErrUnexpectedEOF}, cut) ||
		slices.ContainsFunc([]string{"http2: client connection force closed", "http2: client connection lost"}, lost)
}
