package grpclink

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"openmesh/protocols/wire"
)

// codeTrailer carries the name of a [wire.Code], or that there is none.
const (
	codeTrailer    = "openmesh-code"
	closedNormally = "ok"
)

// trailerOf is what a client reads a server's end of a stream from.
func trailerOf(code wire.Code) metadata.MD {
	if code == 0 {
		return metadata.Pairs(codeTrailer, closedNormally)
	}
	return metadata.Pairs(codeTrailer, code.String())
}

// statusOf is what a peer is told of err: its code and nothing else.
func statusOf(err error) (metadata.MD, error) {
	code := wire.CodeOf(err)
	switch {
	case code != wire.Internal:
	case errors.Is(err, context.DeadlineExceeded):
		code = wire.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = wire.Cancelled
	}
	return trailerOf(code), status.Error(grpcCode(code), code.String())
}

// grpcCode is what gRPC clients without our trailer, and proxies, make of c.
func grpcCode(c wire.Code) codes.Code {
	switch c {
	case wire.ResourceExhausted, wire.TooLarge:
		return codes.ResourceExhausted
	case wire.NotFound:
		return codes.NotFound
	case wire.Unsupported:
		return codes.Unimplemented
	case wire.Denied, wire.PolicyViolation, wire.TrustRevoked:
		return codes.PermissionDenied
	case wire.Unauthenticated, wire.KeyExpired, wire.KeySuperseded, wire.KeyRevoked:
		return codes.Unauthenticated
	case wire.Malformed, wire.InvalidRequest, wire.InvalidArgument:
		return codes.InvalidArgument
	case wire.DeadlineExceeded:
		return codes.DeadlineExceeded
	case wire.Cancelled:
		return codes.Canceled
	case wire.Unreachable, wire.HandlerUnavailable:
		return codes.Unavailable
	case wire.Internal:
		return codes.Internal
	}
	return codes.Aborted
}

// codeOf is the code of a call that failed: what the trailer says, if the peer
// said anything, else the nearest to gRPC's own.
func codeOf(err error, trailer metadata.MD) wire.Code {
	for _, name := range trailer.Get(codeTrailer) {
		if code, ok := wire.ParseCode(name); ok {
			return code
		}
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return wire.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return wire.Cancelled
	}
	switch status.Code(err) {
	case codes.ResourceExhausted: // a message over gRPC's limit
		return wire.TooLarge
	case codes.Internal: // a message, or frame, that gRPC cannot read
		return wire.Malformed
	case codes.Unimplemented:
		return wire.Unsupported
	case codes.DeadlineExceeded:
		return wire.DeadlineExceeded
	case codes.Canceled:
		return wire.Cancelled
	case codes.InvalidArgument:
		return wire.Malformed
	}
	return wire.Unreachable // the connection, or something on the way that is not ours
}
