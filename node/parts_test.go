package node_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	openmeshv1 "openmesh/node/api/openmesh/v1"
	"openmesh/node/handlers"
	"openmesh/node/handlers/capability"
	"openmesh/protocols/wire"
)

// offerParts adds a capability that answers with the parts that f sends.
func (r *running) offerParts(t *testing.T, f func(ctx context.Context, body string, send func([]byte) error) error) {
	t.Helper()
	c := &capability.Capability{Name: "test/parts", Version: "1.0.0", Response: capability.Schema{JSON: []byte(`{"type":["number","string"]}`)}}
	check(t, r.Registry().AddHandler(c, handlers.HandlerFunc(func(_ context.Context, req *handlers.Request) (*handlers.Response, error) {
		return &handlers.Response{Produce: func(ctx context.Context, send func([]byte) error) error {
			return f(ctx, string(req.Body), send)
		}}, nil
	})))
}

// counting sends as many numbers as it is asked for, and then what is asked for.
func counting(ctx context.Context, body string, send func([]byte) error) error {
	var n int
	var end string
	if _, err := fmt.Sscanf(body, `{"n":%d,"end":%q}`, &n, &end); err != nil {
		return err
	}
	for i := range n {
		if err := send(fmt.Append(nil, i)); err != nil {
			return err
		}
	}
	switch end {
	case "fail":
		return errors.New("secret")
	case "invalid":
		return send([]byte(`true`))
	case "hang":
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func asking(to *running, n int, end string) *openmeshv1.CallRequest {
	return &openmeshv1.CallRequest{
		Target: string(to.keys.Agent), Capability: "test/parts", TimeoutMs: 60_000,
		Body: &openmeshv1.CallRequest_Json{Json: fmt.Sprintf(`{"n":%d,"end":%q}`, n, end)},
	}
}

// stream makes a call and returns its parts.
func (r *running) stream(t *testing.T, req *openmeshv1.CallRequest) (parts []string, final *openmeshv1.CallResponse, err error) {
	final, err = r.CallStream(t.Context(), req, func(p *openmeshv1.CallPart) error {
		parts = append(parts, p.GetJson())
		return nil
	})
	return parts, final, err
}

func TestCallInParts(t *testing.T) {
	a := start(t)
	b := start(t, a)
	a.offerParts(t, counting)
	a.offerEcho(t)
	for _, to := range []*running{a, a} { // without a session, and in one
		for _, from := range []*running{a, b} { // also of oneself
			parts, final, err := from.stream(t, asking(to, 3, ""))
			check(t, err)
			if got := strings.Join(parts, " "); got != "0 1 2" || final.Parts != 3 || final.Body != nil || final.Agent != string(to.keys.Agent) || final.ElapsedMs == 0 {
				t.Errorf("%s, %v", got, final)
			}
			whole, err := from.Call(t.Context(), asking(to, 3, ""))
			check(t, err)
			if whole.GetJson() != "[0,1,2]" || whole.Parts != 3 {
				t.Errorf("as one: %v", whole)
			}
			none, err := from.Call(t.Context(), asking(to, 0, ""))
			check(t, err)
			if none.GetJson() != "[]" {
				t.Errorf("no parts are %v", none)
			}
		}
	}
	one := asking(a, 1, "")
	one.Capability = "test/echo"
	parts, final, err := b.stream(t, one)
	check(t, err)
	if len(parts) != 1 || parts[0] != one.GetJson() || final.Parts != 0 || final.Body != nil {
		t.Errorf("one document: %q, %v", parts, final)
	}
	begin := time.Now()
	parts, final, err = b.stream(t, asking(a, 10_000, ""))
	check(t, err)
	if len(parts) != 10_000 || parts[9_999] != "9999" || final.Parts != 10_000 {
		t.Errorf("%d parts", len(parts))
	}
	t.Logf("10,000 parts in %v", time.Since(begin))
	durable := asking(a, 1, "")
	durable.Qos = "exactly-once"
	if _, _, err := b.stream(t, durable); wire.CodeOf(err) != wire.Unsupported {
		t.Errorf("parts exactly once: %v", err)
	}
	whole, err := b.Call(t.Context(), durable)
	check(t, err)
	if whole.GetJson() != "[0]" {
		t.Errorf("exactly once: %v", whole)
	}
}

func TestCallInPartsEnds(t *testing.T) {
	a := start(t)
	b := start(t, a)
	a.offerParts(t, counting)
	for end, want := range map[string]wire.Code{"fail": wire.HandlerFailed, "invalid": wire.InvalidResponse, "hang": wire.DeadlineExceeded} {
		req := asking(a, 3, end)
		if end == "hang" {
			req.TimeoutMs = 1500
		}
		parts, _, err := b.stream(t, req)
		var e *wire.Error
		if wire.CodeOf(err) != want || len(parts) != 3 || !errors.As(err, &e) || (end == "invalid") != (len(e.Pointers) == 1) {
			t.Errorf("%s: %d parts, then %+v", end, len(parts), err)
		}
		if strings.Contains(fmt.Sprint(err), "secret") {
			t.Errorf("the caller learns %v", err)
		}
		if _, err := b.Call(t.Context(), req); wire.CodeOf(err) != want {
			t.Errorf("%s as one: %v", end, err)
		}
	}
	stopped := make(chan error, 1)
	a.offerParts(t, func(_ context.Context, _ string, send func([]byte) error) error {
		long := []byte(`"` + strings.Repeat("x", 64<<10) + `"`)
		var err error
		for err == nil {
			err = send(long)
		}
		stopped <- err
		return err
	})
	_, err := b.Call(t.Context(), asking(a, 0, ""))
	var e *wire.Error
	if wire.CodeOf(err) != wire.TooLarge || !errors.As(err, &e) || !strings.Contains(e.Hint, "--stream") {
		t.Errorf("too much for one: %+v", err)
	}
	<-stopped
	ctx, cancel := context.WithCancel(t.Context())
	_, err = b.CallStream(ctx, asking(a, 0, ""), func(*openmeshv1.CallPart) error { cancel(); return nil })
	if wire.CodeOf(err) != wire.Cancelled {
		t.Errorf("cancelled: %v", err)
	}
	<-stopped
	full := errors.New("disk full")
	if _, err = b.CallStream(t.Context(), asking(a, 0, ""), func(*openmeshv1.CallPart) error { return full }); !errors.Is(err, full) {
		t.Errorf("a reader that fails: %v", err)
	}
	<-stopped
}

// Of many calls in one session the one whose reader stands still is the only one
// that does.
func TestSlowReaderHoldsUpItself(t *testing.T) {
	a := start(t)
	b := start(t, a)
	a.offerEcho(t)
	a.offerParts(t, counting)
	check(t, b.call(t.Context(), a))
	ctx, cancel := context.WithCancel(t.Context())
	reading, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := b.CallStream(ctx, asking(a, 1_000_000, ""), func(p *openmeshv1.CallPart) error {
			if p.GetJson() == "0" {
				close(reading)
			}
			<-ctx.Done()
			return ctx.Err()
		})
		ended <- err
	}()
	<-reading
	for range 200 {
		check(t, b.call(t.Context(), a))
	}
	parts, _, err := b.stream(t, asking(a, 1000, ""))
	check(t, err)
	if len(parts) != 1000 {
		t.Errorf("%d parts", len(parts))
	}
	if n := len(b.Sessions().Sessions(false)); n != 1 {
		t.Errorf("%d sessions", n)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the slow one: %v", err)
	}
}
