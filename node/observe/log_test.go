package observe

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/gologshim"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"openmesh/protocols/wire"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newLogger logs as JSON into the buffer.
func newLogger(t testing.TB, c LogConfig) (*zap.Logger, zap.AtomicLevel, *bytes.Buffer) {
	t.Helper()
	var buf bytes.Buffer
	c.W, c.Format = &buf, "json"
	log, level, err := Logger(c)
	check(t, err)
	return log, level, &buf
}

func TestLoggerFormats(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ format, want string }{
		{"", `"msg":"hello"`}, {"auto", `"msg":"hello"`}, {"json", `"msg":"hello"`}, {"console", "INFO\thello\t{\"n\": 1}\n"},
	} {
		var buf bytes.Buffer
		log, _, err := Logger(LogConfig{Format: tc.format, W: &buf})
		check(t, err)
		log.Info("hello", zap.Int("n", 1))
		log.Debug("not at level info")
		if !strings.Contains(buf.String(), tc.want) || strings.Count(buf.String(), "\n") != 1 {
			t.Errorf("format %q logs %q, want %q", tc.format, buf.String(), tc.want)
		}
	}
	for _, c := range []LogConfig{{Level: "loud"}, {Level: "fatal"}, {Format: "xml"}} {
		c.W = new(bytes.Buffer)
		if _, _, err := Logger(c); !errors.Is(err, wire.InvalidArgument) {
			t.Errorf("%+v: %v, want invalid_argument", c, err)
		}
	}
}

func TestLevelChangesWhileInUse(t *testing.T) {
	t.Parallel()
	log, level, buf := newLogger(t, LogConfig{Level: "error"})
	log.Info("before")
	level.SetLevel(zap.DebugLevel)
	log.Debug("after")
	if s := buf.String(); strings.Contains(s, "before") || !strings.Contains(s, "after") {
		t.Errorf("logged %s", s)
	}
}

// A message that repeats is cut off, others are not, and a second later it may
// come again.
func TestRepeatsAreDropped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dropped := 0
		log, _, buf := newLogger(t, LogConfig{Dropped: func() { dropped++ }})
		for range 1000 {
			log.Warn("peer sent nonsense")
		}
		log.Warn("another matter")
		if n := strings.Count(buf.String(), "nonsense"); n != maxRepeats || dropped != 1000-maxRepeats || !strings.Contains(buf.String(), "another matter") {
			t.Errorf("%d of 1000 logged, %d dropped", n, dropped)
		}
		<-time.After(time.Second)
		log.Warn("peer sent nonsense")
		if n := strings.Count(buf.String(), "nonsense"); n != maxRepeats+1 {
			t.Errorf("%d logged after a second", n)
		}
	})
}

// The one test that sets libp2p's default.
func TestLibp2pLogsThroughZap(t *testing.T) {
	log, level, buf := newLogger(t, LogConfig{Level: "debug"})
	RouteLibp2p(log, zap.WarnLevel)
	sub := gologshim.Logger("swarm9")
	sub.Info("too much detail")
	sub.Warn("dial failed", "peer", "p1", slog.Group("addr", "port", 4747))
	sub.Error("broken")
	identify := gologshim.Logger("net/identify")
	identify.Warn("failed to identify peer")
	level.SetLevel(zap.ErrorLevel)
	sub.Warn("not now")

	lines := strings.Split(strings.TrimSpace(buf.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("logged %q", lines)
	}
	var entry struct {
		Level, Msg, Logger, Peer string
		Addr                     struct{ Port int }
	}
	check(t, json.Unmarshal([]byte(lines[0]), &entry))
	if entry.Level != "warn" || entry.Msg != "dial failed" || entry.Logger != "swarm9" || entry.Peer != "p1" || entry.Addr.Port != 4747 {
		t.Errorf("logged %+v", entry)
	}
	if strings.Contains(lines[1], "stacktrace") {
		t.Errorf("a stack trace in %s", lines[1])
	}
}

// libp2p cannot be louder than the log it is routed to, whatever is asked.
func TestLibp2pLevelIsTheHigherOfTwo(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		log  string
		min  zapcore.Level
		at   slog.Level
		want bool
	}{
		{"info", zap.WarnLevel, slog.LevelInfo, false},
		{"info", zap.WarnLevel, slog.LevelWarn, true},
		{"error", zap.WarnLevel, slog.LevelWarn, false},
		{"error", zap.DebugLevel, slog.LevelError, true},
		{"debug", zap.DebugLevel, slog.LevelDebug, true},
	} {
		log, _, _ := newLogger(t, LogConfig{Level: tc.log})
		if got := libp2pHandler(log, tc.min).Enabled(t.Context(), tc.at); got != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}

func TestTraceField(t *testing.T) {
	t.Parallel()
	log, _, buf := newLogger(t, LogConfig{})
	log.Info("outside", TraceField(t.Context()))
	ctx, _ := new(Tracer).Start(t.Context(), "x")
	log.Info("inside", TraceField(ctx))
	id := trace.SpanContextFromContext(ctx).TraceID().String()
	if s := buf.String(); strings.Count(s, `"trace"`) != 1 || !strings.Contains(s, `"trace":"`+id) {
		t.Errorf("logged %s, want trace %s once", s, id)
	}
}
