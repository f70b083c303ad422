package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"connectrpc.com/connect"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"openmesh/protocols/wire"
)

// serverInterceptor is around every procedure of a server.
type serverInterceptor struct{ *Server }

func (s *serverInterceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (res connect.AnyResponse, err error) {
		err = s.around(ctx, req.Spec().Procedure, req.Header(), func(ctx context.Context) error {
			res, err = next(ctx, req)
			return err
		})
		return res, err
	}
}

func (s *serverInterceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		return s.around(ctx, conn.Spec().Procedure, conn.RequestHeader(), func(ctx context.Context) error {
			ctx, cancel := s.untilEnding(ctx)
			defer cancel()
			return next(ctx, conn)
		})
	}
}

func (s *serverInterceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// around runs one call in its span, turns panics into errors and gives every
// error its detail.
func (s *Server) around(
	ctx context.Context, procedure string, header http.Header, do func(context.Context) error,
) (err error) {
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.HeaderCarrier(header))
	ctx, span := s.cfg.Tracer.Start(ctx, strings.TrimPrefix(procedure, "/"), trace.WithSpanKind(trace.SpanKindServer))
	began := time.Now()
	defer func() {
		if v := recover(); v != nil {
			if v == http.ErrAbortHandler { // net/http's own way to cut a response
				panic(v)
			}
			s.cfg.Log.Error("local api call panicked", zap.String("procedure", procedure), zap.Any("panic", v),
				zap.ByteString("stack", debug.Stack()))
			err = wire.Errorf(wire.Internal, "%s panicked", procedure).WithHint("the daemon's log has the stack")
		}
		s.account(span, procedure, began, err)
		if err != nil {
			err = toConnect(err)
		}
	}()
	return do(ctx)
}

// account ends the span and logs the call: never its content.
func (s *Server) account(span trace.Span, procedure string, began time.Time, err error) {
	fields := []zap.Field{zap.String("procedure", procedure), zap.Duration("took", time.Since(began))}
	if id := span.SpanContext().TraceID(); id.IsValid() {
		fields = append(fields, zap.Stringer("trace", id))
	}
	if err != nil {
		code := codeOf(err).String()
		fields = append(fields, zap.String("code", code))
		span.SetAttributes(attribute.String("openmesh.code", code))
		span.SetStatus(codes.Error, code)
	}
	span.End()
	class, _ := access(procedure)
	fields = append(fields, zap.Stringer("access", class))
	switch {
	case err != nil && codeOf(err) == wire.Internal:
		s.cfg.Log.Error("local api call failed", append(fields, zap.Error(err))...)
	case class == admin:
		s.cfg.Log.Info("local api call", fields...)
	default:
		s.cfg.Log.Debug("local api call", fields...)
	}
}

// clientInterceptor sends the trace along and returns errors as [wire.Error].
type clientInterceptor struct{ token string }

func (c *clientInterceptor) prepare(ctx context.Context, header http.Header) {
	propagation.TraceContext{}.Inject(ctx, propagation.HeaderCarrier(header))
	if c.token != "" {
		header.Set("Authorization", fmt.Sprintf("Bearer %s", c.token))
	}
}

func (c *clientInterceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		c.prepare(ctx, req.Header())
		res, err := next(ctx, req)
		if err != nil {
			return nil, fromConnect(err)
		}
		return res, nil
	}
}

func (c *clientInterceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		c.prepare(ctx, conn.RequestHeader())
		return clientStream{conn}
	}
}

func (c *clientInterceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

type clientStream struct{ connect.StreamingClientConn }

func (s clientStream) Receive(m any) error {
	err := s.StreamingClientConn.Receive(m)
	if err == nil || errors.Is(err, io.EOF) { // a message, or a clean end
		return err
	}
	return fromConnect(err)
}
