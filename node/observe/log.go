package observe

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"time"

	"github.com/libp2p/go-libp2p/gologshim"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
	"go.uber.org/zap/exp/zapslog"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"

	"openmesh/protocols/wire"
)

// maxRepeats is how often one message at one level is logged in a second. The
// rest are dropped, so that a peer cannot make the log loud.
const maxRepeats = 10

// LogConfig is what a log looks like and where it goes.
type LogConfig struct {
	Level   string    // debug, info, warn or error; "" means info
	Format  string    // json, console, or auto (also ""): console if W is a terminal
	W       io.Writer // written to from many goroutines, one entry at a time
	Dropped func()    // called for each entry that is not written because it repeats; may be nil
}

// Logger makes the node's logger, and the handle by which its level can be
// changed while it is in use. Errors: wire.InvalidArgument.
func Logger(c LogConfig) (*zap.Logger, zap.AtomicLevel, error) {
	level := zap.NewAtomicLevel()
	switch c.Level {
	case "":
	case "debug", "info", "warn", "error":
		if err := level.UnmarshalText([]byte(c.Level)); err != nil {
			return nil, level, fmt.Errorf("set log level: %w", err)
		}
	default:
		return nil, level, wire.Errorf(wire.InvalidArgument, "log level %.20q: want debug, info, warn or error", c.Level)
	}
	enc, err := encoder(c.Format, c.W)
	if err != nil {
		return nil, level, err
	}
	drop := func(_ zapcore.Entry, d zapcore.SamplingDecision) {
		if d&zapcore.LogDropped != 0 && c.Dropped != nil {
			c.Dropped()
		}
	}
	core := zapcore.NewCore(enc, zapcore.Lock(zapcore.AddSync(c.W)), level)
	core = zapcore.NewSamplerWithOptions(core, time.Second, maxRepeats, 0, zapcore.SamplerHook(drop))
	return zap.New(core), level, nil
}

func encoder(format string, w io.Writer) (zapcore.Encoder, error) {
	c := zap.NewProductionEncoderConfig()
	c.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	c.EncodeDuration = zapcore.StringDurationEncoder
	if format == "" || format == "auto" {
		format = "json"
		if isTerminal(w) {
			format = "console"
		}
	}
	switch format {
	case "json":
		return zapcore.NewJSONEncoder(c), nil
	case "console":
		c.EncodeLevel = zapcore.CapitalLevelEncoder
		c.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
		return zapcore.NewConsoleEncoder(c), nil
	}
	return nil, wire.Errorf(wire.InvalidArgument, "log format %.20q: want auto, json or console", format)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// RouteLibp2p sends what libp2p logs at min or above to log; warn is a good
// minimum, for libp2p's lower levels tell of every misbehaving peer. It sets a
// default of the whole process and has no effect on parts of libp2p that have
// logged before, so it is for main to call, once, before any host is made.
func RouteLibp2p(log *zap.Logger, min zapcore.Level) {
	gologshim.SetDefaultHandler(libp2pHandler(log, min))
}

func libp2pHandler(log *zap.Logger, min zapcore.Level) slog.Handler {
	core := log.Core()
	enabled := zap.LevelEnablerFunc(func(l zapcore.Level) bool { return l >= min && core.Enabled(l) })
	raised, err := zapcore.NewIncreaseLevelCore(core, enabled)
	if err != nil { // cannot be: enabled asks core itself
		raised = core
	}
	const never = slog.Level(math.MaxInt)
	return parts{zapslog.NewHandler(raised, zapslog.AddStacktraceAt(never))}
}

// parts is the handler from which each part of libp2p takes its own.
type parts struct{ slog.Handler }

// WithAttrs returns the handler of a part, which it names with the attribute logger. What
// the part warns of with each stranger that hangs up, or sends nonsense, is no news.
func (p parts) WithAttrs(attrs []slog.Attr) slog.Handler {
	part := p.Handler.WithAttrs(attrs)
	for _, a := range attrs {
		if a.Key == "logger" && a.Value.String() == "net/identify" {
			return errorsOnly{part}
		}
	}
	return part
}

// errorsOnly leaves out what is less than an error.
type errorsOnly struct{ slog.Handler }

// Enabled implements [slog.Handler].
func (h errorsOnly) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelError && h.Handler.Enabled(ctx, l)
}

// TraceField is the log field that names the trace of ctx, if it has one.
func TraceField(ctx context.Context) zap.Field {
	if sc := trace.SpanContextFromContext(ctx); sc.HasTraceID() {
		return zap.Stringer("trace", sc.TraceID())
	}
	return zap.Skip()
}
